"""The model card: what a model is, how its positions work, how it was trained, what it scored, how to load it."""

import json
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers import AutoModel

from ..encodings.build import named_methods, parse_rel_pos
from ..encodings.card import Card
from ..models.architectures import is_causal
from ..models.encoder_decoder import loaders_of, parts_of
from ..models.upload import CARD, MODEL_ID

# the Hub's names of tasks, where an Auto class stands for one
_TASKS = {
    "AutoModelForQuestionAnswering": "question-answering",
    "AutoModelForSequenceClassification": "text-classification",
    "AutoModelForTokenClassification": "token-classification",
    "AutoModelForMaskedLM": "fill-mask",
    "AutoModelForCausalLM": "text-generation",
    "AutoModelForMultipleChoice": "multiple-choice",
}

_TEMPLATE = """---
{card_data}
---

# {title}

{description}

## Positions

{positions}

## Training

{training}

## Results

{results}
{conversion}
## How to load

With [hf_relpos](https://pypi.org/project/hf-relpos/) installed:

```python
import hf_relpos
from transformers import {auto}

model = {auto}.from_pretrained("{model_id}")
```

Without it, by the code that comes along:

```python
from transformers import {auto}

model = {auto}.from_pretrained("{model_id}", trust_remote_code=True)
```

## Citation

```bibtex
{bibtex}
```
"""


def render_model_card(
    model: Any,
    *,
    task: str | None = None,
    dataset: str | None = None,
    metrics: dict[str, float] | None = None,
    training: dict[str, Any] | None = None,
    model_id: str = MODEL_ID,
    title: str | None = None,
    conversion: str | None = None,
) -> str:
    """The card of ``model`` as Markdown with the Hub's metadata on top.

    ``task`` is a Hub task such as "question-answering" (from the model's head unless given), ``metrics`` are numbers by name, ``training``
    the settings worth telling. ``model_id`` is what the reader passes to ``from_pretrained``; a push fills in the repository's unless given.
    ``title`` is its last part unless given, or the model's class. ``conversion``, when given, tells how it was made of another model.
    """
    config, cls = model.config, type(model)
    title = title or (model_id.rstrip("/").rpartition("/")[2] if model_id != MODEL_ID else cls.__name__)
    loader = next((name for name, known in loaders_of(config).items() if known is cls), AutoModel.__name__)
    task = task or _TASKS.get(loader)
    sides = parts_of(config)
    methods = [method for part in sides.values() for method, _ in named_methods(part.rel_pos)]
    numbers = {name: value for name, value in (metrics or {}).items() if isinstance(value, (int, float))}
    results = [
        EvalResult(task_type=task, dataset_type=dataset, dataset_name=dataset, metric_type=name, metric_value=value)
        for name, value in numbers.items()
        if task and dataset
    ]
    data = ModelCardData(
        library_name="transformers",
        tags=["hf_relpos", "relative-position", *dict.fromkeys(method.name for method in methods)],
        pipeline_tag=task,
        model_name=title if results else None,
        eval_results=results or None,
    )
    return _TEMPLATE.format(
        card_data=data.to_yaml(),
        title=title,
        description=f"A `{cls.__name__}`: {config.model_type.removeprefix('relpos_')} with relative positions."
        + (f" Task: {task}." if task else ""),
        positions="\n\n".join(_positions(side, part) for side, part in sides.items()),
        training=_table(training, "setting") if training else "Not told.",
        results=(f"On {dataset}:\n\n" if dataset else "") + _table(numbers, "metric") if numbers else "Not measured.",
        conversion=f"\n## Conversion\n\n{conversion}\n" if conversion else "",
        auto=loader,
        model_id=model_id,
        bibtex="\n\n".join(dict.fromkeys(method.card.bibtex for method in methods)),
    )


def _made_for(card: Card, causal: bool) -> str:
    """A sentence where a model uses a method in another direction than its authors."""
    if card.directions == "causal" and not causal:
        return " Its authors define it for decoders; this encoder uses its symmetric form (option `direction` where there is one)."
    if card.directions == "bidirectional" and causal:
        return " Its authors define it for encoders; this decoder uses the part that looks back."
    return ""


def _positions(side: str, config: Any) -> str:
    parts = [f"### {side.capitalize()}"] if side else []
    causal = is_causal(config)
    for method, options in parse_rel_pos(config.rel_pos):
        card = method.card
        source = f"arXiv [{card.arxiv}](https://arxiv.org/abs/{card.arxiv})" if card.arxiv else card.venue
        settings = json.dumps({key: value for key, value in options.to_dict().items() if value is not None})
        parts.append(
            f"**{method.name}**: {card.title} ({card.year}, {source}).\n\n    {card.formula}\n\n"
            f"Options: `{settings}`. Beyond the lengths seen in training: {card.beyond_training}.{_made_for(card, causal)}"
        )
    own = "are kept beside it" if config.absolute == "keep" else "are dropped"
    return "\n\n".join([*parts, f'The host\'s own positions {own} (`absolute="{config.absolute}"`).'])


def _table(values: dict[str, Any], what: str) -> str:
    rows = [f"| {name} | {f'{value:.4g}' if isinstance(value, float) else value} |" for name, value in values.items()]
    return "\n".join((f"| {what} | value |", "| --- | --- |", *rows))


def write_model_card(
    model: Any, folder: str | Path, *, task: str, dataset: str, metrics: dict[str, float], training: dict[str, Any]
) -> Path:
    """Write the card of a trained model to ``folder/README.md`` and return its path."""
    path = Path(folder) / CARD
    text = render_model_card(
        model, task=task, dataset=dataset, metrics=metrics, training=training, title=Path(folder).resolve().name
    )
    ModelCard(text).save(path)
    return path


def write_default_card(model: Any, folder: Path, conversion: str | None = None) -> None:
    """Write a card without results to ``folder``; ``conversion``, when given, tells how the model was made of another."""
    ModelCard(render_model_card(model, conversion=conversion)).save(folder / CARD)
