"""What a distillation did, in words and in a picture."""

from typing import TYPE_CHECKING

from .distillation import DistillationResult

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PICTURE = "conversion-distillation.png"


def sentence(result: DistillationResult | None) -> str:
    """One sentence for a summary; nothing when nothing was distilled."""
    if result is None:
        return ""
    return (
        f" Then it was distilled: trained {result.steps} steps on {result.tokens:,} tokens of raw text to give what the original gives "
        f"({result.seconds / 60:.1f} min)."
    )


def section(result: DistillationResult, pictures: bool) -> list[str]:
    """The section of the report."""
    options = result.options
    end = (
        f"ended after {result.steps}, since {options.patience} evaluations in a row were no better"
        if result.stopped_early
        else "all taken"
    )
    by_products = "" if options.lora_rank is None else f" Matrices learned by products of rank {options.lora_rank}."
    parts = [
        "## Distillation",
        f"{options.steps} steps of about {options.tokens:,} tokens ({end}), the original as teacher at up to {result.length} tokens, {options.beyond:.0%} of the steps on longer texts. The "
        f"first {options.first_steps} steps left matrices alone. Peak learning rates: {options.learning_rate:g} of weights, {options.encoding_rate:g} of the encoding.{by_products} Kept: the weights of "
        f"step {result.best_step}. Below: the mean loss since the row above, and the similarity to the original on texts that were held out ({result.measure}), by length "
        f"in tokens; lengths over {result.length} were read by the original in parts.",
    ]
    columns = list(result.evaluations[0].similarity)
    names = list(result.evaluations[-1].losses)
    rows = [["step", "loss", *names, *map(str, columns), "mean"]]
    rows.append(["---"] * len(rows[0]))
    for one in result.evaluations:
        losses = [one.loss, *(one.losses.get(name) for name in names)]
        rows.append(
            [
                str(one.step),
                *("" if value is None else f"{value:.4f}" for value in losses),
                *(f"{one.similarity[length]:.4f}" for length in columns),
                f"{one.score:.4f}",
            ]
        )
    parts.append("\n".join(f"| {' | '.join(row)} |" for row in rows))
    if pictures:
        parts.append(f"![Loss and similarity over steps]({PICTURE})")
    return parts


def curves(result: DistillationResult) -> "Figure":
    """Loss, and similarity by length, over steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    trained = [one for one in result.evaluations if one.loss is not None]
    steps = [one.step for one in trained]
    left.plot(steps, [one.loss for one in trained], color="black", label="loss")
    for name in result.evaluations[-1].losses:
        left.plot(steps, [one.losses[name] for one in trained], linewidth=1, label=name)
    for length in result.evaluations[0].similarity:
        right.plot(
            [one.step for one in result.evaluations],
            [one.similarity[length] for one in result.evaluations],
            label=f"{length} tokens",
        )
    right.axvline(result.best_step, color="grey", linewidth=0.8, linestyle=":")
    left.set(xlabel="step", ylabel="mean loss since the last evaluation", yscale="log")
    right.set(xlabel="step", ylabel=result.measure)
    for axes in (left, right):
        axes.legend(fontsize="x-small")
        axes.tick_params(labelsize="x-small")
    return figure
