"""One attention call with an encoding, as backends get it, to look at what the encoding does and who can run it."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from .attention.call import AttentionCall, Mask, with_content_biases
from .attention.functional import optional_inputs
from .encodings.composition import contribute
from .encodings.encoding import Encoding
from .encodings.inputs import Contribution, EncodingInputs
from .encodings.options import Host
from .encodings.positions import Positions

SEGMENT = 8


def host_of_encoding(encoding: nn.Module) -> Host:
    """What ``encoding``, or the first that it is composed of, was built for; TypeError when there is none."""
    for part in encoding.modules():
        if isinstance(part, Encoding):
            return replace(part.host, num_heads=part.attention_heads)
    raise TypeError(f"{type(encoding).__name__} is not an encoding")


@torch.no_grad()
def call_of_alike_tokens(encoding: nn.Module, *, length: int, batch: int = 1, seed: int = 0) -> AttentionCall:
    """A call of ``length`` tokens that differ by position alone: in each sample one random vector for each head is the query and the key of them all.

    Without an encoding all scores of a sample and head are then equal. Hidden states are random for each token, segments have eight tokens, and the
    relation of a pair is its distance, as far as there are relations.
    """
    host = host_of_encoding(encoding)
    generator = torch.Generator().manual_seed(seed)
    content = torch.randn(batch, host.num_heads, 1, host.head_dim, generator=generator)
    content = content.expand(-1, -1, length, -1)
    positions = Positions.consecutive(length, length)
    slots = torch.arange(length)
    kinds = max(
        [getattr(part.options, "num_relations", 1) for part in encoding.modules() if isinstance(part, Encoding)]
    )
    given = optional_inputs(
        encoding,
        positions,
        hidden_states=torch.randn(batch, length, host.hidden_size, generator=generator),
        segment_ids=(slots // SEGMENT).expand(batch, -1),
        relation_ids=(slots[:, None] - slots).abs().clamp(max=kinds - 1).expand(batch, -1, -1),
    )
    inputs = EncodingInputs(content, content, positions, host.head_dim**-0.5, **given)
    total = contribute((encoding,), inputs, Contribution(content, content, inputs.scale))
    return with_content_biases(
        AttentionCall(
            total.query,
            total.key,
            content,
            Mask(positions, causal=host.causal),
            total.scale,
            total.score_terms,
            total.value_terms,
            total.row_maps,
        )
    )


@torch.no_grad()
def scores_of(call: AttentionCall) -> Tensor:
    """The scores of ``call`` before mask and softmax, ``[B, H, Tq, Tk]``."""
    scores = call.query @ call.key.transpose(-1, -2) * call.scale
    bias = sum((term.tile() for term in call.score_terms), torch.zeros(()))
    for row_map in call.row_maps:
        scores = row_map(scores, bias if call.score_terms else None, call.mask.tile(), call.scale)
    return scores + bias
