"""The laws that hold for every method and every backend, run over the registry."""

import contextlib
import importlib
import inspect
import json

import pytest
import torch
from cases import (
    HEADS,
    HIDDEN,
    TABLE,
    WIDTH,
    all_cases,
    build,
    extras,
    initialise,
    label,
    padded,
    part_of,
    refused_cases,
    tensors,
)
from transformers.initialization import guard_torch_init_functions

import hf_relpos
from hf_relpos.attention.attend import attend
from hf_relpos.attention.backends import BackendRefusal, backends_for
from hf_relpos.attention.call import Mask
from hf_relpos.attention.functional import optional_inputs
from hf_relpos.encodings.build import build_encoding
from hf_relpos.encodings.inputs import Contribution, EncodingInputs
from hf_relpos.encodings.options import Host
from hf_relpos.encodings.positions import Positions
from hf_relpos.encodings.registry import registered_encodings
from hf_relpos.encodings.terms import PairFunction

CASES = all_cases()
# the others are asked where they run: triton by tests/interpreted.py
BACKENDS = backends_for("cpu")
every_case = pytest.mark.parametrize("case", CASES, ids=label)
LENGTH = 11


@pytest.fixture(autouse=True)
def gradients_where_there_is_a_backward_pass(request):
    """A backend without one on this machine is given calls without gradients, lest it refuse all that is learned."""
    backend = getattr(request.node, "callspec", None) and request.node.callspec.params.get("backend")
    with torch.set_grad_enabled(backend != "flex"):
        yield


def inputs_of(encoding, query, key, positions):
    given = part_of(extras(key.shape[2]), slice(key.shape[2] - query.shape[2], None), slice(None))
    return EncodingInputs(query, key, positions, WIDTH**-0.5, **optional_inputs(encoding, positions, **given))


def contribution(encoding, query, key, positions):
    inputs = inputs_of(encoding, query, key, positions)
    return encoding(inputs, Contribution(query, key, inputs.scale))


def encoding_reaches(encoding, length):
    return encoding.max_length is None or encoding.max_length >= length


def skip_if_length_matters(encoding):
    if encoding.changes_with_length:
        pytest.skip("by definition these scores change with the length of the call")


def more_than_numbers(terms):
    """Whether a kernel that reads numbers would have to compute some, or read one for every pair."""
    kinds = [getattr(term, "term", term) for term in terms]
    return any(isinstance(term, PairFunction) or getattr(term, "bucket", ()) is None for term in kinds)


def padding(batch, keys, side):
    mask = torch.ones(batch, keys, dtype=torch.long)
    if side == "right":
        mask[1, -4:] = 0
    elif side == "left":
        mask[1, :4] = 0
    return mask


def test_every_method_is_covered():
    assert {case[0]["type"] for case in CASES} == set(registered_encodings())


def test_only_directions_and_what_takes_a_model_are_refused():
    for rel_pos, causal, message in refused_cases():
        known = "direction=" in message or "share_att_key" in message or "valid here: auto" in message
        assert known, (rel_pos, causal, message)


@every_case
def test_tile_equals_at(case):
    encoding = build(*case)
    positions = Positions.consecutive(5, 9, query_offset=4)
    query, key, _ = tensors(5, 9, groups=2)
    b, h, i, j = torch.meshgrid(torch.arange(2), torch.arange(HEADS), torch.arange(5), torch.arange(9), indexing="ij")
    for term in contribution(encoding, query, key, positions).score_terms:
        dense = term.tile().expand(2, HEADS, 5, 9)
        torch.testing.assert_close(dense, term.at(b, h, i, j), rtol=1e-13, atol=1e-13)
        part = term.tile(slice(1, 4), slice(2, 8)).expand(2, HEADS, 3, 6)
        torch.testing.assert_close(dense[:, :, 1:4, 2:8], part, rtol=1e-13, atol=1e-13)


def test_mask_tile_equals_at():
    positions = Positions.consecutive(5, 9, query_offset=4)
    documents = torch.tensor([[0, 0, 0, 1, 1, 1, 2, 2, 2]]).expand(2, -1)
    mask = Mask(
        positions,
        causal=True,
        window=4,
        key_padding=padding(2, 9, "left").bool(),
        query_documents=documents[:, 4:],
        key_documents=documents,
        dense=torch.rand(1, HEADS, 5, 9) > 0.2,
    )
    b, h, i, j = torch.meshgrid(torch.arange(2), torch.arange(HEADS), torch.arange(5), torch.arange(9), indexing="ij")
    assert torch.equal(mask.tile(), mask.at(b, h, i, j))
    assert torch.equal(mask.tile(slice(1, 3), slice(2, 7)), mask.tile()[:, :, 1:3, 2:7])


@every_case
def test_equals_the_oracle_in_outputs_and_gradients(case):
    """On every backend; one that refuses the call may do so for what the encoding is, never for the call."""
    rel_pos, causal = case
    oracle = importlib.import_module(f"oracles.{rel_pos['type']}")
    encoding = build(*case)
    query, key, value = (x.requires_grad_() for x in tensors(LENGTH, LENGTH, groups=2))
    mask = padding(2, LENGTH, "left")
    given = extras(LENGTH)
    given["hidden_states"].requires_grad_()
    slots = list(range(3, 3 + LENGTH))
    allowed = mask.bool()[:, None, :].expand(2, LENGTH, LENGTH)
    if causal:
        allowed = allowed & torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
    parameters = dict(encoding.named_parameters())
    index = torch.tensor([slots, [max(i - 4, 0) for i in range(LENGTH)]])
    known = {**given, "query_index": index, "key_index": index}
    wanted = inspect.signature(oracle.attention).parameters
    expected = oracle.attention(
        query,
        key.repeat_interleave(2, dim=1),
        value.repeat_interleave(2, dim=1),
        parameters,
        encoding.config(),
        slots,
        slots,
        allowed,
        WIDTH**-0.5,
        **{name: value for name, value in known.items() if name in wanted},
    )
    weights = torch.randn(expected.shape, dtype=expected.dtype)
    inputs = {"query": query, "key": key, "value": value, **parameters}
    if "hidden_states" in wanted:
        inputs["hidden_states"] = given["hidden_states"]
    theirs = torch.autograd.grad((expected * weights).sum(), inputs.values(), allow_unused=True)
    exact = {"rtol": 0, "atol": 1e-10}
    arguments = {"attention_mask": mask, "is_causal": causal, "query_offset": 3, "key_offset": 3, **given}
    for backend in BACKENDS:
        refusal = ""
        try:
            output = hf_relpos.attention(query, key, value, encoding, backend=backend, **arguments)
        except BackendRefusal as error:
            refusal = str(error)
        if "no backward pass" in refusal:
            with torch.no_grad(), contextlib.suppress(BackendRefusal):
                output = hf_relpos.attention(query, key, value, encoding, backend=backend, **arguments)
                torch.testing.assert_close(output, expected, **exact, msg=lambda text, name=backend: f"{name}: {text}")
                continue
        if refusal:
            added = contribution(encoding, query, key, Positions.consecutive(LENGTH, LENGTH))
            no_kernel = "there is no kernel for" in refusal or (
                backend == "flex" and more_than_numbers(added.score_terms)
            )
            assert added.value_terms or added.row_maps or no_kernel
            assert backend != "eager"
            continue
        torch.testing.assert_close(output, expected, **exact, msg=lambda text, name=backend: f"{name}: {text}")
        ours = torch.autograd.grad((output * weights).sum(), inputs.values(), allow_unused=True)
        for name, mine, other in zip(inputs, ours, theirs, strict=True):
            if mine is None and other is None and (name == "hidden_states" or encoding.adds_to_input):
                continue
            where = f"{backend}: gradient of {name}"
            assert mine is not None, f"{where} is none"
            assert other.abs().sum() > 0, f"nothing depends on {name} here"
            torch.testing.assert_close(mine, other, **exact, msg=lambda text, where=where: f"{where}: {text}")


@pytest.mark.parametrize("backend", BACKENDS)
@every_case
def test_one_token_at_a_time_equals_the_full_pass(case, backend):
    _rel_pos, causal = case
    encoding = build(*case)
    skip_if_length_matters(encoding)
    query, key, value = tensors(LENGTH, LENGTH, groups=2)
    given = extras(LENGTH)
    try:
        full = hf_relpos.attention(query, key, value, encoding, is_causal=causal, backend=backend, **given)
    except BackendRefusal:
        return
    for i in range(LENGTH):
        last = i + 1 if causal else LENGTH
        step = hf_relpos.attention(
            query[:, :, i : i + 1],
            key[:, :, :last],
            value[:, :, :last],
            encoding,
            query_offset=i,
            key_offset=0,
            backend=backend,
            **part_of(given, slice(i, i + 1), slice(0, last)),
        )
        torch.testing.assert_close(step, full[:, :, i : i + 1], rtol=0, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
@every_case
def test_padding_on_either_side_changes_nothing(case, backend):
    _rel_pos, causal = case
    encoding = build(*case)
    skip_if_length_matters(encoding)
    query, key, value = tensors(7, 7)
    given = extras(7)
    try:
        alone = hf_relpos.attention(query, key, value, encoding, is_causal=causal, backend=backend, **given)
    except BackendRefusal:
        return
    junk = [torch.full_like(x[:, :, :4], 1e3) for x in (query, key, value)]
    for side in ("left", "right"):
        longer = [
            torch.cat((j, x) if side == "left" else (x, j), dim=2)
            for x, j in zip((query, key, value), junk, strict=True)
        ]
        mask = torch.ones(2, 11)
        mask[:, slice(0, 4) if side == "left" else slice(7, 11)] = 0
        output = hf_relpos.attention(
            *longer,
            encoding,
            attention_mask=mask,
            is_causal=causal,
            backend=backend,
            **padded(given, 4 if side == "left" else 0, 0 if side == "left" else 4),
        )
        real = output[:, :, 4:] if side == "left" else output[:, :, :7]
        torch.testing.assert_close(real, alone, rtol=0, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
@every_case
def test_packed_sequences_equal_the_same_sequences_apart(case, backend):
    _rel_pos, causal = case
    encoding = build(*case)
    skip_if_length_matters(encoding)
    query, key, value = tensors(9, 9)
    given = extras(9)
    documents = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1, 1]]).expand(2, -1)
    try:
        packed = hf_relpos.attention(
            query, key, value, encoding, is_causal=causal, document_ids=documents, backend=backend, **given
        )
    except BackendRefusal:
        return
    for part in (slice(0, 4), slice(4, 9)):
        apart = hf_relpos.attention(
            query[:, :, part],
            key[:, :, part],
            value[:, :, part],
            encoding,
            is_causal=causal,
            backend=backend,
            **part_of(given, part, part),
        )
        torch.testing.assert_close(packed[:, :, part], apart, rtol=0, atol=1e-12)


@every_case
def test_shifting_all_slots_changes_nothing(case):
    _rel_pos, causal = case
    encoding = build(*case)
    if not encoding.relative:
        pytest.skip("this encoding does not call itself relative")
    skip_if_length_matters(encoding)
    query, key, value = tensors(LENGTH, LENGTH)
    given = {"is_causal": causal, **extras(LENGTH)}
    here = hf_relpos.attention(query, key, value, encoding, **given)
    there = hf_relpos.attention(query, key, value, encoding, query_offset=1000, key_offset=1000, **given)
    torch.testing.assert_close(there, here, rtol=0, atol=1e-10)


@pytest.mark.parametrize("backend", BACKENDS)
@every_case
def test_bfloat16_stays_close_to_float32_at_slot_4096(case, backend):
    _rel_pos, causal = case
    exact, rounded = build(*case, dtype=torch.float32), build(*case, dtype=torch.float32)
    # scores of the size that models have: rounding is relative to them
    rounded.load_state_dict({key: value * 0.2 for key, value in exact.state_dict().items()})
    rounded = rounded.to(torch.bfloat16)
    exact.load_state_dict(rounded.state_dict())
    query, key, value = tensors(8, 64, dtype=torch.bfloat16)
    far = 4096 if encoding_reaches(exact, 4104) else 60
    arguments = {"query_offset": far, "key_offset": far - 56, "is_causal": causal, "backend": backend}
    arguments |= part_of(extras(64, dtype=torch.bfloat16), slice(56, None), slice(None))
    try:
        low = hf_relpos.attention(query, key, value, rounded, **arguments)
    except BackendRefusal:
        return
    arguments["hidden_states"] = arguments["hidden_states"].float()
    high = hf_relpos.attention(query.float(), key.float(), value.float(), exact, **arguments)
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), high, rtol=0, atol=0.08)


@pytest.mark.parametrize("backend", BACKENDS)
@every_case
def test_a_query_without_keys_gives_zero_and_no_gradient(case, backend):
    _rel_pos, causal = case
    encoding = build(*case)
    query, key, value = (x.requires_grad_() for x in tensors(LENGTH, LENGTH))
    mask = torch.ones(2, LENGTH)
    mask[1] = 0
    for learning in (False, True):
        try:
            with torch.set_grad_enabled(learning):
                output = hf_relpos.attention(
                    query,
                    key,
                    value,
                    encoding,
                    attention_mask=mask,
                    is_causal=causal,
                    backend=backend,
                    **extras(LENGTH),
                )
        except BackendRefusal:
            return
        assert (output[1] == 0).all()
        assert output[0].isfinite().all()
    output.square().sum().backward()
    for x in (query, key, value):
        assert x.grad.isfinite().all()
        assert (x.grad[1] == 0).all()
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in encoding.parameters())


@every_case
def test_window_sees_only_near_keys(case):
    _rel_pos, causal = case
    encoding = build(*case)
    query, key, value = tensors(LENGTH, LENGTH)
    near = (torch.arange(LENGTH)[:, None] - torch.arange(LENGTH)[None]).abs() < 3
    given = {"is_causal": causal, **extras(LENGTH)}
    windowed = hf_relpos.attention(query, key, value, encoding, window=3, **given)
    masked = hf_relpos.attention(query, key, value, encoding, attention_mask=near[None, None], **given)
    torch.testing.assert_close(windowed, masked, rtol=0, atol=1e-12)


@every_case
def test_options_survive_json_and_rebuild_the_same_encoding(case):
    encoding = build(*case)
    stored = json.loads(json.dumps(encoding.config()))
    again = build(stored, case[1])
    assert again.config() == stored
    assert {key: value.shape for key, value in again.state_dict().items()} == {
        key: value.shape for key, value in encoding.state_dict().items()
    }


@every_case
def test_owns_no_buffers_and_resets_idempotently(case):
    rel_pos, causal = case
    encoding = build_encoding(
        rel_pos, num_heads=HEADS, head_dim=WIDTH, hidden_size=24, max_position_embeddings=TABLE, causal=causal
    )
    assert not list(encoding.buffers())
    states = []
    for _ in range(2):
        with torch.no_grad():
            for parameter in encoding.parameters():
                parameter.fill_(torch.nan)
        torch.manual_seed(3)
        initialise(encoding)
        states.append({key: value.clone() for key, value in encoding.state_dict().items()})
    assert all(value.isfinite().all() for value in states[0].values())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


@every_case
def test_dropout_off_and_weights_sum_to_one(case):
    _rel_pos, causal = case
    encoding = build(*case)
    query, key, value = tensors(LENGTH, LENGTH)
    given = {"is_causal": causal, **extras(LENGTH)}
    output, weights = hf_relpos.attention(query, key, value, encoding, return_weights=True, **given)
    torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights.sum(-1)))
    torch.testing.assert_close(output, hf_relpos.attention(query, key, value, encoding, **given), rtol=0, atol=1e-12)


def test_a_list_composes():
    """Terms add and maps chain: two encodings together equal the sum of their terms on the mapped queries and keys."""
    rel_pos = [case[0] for case in CASES if case[1]]
    parts = [rel_pos[0], next(r for r in rel_pos if hf_relpos.encoding_card(r["type"]).depends_on == "rotation")]
    both = build(parts, causal=True)
    members = list(both.members)
    query, key, value = tensors(LENGTH, LENGTH)
    inputs = inputs_of(both, query, key, Positions.consecutive(LENGTH, LENGTH))
    start = Contribution(query, key, inputs.scale)
    total = both(inputs, start)
    assert len(total.score_terms) == sum(len(member(inputs, start).score_terms) for member in members)
    assert torch.equal(total.query, members[1](inputs, start).query)
    mask = Mask(inputs.positions, causal=True)
    joint, _ = attend(query, key, value, (both,), mask, scale=inputs.scale)
    chained, _ = attend(query, key, value, members, mask, scale=inputs.scale)
    assert torch.equal(joint, chained)


@every_case
def test_heads_restrict_an_encoding_to_some_heads(case):
    """Two of four heads get what two heads alone would, the others plain attention."""
    rel_pos, causal = case
    query, key, value = tensors(LENGTH, LENGTH)
    given = {"is_causal": causal, "backend": "eager", **extras(LENGTH)}
    refusal = None
    try:
        some = build({**rel_pos, "heads": [1, 3]}, causal)
        output = hf_relpos.attention(query, key, value, some, **given)
    except ValueError as error:
        refusal = str(error)
    if refusal is not None:
        assert "heads=[1, 3]" in refusal
        return
    sizes = {"head_dim": WIDTH, "hidden_size": HIDDEN, "max_position_embeddings": TABLE, "causal": causal}
    alone = build_encoding(rel_pos, num_heads=2, **sizes).double().eval()
    alone.load_state_dict(some.state_dict())
    inside = hf_relpos.attention(*(x[:, 1:3] for x in (query, key, value)), alone, **given)
    torch.testing.assert_close(output[:, 1:3], inside, rtol=0, atol=1e-12)
    plain = hf_relpos.attention(query, key, value, is_causal=causal)
    for head in (0, 3):
        torch.testing.assert_close(output[:, head], plain[:, head], rtol=0, atol=1e-12)
    inputs = inputs_of(some, query, key, Positions.consecutive(LENGTH, LENGTH))
    b, h, i, j = torch.meshgrid(torch.arange(2), torch.arange(HEADS), torch.arange(5), torch.arange(9), indexing="ij")
    for term in some(inputs, Contribution(query, key, inputs.scale)).score_terms:
        torch.testing.assert_close(
            term.tile(slice(5), slice(9)).expand(2, HEADS, 5, 9), term.at(b, h, i, j), rtol=1e-13, atol=1e-13
        )


def test_host_is_checked():
    with pytest.raises(ValueError, match="num_heads=0"):
        Host(0, 8, 64, None, False)


@pytest.mark.parametrize("backend", BACKENDS)
@every_case
def test_everything_is_made_on_the_device_of_the_query(case, backend):
    """On the meta device a tensor made elsewhere raises, as it would on a GPU."""
    _rel_pos, causal = case
    encoding = build(*case).to("meta")
    query, key, value = (x.to("meta") for x in tensors(LENGTH, LENGTH, groups=2))
    mask = padding(2, LENGTH, "left").to("meta")
    given = {name: value.to("meta") for name, value in extras(LENGTH).items()}
    try:
        output = hf_relpos.attention(
            query, key, value, encoding, attention_mask=mask, is_causal=causal, backend=backend, **given
        )
    except BackendRefusal:
        return
    assert output.shape == query.shape
    assert output.device.type == "meta"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
@pytest.mark.parametrize("backend", BACKENDS)
@every_case
def test_a_gpu_gives_the_numbers_of_the_cpu(case, backend):
    _rel_pos, causal = case
    encoding = build(*case)
    query, key, value = tensors(LENGTH, LENGTH, groups=2)
    mask = padding(2, LENGTH, "left")
    given = extras(LENGTH)
    try:
        expected = hf_relpos.attention(
            query, key, value, encoding, attention_mask=mask, is_causal=causal, backend=backend, **given
        )
    except BackendRefusal:
        return
    there = (x.cuda() for x in (query, key, value))
    given = {name: value.cuda() for name, value in given.items()}
    try:
        output = hf_relpos.attention(
            *there, encoding.cuda(), attention_mask=mask.cuda(), is_causal=causal, backend=backend, **given
        )
    except BackendRefusal as refusal:
        pytest.skip(f"refused on a GPU: {refusal}")
    torch.testing.assert_close(output.cpu(), expected, rtol=0, atol=1e-10)


@every_case
def test_initialisation_leaves_loaded_parameters_alone(case):
    """The host's loading code flags what a checkpoint filled and guards torch's init functions; in-place writes would slip past."""

    encoding = build(*case)
    before = {name: parameter.clone() for name, parameter in encoding.named_parameters()}
    for parameter in encoding.parameters():
        parameter._is_hf_initialized = True
    with guard_torch_init_functions():
        initialise(encoding)
    for name, parameter in encoding.named_parameters():
        assert torch.equal(parameter, before[name]), name
