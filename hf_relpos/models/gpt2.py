"""GPT2 with relative positions: config, base model and every head that transformers has for it."""

from transformers.models.gpt2.configuration_gpt2 import GPT2Config
from transformers.models.gpt2.modeling_gpt2 import (
    GPT2DoubleHeadsModel,
    GPT2ForQuestionAnswering,
    GPT2ForSequenceClassification,
    GPT2ForTokenClassification,
    GPT2LMHeadModel,
    GPT2Model,
)

from .config_mixin import RelPosConfigMixin
from .mixin import RelPosMixin


class RelPosGPT2Config(RelPosConfigMixin, GPT2Config):
    model_type = "relpos_gpt2"


class RelPosGPT2Model(RelPosMixin, GPT2Model):
    config_class = RelPosGPT2Config


class RelPosGPT2ForCausalLM(RelPosMixin, GPT2LMHeadModel):
    config_class = RelPosGPT2Config
    relpos_base_class = RelPosGPT2Model


class RelPosGPT2DoubleHeadsModel(RelPosMixin, GPT2DoubleHeadsModel):
    config_class = RelPosGPT2Config
    relpos_base_class = RelPosGPT2Model


class RelPosGPT2ForSequenceClassification(RelPosMixin, GPT2ForSequenceClassification):
    config_class = RelPosGPT2Config
    relpos_base_class = RelPosGPT2Model


class RelPosGPT2ForTokenClassification(RelPosMixin, GPT2ForTokenClassification):
    config_class = RelPosGPT2Config
    relpos_base_class = RelPosGPT2Model


class RelPosGPT2ForQuestionAnswering(RelPosMixin, GPT2ForQuestionAnswering):
    config_class = RelPosGPT2Config
    relpos_base_class = RelPosGPT2Model
