"""OPT with relative positions: config, base model and every head that transformers has for it."""

from transformers.models.opt.configuration_opt import OPTConfig
from transformers.models.opt.modeling_opt import (
    OPTDecoder,
    OPTForCausalLM,
    OPTForQuestionAnswering,
    OPTForSequenceClassification,
    OPTModel,
)

from .config_mixin import RelPosConfigMixin
from .mixin import EncodingInitializer, RelPosMixin


class RelPosOPTConfig(RelPosConfigMixin, OPTConfig):
    model_type = "relpos_opt"


class RelPosOPTDecoder(EncodingInitializer, OPTDecoder):
    config_class = RelPosOPTConfig


class RelPosOPTModel(RelPosMixin, OPTModel):
    config_class = RelPosOPTConfig
    relpos_stack_class = RelPosOPTDecoder


class RelPosOPTForCausalLM(RelPosMixin, OPTForCausalLM):
    config_class = RelPosOPTConfig
    relpos_base_class = RelPosOPTModel
    relpos_stack_class = RelPosOPTDecoder


class RelPosOPTForSequenceClassification(RelPosMixin, OPTForSequenceClassification):
    config_class = RelPosOPTConfig
    relpos_base_class = RelPosOPTModel
    relpos_stack_class = RelPosOPTDecoder


class RelPosOPTForQuestionAnswering(RelPosMixin, OPTForQuestionAnswering):
    config_class = RelPosOPTConfig
    relpos_base_class = RelPosOPTModel
    relpos_stack_class = RelPosOPTDecoder
