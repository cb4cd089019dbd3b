"""``lexvla serve`` as people start it, and the page of the demo."""

from __future__ import annotations

import argparse
import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="needs the server: pip install 'lexvla[serve]'")

from api_fakes import new_index
from api_server import ROOT, request, status_of, talk
from indexer import open_index
from lexvla.errors import OptionalDependencyError
from search import cli, demo, serve
from search_fakes import FakeEncoder


def test_the_command_serves_logs_as_json_and_ends_well(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "search.cli", "serve", "--index", new_index(tmp_path)]
    process = subprocess.Popen(
        [*command, "--no-model", "--port", "0"], stderr=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert process.stderr is not None
    told = []
    while not told or "http://" not in told[-1]:
        told.append(process.stderr.readline())
        assert process.poll() is None, told
    assert "without --keys" in told[0]
    address = re.search(r"http://127\.0\.0\.1:([0-9]+)/", told[-1])
    assert address
    # The socket is open already; the answer comes when the server is ready.
    answer = talk(int(address[1]), request("GET", "/readyz", X_Request_ID="mine"))
    assert status_of(answer) == 200
    process.send_signal(signal.SIGTERM)
    _, rest = process.communicate(timeout=20)
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

    monkeypatch.setattr("search.serve.serve", note)
    monkeypatch.setattr("search.serve.load_model", lambda *_: FakeEncoder())
    return calls


def test_options_become_settings(tmp_path: Path, started: list[dict[str, Any]]) -> None:
    place = str(tmp_path / "new.lex")
    options = "--host 0.0.0.0 --port 99 --workers 3 --max-k 7 --max-body 8 --max-pixels 9"
    options += " --body-seconds 4 --concurrency 5 --allow-image-host a --allow-image-host b:1"
    options += f" --keys k --images {tmp_path} --create --log-queries"
    assert cli.main(["serve", "--index", place, *options.split()]) == 0
    (call,) = started
    settings, limits = call["settings"], call["settings"].limits
    assert (call["host"], call["port"], call["workers"]) == ("0.0.0.0", 99, 3)
    assert (limits.k, limits.body_bytes, limits.pixels) == (7, 8, 9)
    assert (limits.body_seconds, limits.concurrency) == (4, 5)
    assert settings.image_hosts == ("a", "b:1")
    assert (settings.keys, settings.images) == (Path("k"), tmp_path)
    assert settings.log_queries
    with open_index(place) as index:  # of --create
        assert (index.count(), index.model) == (0, "fake")


def test_the_demo_opens_the_page_on_its_own_pictures(
    tmp_path: Path, started: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "demo.lex"
    monkeypatch.setattr(demo, "load_model", lambda *_: FakeEncoder())
    monkeypatch.setattr(demo, "_prepare", lambda *_, **__: None)
    assert cli.main(["demo", "--serve", "--index", str(home)]) == 0
    (call,) = started
    assert call["settings"].index == str(home)
    assert call["settings"].images == tmp_path / "demo.lex.images"


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
        if name.startswith("search.api."):
            monkeypatch.delitem(sys.modules, name)
    import search.api

    with pytest.raises(OptionalDependencyError, match=r"lexvla\[serve\]"):
        search.api.create_app  # noqa: B018 - is loaded when it is asked for
    args = argparse.Namespace(**{"index": str(tmp_path)})
    with pytest.raises(OptionalDependencyError, match=r"lexvla\[serve\]"):
        serve.serve(serve.Settings(args.index))
