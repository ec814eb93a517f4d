"""Rotation of queries and keys by given angles, for every method of RoPE's family.

``layout="half"`` pairs coordinates ``(x_k, x_{k + rd/2})`` as Llama and GPT-NeoX do, ``"interleaved"`` pairs ``(x_2k, x_2k+1)`` as RoFormer and
GPT-J do.
"""

from typing import Literal

import torch
from torch import Tensor

Layout = Literal["half", "interleaved"]


def rotate(x: Tensor, phase: Tensor, layout: Layout, gain: float | Tensor = 1.0) -> Tensor:
    """``x`` ``[B, H, T, D]`` with pair ``k`` of its leading coordinates turned by ``phase[..., k]`` radians and multiplied by ``gain``.

    ``phase`` is ``[B|1, T, rd / 2]``; the other ``D - rd`` coordinates stay as they are. ``gain`` is a number or broadcasts against ``phase``.
    """
    rotated = 2 * phase.shape[-1]
    dtype = torch.promote_types(x.dtype, torch.float32)
    cos, sin = ((wave * gain)[:, None].to(dtype) for wave in (phase.cos(), phase.sin()))
    part, rest = x[..., :rotated].to(dtype), x[..., rotated:]
    first, second = part.chunk(2, dim=-1) if layout == "half" else (part[..., 0::2], part[..., 1::2])
    turned = (first * cos - second * sin, second * cos + first * sin)
    part = torch.cat(turned, dim=-1) if layout == "half" else torch.stack(turned, dim=-1).flatten(-2)
    return torch.cat((part.to(x.dtype), rest), dim=-1)


def content_scores(query: Tensor, key: Tensor, scale: float) -> Tensor:
    """``scale * q_i . k_j`` for every pair ``[B, H, Tq, Tk]`` in float32 at least, from ``query`` and ``key`` of as many heads."""
    dtype = torch.promote_types(query.dtype, torch.float32)
    return (query @ key.transpose(-1, -2)).to(dtype) * scale


def require_even(head_dim: int) -> None:
    """ValueError unless all of ``head_dim`` coordinates form pairs."""
    if head_dim % 2:
        raise ValueError(f"coordinates rotate in pairs, but head_dim={head_dim} is odd")
