"""All model classes of the package, and their registration with transformers' Auto classes."""

import inspect
import sys
from typing import Any

from transformers import (
    AutoConfig,
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

from .architectures import ARCHITECTURES
from .bert import RelPosBertModel
from .distilbert import RelPosDistilBertModel
from .electra import RelPosElectraModel
from .gpt2 import RelPosGPT2Model
from .gpt_neox import RelPosGPTNeoXModel
from .llama import RelPosLlamaModel
from .loading import host_class
from .mixin import EncodingInitializer, RelPosMixin
from .opt import RelPosOPTModel
from .qwen3 import RelPosQwen3Model
from .roberta import RelPosRobertaModel

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
_BASE_MODELS = (
    RelPosBertModel,
    RelPosDistilBertModel,
    RelPosElectraModel,
    RelPosGPT2Model,
    RelPosGPTNeoXModel,
    RelPosLlamaModel,
    RelPosOPTModel,
    RelPosQwen3Model,
    RelPosRobertaModel,
)

# every config class by its model type, and every model class by name
CONFIG_CLASSES: dict[str, Any] = {}
MODEL_CLASSES: dict[str, Any] = {}
for _base in _BASE_MODELS:
    _module = sys.modules[_base.__module__]
    for _name, _cls in vars(_module).items():
        if inspect.isclass(_cls) and _cls.__module__ == _module.__name__:
            if issubclass(_cls, RelPosMixin):
                MODEL_CLASSES[_name] = _cls
            elif not issubclass(_cls, EncodingInitializer):
                CONFIG_CLASSES[vars(_cls)["model_type"]] = _cls


__all__ = [
    "AUTO_CLASSES",
    "CONFIG_CLASSES",
    "MODEL_CLASSES",
    "auto_class",
    "classes_of",
    "host_class",
    "register_auto_classes",
]


def head_of(cls: Any) -> str | None:
    """The key of ``AUTO_CLASSES`` that a model class belongs to, or None: transformers has no Auto class for GPT-2 with two heads."""
    if cls.relpos_base_class is None:
        return "Model"
    return next((head for head in AUTO_CLASSES if head != "Model" and cls.__name__.endswith(head)), None)


def classes_of(model_type: str) -> dict[str, Any]:
    """Model classes of one family by head."""
    config_class = CONFIG_CLASSES[f"relpos_{model_type.removeprefix('relpos_')}"]
    return {
        head: cls
        for cls in MODEL_CLASSES.values()
        if cls.config_class is config_class and (head := head_of(cls)) is not None
    }


def auto_class(config_or_type: Any, head: str) -> Any:
    """The model class for a config or model type and a head such as "QuestionAnswering"; ValueError lists what there is."""
    model_type = config_or_type if isinstance(config_or_type, str) else config_or_type.model_type
    if model_type.removeprefix("relpos_") not in ARCHITECTURES:
        raise ValueError(f"model type {model_type!r} is not supported; supported: {', '.join(sorted(ARCHITECTURES))}")
    heads = classes_of(model_type)
    for key in (head, f"For{head}"):
        if key in heads:
            return heads[key]
    raise ValueError(f"{model_type} has no head {head!r}; heads: {', '.join(key.removeprefix('For') for key in heads)}")


def register_auto_classes() -> None:
    """Make ``AutoConfig`` and the ``AutoModel...`` classes know every class of the package."""
    for model_type, config_class in CONFIG_CLASSES.items():
        AutoConfig.register(model_type, config_class, exist_ok=True)
        for head, cls in classes_of(model_type).items():
            AUTO_CLASSES[head].register(config_class, cls, exist_ok=True)
