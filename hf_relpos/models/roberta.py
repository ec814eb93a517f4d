"""Roberta with relative positions: config, base model and every head that transformers has for it."""

from transformers.models.roberta.configuration_roberta import RobertaConfig
from transformers.models.roberta.modeling_roberta import (
    RobertaForCausalLM,
    RobertaForMaskedLM,
    RobertaForMultipleChoice,
    RobertaForQuestionAnswering,
    RobertaForSequenceClassification,
    RobertaForTokenClassification,
    RobertaModel,
)

from .config_mixin import RelPosConfigMixin
from .mixin import RelPosMixin


class RelPosRobertaConfig(RelPosConfigMixin, RobertaConfig):
    model_type = "relpos_roberta"


class RelPosRobertaModel(RelPosMixin, RobertaModel):
    config_class = RelPosRobertaConfig


class RelPosRobertaForMaskedLM(RelPosMixin, RobertaForMaskedLM):
    config_class = RelPosRobertaConfig
    relpos_base_class = RelPosRobertaModel


class RelPosRobertaForCausalLM(RelPosMixin, RobertaForCausalLM):
    config_class = RelPosRobertaConfig
    relpos_base_class = RelPosRobertaModel


class RelPosRobertaForSequenceClassification(RelPosMixin, RobertaForSequenceClassification):
    config_class = RelPosRobertaConfig
    relpos_base_class = RelPosRobertaModel


class RelPosRobertaForMultipleChoice(RelPosMixin, RobertaForMultipleChoice):
    config_class = RelPosRobertaConfig
    relpos_base_class = RelPosRobertaModel


class RelPosRobertaForTokenClassification(RelPosMixin, RobertaForTokenClassification):
    config_class = RelPosRobertaConfig
    relpos_base_class = RelPosRobertaModel


class RelPosRobertaForQuestionAnswering(RelPosMixin, RobertaForQuestionAnswering):
    config_class = RelPosRobertaConfig
    relpos_base_class = RelPosRobertaModel
