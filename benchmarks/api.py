"""Measure the REST API under load, compared with the searcher in this process on the same index.

    python benchmarks/api.py                       # about two minutes, and the default model
    python benchmarks/api.py --soak 600            # memory over ten minutes too
    python benchmarks/api.py --parts demo --explain        # every hit's score taken apart
    python benchmarks/api.py --out benchmarks/results/api.md

For each corpus: the time of a search in this process, and what the index takes for its lexical leg
alone; the searches a second that the server answers to 16 clients without pauses (the sustained
rate); and times under an open loop, at half of that rate, at four fifths, and at twice. Times count
from when a request was due, which exposes a server that falls behind. Server and clients share the
machine. A second table says what the parts of one search take, of one client alone.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import date
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from engine_data import Corpus
from measuring import describe
from open_loop import Loop, Outcome, request

from lexvla.encoding import Encoding
from lexvla_indexer import Document, Index, open_index
from lexvla_search import Query, Searcher
from lexvla_search.explanation import Explanation

CLIENTS = 16
QUERY_WORDS = 20
SHARES = (0.5, 0.8, 2.0)  # of the rate that the server sustains
LONGEST_SAMPLE = 5.0  # seconds between two looks at the server's memory
HEAD = "| | searches/s | p50 ms | p95 ms | p99 ms | 200 | 429 | others | server MiB |"


@contextmanager
def serving(*options: str) -> Iterator[tuple[int, int]]:
    """Run ``lexvla serve``; yield its process id and port."""
    command = [sys.executable, "-m", "lexvla_search", "serve", "--port", "0", *options]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stderr=log)  # noqa: S603 - our own command
        try:
            yield process.pid, port_of(process, Path(f"/proc/self/fd/{log.fileno()}"))
        finally:
            process.terminate()
            process.wait()


def port_of(process: subprocess.Popen[bytes], log: Path) -> int:
    """Return the port that a server names in its log, once it serves."""
    while process.poll() is None:
        if found := re.search(r"http://127\.0\.0\.1:([0-9]+)/", log.read_text()):
            return int(found[1])
        time.sleep(0.1)
    raise SystemExit(log.read_text())


def memory(pid: int) -> float:
    """Return the resident memory of a process and its children, in MiB."""
    total = 0
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            text = status.read_text()
        except OSError:  # it has ended
            continue
        if re.search(rf"^(Pid|PPid):\t{pid}$", text, re.MULTILINE):
            found = re.search(r"^VmRSS:\s+([0-9]+)", text, re.MULTILINE)
            total += int(found[1]) if found else 0
    return total / 1024


def synthetic(folder: Path, documents: int) -> tuple[str, list[dict[str, Any]]]:
    """Build an index of generated vectors; return its address and bodies of searches."""
    corpus = Corpus(32_000, 125)
    address = str(folder / "synthetic.lex")
    with open_index(address, create=True) as index:
        for first in range(0, documents, 50_000):
            last = min(first + 50_000, documents)
            names = [Document(f"d{i:07}") for i in range(first, last)]
            index.add(names, Encoding(corpus.documents(first, last)))
            index.commit()
    queries = corpus.queries(200, QUERY_WORDS)
    bodies = []
    for row in range(queries.shape[0]):
        own = queries[[row]]
        terms = {str(c): float(w) for c, w in zip(own.indices, own.data, strict=True)}
        bodies.append({"terms": terms, "legs": ["lexical"]})
    return address, bodies


def demo(folder: Path) -> tuple[str, list[dict[str, Any]]]:
    """Build the demo's index; return its address and the labels as searches."""
    from lexvla.data.demo_corpus import load_demo_corpus

    address = str(folder / "demo.lex")
    command = [sys.executable, "-m", "lexvla_search", "demo", "--index", address, "--json"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)  # noqa: S603 - our own
    return address, [{"text": item.label} for item in load_demo_corpus("emoji")]


def query_of(body: dict[str, Any]) -> Query:
    """Return a body as a query."""
    given = {name: tuple(v) if isinstance(v, list) else v for name, v in body.items()}
    given.pop("explain", None)
    return Query(**given)


def in_process(searcher: Searcher, bodies: Sequence[dict[str, Any]], seconds: float) -> Outcome:
    """Search sequentially, without a server."""
    outcome, started = Outcome(), time.perf_counter()
    while (now := time.perf_counter()) < started + seconds:
        body = bodies[len(outcome.took.get(200, ())) % len(bodies)]
        answer = searcher.answer(query_of(body), None, body.get("explain", False))
        json.dumps([hit.to_dict() for hit in answer.hits])
        outcome.took.setdefault(200, []).append(time.perf_counter() - now)
    outcome.seconds = time.perf_counter() - started
    return outcome


def parts_of(
    searcher: Searcher, bodies: Sequence[dict[str, Any]], seconds: float
) -> dict[str, float]:
    """Return the mean seconds of each part of a search in this process."""
    took: Counter[str] = Counter()

    def timed(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*given: Any, **options: Any) -> Any:
            started = time.perf_counter()
            try:
                return call(*given, **options)
            finally:
                took[name] += time.perf_counter() - started

        return run

    index, count, end = searcher.index, 0, time.perf_counter() + seconds
    answer = timed("search", searcher.answer)
    to_json = timed("JSON", lambda hits: json.dumps([hit.to_dict() for hit in hits]))
    with ExitStack() as patches:
        for name, owner, method in (
            ("encode", searcher, "encode"),
            ("fetch", index, "documents"),
            ("fetch", index, "fetch"),
            ("explain", Explanation, "of"),
        ):
            wrapped = timed(name, getattr(owner, method))
            patches.enter_context(mock.patch.object(owner, method, wrapped))
        while time.perf_counter() < end or not count:
            body = bodies[count % len(bodies)]
            to_json(answer(query_of(body), None, body.get("explain", False)).hits)
            count += 1
    for name in ("encode", "fetch", "explain"):
        took["search"] -= took[name]
    order = ("encode", "search", "fetch", "explain", "JSON")
    return {name: took[name] / count for name in order}


def parts_table(parts: dict[str, float], whole: float) -> list[str]:
    """Return a table of the parts of a search over HTTP, which takes ``whole`` seconds."""
    rest = "HTTP, validation, threads, log and metrics"
    rows = [*parts.items(), (rest, whole - sum(parts.values())), ("all", whole)]
    head = ["| part of one search, 1 client | ms | share |", "|---|---:|---:|"]
    return [*head, *(f"| {name} | {1000 * s:.2f} | {s / whole:.0%} |" for name, s in rows)]


def bare(index: Index, queries: Sequence[Encoding], seconds: float) -> Outcome:
    """Search the lexical leg sequentially, without a searcher, by queries encoded before."""
    outcome, started = Outcome(), time.perf_counter()
    while (now := time.perf_counter()) < started + seconds:
        index.search(queries[len(outcome.took.get(200, ())) % len(queries)])
        outcome.took.setdefault(200, []).append(time.perf_counter() - now)
    outcome.seconds = time.perf_counter() - started
    return outcome


def row(name: str, outcome: Outcome, mib: float | None = None) -> str:
    """Return a line of the table."""
    times = [f"{1000 * outcome.percentile(p):.1f}" for p in (50, 95, 99)]
    counts = outcome.counts
    others = sum(n for status, n in counts.items() if status not in (200, 429))
    cells = [name, f"{outcome.rate:.0f}", *times, counts[200], counts[429], others]
    return "| " + " | ".join(map(str, [*cells, "" if mib is None else f"{mib:.0f}"])) + " |"


async def load(
    pid: int, port: int, requests: list[bytes], args: argparse.Namespace
) -> tuple[list[str], float]:
    """Query a server at growing rates; return lines of the table, and the seconds of a search."""
    loop = Loop(port, requests)
    await loop.closed(4, min(args.seconds, 3.0))  # warm-up
    alone = await loop.closed(1, args.seconds)
    lines = [row("server, 1 client", alone, memory(pid))]
    steady = await loop.closed(CLIENTS, args.seconds)
    lines.append(row(f"server, {CLIENTS} clients", steady, memory(pid)))
    for share in SHARES:
        outcome = await loop.open(share * steady.rate, args.seconds)
        lines.append(row(f"server, by the clock, {share:g} x that rate", outcome, memory(pid)))
    if args.soak:
        lines += await soak(pid, loop, 0.8 * steady.rate, args.soak)
    return lines, 1 / alone.rate


async def soak(pid: int, loop: Loop, rate: float, seconds: float) -> list[str]:
    """Query for long, and compare the server's memory at the start and at the end."""
    samples: list[float] = []
    pause = min(LONGEST_SAMPLE, seconds / 20)

    async def watch() -> None:
        while True:
            samples.append(memory(pid))
            await asyncio.sleep(pause)

    watching = asyncio.create_task(watch())
    outcome = await loop.open(rate, seconds)
    watching.cancel()
    tenth = max(len(samples) // 10, 1)
    first, last = statistics.median(samples[tenth : 2 * tenth]), statistics.median(samples[-tenth:])
    slope = np.polyfit(np.arange(len(samples)) * pause / 60, samples, 1)[0]
    name = (
        f"server, {seconds:.0f} s: {first:.0f} MiB, at the end {last:.0f} ({slope:+.2f} a minute)"
    )
    return [row(name, outcome, samples[-1])]


def measure(name: str, folder: Path, args: argparse.Namespace) -> list[str]:
    """Measure one corpus; return the lines of its table."""
    options: tuple[str, ...] = ("--workers", str(args.workers))
    if name == "demo":
        from lexvla import LexVLA

        address, bodies = demo(folder)
        model: Any = LexVLA.from_pretrained()
    else:
        address, bodies = synthetic(folder, args.documents)
        model, options = None, (*options, "--no-model")
    bodies = [body | {"explain": args.explain} for body in bodies]
    with open_index(address) as index:
        index.warm_up()  # as a server does
        searcher = Searcher(model, index)
        in_process(searcher, bodies, 1.0)
        lines = [row("searcher, one thread", in_process(searcher, bodies, args.seconds))]
        queries = [searcher.encode(query_of(body)).encoding for body in bodies[:200]]
        lines.append(row("its lexical leg alone", bare(index, queries, args.seconds)))
        parts = parts_of(searcher, bodies, args.seconds)
        count = index.count()
    requests = [request("/v1/search", json.dumps(body).encode()) for body in bodies]
    with serving("--index", address, *options) as (pid, port):
        more, whole = asyncio.run(load(pid, port, requests, args))
    title = f"## {count:,} documents, {name}; {args.workers} worker{'s' * (args.workers > 1)}"
    title += "; explained" * args.explain
    table = [HEAD, "|---|" + "---:|" * 8, *lines, *more]
    return [title, "", *table, "", *parts_table(parts, whole), ""]


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", nargs="+", choices=("demo", "synthetic"), default=None)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each measurement")
    parser.add_argument("--documents", type=int, default=100_000, help="synthetic ones")
    parser.add_argument("--explain", action="store_true", help="ask for explanations")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--soak", type=float, default=0.0, metavar="SECONDS")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the tables there")
    args = parser.parse_args()
    lines = ["# The REST API under load", "", *machine_lines(), ""]
    print("\n".join(lines))
    with tempfile.TemporaryDirectory() as folder:
        for name in args.parts or ("demo", "synthetic"):
            table = measure(name, Path(folder), args)
            print("\n".join(table), flush=True)
            lines += table
    if args.out:
        args.out.write_text("\n".join(lines))


def machine_lines() -> list[str]:
    """Describe the machine and the method."""
    machine = ", ".join(f"{name} {what}" for name, what in describe(torch.device("cpu")).items())
    return [
        f"{machine}; {date.today():%Y-%m-%d}.",
        "",
        "Server and clients share the machine. Searches by the clock come by a Poisson process;",
        "their times count from when they were due. At twice the rate, the server answers what it",
        "accepts and turns the rest away with 429.",
    ]


if __name__ == "__main__":
    main()
