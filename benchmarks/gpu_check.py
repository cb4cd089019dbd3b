"""Check on one GPU all that only a GPU can show: tests, speed and memory, each beside its aim.

    python benchmarks/gpu_check.py                      # make gpu-check: at most 8 minutes
    python benchmarks/gpu_check.py --small              # the same steps on a CPU, at tiny sizes

Every step runs in a process of its own. One that fails or takes too long does not stop the others,
and all failures are printed again at the end; the exit code is 1 if there are any. Weights are
random and made on the device; nothing is downloaded. With ``--small``, aims that are about speed
and memory are not judged, as they are those of a GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree as ET

from lexical_head import GOALS

HERE = Path(__file__).parent
SECONDS = 480.0
# Sparton (arXiv 2603.25011) beside PyTorch, for SPLADE's shape: 4.8 times, a tenth of the memory.
SPLADE_TIME, SPLADE_MEMORY = 1 / 4.8, 1 / 10
LEAST_SHARE = 0.5  # of the measured rate of matrix products, for texts in bfloat16
MOST_NF4 = 1.5  # times bfloat16, for texts
PAIRS, PARTS = 64, 4  # of a training step, and how many pass through the model at a time


class Figure(NamedTuple):
    """A measured number and its aim; ``None`` if there is no number."""

    name: str
    found: float | None
    aim: float
    at_least: bool = False
    of_device: bool = True  # not judged at small sizes

    @property
    def met(self) -> bool:
        """Whether it is as it should be."""
        if self.found is None:
            return False
        return self.found >= self.aim if self.at_least else self.found <= self.aim

    def line(self, small: bool) -> str:
        """Return the figure beside its aim."""
        state = "small" if small and self.of_device else "ok" if self.met else "MISSED"
        found = "none" if self.found is None else f"{self.found:.3g}"
        return f"{state:7}{self.name}: {found}, {self.aimed}"

    @property
    def aimed(self) -> str:
        """The aim in words."""
        return f"at {'least' if self.at_least else 'most'} {self.aim:.3g}"


class Step(NamedTuple):
    """A command, the seconds it may take, and what reads its figures from its output."""

    name: str
    command: list[str]
    seconds: float
    read: Callable[[str], Iterator[Figure]]


def steps(small: bool, folder: Path) -> list[Step]:
    """Return all steps, those that tell most first."""
    device = "cpu" if small else "cuda"
    report, backbones = folder / "tests.xml", str(folder / "backbones")
    tests = "tests/test_cuda.py" if small else "tests"
    own = [sys.executable, "-m", "pytest", "-q", "-m", "cuda", f"--junitxml={report}", tests]
    made = [Step("tests", own, 150, lambda _: read_tests(report, small))]
    head = ["--device", device, "--methods", "floor", "reference", "ours", "--json"]
    head += ["--shape", *(["small"] if small else ["full", "splade"])]
    made.append(Step("lexical head", script("lexical_head", *head), 90, read_head))
    sizes = ["--size", "tiny", "--seconds", "0", "--matmul-side", "64", "--batch-sizes", "2"]
    full = ["--size", "full", "--seconds", "1", "--batch-sizes", "64", "256"]
    kinds = ["none"] if small else ["none", "nf4"]
    encode = ["--device", device, "--json", "--backbones", backbones, "--quantization", *kinds]
    encode += sizes if small else full
    made.append(Step("encode", script("encode", *encode), 180, read_encode))
    for kind in reversed(kinds):
        train = ["--device", device, "--backbones", backbones, "--quantization", kind]
        train += ["--pairs", str(PARTS if small else PAIRS), "--parts", str(PARTS)]
        train += ["--tiny"] if small else []
        made.append(Step(f"full size, {kind}", script("full_size", *train), 150, read_checks))
    return made


def script(name: str, *arguments: str) -> list[str]:
    """Return the command of a benchmark."""
    return [sys.executable, str(HERE / f"{name}.py"), *arguments]


def read_tests(report: Path, small: bool) -> Iterator[Figure]:
    """Read a report of pytest: failures by name; and on a GPU, none may be skipped."""
    cases = list(ET.parse(report).iter("testcase"))  # noqa: S314 - we wrote it
    bad = [case.get("name") for case in cases if case.find("failure") is not None]
    bad += [case.get("name") for case in cases if case.find("error") is not None]
    skipped = sum(case.find("skipped") is not None for case in cases)
    yield Figure(
        "tests that failed" + f" ({', '.join(map(str, bad))})" * bool(bad),
        len(bad),
        0,
        of_device=False,
    )
    yield Figure("tests that ran", len(cases) - (0 if small else skipped), 1, True, of_device=False)
    yield Figure("tests that were skipped", skipped, 0)


def read_head(output: str) -> Iterator[Figure]:
    """Read the ratios of the lexical head to plain torch."""
    for shape, found in json.loads(output)["figures"].items():
        forward, both = found["forward"], found["forward + backward"]
        head = f"lexical head `{shape}`"
        time_aim = SPLADE_TIME if shape == "splade" else GOALS["cuda"]
        memory_aim = SPLADE_MEMORY if shape == "splade" else GOALS["memory"]
        yield Figure(
            f"{head}, forward: time / bare product", of(forward, "floor", "seconds"), GOALS["floor"]
        )
        yield Figure(
            f"{head}, forward and backward: time / autograd",
            of(both, "reference", "seconds"),
            time_aim,
        )
        yield Figure(
            f"{head}, forward and backward: memory / autograd",
            of(both, "reference", "extra"),
            memory_aim,
        )


def of(table: dict[str, Any], other: str, what: str) -> float | None:
    """Return ours over another's, if that is not 0."""
    return table["ours"][what] / table[other][what] if table[other][what] else None


def read_encode(output: str) -> Iterator[Figure]:
    """Read how well texts use the device, and what NF4 costs."""
    rates = {}
    for model in json.loads(output)["models"]:
        kind, best = model["quantization"], max(model["texts"], key=lambda row: row["encode"] or 0)
        rates[kind] = best["encode"]
        if kind == "none":
            name = f"texts at a batch of {best['batch']}: share of the rate of matrix products"
            yield Figure(name, best["share"], LEAST_SHARE, True)
    if "nf4" in rates:
        ratio = rates["none"] / rates["nf4"] if all(rates.values()) else None
        yield Figure("texts: time of NF4 / bfloat16", ratio, MOST_NF4)


def read_checks(output: str) -> Iterator[Figure]:
    """Read the checks of the full architecture."""
    for name in re.findall(r"^- FAILED: (.*)$", output, re.MULTILINE):
        yield Figure(name, None, 0, of_device=False)
    passed = len(re.findall(r"^- ok: ", output, re.MULTILINE))
    yield Figure("checks that passed", passed, 1, True, of_device=False)


def run(step: Step, seconds: float, log: Path) -> tuple[str, str]:
    """Run a step; return its output, and what went wrong if anything did."""
    folders = [str(HERE.parent / name) for name in ("", "indexer", "search", "tests")]
    paths = os.pathsep.join([*folders, os.environ.get("PYTHONPATH", "")])
    with log.open("w", encoding="utf-8") as errors:
        process = subprocess.Popen(  # noqa: S603 - our own commands
            step.command,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            cwd=HERE.parent,
            env={**os.environ, "PYTHONPATH": paths},
            start_new_session=True,
        )
        try:
            output, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output, _ = process.communicate()
            return output, f"took over {seconds:.0f} s"
    if not process.returncode:
        return output, ""
    lines = (output + log.read_text(encoding="utf-8")).strip().splitlines()
    return output, f"exit code {process.returncode}: " + " | ".join(lines[-3:])


def check(step: Step, seconds: float, folder: Path, small: bool) -> list[str]:
    """Run a step, print its figures and return what is wrong."""
    print(f"\n## {step.name}\n", flush=True)
    if seconds < 1:
        print("FAILED no time was left")
        return [f"{step.name}: no time was left"]
    began = time.monotonic()
    output, wrong = run(step, seconds, folder / f"{step.name}.log")
    failures = [f"{step.name}: {wrong}"] if wrong else []
    try:
        figures = list(step.read(output))
    except (ValueError, KeyError, OSError, ET.ParseError) as error:
        figures = []
        failures.append(f"{step.name}: its figures cannot be read ({error!r})")
    for figure in figures:
        print(figure.line(small))
        if not figure.met and not (small and figure.of_device):
            found = "none" if figure.found is None else f"{figure.found:.3g}"
            failures.append(f"{step.name}: {figure.name}: {found}, {figure.aimed}")
    if wrong:
        print(f"FAILED {wrong}")
    print(f"({time.monotonic() - began:.0f} s)", flush=True)
    return failures


def main(arguments: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="on a CPU, at tiny sizes")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for all steps together")
    args = parser.parse_args(arguments)
    end = time.monotonic() + args.seconds
    failures = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for step in steps(args.small, folder):
            seconds = min(step.seconds, end - time.monotonic())
            failures += check(step, seconds, folder, args.small)
    print("\n## All together\n")
    print("\n".join(f"FAILED {failure}" for failure in failures) or "Nothing failed.")
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
