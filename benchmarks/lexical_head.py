"""Measure the lexical head: time and memory, forward and with the backward pass.

    python benchmarks/lexical_head.py [--device cpu|cuda] [--shape S ...] [--repeat N] [--json]
                                      [--out FILE]

`max_over_patches` is compared with the bare matrix product (the floor of the forward pass), its
plain reference, and the reference through torch.compile. Each repeat runs all of them in turn;
medians are shown.

Extra memory is the peak minus what any method holds: inputs, logits, places and returned gradients.
On a GPU the peak is torch.cuda.max_memory_allocated. On a CPU it is the peak resident size of a
separate process for each figure (VmHWM, because ru_maxrss starts at the parent's), minus the size
after a small run: this includes buffers of the matrix library, which torch's profiler does not see,
but not code that a first run loads.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from measuring import processor
from torch import Tensor

from lexvla.lexical_head import max_over_patches, max_over_patches_reference

CHUNK = 2048  # the model's default
GOALS = {"floor": 1.3, "cpu": 1 / 2, "cuda": 1 / 1.5, "memory": 1 / 20}
PASSES = ("forward", "forward + backward")
NAMES = ("floor", "reference", "compiled", "ours")
SPARTON = "Sparton (arXiv 2603.25011) reports up to 4.8x over PyTorch with 10 to 12x less memory."


class Shape(NamedTuple):
    """Items, patches an item, width and words."""

    items: int
    patches: int
    width: int
    words: int


SMALL = Shape(4, 64, 64, 1024)
SHAPES = {
    "small": SMALL,
    "cpu": Shape(16, 256, 1024, 17149),
    "splade": Shape(32, 256, 768, 30522),
    "full": Shape(64, 256, 4096, 17149),
}
DEFAULTS = {"cpu": ["cpu", "splade"], "cuda": ["full", "splade"]}


class Inputs(NamedTuple):
    """Random states, a codebook, and a gradient of the logits."""

    patches: Tensor
    codebook: Tensor
    gradient: Tensor


def make_inputs(shape: Shape, device: str) -> Inputs:
    """Return inputs in float32 on a CPU and bfloat16 on a GPU."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    torch.manual_seed(0)
    patches = torch.randn(shape[:3], device=device, dtype=dtype)
    codebook = torch.randn(shape.words, shape.width, device=device, dtype=dtype)
    gradient = torch.randn(shape.items, shape.words, device=device, dtype=dtype)
    return Inputs(patches.requires_grad_(), codebook.requires_grad_(), gradient)


def make_method(name: str) -> Callable[[Tensor, Tensor], Any]:
    """Return a method by name."""
    return {
        "floor": lambda patches, codebook: torch.matmul(patches.flatten(0, 1), codebook.T),
        "reference": max_over_patches_reference,
        "compiled": torch.compile(max_over_patches_reference),
        "ours": lambda patches, codebook: max_over_patches(patches, codebook, CHUNK),
    }[name]


def no_compiler(device: str) -> str | None:
    """Return why torch.compile cannot be used, or None."""
    if device == "cuda" and importlib.util.find_spec("triton") is None:
        return "torch.compile needs triton"
    if not any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "clang++")):
        return "torch.compile needs a C++ compiler"
    return None


def run(method: Callable[[Tensor, Tensor], Any], inputs: Inputs, which: str) -> int:
    """Run a pass; return the bytes of its results."""
    patches, codebook, gradient = inputs
    if which == "forward":
        with torch.no_grad():
            results = method(patches, codebook)
        held = results if isinstance(results, tuple) else (results,)
    else:
        results = method(patches, codebook)
        held = (*results, *torch.autograd.grad(results[0], (patches, codebook), gradient))
    if patches.is_cuda:
        torch.cuda.synchronize()
    return sum(tensor.nbytes for tensor in held)


def seconds(names: list[str], which: str, inputs: Inputs, repeat: int) -> dict[str, float]:
    """Return each method's median time, after a warm-up."""
    methods = {name: make_method(name) for name in names}
    times: dict[str, list[float]] = {name: [] for name in names}
    for counted in (False, *[True] * repeat):
        for name, method in methods.items():
            start = time.perf_counter()
            run(method, inputs, which)
            if counted:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(found) for name, found in times.items()}


def memory(name: str, which: str, shape: str, device: str) -> dict[str, int]:
    """Return peak and extra memory of a pass in bytes."""
    if device == "cpu":
        command = [sys.executable, __file__, "--memory-of", name, which, "--shape", shape]
        # With a fixed threshold, freed blocks return to the system and are not counted again.
        environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
        found = subprocess.run(  # noqa: S603
            command, env=environment, capture_output=True, text=True, check=True
        )
        return json.loads(found.stdout.splitlines()[-1])
    inputs, method = make_inputs(SHAPES[shape], device), make_method(name)
    run(method, inputs, which)  # tuning and compiling are not counted
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    held = run(method, inputs, which)
    peak = torch.cuda.max_memory_allocated()
    return {"peak": peak, "extra": peak - before - held}


def memory_here(name: str, which: str, shape: str) -> dict[str, int]:
    """Return the same for this process, which has run nothing else."""
    method = make_method(name)
    run(method, make_inputs(SMALL, "cpu"), which)  # loads the libraries' code, and compiles
    inputs = make_inputs(SHAPES[shape], "cpu")
    before = resident("VmRSS")
    held = run(method, inputs, which)
    peak = resident("VmHWM")
    return {"peak": peak, "extra": peak - before - held}


def resident(what: str) -> int:
    """Return a size in bytes from this process's status in /proc."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    (line,) = (line for line in status.splitlines() if line.startswith(f"{what}:"))
    return int(line.split()[1]) * 1024


def measure(shape: str, device: str, repeat: int, methods: Sequence[str]) -> dict[str, Any]:
    """Return all figures of a shape."""
    found: dict[str, Any] = {"shape": SHAPES[shape]._asdict()}
    inputs = make_inputs(SHAPES[shape], device)
    for which in PASSES:
        names = [
            name
            for name in methods
            if (name != "floor" or which == "forward")
            and (name != "compiled" or no_compiler(device) is None)
        ]
        times = seconds(names, which, inputs, repeat)
        found[which] = {
            name: {"seconds": times[name], **memory(name, which, shape, device)} for name in names
        }
    return found


def ratios(figures: dict[str, Any], device: str) -> list[tuple[str, float, float]]:
    """Return name, result and target of each goal."""
    forward, both = (figures[which] for which in PASSES)

    def of(table: dict[str, Any], other: str, what: str) -> float:
        return table["ours"][what] / table[other][what]

    return [
        ("forward time / floor", of(forward, "floor", "seconds"), GOALS["floor"]),
        ("forward + backward time / reference", of(both, "reference", "seconds"), GOALS[device]),
        ("extra memory / reference, forward", of(forward, "reference", "extra"), GOALS["memory"]),
        ("the same, forward + backward", of(both, "reference", "extra"), GOALS["memory"]),
    ]


def describe(device: str) -> str:
    """Name the machine and torch."""
    name = torch.cuda.get_device_name() if device == "cuda" else processor()
    return f"{name}, torch {torch.__version__}, {torch.get_num_threads()} threads"


def table(name: str, figures: dict[str, Any], device: str) -> str:
    """Return a shape's figures as Markdown."""
    sizes = ", ".join(f"{what} {size:,}" for what, size in figures["shape"].items())
    dtype = "bfloat16" if device == "cuda" else "float32"
    lines = [f"## `{name}`: {sizes}, {dtype}", ""]
    lines += ["| pass | method | ms | extra MiB | peak MiB |", "|---|---|--:|--:|--:|"]
    for which in PASSES:
        lines += [
            f"| {which} | {method} | {1000 * found['seconds']:,.1f} "
            f"| {found['extra'] / 2**20:,.0f} | {found['peak'] / 2**20:,.0f} |"
            for method, found in figures[which].items()
        ]
    lines += ["", "| ratio of ours | found | goal |", "|---|--:|--:|"]
    lines += [
        f"| {what} | {ratio:.3f} | {'met' if ratio <= goal else 'missed'}: {goal:.3f} |"
        for what, ratio, goal in ratios(figures, device)
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--shape", choices=SHAPES, nargs="+", help="default: those of the device")
    parser.add_argument("--methods", choices=NAMES, nargs="+", default=NAMES)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--machine", help="its name, where the system tells too little")
    parser.add_argument("--out", type=Path, help="a file for the tables, in Markdown")
    parser.add_argument("--memory-of", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory_of:
        print(json.dumps(memory_here(*options.memory_of, shape=options.shape[0])))
        return
    device = options.device
    shapes = options.shape or DEFAULTS[device]
    figures = {shape: measure(shape, device, options.repeat, options.methods) for shape in shapes}
    machine = options.machine or describe(device)
    parts = [f"# The lexical head on {machine}"]
    parts += [f"Medians of {options.repeat} interleaved runs."]
    if "compiled" in options.methods and (reason := no_compiler(device)):
        parts.append(f"`compiled` is left out: {reason}.")
    parts += [table(shape, found, device) for shape, found in figures.items()]
    if device == "cuda":
        parts.append(SPARTON)
    text = "\n\n".join(parts)
    print(json.dumps({"machine": machine, "figures": figures}, indent=2) if options.json else text)
    if options.out:
        options.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
