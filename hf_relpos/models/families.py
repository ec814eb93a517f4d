"""All model classes of the package."""

import sys
from typing import Any

from .architectures import ARCHITECTURES
from .auto_classes import AUTO_CLASSES, config_in, head_of, models_in
from .bert import RelPosBertModel
from .distilbert import RelPosDistilBertModel
from .electra import RelPosElectraModel
from .gpt2 import RelPosGPT2Model
from .gpt_neox import RelPosGPTNeoXModel
from .llama import RelPosLlamaModel
from .loading import host_class
from .opt import RelPosOPTModel
from .qwen3 import RelPosQwen3Model
from .roberta import RelPosRobertaModel

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
    CONFIG_CLASSES[config_in(_module).model_type] = config_in(_module)
    MODEL_CLASSES.update(models_in(_module))


__all__ = ["AUTO_CLASSES", "CONFIG_CLASSES", "MODEL_CLASSES", "auto_class", "classes_of", "host_class"]


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
