"""DistilBert with relative positions: config, base model and every head that transformers has for it."""

from transformers.models.distilbert.configuration_distilbert import DistilBertConfig
from transformers.models.distilbert.modeling_distilbert import (
    DistilBertForMaskedLM,
    DistilBertForMultipleChoice,
    DistilBertForQuestionAnswering,
    DistilBertForSequenceClassification,
    DistilBertForTokenClassification,
    DistilBertModel,
)

from .config_mixin import RelPosConfigMixin
from .mixin import RelPosMixin


class RelPosDistilBertConfig(RelPosConfigMixin, DistilBertConfig):
    model_type = "relpos_distilbert"


class RelPosDistilBertModel(RelPosMixin, DistilBertModel):
    config_class = RelPosDistilBertConfig


class RelPosDistilBertForMaskedLM(RelPosMixin, DistilBertForMaskedLM):
    config_class = RelPosDistilBertConfig
    relpos_base_class = RelPosDistilBertModel


class RelPosDistilBertForSequenceClassification(RelPosMixin, DistilBertForSequenceClassification):
    config_class = RelPosDistilBertConfig
    relpos_base_class = RelPosDistilBertModel


class RelPosDistilBertForMultipleChoice(RelPosMixin, DistilBertForMultipleChoice):
    config_class = RelPosDistilBertConfig
    relpos_base_class = RelPosDistilBertModel


class RelPosDistilBertForTokenClassification(RelPosMixin, DistilBertForTokenClassification):
    config_class = RelPosDistilBertConfig
    relpos_base_class = RelPosDistilBertModel


class RelPosDistilBertForQuestionAnswering(RelPosMixin, DistilBertForQuestionAnswering):
    config_class = RelPosDistilBertConfig
    relpos_base_class = RelPosDistilBertModel
