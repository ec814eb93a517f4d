"""Which of transformers' Auto classes loads which model class."""

import inspect
from types import ModuleType
from typing import Any

from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForMultipleChoice,
    AutoModelForNextSentencePrediction,
    AutoModelForPreTraining,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from .first_use import FirstUse

AUTO_CLASSES: dict[str, Any] = {
    "Model": AutoModel,
    "ForPreTraining": AutoModelForPreTraining,
    "ForMaskedLM": AutoModelForMaskedLM,
    "ForCausalLM": AutoModelForCausalLM,
    "ForNextSentencePrediction": AutoModelForNextSentencePrediction,
    "ForSequenceClassification": AutoModelForSequenceClassification,
    "ForMultipleChoice": AutoModelForMultipleChoice,
    "ForTokenClassification": AutoModelForTokenClassification,
    "ForQuestionAnswering": AutoModelForQuestionAnswering,
}


def head_of(cls: Any) -> str | None:
    """The key of ``AUTO_CLASSES`` that a model class belongs to, or None: transformers has no Auto class for GPT-2 with two heads."""
    if cls.relpos_base_class is None:
        return "Model"
    return next((head for head in AUTO_CLASSES if head != "Model" and cls.__name__.endswith(head)), None)


def config_in(module: ModuleType) -> Any:
    """The config class of a family's file."""
    return next(cls for cls in _own_classes(module) if issubclass(cls, FirstUse))


def models_in(module: ModuleType) -> dict[str, Any]:
    """The model classes of a family's file by name."""
    return {cls.__name__: cls for cls in _own_classes(module) if hasattr(cls, "relpos_base_class")}


def _own_classes(module: ModuleType) -> list[Any]:
    return [cls for cls in vars(module).values() if inspect.isclass(cls) and cls.__module__ == module.__name__]
