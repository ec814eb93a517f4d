"""One tiny random model for each family, and the encodings that stand for every kind of term."""

from pathlib import Path
from typing import Any

import torch
from transformers import BertTokenizer

import hf_relpos
from hf_relpos.models.architectures import ARCHITECTURES
from hf_relpos.models.families import CONFIG_CLASSES, host_class

TABLE, VOCABULARY = 24, 97
WORDS = [f"w{number}" for number in range(90)]
_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "max_position_embeddings": TABLE,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
}
_EXTRA: dict[str, dict[str, Any]] = {
    "bert": {"intermediate_size": 37},
    "roberta": {"intermediate_size": 37},
    "electra": {"intermediate_size": 37, "embedding_size": 12},
    "distilbert": {"hidden_dim": 37},
    "gpt2": {"n_inner": 37},
    "opt": {"ffn_dim": 37, "word_embed_proj_dim": 32},
    "gpt_neox": {"intermediate_size": 37},
    "llama": {"intermediate_size": 37, "num_key_value_heads": 2},
    "qwen3": {"intermediate_size": 37, "num_key_value_heads": 2, "head_dim": 8},
}
FAMILIES = sorted(ARCHITECTURES)
DECODERS = [name for name in FAMILIES if ARCHITECTURES[name].causal]
ENCODERS = [name for name in FAMILIES if name not in DECODERS]

# a table of distances, buckets met by the query, by query and key, with a key vector, values by distance, a rotation; then what needs a token's
# place in its text, gates or segments remembered with the keys, whole rows of scores, a table shared by layers, and layers that differ
KINDS: dict[str, Any] = {
    "distance": {"type": "t5", "num_buckets": 8, "max_distance": 16},
    "parameter-free": {"type": "alibi"},
    "query": {"type": "relative_key", "max_position_embeddings": 6},
    "query-and-key": {"type": "relative_key_query", "max_position_embeddings": 6},
    "key-vector": {"type": "transformer_xl"},
    "values": {"type": "shaw", "max_distance": 4},
    "rotation": {"type": "rope"},
    "index": {"type": "fire", "init_length": 4},
    "places": {"type": "tupe", "max_position_embeddings": 64},
    "groups": {"type": "self_extend", "window": 4, "group_size": 2},
    "gates": {"type": "fox"},
    "segments": {"type": "xlnet"},
    "rows": {"type": "cope", "npos": 6},
    "shared-part": {"type": "deberta", "max_relative_positions": 6},
    "layers": {"layers": [{"type": "kerple_log"}, [{"type": "kerple_log"}, {"type": "fox"}]]},
    "heads": [{"type": "fox", "heads": [0, 2]}, {"type": "rope", "heads": [2, 4]}],
    "list": [{"type": "kerple_log"}, {"type": "rope", "fraction": 0.5}, {"type": "shaw", "values": False}],
}


def host_config(family: str, **kwargs: Any) -> Any:
    """The stock config of a family, tiny."""
    return host_class(CONFIG_CLASSES[f"relpos_{family}"])(**{**_SIZES, **_EXTRA[family], **kwargs})


def config(family: str, rel_pos: Any, absolute: str = "drop", **kwargs: Any) -> Any:
    """Our config of a family, tiny."""
    return CONFIG_CLASSES[f"relpos_{family}"](
        **{**_SIZES, **_EXTRA[family], "rel_pos": rel_pos, "absolute": absolute, **kwargs}
    )


def randomise(model: Any, seed: int = 0) -> Any:
    """Parameters so large that every one of them moves the output; in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * (0.3 if parameter.ndim > 1 else 0.1))
            if parameter.ndim == 1:
                parameter.add_(1.0)
    return model.eval()


def language_head(family: str) -> str:
    """The head that gives logits over the vocabulary."""
    return "CausalLM" if family in DECODERS else "MaskedLM"


def model(family: str, rel_pos: Any, absolute: str = "drop", head: str | None = None, **kwargs: Any) -> Any:
    """A tiny random model of a family, in float64 and eval mode."""
    made = config(family, rel_pos, absolute, **kwargs)
    return randomise(hf_relpos.auto_class(made, head or language_head(family))(made)).double()


def tokens(batch: int = 2, length: int = 12, seed: int = 0) -> torch.Tensor:
    """Random token ids without special ones."""
    return torch.randint(3, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(seed))


def save_source(folder: Path, family: str = "bert") -> Path:
    """A tiny ordinary model with a language head and a tokenizer that knows ``WORDS``."""
    stock = host_class(hf_relpos.auto_class(family, language_head(family)))
    randomise(stock(host_config(family))).save_pretrained(folder)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", *WORDS]
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(words))
    BertTokenizer.from_pretrained(str(folder)).save_pretrained(folder)
    return folder


def save_text(path: Path, count: int = 3000) -> Path:
    """Random words, 20 a line."""
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randint(len(WORDS), (count,), generator=generator).tolist()
    lines = [" ".join(WORDS[n] for n in numbers[first : first + 20]) for first in range(0, count, 20)]
    path.write_text("\n".join(lines))
    return path
