"""GPTNeoX with relative positions: config, base model and every head that transformers has for it."""

from transformers.models.gpt_neox.configuration_gpt_neox import GPTNeoXConfig
from transformers.models.gpt_neox.modeling_gpt_neox import (
    GPTNeoXForCausalLM,
    GPTNeoXForQuestionAnswering,
    GPTNeoXForSequenceClassification,
    GPTNeoXForTokenClassification,
    GPTNeoXModel,
)

from .config_mixin import RelPosConfigMixin
from .mixin import RelPosMixin


class RelPosGPTNeoXConfig(RelPosConfigMixin, GPTNeoXConfig):
    model_type = "relpos_gpt_neox"


class RelPosGPTNeoXModel(RelPosMixin, GPTNeoXModel):
    config_class = RelPosGPTNeoXConfig


class RelPosGPTNeoXForCausalLM(RelPosMixin, GPTNeoXForCausalLM):
    config_class = RelPosGPTNeoXConfig
    relpos_base_class = RelPosGPTNeoXModel


class RelPosGPTNeoXForSequenceClassification(RelPosMixin, GPTNeoXForSequenceClassification):
    config_class = RelPosGPTNeoXConfig
    relpos_base_class = RelPosGPTNeoXModel


class RelPosGPTNeoXForTokenClassification(RelPosMixin, GPTNeoXForTokenClassification):
    config_class = RelPosGPTNeoXConfig
    relpos_base_class = RelPosGPTNeoXModel


class RelPosGPTNeoXForQuestionAnswering(RelPosMixin, GPTNeoXForQuestionAnswering):
    config_class = RelPosGPTNeoXConfig
    relpos_base_class = RelPosGPTNeoXModel
