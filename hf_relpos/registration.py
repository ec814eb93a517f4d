"""What importing the package makes known to transformers, without importing a single file of models.

``AutoConfig`` is told of each model type by a class that stands in for the config class and becomes it when it is used. Every config that comes
into being has transformers' other Auto classes told of its family's models, so that whoever holds a config can have its model.
"""

from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from transformers import AutoConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from .models.architectures import ARCHITECTURES
from .models.first_use import FirstUse
from .models.publishing import PublishingMixin

PREFIX = "relpos_"
SEQ2SEQ = "encoder_decoder"
# the name of each config class, made from the host's, by the file of its family
CONFIG_NAMES = {
    **{family: f"RelPos{CONFIG_MAPPING_NAMES[family]}" for family in ARCHITECTURES},
    SEQ2SEQ: "RelPosEncoderDecoderConfig",
}

_known: set[str] = set()


def family_module(name: str) -> ModuleType:
    """The module with the classes of the family ``name``."""
    return import_module(f"{__package__}.models.{name}")


def class_named(name: str) -> Any:
    """The config or model class called ``name``; None when no family has it."""
    prefixes = {config.removesuffix("Config"): family for family, config in CONFIG_NAMES.items()}
    fitting = [prefix for prefix in prefixes if name.startswith(prefix)]
    return getattr(family_module(prefixes[max(fitting, key=len)]), name, None) if fitting else None


class _Deferred:
    """Stands in for the config class of a family, whose file is imported when the class is used."""

    family: str

    @classmethod
    def resolve(cls) -> Any:
        """The config class itself."""
        return getattr(family_module(cls.family), cls.__name__)

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        return cls.resolve()(*args, **kwargs)

    @classmethod
    def from_dict(cls, *args: Any, **kwargs: Any) -> Any:
        return cls.resolve().from_dict(*args, **kwargs)

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        return cls.resolve().from_pretrained(*args, **kwargs)


def register_family(config_class: Any) -> None:
    """Make transformers' Auto classes know the family whose config class is ``config_class`` or one that it extends."""
    name = config_class.model_type.removeprefix(PREFIX)
    if name in _known or name not in CONFIG_NAMES:
        return
    _known.add(name)
    module = family_module(name)
    own = getattr(module, CONFIG_NAMES[name])
    AutoConfig.register(own.model_type, own, exist_ok=True)
    if name == SEQ2SEQ:
        from transformers import AutoModelForSeq2SeqLM

        AutoModelForSeq2SeqLM.register(own, module.RelPosEncoderDecoderModel, exist_ok=True)
        return
    from .models.auto_classes import AUTO_CLASSES, head_of, models_in

    for cls in models_in(module).values():
        if (head := head_of(cls)) is not None:
            AUTO_CLASSES[head].register(own, cls, exist_ok=True)


def _export(model: Any, folder: Path) -> Any:
    from .hub.exporter import export_code

    return export_code(model, folder)


def _write_card(model: Any, folder: Path) -> None:
    from .hub.model_card import write_default_card

    write_default_card(model, folder)


def register() -> None:
    """Register all model types, and have models carry code and a card when they are saved."""
    for family, name in CONFIG_NAMES.items():
        model_type = f"{PREFIX}{family}"
        standing_in = type(name, (_Deferred,), {"family": family, "model_type": model_type, "__module__": __name__})
        AutoConfig.register(model_type, standing_in, exist_ok=True)
    FirstUse.listener = staticmethod(register_family)
    PublishingMixin.code_exporter = staticmethod(_export)
    PublishingMixin.card_writer = staticmethod(_write_card)
