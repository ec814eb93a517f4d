"""Encodings and inputs that the laws run over, taken from the registry: a new method is tested without being named here."""

import dataclasses
import functools
import itertools
from typing import Any, Literal, get_args, get_origin, get_type_hints

import torch

from hf_relpos.encodings.build import build_encoding
from hf_relpos.encodings.encoding import Encoding
from hf_relpos.encodings.registry import registered_encodings

HEADS, WIDTH, HIDDEN, TABLE = 4, 8, 24, 6
# the settings that keep tables small enough for clipping to happen in the few tokens of a test
SMALL = {
    "max_distance": 9,
    "num_buckets": 8,
    "max_position_embeddings": TABLE,
    "dim": 6,
    "clamp_len": 5,
    "window": 4,
    "width": 5,
    "init_length": 4,
    "npos": 4,
    "group_size": 2,
    "kernels": 3,
    "num_bases": 3,
    "max_relative_positions": 9,
    "position_buckets": 4,
    "num_relations": 5,
    "max_position": 40,
    "scale_base": 16,
    "separator_ids": [5, 7],
}
# values of options that are neither choices nor switches, by the option's name: each is tried where a method has it
OTHERS: dict[str, list[Any]] = {
    "fraction": [0.5],
    "factor": [2.0],
    "train_length": [4],
    "bias": [None, {"type": "alibi"}],
    "rope_scaling": [
        {"rope_type": "linear", "factor": 4.0},
        {"rope_type": "ntk", "factor": 4.0},
        {"rope_type": "dynamic", "factor": 4.0},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 6},
        {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
        {
            "rope_type": "longrope",
            "factor": 4.0,
            "short_factor": [1.0, 1.1, 1.2, 1.3],
            "long_factor": [2.0, 3.0, 4.0, 5.0],
        },
    ],
}
# a table for methods that refuse texts beyond it
LARGE = {"max_position_embeddings": 80}


def variants(name: str) -> list[dict[str, Any]]:
    """``rel_pos`` values of a method: its defaults, every value of each choice and switch, and small tables."""
    cls = registered_encodings()[name]
    hints = get_type_hints(cls.Options)
    fields = {
        field.name: hints[field.name] for field in dataclasses.fields(cls.Options) if field.name != "share_layers"
    }
    small = {key: value for key, value in SMALL.items() if key in fields}
    found = [{"type": name, **small}]
    found += [{"type": name, **small, key: value} for key in OTHERS if key in fields for value in OTHERS[key]]
    for key, hint in fields.items():
        choices = get_args(hint) if get_origin(hint) is Literal else (True, False) if hint is bool else ()
        # what refuses long texts is for the bad-input tests
        choices = tuple(choice for choice in choices if choice != "error")
        found += [{"type": name, **small, key: choice} for choice in choices]
    unique = []
    for rel_pos in found:
        if rel_pos not in unique:
            unique.append(rel_pos)
    return [_long_enough(rel_pos) for rel_pos in unique]


def _long_enough(rel_pos: dict[str, Any]) -> dict[str, Any]:
    """The same with a table that holds the tests' texts, where the method refuses longer ones."""
    try:
        refuses = build(rel_pos, causal=True).max_length is not None
    except ValueError:
        return rel_pos
    return {**rel_pos, **LARGE} if refuses else rel_pos


def build(rel_pos: Any, causal: bool, dtype: torch.dtype = torch.float64) -> Encoding:
    """The encoding for the tests' attention, its parameters drawn so large that each one matters."""
    encoding = build_encoding(
        rel_pos, num_heads=HEADS, head_dim=WIDTH, hidden_size=HIDDEN, max_position_embeddings=TABLE, causal=causal
    )
    generator = torch.Generator().manual_seed(7)
    for parameter in encoding.parameters():
        # of both signs in turn, so that nothing hides behind an absolute value or a bound, and none near zero
        size = 0.2 + torch.rand(parameter.numel(), generator=generator, dtype=torch.float64)
        parameter.data.copy_((size * (-1.0) ** torch.arange(parameter.numel())).view(parameter.shape))
    return encoding.to(dtype).eval()


def initialise(encoding: torch.nn.Module) -> None:
    """Draw all parameters anew, those of parts inside included, as a model does."""
    for module in encoding.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()


@functools.cache
def _tried() -> list[tuple[Any, bool, str | None]]:
    """Every variant in a decoder and in an encoder, those that resolve to the same options once, and why it is refused if it is."""
    found: list[tuple[Any, bool, str | None]] = []
    seen = []
    for name, causal in itertools.product(registered_encodings(), (False, True)):
        for rel_pos in variants(name):
            try:
                resolved = (build(rel_pos, causal).config(), causal)
            except ValueError as error:
                found.append((rel_pos, causal, str(error)))
                continue
            if resolved not in seen:
                seen.append(resolved)
                found.append((rel_pos, causal, None))
    return found


def all_cases() -> list[Any]:
    """(rel_pos, causal) of every variant that its options allow."""
    return [(rel_pos, causal) for rel_pos, causal, refusal in _tried() if refusal is None]


def refused_cases() -> list[Any]:
    """(rel_pos, causal, message) of the variants that are refused."""
    return [case for case in _tried() if case[2] is not None]


def label(case: Any) -> str:
    """A readable test id."""
    rel_pos, causal = case
    options = "-".join(
        f"{key}={value.get('rope_type', value.get('type')) if isinstance(value, dict) else value}"
        for key, value in rel_pos.items()
        if key not in ("type", *SMALL)
    )
    return f"{rel_pos['type']}{'-' + options if options else ''}-{'causal' if causal else 'bidirectional'}"


def tensors(
    queries: int, keys: int, *, groups: int = HEADS, batch: int = 2, dtype: torch.dtype = torch.float64, seed: int = 0
):
    """Random query, key and value of the tests' attention."""
    generator = torch.Generator().manual_seed(seed)

    def draw(heads: int, length: int) -> torch.Tensor:
        return torch.randn(batch, heads, length, WIDTH, generator=generator, dtype=torch.float64).to(dtype)

    return draw(HEADS, queries), draw(groups, keys), draw(groups, keys)


def extras(
    length: int, *, batch: int = 2, dtype: torch.dtype = torch.float64, seed: int = 1
) -> dict[str, torch.Tensor]:
    """What some encodings need beyond queries and keys, for ``length`` keys that are queries too."""
    generator = torch.Generator().manual_seed(seed)
    steps = torch.rand(batch, length, generator=generator) < 0.3
    return {
        "hidden_states": torch.randn(batch, length, HIDDEN, generator=generator, dtype=torch.float64).to(dtype),
        "segment_ids": steps.long().cumsum(-1),
        "relation_ids": torch.randint(SMALL["num_relations"], (batch, length, length), generator=generator),
    }


def part_of(given: dict[str, torch.Tensor], rows: slice, cols: slice) -> dict[str, torch.Tensor]:
    """``given`` for some of the queries and keys."""
    return {name: value[:, rows, cols] if name == "relation_ids" else value[:, cols] for name, value in given.items()}


def padded(given: dict[str, torch.Tensor], left: int, right: int) -> dict[str, torch.Tensor]:
    """``given`` with junk for padding on both sides."""
    pad = torch.nn.functional.pad
    return {
        "hidden_states": pad(given["hidden_states"], (0, 0, left, right), value=7.0),
        "segment_ids": pad(given["segment_ids"], (left, right)),
        "relation_ids": pad(given["relation_ids"], (left, right, left, right), value=1),
    }
