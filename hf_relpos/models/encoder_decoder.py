"""An encoder and a decoder of this package in one sequence-to-sequence model.

transformers' ``EncoderDecoderModel`` takes our models as they are; the classes here make its config, its loading and its saving know them, so
that a saved folder carries their code. Cross-attention has no relative term: its queries and keys lie in different texts.
"""

from typing import Any

from transformers import AutoConfig, AutoModelForSeq2SeqLM, PreTrainedConfig
from transformers.models.encoder_decoder.configuration_encoder_decoder import EncoderDecoderConfig
from transformers.models.encoder_decoder.modeling_encoder_decoder import EncoderDecoderModel

from .families import AUTO_CLASSES, CONFIG_CLASSES, auto_class, classes_of
from .first_use import FirstUse
from .loading import check_encoding_weights, readable_errors
from .publishing import PublishingMixin
from .routing import implementation_name

SIDES = ("encoder", "decoder")


def _own_config(side: str, config: Any) -> Any:
    """``config``, a dict or a config object, as one of ours; ValueError when it is not of a model of this package."""
    values = config.to_dict() if isinstance(config, PreTrainedConfig) else config
    model_type = (values or {}).get("model_type")
    if model_type not in CONFIG_CLASSES:
        raise ValueError(
            f"the {side} is of model type {model_type!r}, which has no relative positions; valid: {', '.join(sorted(CONFIG_CLASSES))}. "
            "A side that shall stay as it is takes rel_pos={'type': 'none'} and absolute='keep'"
        )
    # by our own table: where only a saved folder's code is at hand, transformers does not know these types
    return config if isinstance(config, PreTrainedConfig) else CONFIG_CLASSES[model_type](**values)


class RelPosEncoderDecoderConfig(FirstUse, EncoderDecoderConfig):
    """``encoder`` and ``decoder``: configs of this package, or their dicts."""

    model_type = "relpos_encoder_decoder"

    def __post_init__(self, **kwargs: Any) -> None:
        for side in SIDES:
            setattr(self, side, _own_config(side, getattr(self, side)))
        super().__post_init__(**kwargs)


class RelPosEncoderDecoderModel(PublishingMixin, EncoderDecoderModel):
    """``EncoderDecoderModel`` of two models of this package."""

    config_class = RelPosEncoderDecoderConfig

    def __init__(self, config: Any = None, encoder: Any = None, decoder: Any = None):
        if config is None:
            if encoder is None or decoder is None:
                raise ValueError("give a config, or an encoder and a decoder")
            config = RelPosEncoderDecoderConfig.from_encoder_decoder_configs(encoder.config, decoder.config)
        elif config.model_type != RelPosEncoderDecoderConfig.model_type:
            values = {key: value for key, value in config.to_dict().items() if key != "model_type"}
            config = RelPosEncoderDecoderConfig(**values)
        if encoder is None:
            encoder = auto_class(config.encoder, "Model")(config.encoder)
        if decoder is None:
            decoder = auto_class(config.decoder, "CausalLM")(config.decoder)
        super().__init__(config, encoder, decoder)

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        return True

    def get_correct_attn_implementation(self, requested_attention: str | None, is_init_check: bool = False) -> str:
        """Our internal name for ``attn_implementation``, which both sides get."""
        return implementation_name(requested_attention)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Load a checkpoint of this class; ValueError when weights of an encoding are missing or too many, OSError when it cannot be read."""
        wants_info = kwargs.pop("output_loading_info", False)
        kwargs["output_loading_info"] = True
        with readable_errors(pretrained_model_name_or_path):
            loaded: Any = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        model, info = loaded
        described = {side: getattr(model.config, side).rel_pos for side in SIDES}
        check_encoding_weights(str(pretrained_model_name_or_path), described, info)
        return (model, info) if wants_info else model

    @classmethod
    def from_encoder_decoder_pretrained(
        cls,
        encoder_pretrained_model_name_or_path: Any = None,
        decoder_pretrained_model_name_or_path: Any = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """As transformers', from checkpoints of this package, or from ordinary ones with ``encoder_rel_pos``, ``encoder_absolute``,
        ``decoder_rel_pos`` and ``decoder_absolute`` as for ``from_pretrained``. Cross-attention of the decoder starts freshly initialised."""
        sources = {
            "encoder": encoder_pretrained_model_name_or_path,
            "decoder": decoder_pretrained_model_name_or_path,
        }
        for side, source in sources.items():
            prefix = f"{side}_"
            own = {key.removeprefix(prefix): kwargs.pop(key) for key in list(kwargs) if key.startswith(prefix)}
            model = own.pop("model", None)
            if model is None:
                if source is None:
                    raise ValueError(f"no {side}: give {prefix}pretrained_model_name_or_path or {prefix}model")
                own.update({"is_decoder": True, "add_cross_attention": True} if side == "decoder" else {})
                model_type = AutoConfig.from_pretrained(source).model_type
                model = auto_class(model_type, "CausalLM" if side == "decoder" else "Model").from_pretrained(
                    source, **own
                )
            sources[side] = model
        encoder, decoder = sources.values()
        config = RelPosEncoderDecoderConfig.from_encoder_decoder_configs(encoder.config, decoder.config, **kwargs)
        return cls(config, encoder, decoder)


def parts_of(config: Any) -> dict[str, Any]:
    """The configs that have a ``rel_pos``: both sides of a sequence-to-sequence model by their names, else the config itself as ""."""
    if config.model_type == RelPosEncoderDecoderConfig.model_type:
        return {side: getattr(config, side) for side in SIDES}
    return {"": config}


def loaders_of(config: Any) -> dict[str, Any]:
    """Every model class that ``config`` loads as, by the name of the Auto class that does it."""
    if config.model_type == RelPosEncoderDecoderConfig.model_type:
        return {AutoModelForSeq2SeqLM.__name__: RelPosEncoderDecoderModel}
    return {AUTO_CLASSES[head].__name__: cls for head, cls in classes_of(config.model_type).items()}
