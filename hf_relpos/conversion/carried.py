"""Positions of one checkpoint, given to another model: reading an encoding's options and parameters, and copying them into a model that has it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import AutoConfig, AutoModel
from transformers.configuration_utils import PreTrainedConfig

from ..encodings.build import legacy_encoding, parse_rel_pos
from ..encodings.spellings import SPELLINGS
from ..models.architectures import ARCHITECTURES
from ..models.families import auto_class
from ..models.loading import readable_errors
from ..models.placement import same_encodings
from ..models.routing import Site


@dataclass(frozen=True)
class Positions:
    """An encoding outside its model: its ``rel_pos``, the parameters that layers share and those of each layer, by name, and for errors the
    ``source`` and what is known of its ``size``."""

    source: str
    rel_pos: Any
    shared: Mapping[str, Tensor]
    layers: list[Mapping[str, Tensor]]
    size: str

    def merged(self, rel_pos: Any) -> Any:
        """Its ``rel_pos`` with the options that ``rel_pos`` gives (None: none); ValueError when that names other encodings."""
        if rel_pos is None:
            return self.rel_pos
        if not same_encodings(self.rel_pos, rel_pos):
            raise ValueError(f"rel_pos={rel_pos!r} is not what {self.source} has, which is {self.rel_pos!r}")
        given = {"type": rel_pos} if isinstance(rel_pos, str) else rel_pos
        if isinstance(given, dict) and isinstance(self.rel_pos, dict) and "type" in given and "type" in self.rel_pos:
            return {**self.rel_pos, **given}
        return given


def _size(config: Any) -> str:
    return f"{config.num_attention_heads} heads, hidden size {config.hidden_size}"


def foreign_positions(
    source: str, config: Any, weights: Mapping[str, Tensor], *, native: bool, causal: bool
) -> Positions:
    """The positions in the base model ``weights`` of a checkpoint of another type; ``native`` with its scale of the content score.

    Raises ValueError when they are of another kind than the type's usual ones.
    """
    spelling = SPELLINGS[config.model_type]
    rel_pos = spelling.rel_pos(config, native=native)
    shared, layers = spelling.read(config, weights, causal=causal)
    return Positions(source, rel_pos, shared, layers, _size(config))  # type: ignore[arg-type]


def read_positions(source: str, *, causal: bool) -> Positions:
    """The positions of a checkpoint (folder or Hub id) of this package, of transformers 4 with relative positions, or of a type that
    ``encodings/spellings.py`` knows; of one with an encoder and a decoder the decoder's for ``causal`` models, else the encoder's.

    Raises ValueError when it has no relative positions that are known here, OSError when it cannot be read.
    """
    stored, _ = PreTrainedConfig.get_config_dict(source)
    model_type = stored.get("model_type", "")
    with readable_errors(source):
        if model_type in SPELLINGS:
            config = AutoConfig.from_pretrained(source)
            model, info = AutoModel.from_pretrained(source, output_loading_info=True)
            weights = {key: tensor for key, tensor in model.state_dict().items() if key not in info["missing_keys"]}
            try:
                return foreign_positions(source, config, weights, native=False, causal=causal)
            except ValueError as error:
                raise ValueError(f"the positions of {source} are not known here: {error}") from None
        has_encoding = stored.get("rel_pos") or legacy_encoding(stored.get("position_embedding_type"))
        if model_type.removeprefix("relpos_") not in ARCHITECTURES or not has_encoding:
            raise ValueError(
                f"{source} holds a model of type {model_type!r} without relative positions that are known here; they are known of models "
                f"of this package and of {', '.join(sorted(SPELLINGS))}"
            )
        model = auto_class(model_type, "Model").from_pretrained(source)
    shared = getattr(model, "relpos", None)
    own = [_own(module) for module in attention_modules(model)]
    return Positions(
        source,
        model.config.rel_pos,
        {} if shared is None else shared.state_dict(),
        [{} if module is None else module.state_dict() for module in own],
        _size(model.config),
    )


def attention_modules(base: nn.Module) -> Iterator[nn.Module]:
    """The modules of a base model that encodings act on, in order."""
    for module in base.modules():
        site = getattr(module, "_relpos_site", None)
        if isinstance(site, Site) and not site.cross:
            yield module


def _own(module: nn.Module) -> nn.Module | None:
    return getattr(module, "relpos", None)


def fit_positions(model: Any, positions: Positions) -> dict[str, Tensor]:
    """The weights, by name, that the encodings of ``model`` get from ``positions``, which are of their method; ``model`` may be on the meta device.

    Where its layers have parameters of their own and the source's share them, each layer gets the shared ones. What options leave no place for stays
    behind. Raises ValueError, with both numbers, when layers, heads or widths disagree.
    """
    base = model.base_model
    modules = [(module, _own(module)) for module in attention_modules(base)]
    wanted = {name for _, own in modules if own is not None for name, _ in own.named_parameters()}
    if any(wanted & set(layer) for layer in positions.layers) and len(positions.layers) != len(modules):
        raise ValueError(
            f"{positions.source} holds positions for {len(positions.layers)} layers, the model has {len(modules)}"
        )
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found: dict[str, Tensor] = {}

    def fit(encoding: nn.Module | None, tensors: Mapping[str, Tensor]) -> None:
        for name, parameter in [] if encoding is None else encoding.named_parameters():
            tensor = tensors.get(name, tensors.get(f"shared_part.{name}"))
            if tensor is None:
                kinds = ", ".join(cls.name for cls, _ in parse_rel_pos(positions.rel_pos))
                raise ValueError(f"{positions.source} lacks the weight {name!r} of its positions ({kinds})")
            if tensor.shape != parameter.shape:
                raise ValueError(
                    f"the positions of {positions.source} do not fit the model: {name} is {list(tensor.shape)} there and "
                    f"{list(parameter.shape)} here ({positions.size} there; {_size(model.config)} here)"
                )
            found[names[id(parameter)]] = tensor.to(parameter.dtype)

    fit(getattr(base, "relpos", None), positions.shared)
    for (_, own), layer in zip(modules, positions.layers or [{} for _ in modules], strict=False):
        fit(own, {**positions.shared, **layer})
    return found
