"""Which method runs where, found by asking: backends for their objections to a small call, families whether it can be laid out in a small model of theirs."""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from .attention.backends import BACKENDS
from .encodings.build import build_encoding, list_encodings
from .models.architectures import ARCHITECTURES
from .models.placement import host_of, lay_out
from .probe import call_of_alike_tokens

HEADS, WIDTH, LENGTH, LAYERS = 4, 8, 12, 2
DIRECTIONS = {"decoder": True, "encoder": False}


@dataclass(frozen=True)
class Answer:
    """What a backend or a family (``kind``) called ``name`` says to a method in a decoder or an encoder (``where``): reasons not to run it, none if it does.
    ``note``: what must be known of a backend wherever it runs."""

    method: str
    kind: str
    name: str
    where: str
    reasons: tuple[str, ...]
    note: str = ""

    @property
    def ok(self) -> bool:
        """Whether it runs."""
        return not self.reasons

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return {**asdict(self), "ok": self.ok, "reasons": list(self.reasons)}


def backend_answers(method: str) -> list[Answer]:
    """What each backend says to ``method`` with its default options, without gradients on a CPU, in a decoder and in an encoder."""
    found = []
    for where, causal in DIRECTIONS.items():
        try:
            encoding = build_encoding(
                method, num_heads=HEADS, head_dim=WIDTH, max_position_embeddings=LENGTH, causal=causal
            ).eval()
            call = call_of_alike_tokens(encoding, length=LENGTH)
        except ValueError as error:
            found += [
                Answer(method, "backend", name, where, (str(error),), backend.note)
                for name, backend in BACKENDS.items()
            ]
            continue
        with torch.no_grad():
            found += [
                Answer(method, "backend", name, where, tuple(backend.objections(call)), backend.note)
                for name, backend in BACKENDS.items()
            ]
    return found


def tiny_config(family: str) -> Any:
    """A config of a small model of a family, of transformers' own class."""
    config_class: Any = CONFIG_MAPPING[family]
    return config_class(
        hidden_size=HEADS * WIDTH,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS // 2,
        head_dim=WIDTH,
        num_hidden_layers=LAYERS,
        max_position_embeddings=LENGTH,
    )


def family_answers(method: str) -> list[Answer]:
    """Whether ``method`` with its default options can be laid out in a small model of each family."""
    found = []
    for family, spec in ARCHITECTURES.items():
        host = host_of(tiny_config(family), spec)
        try:
            lay_out({"type": method}, host, LAYERS)
            reasons: tuple[str, ...] = ()
        except ValueError as error:
            reasons = (str(error),)
        found.append(Answer(method, "family", family, "decoder" if host.causal else "encoder", reasons))
    return found


def matrix() -> list[Answer]:
    """All answers, method by method."""
    return [answer for method in list_encodings() for answer in (*backend_answers(method), *family_answers(method))]


def columns(answers: list[Answer]) -> list[tuple[str, str]]:
    """Kind and name of each backend and family in the order they were asked."""
    return list(dict.fromkeys((answer.kind, answer.name) for answer in answers))


def cell(answers: list[Answer], method: str, column: tuple[str, str]) -> str:
    """ "yes", "no", or the kind of model where it runs."""
    asked = [answer for answer in answers if answer.method == method and (answer.kind, answer.name) == column]
    able = [answer.where for answer in asked if answer.ok]
    return "no" if not able else "yes" if len(able) == len(asked) else able[0]


def notes(answers: list[Answer]) -> dict[str, str]:
    """What must be known of the backends that were asked, by name."""
    return {answer.name: answer.note for answer in answers if answer.note}


def refusals(answers: list[Answer]) -> dict[str, list[str]]:
    """Each reason not to run, with the methods and places that it is given for."""
    found: dict[tuple[str, str], dict[str, list[str]]] = {}
    for answer in answers:
        for reason in answer.reasons:
            methods = found.setdefault((answer.name, reason), {})
            methods.setdefault(answer.method, []).append(answer.where)
    return {
        f"{name}: {reason}": [
            method if len(set(places)) == 2 else f"{method} ({places[0]})" for method, places in methods.items()
        ]
        for (name, reason), methods in found.items()
    }
