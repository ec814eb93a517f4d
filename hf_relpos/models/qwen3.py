"""Qwen3 with relative positions: config, base model and every head that transformers has for it."""

from transformers.models.qwen3.configuration_qwen3 import Qwen3Config
from transformers.models.qwen3.modeling_qwen3 import (
    Qwen3ForCausalLM,
    Qwen3ForQuestionAnswering,
    Qwen3ForSequenceClassification,
    Qwen3ForTokenClassification,
    Qwen3Model,
)

from .config_mixin import RelPosConfigMixin
from .mixin import RelPosMixin


class RelPosQwen3Config(RelPosConfigMixin, Qwen3Config):
    model_type = "relpos_qwen3"


class RelPosQwen3Model(RelPosMixin, Qwen3Model):
    config_class = RelPosQwen3Config


class RelPosQwen3ForCausalLM(RelPosMixin, Qwen3ForCausalLM):
    config_class = RelPosQwen3Config
    relpos_base_class = RelPosQwen3Model


class RelPosQwen3ForSequenceClassification(RelPosMixin, Qwen3ForSequenceClassification):
    config_class = RelPosQwen3Config
    relpos_base_class = RelPosQwen3Model


class RelPosQwen3ForTokenClassification(RelPosMixin, Qwen3ForTokenClassification):
    config_class = RelPosQwen3Config
    relpos_base_class = RelPosQwen3Model


class RelPosQwen3ForQuestionAnswering(RelPosMixin, Qwen3ForQuestionAnswering):
    config_class = RelPosQwen3Config
    relpos_base_class = RelPosQwen3Model
