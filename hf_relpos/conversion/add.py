"""Giving relative positions to a model that is already in memory."""

from typing import Any

import torch

from ..encodings.build import RelPos, parse_rel_pos
from ..models.architectures import architecture
from ..models.families import CONFIG_CLASSES, MODEL_CLASSES, host_class
from ..models.model_inputs import example_inputs
from ..models.neutral import check_absolute
from ..models.placement import host_of, lay_out
from ..models.routing import PREFIX, Site, implementation_name


def add_relative_positions(model: Any, rel_pos: RelPos, *, absolute: str) -> Any:
    """Turn a transformers model into the class of this package that extends its own, in place, and return it.

    ``rel_pos`` names the encoding, which starts freshly initialised; ``absolute`` ("keep" or "drop") says what becomes of the model's own
    positions. The model gets a new config; the one it came with is untouched. All other weights are kept.

    Raises ValueError for an unsupported model (saying why), a bad ``rel_pos`` or ``absolute``; RuntimeError when a trial run shows that
    the model's attention does not come by. The model is not touched when its inputs are refused.
    """
    check_absolute(absolute)
    parse_rel_pos(rel_pos)
    old = getattr(model, "config", None)
    if old is None or not hasattr(old, "model_type"):
        raise ValueError(f"{type(model).__name__} is not a transformers model: it has no config")
    if old.model_type.startswith("relpos_"):
        raise ValueError(f"{type(model).__name__} has relative positions already: {old.rel_pos}")
    spec = architecture(old.model_type)
    target = next((cls for cls in MODEL_CLASSES.values() if host_class(cls) is type(model)), None)
    if target is None:
        known = sorted(
            host_class(cls).__name__
            for cls in MODEL_CLASSES.values()
            if cls.config_class.model_type == f"relpos_{old.model_type}"
        )
        raise ValueError(
            f"{type(model).__name__} is not a supported class of {old.model_type}; supported: {', '.join(known)}"
        )

    values = {key: value for key, value in old.to_dict().items() if key not in ("model_type", "transformers_version")}
    config = CONFIG_CLASSES[f"relpos_{spec.model_type}"](**{**values, "rel_pos": rel_pos, "absolute": absolute})
    config._attn_implementation = implementation_name("eager" if old._attn_implementation == "eager" else None)
    layers = sum(type(module).__name__ in spec.self_attention for module in model.modules())
    lay_out(config.rel_pos, host_of(config, spec), layers)

    reference = next(model.parameters())
    training = model.training
    for module in model.modules():
        if getattr(module, "config", None) is old:
            module.config = config
    model.__class__ = target
    model.relpos_attach()
    for name, module in model.named_modules():
        if name.rpartition(".")[2] == "relpos":
            module.to(device=reference.device, dtype=reference.dtype)
    model.train(training)
    if reference.device.type != "meta":
        check_routing(model)
    return model


class _Witness(Site):
    """A site that notes in ``seen`` that it was called."""

    def __init__(self, site: Site, name: str, seen: set[str]):
        self.__dict__.update(site.__dict__)
        self.name = name
        self.seen = seen

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.seen.add(self.name)
        return super().__call__(*args, **kwargs)


def check_routing(model: Any) -> None:
    """Run two tokens through ``model`` and raise RuntimeError unless every attention module that has an encoding used it."""
    base = model.base_model
    sites = {
        name: (module, site)
        for name, module in base.named_modules()
        if isinstance(site := getattr(module, "_relpos_site", None), Site)
    }
    waiting = {name for name, (_, site) in sites.items() if not site.cross}
    seen: set[str] = set()

    training = model.training
    try:
        for name, (module, site) in sites.items():
            module._relpos_site = _Witness(site, name, seen)  # type: ignore[assignment]
        with torch.no_grad():
            model.eval()
            ids = torch.zeros(1, 2, dtype=torch.long, device=next(model.parameters()).device)
            base(input_ids=ids, **example_inputs(base, ids))
    finally:
        for module, site in sites.values():
            module._relpos_site = site  # type: ignore[assignment]
        model.train(training)
    if waiting - seen:
        raise RuntimeError(
            f"{type(model).__name__} never called the {PREFIX} attention in {', '.join(sorted(waiting - seen))}: its relative positions "
            "would be silently ignored"
        )
