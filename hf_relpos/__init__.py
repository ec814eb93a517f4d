"""Relative positional encodings for Hugging Face Transformers models.

Importing the package registers its model classes with transformers' Auto classes. Their files are imported when a class is used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .attention.backends import list_backends as list_backends
from .attention.functional import attention as attention
from .encodings.build import build_encoding as build_encoding
from .encodings.build import encoding_card as encoding_card
from .encodings.build import list_encodings as list_encodings
from .encodings.card import Card as Card
from .encodings.encoding import Encoding as Encoding
from .encodings.registry import register_encoding as register_encoding
from .question_answering import Answer as Answer
from .question_answering import answer as answer
from .question_answering import best_spans as best_spans
from .question_answering import context_offsets as context_offsets
from .question_answering import window_length as window_length
from .registration import class_named, register
from .version import __version__ as __version__

if TYPE_CHECKING:
    from .conversion.add import add_relative_positions as add_relative_positions
    from .conversion.convert import convert_checkpoint as convert_checkpoint
    from .hub.model_card import write_model_card as write_model_card
    from .models.families import auto_class as auto_class

# what needs transformers' modeling code, by the file where it stands; the classes RelPos... are found by their names
_LATER = {
    "add_relative_positions": "conversion.add",
    "convert_checkpoint": "conversion.convert",
    "auto_class": "models.families",
    "write_model_card": "hub.model_card",
}
_PUBLIC = [
    "Answer",
    "Card",
    "Encoding",
    "RelPosEncoderDecoderConfig",
    "RelPosEncoderDecoderModel",
    "__version__",
    "add_relative_positions",
    "answer",
    "attention",
    "auto_class",
    "best_spans",
    "build_encoding",
    "context_offsets",
    "convert_checkpoint",
    "encoding_card",
    "list_backends",
    "list_encodings",
    "register_encoding",
    "window_length",
    "write_model_card",
]

register()


def _public_names() -> list[str]:
    from .models.families import CONFIG_CLASSES, MODEL_CLASSES

    return _PUBLIC + [cls.__name__ for cls in CONFIG_CLASSES.values()] + list(MODEL_CLASSES)


def __getattr__(name: str) -> Any:
    if name == "__all__":
        return _public_names()
    found = getattr(import_module(f"{__name__}.{_LATER[name]}"), name) if name in _LATER else class_named(name)
    if found is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_public_names()})
