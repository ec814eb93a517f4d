"""Encodings and inputs that the laws run over, taken from the registry: a new method is tested without being named here."""

import dataclasses
import itertools
from typing import Any, Literal, get_args, get_origin, get_type_hints

import torch

from hf_relpos.encodings.build import build_encoding
from hf_relpos.encodings.encoding import Encoding, registered_encodings

HEADS, WIDTH, HIDDEN, TABLE = 4, 8, 24, 6
# the settings that keep tables small enough for clipping to happen in the few tokens of a test
SMALL = {"max_distance": 9, "num_buckets": 8, "max_position_embeddings": TABLE, "dim": 6, "clamp_len": 5}


def variants(name: str) -> list[dict[str, Any]]:
    """``rel_pos`` values of a method: its defaults, every value of each choice and switch, and small tables."""
    cls = registered_encodings()[name]
    hints = get_type_hints(cls.Options)
    fields = {
        field.name: hints[field.name] for field in dataclasses.fields(cls.Options) if field.name != "share_layers"
    }
    small = {key: value for key, value in SMALL.items() if key in fields}
    found = [{"type": name, **small}]
    if "fraction" in fields:
        found.append({"type": name, **small, "fraction": 0.5})
    for key, hint in fields.items():
        choices = get_args(hint) if get_origin(hint) is Literal else (True, False) if hint is bool else ()
        # what refuses long texts is for the bad-input tests
        choices = tuple(choice for choice in choices if choice != "error")
        found += [{"type": name, **small, key: choice} for choice in choices]
    unique = []
    for rel_pos in found:
        if rel_pos not in unique:
            unique.append(rel_pos)
    return unique


def build(rel_pos: Any, causal: bool, dtype: torch.dtype = torch.float64) -> Encoding:
    """The encoding for the tests' attention, its parameters drawn so large that each one matters."""
    encoding = build_encoding(
        rel_pos, num_heads=HEADS, head_dim=WIDTH, hidden_size=HIDDEN, max_position_embeddings=TABLE, causal=causal
    )
    for parameter in encoding.parameters():
        torch.nn.init.uniform_(parameter, 0.2, 1.2)
    return encoding.to(dtype)


def all_cases() -> list[Any]:
    """(rel_pos, causal) of every variant that its options allow; refused combinations are the business of the bad-input tests."""
    cases = []
    for name, causal in itertools.product(registered_encodings(), (False, True)):
        for rel_pos in variants(name):
            try:
                build(rel_pos, causal)
            except ValueError:
                continue
            cases.append((rel_pos, causal))
    return cases


def label(case: Any) -> str:
    """A readable test id."""
    rel_pos, causal = case
    options = "-".join(f"{key}={value}" for key, value in rel_pos.items() if key not in ("type", *SMALL))
    return f"{rel_pos['type']}{'-' + options if options else ''}-{'causal' if causal else 'bidirectional'}"


def tensors(
    queries: int, keys: int, *, groups: int = HEADS, batch: int = 2, dtype: torch.dtype = torch.float64, seed: int = 0
):
    """Random query, key and value of the tests' attention."""
    generator = torch.Generator().manual_seed(seed)

    def draw(heads: int, length: int) -> torch.Tensor:
        return torch.randn(batch, heads, length, WIDTH, generator=generator, dtype=torch.float64).to(dtype)

    return draw(HEADS, queries), draw(groups, keys), draw(groups, keys)
