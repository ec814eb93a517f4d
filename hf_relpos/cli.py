"""The command line: ``hf-relpos list | show | matrix | convert | doctor | export``.

Exit status 0: done. 1: the thing asked for failed, one line says why. 2: wrong usage.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    add_completion=False, no_args_is_help=True, help="Relative positional encodings for Hugging Face models."
)
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def parse_value(text: str) -> Any:
    """A ``--rel-pos`` value: JSON, or the bare name of a method."""
    if text.lstrip()[:1] in ("{", "["):
        try:
            return json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"--rel-pos is not valid JSON: {error}") from None
    return {"type": text}


@app.command("list")
def list_command(as_json: AsJson = False) -> None:
    """List the methods."""
    from .encodings.build import encoding_card, list_encodings

    rows = [(name, encoding_card(name)) for name in list_encodings()]
    if as_json:
        typer.echo(
            json.dumps(
                [{"name": name, "formula": card.formula, "year": card.year, "arxiv": card.arxiv} for name, card in rows]
            )
        )
        return
    width = max(len(name) for name, _ in rows)
    for name, card in rows:
        typer.echo(f"{name:<{width}}  {card.formula}")


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="One method: its name, or JSON with its options.")],
    plot: Annotated[
        Path | None, typer.Option(help="Write the picture of what it adds to scores to this .png or .svg file.")
    ] = None,
    length: Annotated[int, typer.Option(min=2, help="Tokens of the texts that the picture is computed for.")] = 64,
    as_json: AsJson = False,
) -> None:
    """Show a method: formula, options with defaults and valid values, properties, citation, and what it adds to scores by distance."""
    import dataclasses

    from .encodings.options import option_table
    from .encodings.registry import parse_part

    rel_pos = parse_value(name)
    cls, options = parse_part(rel_pos)
    card, values, table = cls.card, options.to_dict(), option_table(cls.Options)
    if plot is not None:
        from .plots import plot_encoding, save_plot

        save_plot(plot_encoding(rel_pos, length=length), plot)
    if as_json:
        valid = {option: allowed for option, _, allowed in table}
        rest = {**dataclasses.asdict(card), "bibtex": card.bibtex}
        typer.echo(json.dumps({"name": cls.name, "options": values, "valid": valid, **rest}))
        return
    from .pictures import pictures, text_of

    typer.echo(f"{cls.name}: {card.title} ({card.year}{', arXiv ' + card.arxiv if card.arxiv else ''})")
    typer.echo(f"formula: {card.formula}")
    typer.echo(f"depends on: {card.depends_on}; made for: {card.directions}; beyond training: {card.beyond_training}")
    typer.echo("options:")
    rows = [(option, json.dumps(values.get(option)), allowed) for option, _, allowed in table]
    print_table(rows, indent=2)
    typer.echo(card.bibtex)
    found = pictures(rel_pos, length=length)
    how = "parameters drawn at random" if found[0].drawn else "freshly initialised"
    typer.echo(f"added to the score of alike tokens, {how}:")
    for picture in found:
        typer.echo("\n".join(text_of(picture)))


def print_table(rows: Sequence[tuple[str, ...]], indent: int = 0) -> None:
    """Print rows with their columns aligned."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        typer.echo(
            " " * indent + "  ".join(f"{text:<{width}}" for text, width in zip(row, widths, strict=True)).rstrip()
        )


@app.command("matrix")
def matrix_command(as_json: AsJson = False) -> None:
    """Which method runs in which backend and family, by asking each of them, and the reasons where it does not."""
    from .matrix import cell, columns, matrix, notes, refusals

    answers = matrix()
    if as_json:
        typer.echo(json.dumps([answer.to_dict() for answer in answers]))
        return
    asked = columns(answers)
    methods = dict.fromkeys(answer.method for answer in answers)
    print_table(
        [("", *(name for _, name in asked))]
        + [(method, *(cell(answers, method, column) for column in asked)) for method in methods]
    )
    for name, note in notes(answers).items():
        typer.echo(f"\n{name}: {note}")
    for reason, refused in refusals(answers).items():
        typer.echo(f"\n{reason}\n  {', '.join(refused)}")


@app.command()
def convert(
    source: Annotated[str, typer.Argument(help="Folder or Hub id of a model.")],
    target: Annotated[Path, typer.Argument(help="Folder to write.")],
    rel_pos: Annotated[
        str | None,
        typer.Option(
            "--rel-pos",
            help="Method name or JSON, lists and layers too; not needed where the checkpoint has relative positions. With --fit also auto: try several.",
        ),
    ] = None,
    absolute: Annotated[str | None, typer.Option(help="keep or drop the model's own positions.")] = None,
    head: Annotated[
        str | None, typer.Option(help="Head to load, such as QuestionAnswering; the checkpoint's own unless given.")
    ] = None,
    positions_from: Annotated[
        str | None,
        typer.Option(
            "--positions-from", help="Checkpoint whose trained positions the model gets; names the method too."
        ),
    ] = None,
    fit: Annotated[
        Path | None,
        typer.Option(
            help="Raw text, a file or a folder: fit the encoding to the attention of the model with its own positions, which are then dropped. No training."
        ),
    ] = None,
    fit_tokens: Annotated[int | None, typer.Option("--fit-tokens", min=1, help="Tokens of text to fit on.")] = None,
    fit_length: Annotated[
        int | None, typer.Option("--fit-length", help="Tokens of the longest texts; what the model reads, at most 512.")
    ] = None,
    distil_steps: Annotated[
        int | None,
        typer.Option(
            "--distil-steps",
            help="After the fit, train so many steps on the same text, the original being the teacher. accelerate launch -m hf_relpos.cli ... for GPUs or several processes.",
        ),
    ] = None,
    distil_tokens: Annotated[int | None, typer.Option("--distil-tokens", help="Tokens of a step.")] = None,
    distil_length: Annotated[
        int | None, typer.Option("--distil-length", help="Tokens of the longest texts that the original reads.")
    ] = None,
    distil_rate: Annotated[float | None, typer.Option("--distil-rate", help="Learning rate of weights.")] = None,
    distil_encoding_rate: Annotated[
        float | None, typer.Option("--distil-encoding-rate", help="Learning rate of the encoding.")
    ] = None,
    distil_lora_rank: Annotated[
        int | None,
        typer.Option("--distil-lora-rank", help="Train matrices by products of this rank (LoRA), instead of whole."),
    ] = None,
    distil_precision: Annotated[
        str | None,
        typer.Option(
            "--distil-precision", help="float32 or bfloat16, of activations; bfloat16 where the CPU computes in it."
        ),
    ] = None,
    distil_seed: Annotated[int | None, typer.Option("--distil-seed", help="Which texts, in which order.")] = None,
    distil_checkpoint: Annotated[
        Path | None,
        typer.Option(
            "--distil-checkpoint",
            help="Folder for how far it is: the same command goes on from there. Removed when the model is written.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Give a pretrained model relative positions, or make one whose positions are known here (DeBERTa, MPNet, BLOOM, MPT, Falcon) a model of this package;
    its head is kept. Says what was kept, dropped and created."""
    from .conversion.convert import convert_checkpoint
    from .conversion.processes import is_first

    given = {
        "tokens": distil_tokens,
        "length": distil_length,
        "learning_rate": distil_rate,
        "encoding_rate": distil_encoding_rate,
        "lora_rank": distil_lora_rank,
        "precision": distil_precision,
        "seed": distil_seed,
    }
    distil_options = {name: value for name, value in given.items() if value is not None}
    report = convert_checkpoint(
        source,
        target,
        rel_pos=None if rel_pos is None else parse_value(rel_pos),
        absolute=absolute,
        head=head,
        positions_from=positions_from,
        fit=fit,
        **({} if fit_tokens is None else {"fit_tokens": fit_tokens}),
        fit_length=fit_length,
        distil_steps=distil_steps,
        distil_options=distil_options or None,
        distil_checkpoint=distil_checkpoint,
        progress=lambda message: typer.echo(message, err=True),
    )
    if is_first():
        typer.echo(json.dumps(report.to_dict()) if as_json else report.summary())


@app.command()
def doctor(
    source: Annotated[str, typer.Argument(help="Folder or Hub id of a model.")], as_json: AsJson = False
) -> None:
    """Look at a checkpoint without loading it: what it is, what would become of it here, and whether its weights fit its config."""
    from .conversion.doctor import examine

    found = examine(source)
    if as_json:
        typer.echo(json.dumps(found.to_dict()))
    else:
        for sentence in found.says:
            typer.echo(sentence)
    if found.problem is not None:
        raise ValueError(found.problem)


@app.command()
def export(
    model: Annotated[str, typer.Argument(help="Folder or Hub id of a model of this package.")],
    folder: Annotated[Path, typer.Argument(help="Folder to write.")],
    as_json: AsJson = False,
) -> None:
    """Write a model with the code along, so that it loads with trust_remote_code where this package is not installed."""
    from .conversion.convert import export_checkpoint

    files = export_checkpoint(model, folder)
    typer.echo(json.dumps(files) if as_json else f"wrote {len(files)} files to {folder}")


def main() -> None:
    """Entry point; turns the exceptions of the package into one line and exit status 1."""
    try:
        app()
    except (ValueError, OSError, RuntimeError, TypeError, ImportError) as error:
        typer.echo(f"hf-relpos: {' '.join(str(error).split())}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
