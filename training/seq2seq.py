"""Sequence to sequence from two sides, an encoder and a decoder that looks at what it read: each from a checkpoint or from scratch, with its own encoding."""

from dataclasses import dataclass, fields
from typing import Any

from arguments import option
from checkpoints import RunError
from models import ModelArguments, load_model, resolve_model
from tokenizing import marks
from transformers import CONFIG_MAPPING, AutoConfig, EncoderDecoderModel

import hf_relpos

OWN = ("model", "model_config", "rel_pos", "absolute")


@dataclass
class Seq2SeqArguments(ModelArguments):
    """What the two sides must be told; those of :class:`ModelArguments` hold for both, unless the decoder has its own."""

    decoder_model: str | None = option(None, "the decoder's folder, Hub id or model type, where it is another", "model")
    decoder_model_config: str | None = option(None, "JSON of its config values, where they are others", "model")
    decoder_rel_pos: str | None = option(None, "the decoder's encoding, where it is another", "encoding")
    decoder_absolute: str | None = option(None, "keep or drop its own positions, where it is otherwise", "encoding")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("rel_pos", "absolute"):
            if getattr(self, f"decoder_{name}") is not None and self.rel_pos is None:
                raise ValueError(
                    f"decoder_{name} needs rel_pos: an encoder that shall stay as it is takes rel_pos none and absolute keep"
                )
        self.side("decoder")

    def side(self, name: str) -> ModelArguments:
        """The arguments of "encoder" or "decoder"; ValueError when the decoder's are not valid."""
        values = {field.name: getattr(self, field.name) for field in fields(ModelArguments)}
        if name == "decoder":
            own = {value: getattr(self, f"decoder_{value}") for value in OWN}
            values |= {key: value for key, value in own.items() if value is not None}
        try:
            return ModelArguments(**values)
        except ValueError as error:
            raise ValueError(f"of the {name}: {error}") from None


def load_seq2seq(arguments: Seq2SeqArguments, tokenizer: Any) -> Any:
    """The model to train: transformers' ``EncoderDecoderModel`` of two stock sides, or ``RelPosEncoderDecoderModel``. Cross-attention is new.

    One tokenizer serves both sides. Raises :class:`RunError` for a decoder without cross-attention, two vocabularies, or LoRA.
    """
    if arguments.lora_rank is not None:
        raise RunError("lora_rank is not for an encoder and a decoder, whose cross-attention is new: leave it out")
    source = resolve_model(arguments.side("decoder").model)
    try:
        stock = AutoConfig.for_model(source) if source in CONFIG_MAPPING else AutoConfig.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise RunError(f"the decoder {source!r} cannot be loaded: {' '.join(str(error).split())}") from error
    if not hasattr(stock, "add_cross_attention"):
        raise RunError(
            f"the decoder is of model type {stock.model_type!r}, which has no cross-attention: take another, such as bert or gpt2"
        )
    encoder = load_model(arguments.side("encoder"), "Model", tokenizer)
    decoder = load_model(arguments.side("decoder"), "CausalLM", tokenizer, add_cross_attention=True)
    if encoder.config.vocab_size != decoder.config.vocab_size:
        raise RunError(
            f"the encoder knows {encoder.config.vocab_size} tokens and the decoder {decoder.config.vocab_size}: both must share a tokenizer"
        )
    for name, parameter in encoder.named_parameters():
        # what stands beside the states is not asked for, and processes would wait for its gradient
        parameter.requires_grad_("pooler" not in name.split("."))
    cls = EncoderDecoderModel if arguments.rel_pos is None else hf_relpos.RelPosEncoderDecoderModel
    model = cls(encoder=encoder, decoder=decoder)
    start, end = (tokenizer.convert_tokens_to_ids(mark) for mark in marks(tokenizer))
    for config in (model.config, model.generation_config):
        config.pad_token_id, config.decoder_start_token_id, config.eos_token_id = tokenizer.pad_token_id, start, end
    return model
