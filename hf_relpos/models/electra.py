"""Electra with relative positions: config, base model and every head that transformers has for it."""

from transformers.models.electra.configuration_electra import ElectraConfig
from transformers.models.electra.modeling_electra import (
    ElectraForCausalLM,
    ElectraForMaskedLM,
    ElectraForMultipleChoice,
    ElectraForPreTraining,
    ElectraForQuestionAnswering,
    ElectraForSequenceClassification,
    ElectraForTokenClassification,
    ElectraModel,
)

from .config_mixin import RelPosConfigMixin
from .mixin import RelPosMixin


class RelPosElectraConfig(RelPosConfigMixin, ElectraConfig):
    model_type = "relpos_electra"


class RelPosElectraModel(RelPosMixin, ElectraModel):
    config_class = RelPosElectraConfig


class RelPosElectraForPreTraining(RelPosMixin, ElectraForPreTraining):
    config_class = RelPosElectraConfig
    relpos_base_class = RelPosElectraModel


class RelPosElectraForMaskedLM(RelPosMixin, ElectraForMaskedLM):
    config_class = RelPosElectraConfig
    relpos_base_class = RelPosElectraModel


class RelPosElectraForCausalLM(RelPosMixin, ElectraForCausalLM):
    config_class = RelPosElectraConfig
    relpos_base_class = RelPosElectraModel


class RelPosElectraForSequenceClassification(RelPosMixin, ElectraForSequenceClassification):
    config_class = RelPosElectraConfig
    relpos_base_class = RelPosElectraModel


class RelPosElectraForMultipleChoice(RelPosMixin, ElectraForMultipleChoice):
    config_class = RelPosElectraConfig
    relpos_base_class = RelPosElectraModel


class RelPosElectraForTokenClassification(RelPosMixin, ElectraForTokenClassification):
    config_class = RelPosElectraConfig
    relpos_base_class = RelPosElectraModel


class RelPosElectraForQuestionAnswering(RelPosMixin, ElectraForQuestionAnswering):
    config_class = RelPosElectraConfig
    relpos_base_class = RelPosElectraModel
