"""Our encodings against transformers' own code for them: the same numbers and gradients on tiny random models."""

import pytest
import torch
from families import host_config, model, tokens
from transformers import BloomConfig, T5Config
from transformers.models.bloom.modeling_bloom import BloomAttention, build_alibi_tensor
from transformers.models.t5.modeling_t5 import T5Attention

import hf_relpos
from hf_relpos.models.families import host_class

HEADS, WIDTH, LENGTH = 4, 8, 40


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("decoder", [False, True])
def test_t5_bias_of_encoder_and_decoder(decoder, backend):
    """T5's attention block and ours on the same projections: outputs, and gradients of the input and of the bias table."""
    settings = T5Config(
        d_model=HEADS * WIDTH,
        d_kv=WIDTH,
        num_heads=HEADS,
        is_decoder=decoder,
        dropout_rate=0.0,
        attn_implementation="eager",
    )
    theirs = T5Attention(settings, has_relative_attention_bias=True, layer_idx=0).double().eval()
    ours = hf_relpos.build_encoding(
        {"type": "t5", "scaling": "paper"}, num_heads=HEADS, head_dim=WIDTH, causal=decoder
    ).double()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(std=0.3)
        ours.bias.copy_(theirs.relative_attention_bias.weight)
    states = torch.randn(2, LENGTH, HEADS * WIDTH, dtype=torch.float64, requires_grad=True)
    causal = (
        torch.full((LENGTH, LENGTH), torch.finfo(torch.float64).min, dtype=torch.float64).triu(1) if decoder else None
    )
    expected = theirs(states, mask=None if causal is None else causal[None, None])[0]

    query, key, value = (
        projection(states).unflatten(-1, (HEADS, WIDTH)).transpose(1, 2)
        for projection in (theirs.q, theirs.k, theirs.v)
    )
    output = hf_relpos.attention(query, key, value, ours, is_causal=decoder, backend=backend)
    output = theirs.o(output.transpose(1, 2).flatten(-2))
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-6)

    weights = torch.randn_like(expected)
    reference = torch.autograd.grad((expected * weights).sum(), (states, theirs.relative_attention_bias.weight))
    gradients = torch.autograd.grad((output * weights).sum(), (states, ours.bias))
    for mine, other in zip(gradients, reference, strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-5)


@pytest.mark.parametrize("heads", [2, 3, 4, 6, 8])
def test_alibi_of_bloom(heads):
    """BLOOM's attention block and ours; it counts tokens from the first real one, which softmax cannot see."""
    settings = BloomConfig(hidden_size=heads * WIDTH, n_head=heads, attention_dropout=0.0, hidden_dropout=0.0)
    theirs = BloomAttention(settings, layer_idx=0).double().eval()
    ours = hf_relpos.build_encoding({"type": "alibi"}, num_heads=heads, head_dim=WIDTH, causal=True)
    states = torch.randn(2, LENGTH, heads * WIDTH, dtype=torch.float64, requires_grad=True)
    mask = torch.ones(2, LENGTH)
    mask[1, :5] = 0
    causal = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril() & mask.bool()[:, None]
    hidden = torch.zeros(2, 1, LENGTH, LENGTH, dtype=torch.float64).masked_fill(~causal[:, None], -1e9)
    alibi = build_alibi_tensor(mask, heads, torch.float64)
    expected = theirs(states, residual=torch.zeros_like(states), alibi=alibi, attention_mask=hidden)[0]

    fused = theirs.query_key_value(states).view(2, LENGTH, heads, 3, WIDTH)
    query, key, value = (fused[..., i, :].transpose(1, 2) for i in range(3))
    output = hf_relpos.attention(query, key, value, ours, is_causal=True, attention_mask=mask)
    output = theirs.dense(output.transpose(1, 2).flatten(-2))
    real = mask.bool()
    torch.testing.assert_close(output[real], expected[real], rtol=0, atol=1e-6)
    weights = torch.randn_like(expected) * real[..., None]
    (reference,) = torch.autograd.grad((expected * weights).sum(), states, retain_graph=True)
    (gradient,) = torch.autograd.grad((output * weights).sum(), states)
    torch.testing.assert_close(gradient, reference, rtol=0, atol=1e-6)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt_neox"])
def test_rotary_of_the_host_dropped_and_ours_put_in_its_place(family):
    partial = {"rope_parameters": {"rope_type": "default", "rope_theta": 5000.0, "partial_rotary_factor": 0.5}}
    options = partial if family == "gpt_neox" else {"rope_parameters": {"rope_type": "default", "rope_theta": 5000.0}}
    fraction = 0.5 if family == "gpt_neox" else 1.0
    ours = model(family, {"type": "rope", "base": 5000.0, "fraction": fraction}, **options)
    host = host_class(type(ours))(host_config(family, **options)).double().eval()
    host.load_state_dict(ours.state_dict())
    ids = tokens(length=30)
    expected, output = host(ids).logits, ours(ids).logits
    # the host computes its angles in float32
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-4)
    weights = torch.randn_like(expected)
    (expected * weights).sum().backward()
    (output * weights).sum().backward()
    reference = dict(host.named_parameters())
    for name, parameter in ours.named_parameters():
        scale = reference[name].grad.abs().max() + 1
        torch.testing.assert_close(parameter.grad / scale, reference[name].grad / scale, rtol=0, atol=1e-4)


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
def test_a_model_with_a_t5_bias_equals_its_host_given_that_bias(family):
    """transformers' own ``position_bias`` argument on the stock host, with the same table."""
    ours = model(family, {"type": "t5", "num_buckets": 8, "max_distance": 20}, absolute="keep")
    host = host_class(type(ours))(host_config(family, attn_implementation="sdpa")).double().eval()
    host.load_state_dict({key: value for key, value in ours.state_dict().items() if "relpos" not in key})
    ids = tokens(length=16)
    distance = torch.arange(16)[None, :] - torch.arange(16)[:, None]
    bucket = T5Attention._relative_position_bucket(
        distance, bidirectional=family == "bert", num_buckets=8, max_distance=20
    )
    bias = ours.base_model.relpos.bias[bucket].permute(2, 0, 1)[None]
    torch.testing.assert_close(ours(ids).logits, host(ids, position_bias=bias).logits, rtol=0, atol=1e-9)
