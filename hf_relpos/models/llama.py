"""Llama with relative positions: config, base model and every head that transformers has for it."""

from transformers.models.llama.configuration_llama import LlamaConfig
from transformers.models.llama.modeling_llama import (
    LlamaForCausalLM,
    LlamaForQuestionAnswering,
    LlamaForSequenceClassification,
    LlamaForTokenClassification,
    LlamaModel,
)

from .config_mixin import RelPosConfigMixin
from .mixin import RelPosMixin


class RelPosLlamaConfig(RelPosConfigMixin, LlamaConfig):
    model_type = "relpos_llama"


class RelPosLlamaModel(RelPosMixin, LlamaModel):
    config_class = RelPosLlamaConfig


class RelPosLlamaForCausalLM(RelPosMixin, LlamaForCausalLM):
    config_class = RelPosLlamaConfig
    relpos_base_class = RelPosLlamaModel


class RelPosLlamaForSequenceClassification(RelPosMixin, LlamaForSequenceClassification):
    config_class = RelPosLlamaConfig
    relpos_base_class = RelPosLlamaModel


class RelPosLlamaForTokenClassification(RelPosMixin, LlamaForTokenClassification):
    config_class = RelPosLlamaConfig
    relpos_base_class = RelPosLlamaModel


class RelPosLlamaForQuestionAnswering(RelPosMixin, LlamaForQuestionAnswering):
    config_class = RelPosLlamaConfig
    relpos_base_class = RelPosLlamaModel
