"""Linear maps as raw Parameters: their usual initialisation and their use in the precision of the input."""

from torch import Tensor, nn


def init_linear(weight: Tensor, bias: Tensor | None = None, *, fan_in: int | None = None) -> None:
    """Draw ``weight`` ``[..., out, in]`` and ``bias`` from U(-1/sqrt(fan_in), 1/sqrt(fan_in)), as ``torch.nn.Linear`` does; ``fan_in`` is ``in`` unless an
    output reads more numbers than that, as a convolution's do."""
    bound = (weight.shape[-1] if fan_in is None else fan_in) ** -0.5
    nn.init.uniform_(weight, -bound, bound)
    if bias is not None:
        nn.init.uniform_(bias, -bound, bound)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``weight x + bias`` in the dtype of ``x`` ``[..., in]``."""
    return nn.functional.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))
