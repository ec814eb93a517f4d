"""OPT with relative positions: config, base model and every head that transformers has for it."""

from transformers.models.opt.configuration_opt import OPTConfig
from transformers.models.opt.modeling_opt import (
    OPTForCausalLM,
    OPTForQuestionAnswering,
    OPTForSequenceClassification,
    OPTModel,
)

from .config_mixin import RelPosConfigMixin
from .mixin import RelPosMixin


class RelPosOPTConfig(RelPosConfigMixin, OPTConfig):
    model_type = "relpos_opt"


class RelPosOPTModel(RelPosMixin, OPTModel):
    config_class = RelPosOPTConfig


class RelPosOPTForCausalLM(RelPosMixin, OPTForCausalLM):
    config_class = RelPosOPTConfig
    relpos_base_class = RelPosOPTModel


class RelPosOPTForSequenceClassification(RelPosMixin, OPTForSequenceClassification):
    config_class = RelPosOPTConfig
    relpos_base_class = RelPosOPTModel


class RelPosOPTForQuestionAnswering(RelPosMixin, OPTForQuestionAnswering):
    config_class = RelPosOPTConfig
    relpos_base_class = RelPosOPTModel
