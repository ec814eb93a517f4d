"""Relative positional encodings for Hugging Face Transformers models.

Importing the package registers its model classes with transformers' Auto classes.
"""

from .attention.backends import list_backends
from .attention.functional import attention
from .conversion.add import add_relative_positions
from .encodings.build import build_encoding, encoding_card, list_encodings
from .encodings.card import Card
from .encodings.encoding import Encoding, register_encoding
from .hub.exporter import export_code
from .hub.model_card import write_default_card, write_model_card
from .models.families import CONFIG_CLASSES, MODEL_CLASSES, auto_class, register_auto_classes
from .models.mixin import RelPosMixin
from .question_answering import Answer, answer, best_spans, context_offsets
from .version import __version__

_names = {**{cls.__name__: cls for cls in CONFIG_CLASSES.values()}, **MODEL_CLASSES}
globals().update(_names)
register_auto_classes()
RelPosMixin.code_exporter = staticmethod(export_code)
RelPosMixin.card_writer = staticmethod(write_default_card)

__all__ = [
    "Answer",
    "Card",
    "Encoding",
    "__version__",
    "add_relative_positions",
    "answer",
    "attention",
    "auto_class",
    "best_spans",
    "build_encoding",
    "context_offsets",
    "encoding_card",
    "list_backends",
    "list_encodings",
    "register_encoding",
    "write_model_card",
]
__all__ += list(_names)
