"""The command's frame: help, usage errors, exit codes, and what it imports."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import signal
import subprocess
import sys
import types
from pathlib import Path

import pytest

from lexvla.errors import InputError
from lexvla_search import cli
from source_tree import PYTHONPATH

COMMANDS = (
    *("demo", "index", "watch", "relocate", "rollback", "encode", "search", "explain"),
    *("fit-fusion", "delete", "compact", "info", "patchdis", "sparsity", "evaluate", "crossmodal"),
    *("train", "export", "serve", "api-key", "doctor", "attach", "detach"),
)


def run_python(code: str, **options: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": PYTHONPATH, **options}
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=environment,
    )


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from lexvla_search.cli import main; code = main(['--help'])\n"
        "heavy = {'torch', 'transformers', 'numpy', 'scipy', 'PIL'} & set(sys.modules)\n"
        "assert code == 0 and not heavy, (code, heavy)"
    )
    done = run_python(code)
    assert done.returncode == 0, done.stderr
    assert set(COMMANDS) == set(cli.COMMANDS)
    for name in COMMANDS:
        assert re.search(rf"^    {name}\s", done.stdout, re.MULTILINE), name


def test_commands_import_what_they_need_when_they_need_it() -> None:
    modules = (f"lexvla_search.cli.{name.replace('-', '_')}" for name in cli.COMMANDS)
    code = (
        f"import sys, lexvla_search.evaluation, {', '.join(modules)}\n"
        "heavy = {'torch', 'transformers', 'matplotlib', 'pycocotools'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    assert run_python(code).stderr == ""


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_each_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([name, "--help"]) == 0
    assert f"usage: lexvla {name}" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("lexvla ")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "COMMAND"),
        (["fly"], "invalid choice: 'fly'"),
        (["search", "red"], "--index"),
        (
            ["search", "red", "--index", "x.lex", "-k", "0"],
            "must be a whole number of at least 1, not '0'",
        ),
        (
            ["search", "red", "--index", "x.lex", "-k", "-3"],
            "must be a whole number of at least 1, not '-3'",
        ),
        (
            ["search", "red", "--index", "x.lex", "-k", "ten"],
            "must be a whole number of at least 1, not 'ten'",
        ),
        (["search", "red", "--index", "x.lex", "--wings"], "--wings (try: lexvla search --help)"),
        (["search", "--index", "x.lex", "--sort", "-"], "must be the name of a field"),
        (["search", "--index", "x.lex", "--facet", "year:1,a"], "must be a finite number"),
        (["search", "--index", "x.lex", "--facet", "year:2,1"], "must end above where it begins"),
        (["search", "--index", "x.lex", "--facet", "t:2024-06,1"], "two numbers or two strings"),
        (["search", "--index", "x.lex", "--min-score", "1"], "needs something to score by"),
        (["search", "a" * 20_000, "--index", "x.lex"], "at most 16,384 characters, not 20,000"),
        (["explain", "apple", "--index", "x.lex"], "a query must have a text, an image"),
        (["explain", "a", "b", "--index", "x.lex", "--word", "b"], "--word needs --heatmap"),
        (
            ["index", "photos", "--index", "x.lex", "--batch-size", "0"],
            "must be a whole number of at least 1, not '0'",
        ),
        (["index", "--index", "x.lex"], "either a SOURCE or --from-encoded"),
        (["index", "a", "--from-encoded", "b.npz", "--index", "x.lex"], "either a SOURCE or"),
        (
            ["index", "--from-encoded", "b.npz", "--prune", "--index", "x.lex"],
            "--prune does not go with --from-encoded",
        ),
        (
            ["index", "--from-encoded", "b.npz", "--exclude", "*.gif", "--index", "x.lex"],
            "--exclude does not go with --from-encoded",
        ),
        (
            ["index", "--from-encoded", "b.npz", "--no-exif", "--index", "x.lex"],
            "--no-exif does not go with --from-encoded",
        ),
        (
            ["index", "--from-encoded", "b.npz", "--max-pixels", "9", "--index", "x.lex"],
            "--max-pixels does not go with --from-encoded",
        ),
        (
            ["index", "--from-encoded", "b.npz", "--batch-size", "9", "--index", "x.lex"],
            "--batch-size does not go with --from-encoded",
        ),
        (["search", "red", "--index", "x.lex", "--max-pixels", "9"], "--max-pixels goes with --im"),
        (["watch", "photos", "--index", "x.lex", "--prune"], "unrecognized arguments: --prune"),
        (["encode", "photos", "--out", "x.csv"], "a file that ends in .npz or .jsonl"),
        (["encode", "photos", "--out", "x.npz", "--shard", "0/2"], "such as 1/4, not '0/2'"),
        (["encode", "photos", "--out", "x.npz", "--shard", "3/2"], "such as 1/4, not '3/2'"),
        (["encode", "photos", "--out", "x.npz", "--shard", "2"], "such as 1/4, not '2'"),
        (["delete", "--index", "x.lex"], "ID"),
        (["info", "--index", ""], "--index: must not be empty"),
        (["demo", "--index", " "], "--index: must not be empty"),
        (["demo", "--index", "lucene:x"], "keeps its index in a folder"),
        (["patchdis", "--names", "codes"], "invalid choice: 'codes'"),
        (["patchdis", "--annotations", "x.json"], "--annotations and --images go together"),
        (["sparsity", "--side", "left"], "invalid choice: 'left'"),
        (["sparsity", "--plot", "x.gif"], "must name a file that ends in .png or .svg"),
    ],
)
def test_wrong_usage(
    arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("lexvla: error: ")
    assert complaint in err
    assert err.count("\n") == 1


def test_no_index_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("info", "compact", "delete a", "search red", "explain a b"):
        assert cli.main([*command.split(), "--index", str(tmp_path / "none.lex")]) == 1
        err = capsys.readouterr().err
        assert err.startswith("lexvla: error: ")
        assert "none.lex" in err
        assert err.count("\n") == 1
    assert not (tmp_path / "none.lex").exists()


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        (InputError("a.png", "is no image"), 1, "lexvla: error: 'a.png': is no image\n"),
        (PermissionError(13, "Permission denied", "/x"), 1, "Permission denied: '/x'\n"),
        (OSError("two\nlines"), 1, "lexvla: error: two lines\n"),
        (KeyboardInterrupt(), 130, "lexvla: interrupted\n"),
    ],
)
def test_failures_end_in_one_line(
    raised: BaseException,
    code: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(_: object) -> int:
        raise raised

    monkeypatch.setattr("lexvla_search.cli.info.run", fail)
    assert cli.main(["info", "--index", "x.lex"]) == code
    assert capsys.readouterr().err.endswith(said)


def test_a_bug_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> int:
        raise ZeroDivisionError

    monkeypatch.setattr("lexvla_search.cli.info.run", fail)
    with pytest.raises(ZeroDivisionError):
        cli.main(["info", "--index", "x.lex"])


def test_the_reader_may_go_away() -> None:
    code = (
        "import os, sys, lexvla_search.cli.info as info\n"
        "from lexvla_search.cli import main\n"
        "def chatter(args):\n"
        "    for _ in range(100_000): print('line')\n"
        "    return 0\n"
        "info.run = chatter\n"
        "raise SystemExit(main(['info', '--index', 'x.lex']))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": PYTHONPATH},
        # As in a shell; a parent that ignores the signal would pass that on.
        preexec_fn=lambda: signal.signal(signal.SIGPIPE, signal.SIG_DFL),
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(timeout=60) == 141


def test_names_that_are_no_text_can_be_printed() -> None:
    code = (
        "from lexvla_search.cli import _let_output_hold_any_name as prepare\n"
        "from lexvla_search.cli.console import print_json\n"
        "prepare(); print_json({'uri': 'caf\\u00e9 \\udcff'})"
    )
    for encoding in ("utf-8", "ascii"):
        done = run_python(code, PYTHONIOENCODING=encoding, PYTHONUTF8="0")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout) == {"uri": "caf\u00e9 \udcff"}


def test_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    code = cli.main(["doctor", "--json"])
    report = json.loads(capsys.readouterr().out)
    assert code == (0 if report["ok"] else 1)
    checks = {check["name"]: check for check in report["checks"]}
    assert {"Python", "SQLite", "torch", "transformers", "default model", "JDK"} <= set(checks)
    assert {"watchfiles", "PyArrow", "pillow-heif", "JPEG XL plugin", "FastAPI"} <= set(checks)
    assert checks["Python"]["ok"]
    assert checks["SQLite"]["ok"]
    for check in checks.values():
        assert check["ok"] == (check["get"] == "")
    assert not checks["JDK"]["required"]
    cli.main(["doctor"])
    assert "Python" in capsys.readouterr().out


@pytest.mark.parametrize(("name", "package"), [("Numba", "numba"), ("faiss", "faiss-cpu")])
def test_doctor_tells_how_to_get_the_packages_that_make_search_fast(
    name: str, package: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def check(found: str | None) -> dict[str, object]:
        def version(asked: str) -> str:
            if asked != package:
                return real(asked)
            if found is None:
                raise importlib.metadata.PackageNotFoundError(asked)
            return found

        with monkeypatch.context() as patch:
            patch.setattr(importlib.metadata, "version", version)
            cli.main(["doctor", "--json"])
        report = json.loads(capsys.readouterr().out)
        return next(check for check in report["checks"] if check["name"] == name)

    real = importlib.metadata.version
    here, missing = check("1.2.3"), check(None)
    assert (here["ok"], here["found"], here["get"]) == (True, "1.2.3", "")
    assert (missing["ok"], missing["required"]) == (False, False)
    assert missing["get"] == "pip install 'lexvla[fast]'"


def test_train(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = []

    def train(recipe: str, resume: bool) -> Path:
        calls.append((recipe, resume))
        return tmp_path

    trainer = types.ModuleType("lexvla.training.trainer")
    monkeypatch.setattr(trainer, "train", train, raising=False)
    monkeypatch.setitem(sys.modules, "lexvla.training.trainer", trainer)
    assert cli.main(["train", "a.toml"]) == 0
    assert capsys.readouterr().out == f"the model is in {tmp_path}\n"
    assert cli.main(["train", "a.toml", "--resume", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"model": str(tmp_path)}
    assert calls == [("a.toml", False), ("a.toml", True)]


def test_train_names_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "lexvla.training.trainer", None)
    assert cli.main(["train", "recipe.toml"]) == 1
    assert "pip install 'lexvla[train]'" in capsys.readouterr().err
