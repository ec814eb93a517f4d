"""What must be known of a transformers architecture to place encodings in it: data, one entry for each family.

An entry is enough because all of these models call the registered attention function; a family whose attention does not is
not listed, and a model of it is refused.
"""

from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class ArchSpec:
    """One family of host models.

    ``model_type``: the host's. ``self_attention`` and ``cross_attention``: class names of the modules that call the attention
    function. ``native``: how the host itself marks positions, an embedding "table" at the input or "rotary" angles.
    ``position_module``: path of the module that does so, from the base model. ``embeddings``: path of an embeddings module
    whose buffers of position and token type ids would cut sequences at the table's length. ``causal``: True for decoders;
    None where the config's ``is_decoder`` says. ``prescaled_query``: the host multiplies queries by the scale before attention.
    ``stack``: path of the model inside the base model that heads call directly. ``reserved_positions``: rows of the table that no token gets, read
    from this config key plus one (RoBERTa's padding). ``projections``: names of the attention module's linear maps to queries and keys, where these
    are all that becomes of them.
    """

    model_type: str
    self_attention: tuple[str, ...]
    native: Literal["table", "rotary"]
    position_module: str
    cross_attention: tuple[str, ...] = ()
    embeddings: str | None = None
    causal: bool | None = True
    prescaled_query: bool = False
    reserved_positions: str | None = None
    stack: str = ""
    projections: tuple[str, str] | None = None


ARCHITECTURES: dict[str, ArchSpec] = {
    spec.model_type: spec
    for spec in (
        ArchSpec(
            "bert",
            ("BertSelfAttention",),
            "table",
            "embeddings.position_embeddings",
            cross_attention=("BertCrossAttention",),
            embeddings="embeddings",
            causal=None,
            projections=("query", "key"),
        ),
        ArchSpec(
            "roberta",
            ("RobertaSelfAttention",),
            "table",
            "embeddings.position_embeddings",
            cross_attention=("RobertaCrossAttention",),
            embeddings="embeddings",
            causal=None,
            projections=("query", "key"),
            reserved_positions="pad_token_id",
        ),
        ArchSpec(
            "electra",
            ("ElectraSelfAttention",),
            "table",
            "embeddings.position_embeddings",
            cross_attention=("ElectraCrossAttention",),
            embeddings="embeddings",
            causal=None,
            projections=("query", "key"),
        ),
        ArchSpec(
            "distilbert",
            ("DistilBertSelfAttention",),
            "table",
            "embeddings.position_embeddings",
            causal=False,
            projections=("q_lin", "k_lin"),
        ),
        ArchSpec("gpt2", ("GPT2Attention",), "table", "wpe", cross_attention=("GPT2Attention",)),
        ArchSpec("opt", ("OPTAttention",), "table", "decoder.embed_positions", prescaled_query=True, stack="decoder"),
        ArchSpec("gpt_neox", ("GPTNeoXAttention",), "rotary", "rotary_emb"),
        ArchSpec("llama", ("LlamaAttention",), "rotary", "rotary_emb", projections=("q_proj", "k_proj")),
        ArchSpec("qwen3", ("Qwen3Attention",), "rotary", "rotary_emb"),
    )
}


def architecture(model_type: str) -> ArchSpec:
    """The entry of a host's ``model_type`` (with or without the ``relpos_`` prefix); ValueError says why there is none."""
    spec = ARCHITECTURES.get(model_type.removeprefix("relpos_"))
    if spec is None:
        raise ValueError(
            f"model type {model_type!r} is not supported: it is not known where its attention and its positions live, or its "
            f"attention never calls the registered function; supported: {', '.join(sorted(ARCHITECTURES))}"
        )
    return spec


def is_causal(config: Any) -> bool:
    """Whether the queries of a model with ``config`` see no later keys."""
    causal = architecture(config.model_type).causal
    if not getattr(config, "is_causal", True):
        return False
    return bool(config.is_decoder) if causal is None else causal
