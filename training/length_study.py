"""Train the same small decoder with several kinds of positions on short rows, and measure its perplexity on long ones.

    python training/length_study.py --config training/configs/length_wikitext2.yaml --train_file TRAIN.txt.gz --validation_file VALIDATION.txt.gz \\
        --output_dir outputs/length

Writes to ``output_dir``: length.md (tables), length.json (all numbers), length.svg and length.png (perplexity against length), and a folder for each
method. They are brought up to date after each method. A study that was interrupted goes on when the command is given again: a method that is done is not trained anew.
"""

import dataclasses
import json
import platform
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import generation
import torch
import transformers
from accelerate import Accelerator
from arguments import as_scalars, option, parse_mapping
from checkpoints import METRICS, RunError, newest_checkpoint, on_main_process, replace_text
from generation import GenerationArguments
from loop import make_accelerator
from models import load_tokenizer
from script import Task, main, run
from tokenizing import KINDS
from transformers.models.distilbert.modeling_distilbert import create_sinusoidal_embeddings

import hf_relpos
from hf_relpos.plots import save_plot

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# perplexity at the longest length over that at the length of training
FLAT, EXPLODING = 1.1, 2.0
STUDY, TABLE, NUMBERS, PICTURES = "study.json", "length.md", "length.json", ("length.svg", "length.png")


@dataclass(frozen=True)
class Method:
    """An encoding in place of the model's table of positions, or without one, what is in the table; ``says`` in words."""

    says: str
    rel_pos: str | None = None
    # learned, and as long as training rows; long: as the longest, of which training reaches the first part; sinusoid: fixed
    table: str = "learned"


METHODS = {
    "none": Method("no positions, order is seen through the causal mask alone", "none"),
    "sinusoidal_absolute": Method("fixed sinusoids added to the embeddings", table="sinusoid"),
    "learned_absolute": Method("a learned table, as long as the rows of training", table="learned"),
    "learned_absolute_long": Method(
        "a learned table for the longest rows, untrained beyond those of training", table="long"
    ),
    "t5": Method("T5's bias by buckets of distance", "t5"),
    "alibi": Method("ALiBi", "alibi"),
    "kerple_log": Method("KERPLE, logarithmic", "kerple_log"),
    "rope": Method("rotary", "rope"),
    "sinusoidal_bias": Method("a learned combination of sinusoids of the distance", "sinusoidal_bias"),
}
# what the papers say: KERPLE (arXiv 2205.09921) and ALiBi (arXiv 2108.12409) of themselves, of rotary and of sinusoidal positions
PUBLISHED = {"kerple_log": "flat", "alibi": "flat", "rope": "exploding", "sinusoidal_absolute": "exploding"}


@dataclass
class LengthStudyArguments(GenerationArguments):
    """What the study must be told: a text generation task, and the methods to compare."""

    methods: str = option(",".join(METHODS), "which to compare, comma-separated; also the name of any encoding")
    from_scratch: bool = option(True, "train new weights, as the study must", "model")
    tokenizer: str | None = option(
        "bpe", f"folder or Hub id, or trained on the training texts: {', '.join(KINDS)}", "model"
    )
    max_length: int = option(128, "tokens of a training row")
    eval_lengths: str | None = option("256,512,1024,2048", "perplexity also in rows of these lengths", "evaluation")
    output_dir: str = option("outputs/length", "folder for tables, plot, and a folder for each method", "saving")
    tracker: str = option("none", "accelerate's name of a tracker, or none", "saving")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("rel_pos", "absolute"):
            self.need(name, getattr(self, name) is None, "left out: methods says which positions there are")
        self.need("from_scratch", self.from_scratch, "true")
        self.need("format", self.format == "text", "text")
        if not self.chosen:
            raise ValueError(f"methods={self.methods!r} names none; valid: {', '.join(METHODS)}, or any encoding")

    @property
    def chosen(self) -> dict[str, Method]:
        """The methods by name, in the order given; ValueError for one that is unknown."""
        names = dict.fromkeys(name.strip() for name in self.methods.split(",") if name.strip())
        for name in names:
            if name not in METHODS:
                hf_relpos.encoding_card(name)
        return {name: METHODS.get(name) or Method(hf_relpos.encoding_card(name).title, name) for name in names}


def prepare(arguments: LengthStudyArguments, accelerator: Accelerator) -> Task:
    """The task for one method, the only one that ``arguments`` name."""
    (method,) = arguments.chosen.values()
    longest = arguments.max_length if method.table == "learned" else arguments.lengths[-1]
    sizes = {**parse_mapping("model_config", arguments.model_config), "max_position_embeddings": longest}
    given = {field.name: getattr(arguments, field.name) for field in dataclasses.fields(GenerationArguments)}
    given |= {"rel_pos": method.rel_pos, "absolute": method.rel_pos and "drop", "model_config": json.dumps(sizes)}
    task = generation.prepare(GenerationArguments(**given), accelerator)
    if method.table == "sinusoid":
        fix_sinusoids(task.model)
    return task


def fix_sinusoids(model: Any) -> None:
    """Put fixed sinusoids into a GPT-2's table of positions; :class:`RunError` for a model without such a table.

    They are as large beside its token embeddings as in Vaswani et al. 2017 (arXiv 1706.03762), where embeddings drawn from N(0, 1/d) are multiplied by
    sqrt(d) and meet waves of size 1: here embeddings are drawn from N(0, initializer_range²) and not multiplied, so the waves are.
    """
    table = getattr(model.base_model, "wpe", None)
    if table is None:
        raise RunError("sinusoidal_absolute needs a model with GPT-2's table of positions: use model=gpt2")
    waves = torch.empty(table.weight.shape)
    create_sinusoidal_embeddings(*table.weight.shape, out=waves)
    with torch.no_grad():
        table.weight.copy_(model.config.initializer_range * waves)
    table.weight.requires_grad_(False)


def study(arguments: LengthStudyArguments, prepare: Callable[[Any, Accelerator], Task]) -> None:
    """Train and measure each method that is not done, and write what is known after each; :class:`RunError` when something is in the way."""
    arguments.check_sources()
    _figure()
    accelerator = make_accelerator(arguments)
    folder = Path(arguments.output_dir)
    on_main_process(lambda: _begin(folder, arguments))
    tokenizer = arguments.tokenizer
    if tokenizer in KINDS:
        tokenizer = str(folder / "tokenizer")
        on_main_process(lambda: _train_tokenizer(Path(tokenizer), arguments))
    for number, (name, method) in enumerate(arguments.chosen.items(), 1):
        place = folder / name
        if (place / METRICS).exists():
            accelerator.print(f"{name}: is done")
            continue
        accelerator.print(f"{name} ({number} of {len(arguments.chosen)}): {method.says}")
        # what has no checkpoint is begun anew
        resume = newest_checkpoint(place) is not None
        again = dataclasses.replace(
            arguments,
            methods=name,
            tokenizer=tokenizer,
            output_dir=str(place),
            resume=resume,
            overwrite_output_dir=not resume,
        )
        started = time.perf_counter()
        run(again, prepare)
        seconds = None if resume else time.perf_counter() - started
        on_main_process(lambda: _remember(folder, name, seconds))  # noqa: B023
        on_main_process(lambda: write_study(folder, arguments))
    on_main_process(lambda: write_study(folder, arguments))
    accelerator.print((folder / TABLE).read_text(encoding="utf-8"))
    accelerator.print(f"written to {folder}")


def _begin(folder: Path, arguments: LengthStudyArguments) -> None:
    """Make the folder that of this study, or :class:`RunError` when it is that of another."""
    if arguments.overwrite_output_dir and folder.is_dir():
        shutil.rmtree(folder)
    identity = {name: value for name, value in arguments.identity().items() if name not in ("methods", "output_dir")}
    # through JSON, as the other one
    identity = json.loads(
        json.dumps({**identity, **{f"{part} data": arguments.rows_identity(part) for part in ("train", "validation")}})
    )
    if not (folder / STUDY).exists():
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise RunError(
                f"output_dir={folder} is not empty and holds no study: use --overwrite_output_dir true to empty it"
            )
        folder.mkdir(parents=True, exist_ok=True)
        replace_text(folder / STUDY, json.dumps({"identity": identity, "seconds": {}}, indent=1) + "\n")
        return
    before = json.loads((folder / STUDY).read_text(encoding="utf-8"))["identity"]
    changed = [
        f"{name} was {before.get(name)!r} and is {identity.get(name)!r}"
        for name in sorted({*before, *identity})
        if before.get(name) != identity.get(name)
    ]
    if changed:
        raise RunError(f"output_dir={folder} holds another study: {'; '.join(changed)}")


def _train_tokenizer(place: Path, arguments: LengthStudyArguments) -> None:
    """Once for all methods."""
    if place.exists():
        return
    unfinished = place.with_name(".tokenizer")
    load_tokenizer(arguments, lambda: arguments.texts("train")).save_pretrained(unfinished)
    unfinished.rename(place)


def _remember(folder: Path, name: str, seconds: float | None) -> None:
    stored = json.loads((folder / STUDY).read_text(encoding="utf-8"))
    stored["seconds"][name] = seconds and round(seconds, 1)
    replace_text(folder / STUDY, json.dumps(stored, indent=1) + "\n")


def collect(folder: Path, arguments: LengthStudyArguments) -> dict[str, Any]:
    """All that is known of the study in ``folder``, as it goes into length.json."""
    seconds = json.loads((folder / STUDY).read_text(encoding="utf-8"))["seconds"]
    found: dict[str, Any] = {}
    for name, method in arguments.chosen.items():
        if not (folder / name / METRICS).exists():
            continue
        details = json.loads((folder / name / "predictions.json").read_text(encoding="utf-8"))["lengths"]
        found[name] = {"says": method.says, "seconds": seconds.get(name), "lengths": details}
        known = {int(length): entry["perplexity"] for length, entry in details.items()}
        last = arguments.lengths[-1]
        found[name]["growth"] = known[last] / known[arguments.max_length] if last in known else None
    return {
        "environment": {
            "processor": platform.processor() or platform.machine(),
            "Python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "hf_relpos": hf_relpos.__version__,
        },
        "settings": {name: value for name, value in as_scalars(arguments).items() if not name.endswith("_file")},
        "methods": found,
        "published": judge({name: entry["growth"] for name, entry in found.items()}),
    }


def kind_of(growth: float | None) -> str:
    """What a perplexity that grows by this factor is called."""
    if growth is None:
        return "cannot"
    return "flat" if growth <= FLAT else "exploding" if growth >= EXPLODING else "rising"


def judge(growth: dict[str, float | None]) -> str:
    """Whether the published ordering is reproduced, in a sentence, from the factors by which perplexity grows."""
    claim = "The published ordering (KERPLE and ALiBi flat, rotary and sinusoidal absolute exploding)"
    missing = [name for name in PUBLISHED if growth.get(name) is None]
    if missing:
        return f"{claim} cannot be judged: not measured: {', '.join(missing)}."
    known = {name: float(growth[name] or 0) for name in PUBLISHED}
    other = [
        f"{name} is {kind_of(known[name])} (×{known[name]:.2f}), not {wanted}"
        for name, wanted in PUBLISHED.items()
        if kind_of(known[name]) != wanted
    ]
    numbers = ", ".join(f"{name} ×{value:.2f}" for name, value in known.items())
    if not other:
        return f"{claim} is reproduced: {numbers}."
    flat, exploding = (
        [known[name] for name, wanted in PUBLISHED.items() if wanted == kind] for kind in ("flat", "exploding")
    )
    order = "holds" if max(flat) < min(exploding) else "does not hold"
    return f"{claim} is not reproduced: {'; '.join(other)}. Its order, the two before the two, {order}: {numbers}."


def write_study(folder: Path, arguments: LengthStudyArguments) -> None:
    """Write tables, numbers and plot of what is done."""
    known = collect(folder, arguments)
    replace_text(folder / NUMBERS, json.dumps(known, indent=1) + "\n")
    replace_text(folder / TABLE, tables(known, arguments))
    if known["methods"]:
        figure = draw(known, arguments)
        for name in PICTURES:
            save_plot(figure, folder / name)


def tables(known: dict[str, Any], arguments: LengthStudyArguments) -> str:
    """Perplexity by length and by place, how both were measured, and the judgement, as Markdown."""
    methods, size = known["methods"], arguments.max_length
    lengths, last = arguments.lengths, str(arguments.lengths[-1])
    scored = next((entry["tokens"] for method in methods.values() for entry in method["lengths"].values()), 0)

    def number(entry: dict[str, Any] | None) -> str:
        if entry is None:
            return "cannot"
        value = entry["perplexity"]
        return f"{value:.1f}" if value < 1e5 else f"{value:.1e}"

    def table(head: list[str], rows: list[list[str]]) -> list[str]:
        return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]

    by_length = [
        [
            f"`{name}`",
            *(number(method["lengths"].get(str(length))) for length in lengths),
            "" if method["growth"] is None else f"×{method['growth']:.2f}",
            kind_of(method["growth"]),
        ]
        for name, method in methods.items()
    ]
    places = [(2**b, min(2 ** (b + 1), lengths[-1]) - 1) for b in range((lengths[-1] - 1).bit_length())]
    by_place = [
        [
            f"`{name}`",
            *(
                number({entry["from"]: entry for entry in method["lengths"][last]["positions"]}.get(first))
                for first, _ in places
            ),
        ]
        for name, method in methods.items()
        if last in method["lengths"]
    ]
    lines = [
        f"Perplexity of a token on {arguments.dataset_name} of models trained on rows of {size} tokens, by the length of the rows that are read.",
        "",
        *table(["trained with", *map(str, lengths), f"{last} / {size}", ""], by_length),
        "",
        f"At each length the same {scored} tokens are scored. The text is cut into rows of that length, one after the other; nothing is seen of the rows before. Each "
        f"{lengths[0]}th token is left out at all lengths, since it begins a row of {lengths[0]}. Flat: at most ×{FLAT}, exploding: at least ×{EXPLODING:.0f}, rising: between. "
        "Cannot: the table of positions ends before.",
        "",
        known["published"],
        "",
        f"By place in rows of {last} tokens: how many tokens stand before those that are scored.",
        "",
        *table(["trained with", *(f"{a}–{b}" if a < b else str(a) for a, b in places)], by_place),
        "",
        *(f"- `{name}`: {method['says']}" for name, method in methods.items()),
    ]
    return "\n".join(lines) + "\n"


def _figure() -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise RunError("the plot needs matplotlib: pip install 'hf-relpos[plots]'") from None
    return Figure


def draw(known: dict[str, Any], arguments: LengthStudyArguments) -> "Figure":
    """Perplexity against length, both logarithmic; a line ends where a method cannot read on."""
    figure = _figure()(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for number, (name, method) in enumerate(known["methods"].items()):
        points = sorted((int(length), entry["perplexity"]) for length, entry in method["lengths"].items())
        axes.plot(*zip(*points, strict=True), marker="ovsD^xP*<>"[number % 10], markersize=4, linewidth=1.2, label=name)
    axes.axvline(arguments.max_length, color="black", linewidth=0.6, linestyle=":")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(arguments.lengths, [str(length) for length in arguments.lengths])
    axes.set_xlabel(f"tokens of a row; training: {arguments.max_length}")
    axes.set_ylabel(f"perplexity, {arguments.dataset_name}")
    axes.legend(fontsize="x-small", frameon=False)
    return figure


if __name__ == "__main__":
    main(LengthStudyArguments, prepare, __doc__, study)
