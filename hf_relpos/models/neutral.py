"""Taking a host's own positions away, so that they are really gone and not merely zero for some lengths."""

from typing import Any

import torch
from torch import Tensor, nn

from .architectures import ArchSpec

ABSOLUTE = ("keep", "drop")


def check_absolute(absolute: Any) -> None:
    """Raise ValueError unless ``absolute`` is "keep" or "drop"."""
    if absolute not in ABSOLUTE:
        raise ValueError(f"absolute={absolute!r} is not valid; valid: {', '.join(map(repr, ABSOLUTE))}")


class NoPosition(nn.Module):
    """Stands where a table of absolute positions was: adds nothing, at any length, whatever it is called with."""

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        device = next((value.device for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
        return torch.zeros((), device=device)


class NoRotary(nn.Module):
    """Stands where rotary angles were computed: cosine 1 and sine 0 for ``width`` coordinates."""

    def __init__(self, width: int):
        super().__init__()
        self.width = width

    def forward(self, x: Tensor, position_ids: Tensor | None = None, **kwargs: Any) -> tuple[Tensor, Tensor]:
        shape = (1, x.shape[1], self.width)
        return torch.ones(shape, dtype=x.dtype, device=x.device), torch.zeros(shape, dtype=x.dtype, device=x.device)

    def extra_repr(self) -> str:
        return str(self.width)


def _fill_ids(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Pre-hook of an embeddings module: give it the ids that it would cut out of buffers as long as the lost table."""
    kwargs = {
        **dict(zip(("input_ids", "token_type_ids", "position_ids", "inputs_embeds"), args, strict=False)),
        **kwargs,
    }
    ids = kwargs.get("input_ids")
    if ids is None:
        ids = kwargs["inputs_embeds"][..., 0]
    if kwargs.get("token_type_ids") is None:
        kwargs["token_type_ids"] = torch.zeros(ids.shape, dtype=torch.long, device=ids.device)
    kwargs["position_ids"] = torch.zeros(1, 1, dtype=torch.long, device=ids.device)
    return (), kwargs


def drop_positions(base: nn.Module, spec: ArchSpec) -> None:
    """Replace the module that gives ``base`` its own positions by one that gives none."""
    parent_path, _, name = spec.position_module.rpartition(".")
    parent = base.get_submodule(parent_path)
    native = getattr(parent, name)
    if isinstance(native, (NoPosition, NoRotary)):
        return
    if spec.native == "rotary":
        # one frequency turns a pair of coordinates
        setattr(parent, name, NoRotary(2 * native.inv_freq.shape[0]))
        return
    setattr(parent, name, NoPosition())
    if spec.embeddings is not None:
        base.get_submodule(spec.embeddings).register_forward_pre_hook(_fill_ids, with_kwargs=True)


def position_weights(spec: ArchSpec) -> list[str]:
    """Patterns of the checkpoint keys that a model without its own positions has no use for."""
    return [spec.position_module.replace(".", r"\.") + r"\.weight"] if spec.native == "table" else []
