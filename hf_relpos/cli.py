"""The command line: ``hf-relpos list | show | convert | export``.

Exit status 0: done. 1: the thing asked for failed, one line says why. 2: wrong usage.
"""

import json
import sys
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
def show(name: Annotated[str, typer.Argument(help="A method's name.")], as_json: AsJson = False) -> None:
    """Show a method: formula, options with defaults, properties, citation."""
    import dataclasses

    from .encodings.build import encoding_class

    cls = encoding_class(name)
    card, options = cls.card, cls.Options().to_dict()
    if as_json:
        values = {**dataclasses.asdict(card), "bibtex": card.bibtex}
        typer.echo(json.dumps({"name": name, "options": options, **values}))
        return
    typer.echo(f"{name}: {card.title} ({card.year}{', arXiv ' + card.arxiv if card.arxiv else ''})")
    typer.echo(f"formula: {card.formula}")
    typer.echo(f"depends on: {card.depends_on}; direction: {card.directions}; beyond training: {card.beyond_training}")
    typer.echo("options: " + ", ".join(f"{key}={value!r}" for key, value in options.items()))
    typer.echo(card.bibtex)


@app.command()
def convert(
    source: Annotated[str, typer.Argument(help="Folder or Hub id of a model.")],
    target: Annotated[Path, typer.Argument(help="Folder to write.")],
    rel_pos: Annotated[
        str | None,
        typer.Option("--rel-pos", help="Method name or JSON; not needed where the checkpoint has relative positions."),
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
    as_json: AsJson = False,
) -> None:
    """Give a pretrained model relative positions, keeping its head, and say what was kept, dropped and created."""
    from .conversion.convert import convert_checkpoint

    report = convert_checkpoint(
        source,
        target,
        rel_pos=None if rel_pos is None else parse_value(rel_pos),
        absolute=absolute,
        head=head,
        positions_from=positions_from,
    )
    if as_json:
        typer.echo(json.dumps(report.to_dict()))
        return
    typer.echo(report.summary())


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
    except (ValueError, OSError, RuntimeError, TypeError) as error:
        typer.echo(f"hf-relpos: {' '.join(str(error).split())}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
