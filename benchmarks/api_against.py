"""Compare a search over HTTP in this checkout with one in another: time, processor time, answers.

    git worktree add /tmp/old COMMIT
    python benchmarks/api_against.py /tmp/old              # about a minute and a half
    python benchmarks/api_against.py /tmp/old --explain

Each checkout indexes the demo and serves it; one client asks both servers the same, in turns, so
that what else the machine does befalls both. A ratio above 1 says how much less this one takes.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from api import port_of
from open_loop import request

from lexvla.data.demo_corpus import load_demo_corpus

_MAIN = "import sys; from lexvla_search.cli import main; sys.exit(main())"
_OWN = re.compile(rb'"took_ms":\{[^}]*\}|"request_id":"[^"]*"')  # differ between equal answers


class Server:
    """A server of a checkout, and one connection to it; `times` are the seconds of its answers."""

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self._process = process
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._answers = self._socket.makefile("rb")
        self.times: list[float] = []
        self.processor = 0.0  # seconds that `turn` took of it

    def ask(self, data: bytes) -> bytes:
        """Return the body of an answer."""
        self._socket.sendall(data)
        status, length = self._answers.readline(), 0
        while (line := self._answers.readline().lower()) not in (b"\r\n", b""):
            if line.startswith(b"content-length:"):
                length = int(line[15:])
        body = self._answers.read(length)
        if b" 200 " not in status:
            raise SystemExit((status + body).decode())
        return body

    def turn(self, requests: list[bytes]) -> None:
        """Time the answers to some requests."""
        before = self._spent()
        for data in requests:
            started = time.perf_counter()
            self.ask(data)
            self.times.append(time.perf_counter() - started)
        self.processor += self._spent() - before

    def _spent(self) -> float:
        tasks = Path(f"/proc/{self._process.pid}/task").glob("*/schedstat")
        return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9


@contextmanager
def serving(checkout: Path, folder: Path) -> Iterator[Server]:
    """Index the demo by a checkout's code, and serve it."""
    path = os.pathsep.join(str(checkout / part) for part in ("", "indexer", "search"))
    environment = {**os.environ, "PYTHONPATH": path}
    address, command = str(folder / "demo.lex"), [sys.executable, "-c", _MAIN]
    subprocess.run(  # noqa: S603 - our own command
        [*command, "demo", "--index", address, "--json"],
        check=True,
        env=environment,
        stdout=subprocess.DEVNULL,
    )
    command += ["serve", "--port", "0", "--index", address]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stderr=log, env=environment)  # noqa: S603 - likewise
        try:
            yield Server(process, port_of(process, Path(f"/proc/self/fd/{log.fileno()}")))
        finally:
            process.terminate()
            process.wait()


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkout", type=Path, help="the other one")
    parser.add_argument("--explain", action="store_true", help="ask for explanations")
    parser.add_argument("--turns", type=int, default=20, help="of 100 requests to each server")
    args = parser.parse_args()
    labels = [item.label for item in load_demo_corpus("emoji")]
    random.Random(0).shuffle(labels)  # noqa: S311 - no secret
    bodies = [{"text": label, "explain": args.explain} for label in labels]
    requests = [request("/v1/search", json.dumps(body).encode()) for body in bodies]
    with ExitStack() as stack:
        servers = []
        for checkout in (args.checkout.resolve(), Path(__file__).resolve().parent.parent):
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            servers.append(stack.enter_context(serving(checkout, folder)))
        answers = [[_OWN.sub(b"", one.ask(data)) for data in requests[:200]] for one in servers]
        same = sum(old == new for old, new in zip(*answers, strict=True))
        for turn in range(args.turns):
            start = 100 * turn % (len(requests) - 100)
            for server in servers if turn % 2 else servers[::-1]:
                server.turn(requests[start : start + 100])
    old, new = servers
    print(f"{same} of {len(answers[0])} answers are the same", end="\n\n")
    print("| ms of a search | there | here | ratio |", "|---|---:|---:|---:|", sep="\n")
    for name, one, other in (
        ("half of them take at most", statistics.median(old.times), statistics.median(new.times)),
        ("of processors", old.processor / len(old.times), new.processor / len(new.times)),
    ):
        print(f"| {name} | {1000 * one:.2f} | {1000 * other:.2f} | {one / other:.2f} |")


if __name__ == "__main__":
    main()
