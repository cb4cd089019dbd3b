"""``lexvla serve`` as people start it, and the page of the demo."""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shlex import quote, split
from typing import Any

import pytest

from source_tree import PYTHONPATH

pytest.importorskip("fastapi", reason="needs the server: pip install 'lexvla[serve]'")

from api_fakes import new_index
from api_server import request, status_of, talk
from lexvla.errors import OptionalDependencyError
from lexvla_indexer import open_index
from lexvla_search import cli
from lexvla_search.cli import demo, serve
from search_fakes import FakeEncoder


@contextmanager
def command(*options: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Run the command; give its process and its port."""
    process = subprocess.Popen(
        [sys.executable, "-m", "lexvla_search", "serve", "--no-model", "--port", "0", *options],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": PYTHONPATH},
    )
    try:
        assert process.stderr is not None
        assert "without --keys" in process.stderr.readline()
        address = re.search(r"http://127\.0\.0\.1:([0-9]+)/", process.stderr.readline())
        assert address
        yield process, int(address[1])
    finally:
        process.kill()
        process.communicate()


def test_workers_count_together_and_do_not_outlive_their_parent(tmp_path: Path) -> None:
    with command("--index", new_index(tmp_path), "--workers", "2") as (process, port):
        for _ in range(12):
            answer = talk(port, request("POST", "/v1/search", {"text": "red"}))
            assert status_of(answer) == 200
        figures = talk(port, request("GET", "/metrics")).decode()
        line = 'lexvla_requests_total{method="POST",route="/v1/search",status="200"} 12.0'
        assert line in figures.splitlines()
        assert "lexvla_index_documents 4.0" in figures.splitlines()
        process.kill()
        process.wait()
        for _ in range(200):
            if not talk(port, request("GET", "/healthz")):
                break
            time.sleep(0.05)
        assert talk(port, request("GET", "/healthz")) == b""


def test_the_command_serves_logs_as_json_and_ends_well(tmp_path: Path) -> None:
    with command("--index", new_index(tmp_path)) as (process, port):
        # The socket is open already; the answer comes when the server is ready.
        answer = talk(port, request("GET", "/readyz", X_Request_ID="mine"))
        assert status_of(answer) == 200
        process.send_signal(signal.SIGTERM)
        _, rest = process.communicate(timeout=60)
    assert process.returncode == 0
    *logged, last = rest.splitlines()
    assert last == "lexvla: the server has ended"
    lines = [json.loads(line) for line in logged]
    (about,) = [line for line in lines if line.get("request_id") == "mine"]
    assert (about["message"], about["route"], about["status"]) == ("request", "/readyz", 200)
    assert all({"time", "level", "logger", "message"} <= line.keys() for line in lines)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Take note of servers instead of starting them."""
    calls: list[dict[str, Any]] = []

    def note(settings: Any, **given: Any) -> int:
        calls.append({"settings": settings, **given})
        return 0

    monkeypatch.setattr("lexvla_search.cli.serve.serve", note)
    monkeypatch.setattr("lexvla_search.cli.arguments.load_model", lambda *_: FakeEncoder())
    return calls


def test_options_become_settings(tmp_path: Path, started: list[dict[str, Any]]) -> None:
    place = str(tmp_path / "new.lex")
    options = "--host 0.0.0.0 --port 99 --workers 3 --max-k 7 --max-body 8 --max-pixels 9"
    options += " --body-seconds 4 --concurrency 5 --wait-seconds 6"
    options += " --allow-image-host a --allow-image-host b:1"
    more = tmp_path / "more"
    more.mkdir()
    options += f" --images {quote(str(tmp_path))} --images {quote(str(more))}"
    options += " --keys k --create --log-queries"
    assert cli.main(["serve", "--index", place, *split(options)]) == 0
    (call,) = started
    settings, limits = call["settings"], call["settings"].limits
    assert (call["host"], call["port"], call["workers"]) == ("0.0.0.0", 99, 3)
    assert (limits.k, limits.body_bytes, limits.pixels) == (7, 8, 9)
    assert (limits.body_seconds, limits.concurrency, limits.wait_seconds) == (4, 5, 6)
    assert settings.image_hosts == ("a", "b:1")
    assert (settings.keys, settings.images) == (Path("k"), (tmp_path, more))
    assert settings.log_queries
    with open_index(place) as index:  # of --create
        assert (index.count(), index.model) == (0, "fake")


def test_the_demo_opens_the_page_on_its_own_pictures(
    tmp_path: Path, started: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "demo.lex"
    monkeypatch.setattr(demo, "_prepare", lambda *_, **__: None)
    assert cli.main(["demo", "--serve", "--index", str(home)]) == 0
    (call,) = started
    assert call["settings"].index == str(home)
    assert call["settings"].images == (tmp_path / "demo.lex.images",)


def test_the_demo_ends_by_naming_the_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    demo._print_what_next(tmp_path / "demo.lex", "2764")
    told = capsys.readouterr().out
    assert "demo --serve" in told
    assert "http://127.0.0.1:8080/" in told


def test_a_taken_port_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert cli.main(["serve", "--index", new_index(tmp_path), "--port", port]) == 1
    assert f"port {port}" in capsys.readouterr().err


def test_without_the_extra_serving_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("uvicorn", "fastapi"):
        monkeypatch.setitem(sys.modules, name, None)
    for name in list(sys.modules):
        if name.startswith("lexvla_search.api."):
            monkeypatch.delitem(sys.modules, name)
    import lexvla_search.api

    with pytest.raises(OptionalDependencyError, match=r"lexvla\[serve\]"):
        lexvla_search.api.create_app  # noqa: B018 - is loaded when it is asked for
    args = argparse.Namespace(**{"index": str(tmp_path)})
    with pytest.raises(OptionalDependencyError, match=r"lexvla\[serve\]"):
        serve.serve(serve.Settings(args.index))
