"""Measure what it takes to start: processor time, time and memory of a first answer.

    python benchmarks/start.py --index demo.lex

Each runtime loads the default model in a new process and encodes one text; then `lexvla search`,
and `lexvla serve` when first asked, answer from an index of `lexvla demo`. The smallest of several
runs counts: other load only adds.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Sequence

import httpx2

TEXT = "red heart"
ENCODE = "from lexvla import LexVLA; LexVLA.from_pretrained(runtime='{}').encode_text(['{}'])"


def measure(command: Sequence[str]) -> tuple[float, float, float]:
    """Run a command and return its processor seconds, seconds and largest MB."""
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)  # noqa: S603 - our own commands
    seconds = time.perf_counter() - began
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime, seconds, used.ru_maxrss / 1024


def serve(command: Sequence[str]) -> tuple[float, float, float]:
    """Start a server and ask it until it answers; then as `measure`."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}/v1/search"
    began = time.perf_counter()
    with subprocess.Popen([*command, "--port", str(port)], stdout=subprocess.DEVNULL) as server:  # noqa: S603 - our own command
        while server.poll() is None:
            try:
                httpx2.post(url, json={"text": TEXT}, timeout=60).raise_for_status()
                break
            except httpx2.ConnectError:
                time.sleep(0.005)
        seconds = time.perf_counter() - began
        server.terminate()
        server.wait()
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime, seconds, used.ru_maxrss / 1024


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a line for each way to start."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--index", required=True, help="of lexvla demo")
    parser.add_argument("--runs", type=int, default=5)
    args = parser.parse_args(arguments)
    commands = {
        "a text by ONNX Runtime": ["-c", ENCODE.format("onnx", TEXT)],
        "a text by torch": ["-c", ENCODE.format("torch", TEXT)],
        "lexvla search": ["-m", "lexvla_search", "search", TEXT, "--index", args.index],
        "lexvla serve": ["-m", "lexvla_search", "serve", "--index", args.index],
    }
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in commands}
    for _ in range(args.runs):
        for name, command in commands.items():
            # In a process of its own, as the system keeps the sum over all children of one.
            with multiprocessing.Pool(1) as pool:
                run = serve if "serve" in command else measure
                found[name].append(pool.apply(run, [[sys.executable, *command]]))
    for name, runs in found.items():
        processor, seconds, memory = (min(column) for column in zip(*runs, strict=True))
        line = {"processor_s": round(processor, 2), "s": round(seconds, 2), "mb": round(memory)}
        print(json.dumps({"start": name, **line}))


if __name__ == "__main__":
    main()
