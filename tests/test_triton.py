"""The triton backend: what it refuses and why, everything else in the interpreter, in a process of its own (``interpreted.py``), and on a GPU where there is one."""

import importlib.util
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from cases import tensors

import hf_relpos
from hf_relpos.attention import triton as backend
from hf_relpos.attention.backends import BackendRefusal
from hf_relpos.attention.call import AttentionCall, Mask
from hf_relpos.attention.eager import run as eager
from hf_relpos.encodings.positions import Positions
from hf_relpos.encodings.terms import DistanceTable, KeyBuckets, OnHeads, PairFunction, QueryBuckets

INSTALLED = importlib.util.find_spec("triton") is not None
needs_triton = pytest.mark.skipif(not INSTALLED, reason="triton is not installed: pip install triton")


def a_call(length=6, width=8, **options):
    positions = Positions.consecutive(length, length)
    query = torch.zeros(1, 2, length, width)
    return AttentionCall(query, query, query, Mask(positions), 1.0, **options)


@needs_triton
@pytest.mark.slow
def test_everything_holds_in_the_interpreter():
    path = Path(__file__).parent / "interpreted.py"
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=path.parent.parent, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout


def test_it_says_what_is_missing(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(backend, "_installed", lambda: False)
    with pytest.raises(BackendRefusal, match="triton is not installed; tensors are on the CPU: triton runs there only"):
        hf_relpos.attention(*tensors(3, 3), backend="triton")
    monkeypatch.setattr(backend, "_installed", lambda: True)
    assert backend.missing(torch.device("cuda")) == []
    assert backend.missing(torch.device("meta")) == ["tensors are on meta: triton runs on cuda"]


def test_the_package_does_not_import_it():
    code = "import sys, hf_relpos, hf_relpos.attention.backends; assert 'triton' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_each_objection_has_its_reason():
    positions = Positions.consecutive(6, 6)
    gaps = positions.reassigned(torch.tensor([0, 2, 3, 5, 8, 9]), 12)
    table = DistanceTable(torch.zeros(2, 11), positions)
    assert backend.objections(a_call(score_terms=(OnHeads(table, 0, 2, 2),))) == []
    other = PairFunction(lambda query, key: query - key, torch.zeros(1, 6, 1), torch.zeros(1, 6, 1))
    wide = torch.zeros(1, 2, 6, 200)
    dense = torch.ones(1, 1, 6, 6, dtype=torch.bool)
    on_device = Positions.consecutive(6, 6, query_offset=torch.tensor(0))
    refused = {
        "attention weights": a_call(need_weights=True),
        "maps whole rows": a_call(row_maps=(lambda *given: given[0],)),
        "adds to the values": a_call(value_terms=(None,)),
        "dense tensor": replace(a_call(), mask=Mask(positions, dense=dense)),
        "static cache": replace(a_call(), mask=Mask(on_device)),
        "slots have gaps": replace(a_call(), mask=Mask(gaps)),
        "encoding's slots have gaps": a_call(score_terms=(DistanceTable(torch.zeros(2, 23), gaps),)),
        "no kernel for PairFunction": a_call(score_terms=(OnHeads(other, 0, 1, 2),)),
        "queries and keys are 300 wide, tiles 256": a_call(width=300),
        "content terms of queries are 400 wide": a_call(
            score_terms=(QueryBuckets(wide, torch.zeros(11, 200), None, positions),) * 2
        ),
        "content terms of keys are 400 wide": a_call(
            score_terms=(KeyBuckets(wide, torch.zeros(11, 200), None, positions),) * 2
        ),
        "float64 is taken in the interpreter only": replace(a_call(), query=torch.zeros(1, 2, 6, 8).double()),
    }
    for reason, call in refused.items():
        told = backend.objections(call)
        assert any(reason in text for text in told), (reason, told)


@needs_triton
@pytest.mark.slow
def test_the_kernels_compile_for_a_gpu_that_is_not_there(monkeypatch):
    """To machine code for compute capability 9.0, with all gradients; what a GPU would be given."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    compiled = []
    pointers = {
        torch.float32: "*fp32",
        torch.bfloat16: "*bf16",
        torch.int64: "*i64",
        torch.int32: "*i32",
        torch.uint8: "*u8",
    }

    def kind(x):
        if isinstance(x, torch.Tensor):
            return pointers[x.dtype]
        return tuple(map(kind, x)) if isinstance(x, tuple) else "fp32" if isinstance(x, float) else "i32"

    def build(kernel, grid, values, tiles):
        fixed = {p.name: values[p.name] for p in kernel.params if p.is_constexpr or values[p.name] is None}
        signature = {name: "constexpr" if name in fixed else kind(values[name]) for name in kernel.arg_names}
        options = {"num_warps": tiles.num_warps, "num_stages": tiles.num_stages}
        made = compile(ASTSource(kernel, signature, fixed), target=GPUTarget("cuda", 90, 32), options=options)
        compiled.append((kernel.__name__, len(made.asm["cubin"]), made.metadata.shared))

    monkeypatch.setattr(backend, "_launch", build)
    positions = Positions.consecutive(128, 128)
    query = torch.zeros(1, 2, 128, 64, dtype=torch.bfloat16, requires_grad=True)
    terms = (
        DistanceTable(torch.zeros(2, 255, requires_grad=True), positions),
        QueryBuckets(query, torch.zeros(255, 64, requires_grad=True), None, positions),
    )
    mask = Mask(positions, causal=True, key_padding=torch.ones(1, 128, dtype=torch.bool))
    backend.run(AttentionCall(query, query, query, mask, 0.125, terms, dropout=0.1))[0].sum().backward()
    assert [name for name, _, _ in compiled] == ["forward", "backward_queries", "backward_keys", "backward_distances"]
    assert all(size > 0 and shared < 160 * 1024 for _, size, shared in compiled), compiled


@needs_triton
@pytest.mark.skipif(
    not torch.cuda.is_available(), reason="no CUDA device on this machine: the kernels are not run on a GPU"
)
@pytest.mark.parametrize("width", [32, 64, 96, 128, 256])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_gpu_equals_the_oracle(dtype, width):
    """Outputs and gradients beside float64 on the same numbers, over several tiles of each kind, and the same bits in a second run."""
    positions = Positions.consecutive(300, 300, device="cuda")
    generator = torch.Generator().manual_seed(0)

    def leaf(*shape, kind=dtype):
        return torch.randn(*shape, generator=generator).to("cuda", kind).requires_grad_()

    leaves = [leaf(2, heads, 300, width) for heads in (4, 2, 2)]
    leaves += [leaf(4, 599, kind=torch.float32), leaf(9, width), leaf(4, 9, width)]
    padding = torch.ones(2, 300, dtype=torch.bool, device="cuda")
    padding[1, :70] = False
    bucket = (torch.arange(599, device="cuda") // 64).clamp(max=8)

    def solve(run, kind):
        query, key, value, table, rows, key_rows = given = [
            x.detach().to(torch.promote_types(x.dtype, kind)).requires_grad_() for x in leaves
        ]
        terms = (
            DistanceTable(table, positions),
            QueryBuckets(query, rows, bucket, positions),
            KeyBuckets(key.repeat_interleave(2, dim=1), key_rows, bucket, positions),
        )
        mask = Mask(positions, causal=True, key_padding=padding)
        output = run(AttentionCall(query, key, value, mask, width**-0.5 / 3, terms))[0]
        return output, *torch.autograd.grad(output.double().square().sum(), given)

    near = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}[dtype]
    first, second = (solve(backend.run, dtype) for _ in range(2))
    assert all(torch.equal(one, two) for one, two in zip(first, second, strict=True))
    for mine, other in zip(first, solve(eager, torch.float64), strict=True):
        torch.testing.assert_close(mine.double() / other.abs().max(), other / other.abs().max(), rtol=0, atol=near)
