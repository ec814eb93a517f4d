"""Bert with relative positions: config, base model and every head that transformers has for it."""

from transformers.models.bert.configuration_bert import BertConfig
from transformers.models.bert.modeling_bert import (
    BertForMaskedLM,
    BertForMultipleChoice,
    BertForNextSentencePrediction,
    BertForPreTraining,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertLMHeadModel,
    BertModel,
)

from .config_mixin import RelPosConfigMixin
from .mixin import RelPosMixin


class RelPosBertConfig(RelPosConfigMixin, BertConfig):
    model_type = "relpos_bert"


class RelPosBertModel(RelPosMixin, BertModel):
    config_class = RelPosBertConfig


class RelPosBertForPreTraining(RelPosMixin, BertForPreTraining):
    config_class = RelPosBertConfig
    relpos_base_class = RelPosBertModel


class RelPosBertForMaskedLM(RelPosMixin, BertForMaskedLM):
    config_class = RelPosBertConfig
    relpos_base_class = RelPosBertModel


class RelPosBertForCausalLM(RelPosMixin, BertLMHeadModel):
    config_class = RelPosBertConfig
    relpos_base_class = RelPosBertModel


class RelPosBertForNextSentencePrediction(RelPosMixin, BertForNextSentencePrediction):
    config_class = RelPosBertConfig
    relpos_base_class = RelPosBertModel


class RelPosBertForSequenceClassification(RelPosMixin, BertForSequenceClassification):
    config_class = RelPosBertConfig
    relpos_base_class = RelPosBertModel


class RelPosBertForMultipleChoice(RelPosMixin, BertForMultipleChoice):
    config_class = RelPosBertConfig
    relpos_base_class = RelPosBertModel


class RelPosBertForTokenClassification(RelPosMixin, BertForTokenClassification):
    config_class = RelPosBertConfig
    relpos_base_class = RelPosBertModel


class RelPosBertForQuestionAnswering(RelPosMixin, BertForQuestionAnswering):
    config_class = RelPosBertConfig
    relpos_base_class = RelPosBertModel
