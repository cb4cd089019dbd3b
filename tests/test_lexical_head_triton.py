"""Check the CUDA kernels: on a GPU where there is one, and on any machine in triton's interpreter.

Triton reads TRITON_INTERPRET as it is imported, so the interpreter has a process of its own: this
file, run as a script, prints the name of each check that passed, up to the first that fails.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lexvla import lexical_head
from lexvla.lexical_head import max_over_patches, max_over_patches_reference

NO_TRITON = "needs triton (pip install triton)"

# B, P, d, V: beside and on the blocks' edges, one of each, and none.
SHAPES = [
    (2, 70, 40, 70),
    (3, 5, 33, 17),
    (1, 128, 64, 65),
    (1, 1, 1, 1),
    (0, 3, 4, 5),
    (2, 3, 4, 0),
]


def parts(
    batch: int, count: int, width: int, words: int, device: str, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(batch + 10 * count + 100 * words)
    shapes = (batch, count, width), (words, width), (batch, words)
    patches, codebook, gradient = (
        torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes
    )
    return patches.requires_grad_(), codebook.requires_grad_(), gradient


def check_the_kernels_are_those_used(device: str) -> None:
    from lexvla import lexical_head_triton

    states = torch.zeros(1, device=device)
    assert lexical_head._kernels(states) is lexical_head_triton
    if device == "cuda":
        assert lexical_head._kernels(states.double()) is None


def check_values_and_gradients(device: str) -> None:
    for shape in SHAPES:
        patches, codebook, gradient = parts(*shape, device=device)
        logits, place = max_over_patches(patches, codebook, 8)
        exact = [part.detach().double().requires_grad_() for part in (patches, codebook)]
        expected, places = max_over_patches_reference(*exact)
        torch.testing.assert_close(logits.double(), expected, rtol=1e-5, atol=1e-5)
        assert torch.equal(place, places)
        found = torch.autograd.grad(logits, (patches, codebook), gradient)
        wanted = torch.autograd.grad(expected, exact, gradient.double())
        for one, other in zip(found, wanted, strict=True):
            torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-5)


def check_16_bits(device: str) -> None:
    # The interpreter multiplies no bfloat16; sums are of 32 bits and rounded once.
    for dtype in (torch.float16, torch.bfloat16)[: 1 + (device == "cuda")]:
        tolerance = {"rtol": torch.finfo(dtype).eps / 2 * 1.01, "atol": 1e-4}
        patches, codebook, gradient = parts(2, 70, 72, 80, device, dtype)
        logits, place = max_over_patches(patches, codebook, 8)
        assert logits.dtype == dtype
        exact = [part.detach().double().requires_grad_() for part in (patches, codebook)]
        dense = exact[0] @ exact[1].T
        torch.testing.assert_close(logits.double(), dense.amax(1), **tolerance)
        found = torch.autograd.grad(logits, (patches, codebook), gradient)
        chosen = dense.gather(1, place.long()[:, None])[:, 0]
        wanted = torch.autograd.grad(chosen, exact, gradient.double())
        for one, other in zip(found, wanted, strict=True):
            assert one.dtype == dtype
            torch.testing.assert_close(one.double(), other, **tolerance)


def check_bfloat16_gradients(device: str) -> None:
    from lexvla import lexical_head_triton as kernels

    patches, _, gradient = parts(2, 5, 20, 30, device, torch.bfloat16)
    place = torch.arange(60, device=device).view(2, 30).remainder(5).to(torch.int16)
    found = kernels.to_codebook(gradient, patches.detach(), place)
    chosen = patches.double().gather(1, place.long()[:, :, None].expand(-1, -1, 20))
    wanted = (gradient.double()[:, :, None] * chosen).sum(0)
    # A whole unit of the last place: the interpreter cuts off where a GPU rounds.
    torch.testing.assert_close(found.double(), wanted, rtol=2**-7, atol=1e-4)


def check_views(device: str) -> None:
    patches, codebook, gradient = parts(2, 6, 12, 9, device)
    views = patches[:, 1:], codebook.T.contiguous().T
    logits, place = max_over_patches(*views, chunk=8)
    expected, places = max_over_patches_reference(*views)
    torch.testing.assert_close(logits, expected)
    assert torch.equal(place, places)
    spread = gradient[:1].expand(2, 9)
    found = torch.autograd.grad(logits, (patches, codebook), spread)
    wanted = torch.autograd.grad(expected, (patches, codebook), spread)
    torch.testing.assert_close(found, wanted)


def check_ties_and_no_numbers(device: str) -> None:
    words = torch.tensor([[1.0], [-1.0]], device=device)
    rows = [
        [1.0, 3.0, 3.0, -1.0],
        [2.0, 2.0, 2.0, 2.0],
        [1.0, math.nan, 2.0, 0.0],
        [-math.inf] * 4,
        [math.nan] * 4,
    ]
    patches = torch.tensor(rows, device=device)[:, :, None]
    logits, place = max_over_patches(patches, words, 8)
    expected, places = max_over_patches_reference(patches, words)
    torch.testing.assert_close(logits, expected, equal_nan=True)
    assert torch.equal(place, places)  # the first of equals, as torch's own on CPUs


def check_many_words_of_one_patch(device: str) -> None:
    patches, codebook, gradient = parts(2, 4, 8, 200, device)
    with torch.no_grad():
        patches[:, 2] = 100 * codebook[0]
        codebook.copy_(codebook[0] + codebook / 100)
    logits, place = max_over_patches(patches, codebook, 8)
    assert (place == 2).all()
    (found,) = torch.autograd.grad(logits, patches, gradient)
    torch.testing.assert_close(found[:, 2], gradient @ codebook)
    assert not found[:, [0, 1, 3]].any()


def check_the_same_in_every_run(device: str) -> None:
    patches, codebook, gradient = parts(3, 20, 16, 90, device)
    runs = []
    for _ in range(2):
        logits, place = max_over_patches(patches, codebook, 8)
        found = torch.autograd.grad(logits, (patches, codebook), gradient)
        runs.append((logits, place, *found))
    assert all(torch.equal(one, other) for one, other in zip(*runs, strict=True))


CHECKS: dict[str, Callable[[str], None]] = {
    name.removeprefix("check_"): check
    for name, check in list(globals().items())
    if name.startswith("check_")
}


@pytest.fixture(scope="module")
def interpreted() -> subprocess.CompletedProcess[str]:
    pytest.importorskip("triton", reason=NO_TRITON)
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, __file__]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", CHECKS)
def test_in_the_interpreter(name: str, interpreted: subprocess.CompletedProcess[str]) -> None:
    assert name in interpreted.stdout.split(), interpreted.stderr


@pytest.mark.cuda
@pytest.mark.parametrize("name", CHECKS)
def test_on_a_gpu(name: str) -> None:
    pytest.importorskip("triton", reason=NO_TRITON)
    CHECKS[name]("cuda")


@pytest.mark.cuda
def test_a_gpu_without_triton_runs_plain_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lexical_head, "_kernels", lambda _: None)
    check_values_and_gradients("cuda")
    check_views("cuda")
    check_the_same_in_every_run("cuda")


@pytest.mark.cuda
def test_float64_on_a_gpu() -> None:
    patches, codebook, _ = parts(2, 3, 4, 7, "cuda", torch.float64)
    inputs = patches.detach().requires_grad_(), codebook.detach().requires_grad_()
    assert torch.autograd.gradcheck(lambda p, c: max_over_patches(p, c, 3)[0], inputs)


@pytest.mark.cuda
def test_compiled_on_a_gpu() -> None:
    pytest.importorskip("triton", reason=NO_TRITON)
    patches, codebook, gradient = parts(2, 70, 40, 70, "cuda")
    compiled = torch.compile(lambda p, c: max_over_patches(p * 2, c, 8)[0], fullgraph=True)
    found = torch.autograd.grad(compiled(patches, codebook), (patches, codebook), gradient)
    logits, _ = max_over_patches(patches * 2, codebook, 8)
    wanted = torch.autograd.grad(logits, (patches, codebook), gradient)
    torch.testing.assert_close(found, wanted)


@pytest.mark.cuda
@pytest.mark.parametrize("large", ["patches", "codebook"])
def test_more_numbers_than_32_bits_count(large: str) -> None:
    pytest.importorskip("triton", reason=NO_TRITON)
    if torch.cuda.get_device_properties(0).total_memory < 24 * 2**30:
        pytest.skip("needs a GPU with 24 GiB")
    batch, count, width, words = (
        (2100, 256, 4096, 3) if large == "patches" else (2, 3, 4096, 530000)
    )
    patches = torch.zeros(batch, count, width, dtype=torch.bfloat16, device="cuda")
    codebook = torch.zeros(words, width, dtype=torch.bfloat16, device="cuda")
    patches[-1, -1, -1] = codebook[-1, -1] = 2
    patches.requires_grad_()
    codebook.requires_grad_()
    logits, place = max_over_patches(patches, codebook, 8)
    assert logits[-1, -1] == 4
    assert logits.count_nonzero() == 1
    assert place[-1, -1] == count - 1
    to_patches, to_codebook = torch.autograd.grad(logits[-1, -1], (patches, codebook))
    assert to_patches[-1, -1, -1] == to_codebook[-1, -1] == 2
    assert to_patches.count_nonzero() == to_codebook.count_nonzero() == 1


# Their pointers and strides divide by 16 where rows are aligned; a size of 1 is a constant.
KINDS = {"aligned": {}, "ragged": {"EVEN": False}, "of one": {"EVEN": False}}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("kernel", ["_forward", "_to_codebook", "_to_patches"])
def test_it_compiles_for_ampere_and_hopper(kernel: str, capability: int, kind: str) -> None:
    pytest.importorskip("triton", reason=NO_TRITON)
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.compiler import compile as build
    from triton.runtime import JITFunction

    from lexvla import lexical_head_triton

    tuned: Any = getattr(lexical_head_triton, kernel)
    function = tuned
    while not isinstance(function, JITFunction):
        function = function.fn
    types = {"place": "*i16", "order": "*i64", "starts": "*i64"}
    types |= dict.fromkeys(("patches", "codebook", "logits", "gradient", "out"), "*bf16")
    for config in (tuned.configs[0], tuned.configs[-1])[kind != "aligned" :]:
        constants = {"PRECISION": "ieee", "EVEN": True, **KINDS[kind], **config.kwargs}
        if kind == "of one":
            constants |= dict.fromkeys(("items", "count", "words", "width"), 1)
        names = function.arg_names
        constants = {name: value for name, value in constants.items() if name in names}
        source = ASTSource(
            fn=function,
            signature={
                name: "constexpr" if name in constants else types.get(name, "i32") for name in names
            },
            constexprs={(names.index(name),): value for name, value in constants.items()},
            attrs={
                (number,): [["tt.divisibility", 16]]
                for number, name in enumerate(names)
                if kind == "aligned" and name not in constants and name not in ("items", "words")
            },
        )
        options = {"num_warps": config.num_warps, "num_stages": config.num_stages}
        built = build(source, GPUTarget("cuda", capability, 32), options)
        assert built.asm["cubin"]
        assert built.metadata.shared <= {80: 163, 90: 227}[capability] * 1024
        if kernel == "_forward":  # on the tensor cores
            assert ("wgmma" if capability == 90 else "mma.sync") in built.asm["ptx"]


def main() -> None:
    from lexvla import lexical_head_triton

    lexical_head._kernels = lambda _: lexical_head_triton
    for name, check in CHECKS.items():
        check("cpu")
        sys.stdout.write(f"{name}\n")


if __name__ == "__main__":
    main()
