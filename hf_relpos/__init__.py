"""Relative positional encodings for Hugging Face Transformers models."""

from .attention.backends import list_backends
from .attention.functional import attention
from .encodings.build import build_encoding
from .encodings.card import Card
from .encodings.encoding import register_encoding
from .models.families import CONFIG_CLASSES, MODEL_CLASSES, auto_class, register_auto_classes
from .version import __version__

globals().update(MODEL_CLASSES)
globals().update({cls.__name__: cls for cls in CONFIG_CLASSES.values()})
register_auto_classes()
