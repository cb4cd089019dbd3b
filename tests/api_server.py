"""Serve an index of pictures in a process of its own: python api_server.py '{"index": ...}'."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from search_fakes import MappingEncoder
from source_tree import PYTHONPATH


class SlowEncoder(MappingEncoder):
    """Take a while for each call."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    def encode_text(self, texts: list[str]) -> Any:
        time.sleep(self.seconds)
        return super().encode_text(texts)


class Make:
    """Make the application in each process."""

    def __init__(self, index: str, limits: dict[str, Any], seconds: float) -> None:
        self.index, self.limits, self.seconds = index, limits, seconds

    def __call__(self) -> Any:
        from lexvla_search.api import Limits, Settings, create_app

        limits = Limits(**{"threads": 4, **self.limits})
        images = (Path(self.index).parent / "pictures",)
        settings = Settings(self.index, images=images, limits=limits)
        return create_app(settings, SlowEncoder(self.seconds))


@contextmanager
def server(
    index: str, workers: int = 1, seconds: float = 0.0, **limits: Any
) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Start a server; give its process and its port once it is ready."""
    given = {"index": index, "workers": workers, "seconds": seconds, "limits": limits}
    environment = {**os.environ, "PYTHONPATH": f"{PYTHONPATH}:{Path(__file__).parent}"}
    process = subprocess.Popen(
        [sys.executable, __file__, json.dumps(given)],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    try:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        for _ in range(600):
            if b" 200 " in talk(port, request("GET", "/readyz")):
                break
            time.sleep(0.05)
        yield process, port
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def request(method: str, path: str, body: Any = None, **headers: str) -> bytes:
    """Return the bytes of a request that asks to close the connection."""
    data = b"" if body is None else json.dumps(body).encode()
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", "Connection: close"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    if body is not None:
        lines += ["Content-Type: application/json", f"Content-Length: {len(data)}"]
    return "\r\n".join([*lines, "", ""]).encode() + data


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=30)


def talk(port: int, data: bytes) -> bytes:
    """Send bytes, and return all that comes until the other side closes."""
    try:
        with connect(port) as connection:
            connection.sendall(data)
            return read_all(connection)
    except ConnectionError:
        return b""


def read_all(connection: socket.socket) -> bytes:
    parts = []
    while part := connection.recv(65536):
        parts.append(part)
    return b"".join(parts)


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1]) if answer else 0


def chunk(*lines: Any) -> bytes:
    """Return lines of JSON as one chunk of a body."""
    data = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


def main() -> None:
    from lexvla_search.api.workers import run_one, run_several

    given = json.loads(sys.argv[1])
    make = Make(given["index"], given["limits"], given["seconds"])
    options = {"log_config": None, "access_log": False, "backlog": 2048}
    options["timeout_graceful_shutdown"] = 20
    with socket.create_server(("127.0.0.1", 0), backlog=2048) as listening:
        print(listening.getsockname()[1], flush=True)  # noqa: T201 - the port, for the test
        if given["workers"] > 1:
            served = run_several(make, options, listening, given["workers"])
        else:
            served = run_one(make, options, listening)
    sys.exit(not served)


if __name__ == "__main__":
    main()
