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
from .models.encoder_decoder import RelPosEncoderDecoderConfig, RelPosEncoderDecoderModel, register_encoder_decoder
from .models.families import CONFIG_CLASSES, MODEL_CLASSES, auto_class, register_auto_classes
from .models.publishing import PublishingMixin
from .question_answering import Answer, answer, best_spans, context_offsets, window_length
from .version import __version__

_names = {**{cls.__name__: cls for cls in CONFIG_CLASSES.values()}, **MODEL_CLASSES}
globals().update(_names)
register_auto_classes()
register_encoder_decoder()
PublishingMixin.code_exporter = staticmethod(export_code)
PublishingMixin.card_writer = staticmethod(write_default_card)

__all__ = [
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
    "encoding_card",
    "list_backends",
    "list_encodings",
    "register_encoding",
    "window_length",
    "write_model_card",
]
__all__ += list(_names)
