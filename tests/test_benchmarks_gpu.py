"""The check on a GPU, at very small sizes on a CPU: only the device is new to it."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
REPORT = '<testsuite><testcase name="a"/><testcase name="b">{}</testcase></testsuite>'


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Import a module as it is imported where a script of its folder runs."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module


def option(command: list[str], name: str) -> Path:
    (found,) = (part for part in command if part.startswith(name))
    return Path(found.removeprefix(name))


def test_every_step_runs_and_is_read(
    load: Callable[[str], ModuleType],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    gpu_check, head = load("gpu_check"), load("lexical_head")
    monkeypatch.setattr(head, "memory", lambda *_: {"peak": 2, "extra": 1})  # needs processes
    shown: list[str] = []

    def run_here(step: Any, seconds: float, log: Path) -> tuple[str, str]:
        shown.append(capsys.readouterr().out)
        if step.name == "tests":
            option(step.command, "--junitxml=").write_text(REPORT.format("<skipped/>"))
            return "", ""
        monkeypatch.setattr(sys, "argv", step.command[1:])
        with pytest.raises(SystemExit) if step.name.startswith("full") else monkeypatch.context():
            load(Path(step.command[1]).stem).main()
        return capsys.readouterr().out, ""

    monkeypatch.setattr(gpu_check, "run", run_here)
    with pytest.raises(SystemExit) as ended:
        gpu_check.main(["--small"])
    printed = "".join([*shown, capsys.readouterr().out])
    assert "Nothing failed." in printed
    assert ended.value.code == 0
    for figure in (
        "ok     tests that ran: 2, at least 1",
        "small  tests that were skipped: 1, at most 0",
        "small  lexical head `small`, forward: time / bare product: ",
        "small  lexical head `small`, forward and backward: memory / autograd: 1, at most 0.05",
        "small  texts at a batch of 2: share of the rate of matrix products: ",
        "ok     checks that passed: 12, at least 1",
    ):
        assert figure in printed


def test_failures_do_not_stop_it_and_are_printed_at_the_end(
    load: Callable[[str], ModuleType],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    gpu_check = load("gpu_check")
    table = {"ours": {"seconds": 1.4, "extra": 1}, "floor": {"seconds": 1}}
    table["reference"] = {"seconds": 7, "extra": 10}
    shapes = {name: {"forward": table, "forward + backward": table} for name in ("full", "splade")}
    rows = [{"batch": 64, "encode": 8, "share": 0.6}, {"batch": 256, "encode": None, "share": None}]
    slow = [{"batch": 64, "encode": 4, "share": 0.3}]
    outputs = {
        "lexical head": gpu_check.json.dumps({"figures": shapes}),
        "encode": gpu_check.json.dumps(
            {
                "models": [
                    {"quantization": "none", "texts": rows},
                    {"quantization": "nf4", "texts": slow},
                ]
            }
        ),
        "full size, nf4": "- ok: one\n- FAILED: the saved weights are the trained ones (3 B)\n",
        "full size, none": "not what it prints",
    }

    def give(step: Any, seconds: float, log: Path) -> tuple[str, str]:
        if step.name == "tests":
            option(step.command, "--junitxml=").write_text(REPORT.format("<failure/>"))
        wrong = "took over 9 s" if step.name == "full size, none" else ""
        return outputs.get(step.name, ""), wrong

    monkeypatch.setattr(gpu_check, "run", give)
    with pytest.raises(SystemExit) as ended:
        gpu_check.main([])
    assert ended.value.code == 1
    end = capsys.readouterr().out.partition("## All together")[2].splitlines()
    assert [line for line in end if line] == [
        "FAILED tests: tests that failed (b): 1, at most 0",
        "FAILED lexical head: lexical head `full`, forward: time / bare product: 1.4, at most 1.3",
        "FAILED lexical head: lexical head `full`, forward and backward: memory / autograd: 0.1, "
        "at most 0.05",
        "FAILED lexical head: lexical head `splade`, forward: time / bare product: 1.4, "
        "at most 1.3",
        "FAILED encode: texts: time of NF4 / bfloat16: 2, at most 1.5",
        "FAILED full size, nf4: the saved weights are the trained ones (3 B): none, at most 0",
        "FAILED full size, none: took over 9 s",
        "FAILED full size, none: checks that passed: 0, at least 1",
    ]


def test_a_step_that_takes_too_long_is_ended(
    load: Callable[[str], ModuleType], tmp_path: Path
) -> None:
    gpu_check = load("gpu_check")
    code = "print('begun', flush=True); import time; time.sleep(60)"
    step = gpu_check.Step("slow", [sys.executable, "-c", code], 0, lambda _: iter(()))
    assert gpu_check.run(step, 2.0, tmp_path / "log") == ("begun\n", "took over 2 s")
    code = "import sys; sys.exit('no GPU')"
    step = gpu_check.Step("bad", [sys.executable, "-c", code], 0, lambda _: iter(()))
    assert gpu_check.run(step, 60.0, tmp_path / "log") == ("", "exit code 1: no GPU")
    assert gpu_check.check(step, 0.0, tmp_path, False) == ["bad: no time was left"]
