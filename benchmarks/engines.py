"""Compare the speed of search engines: one process, the same vectors, checked answers.

    python benchmarks/engines.py PART ... [--documents N] [--results FILE] [--directory DIR]

Parts: `million` (a million documents of 125 words), `shape` (LexVLA's: 300 words a document and a
query), `model` and `model-million` (200,000 and a million vectors of the default model, by texts,
labels and images: see `real_vectors.py`), `growth` (the embedded engine up to ten million
documents), and `report`, which writes a page and a plot of the results. A part that is complete in
the results, with the same settings, is not run again.

Every engine's answers are checked against brute force before they are timed; a wrong answer of an
exact engine ends the run. Engines take turns, a round of all queries each, on one thread.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import engine_comparison
import engine_growth
from engine_data import SHAPES, Corpus
from engine_table import lines_of, write_report

DOCUMENTS = {
    "million": 1_000_000,
    "shape": 200_000,
    "model": 200_000,
    "model-million": 1_000_000,
    "growth": engine_growth.SIZES[-1],
}
PACKAGES = ("numpy", "scipy", "numba", "pyserini", "pyjnius", "pyseismic-lsr")


def measure(part: str, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield a part's figures as they grow."""
    count = args.documents or DOCUMENTS[part]
    shape = SHAPES.get(part, SHAPES["million"])
    if part == "growth":
        sizes = [size for size in engine_growth.SIZES if size <= count]
        effort = engine_growth.Effort(args.queries, args.checked, args.seconds)
        corpus = Corpus(shape.width, shape.words)
        with tempfile.TemporaryDirectory(dir=args.directory) as temporary:
            folder = Path(temporary)
            yield from engine_growth.grow(folder, corpus, shape.query_words, sizes, effort)
        return
    asked = max(args.queries, engine_comparison.FRESH_QUERIES)
    if part.startswith("model"):
        from real_vectors import real_vectors  # loads timm and torch

        stored, kinds = real_vectors(count)
        queries = [(kind, rows[:asked]) for kind, rows in kinds.items()]
    else:
        corpus = Corpus(shape.width, shape.words)
        stored = corpus.documents(0, count)
        queries = [("", corpus.queries(asked, words)) for words in shape.query_words]
    chosen = (args.queries, args.seconds, args.n_postings, args.without, args.directory)
    yield from engine_comparison.compare(stored, queries, engine_comparison.Effort(*chosen))


def machine() -> str:
    """Return processor, memory and versions."""
    from measuring import GIB, describe
    from torch import device

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    processor = describe(device("cpu"))["device"].partition(", threads")[0]
    names = [f"Python {platform.python_version()}"]
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            names.append(f"{package} {version(package)}")
    if "jnius" in sys.modules:
        java = sys.modules["jnius"].autoclass("java.lang.System").getProperty("java.version")
        names.append(f"Java {java}")
    cores = os.cpu_count()
    return f"{processor}, {cores} cores, {memory:.0f} GiB of memory; {', '.join(names)}"


def settings_of(part: str, args: argparse.Namespace) -> dict[str, Any]:
    """Return the options that affect a part."""
    chosen: dict[str, Any] = {"documents": args.documents or DOCUMENTS[part]}
    chosen |= {"queries": args.queries, "seconds": args.seconds}
    if part == "growth":
        return chosen | {"checked": args.checked}
    return chosen | {"n_postings": args.n_postings, "without": sorted(args.without)}


def run(part: str, args: argparse.Namespace) -> None:
    """Measure a part, and write its growing record into the results."""
    settings = settings_of(part, args)
    records = read(args.results)
    known = records.get(part)
    if known is not None and known["whole"] and known["settings"] == settings:
        print(f"{part}: in {args.results} already", file=sys.stderr)
    else:
        started = time.perf_counter()
        record: dict[str, Any] = {"part": part, "settings": settings, "whole": False}
        for figures in measure(part, args):
            record |= {"date": f"{datetime.now(UTC):%Y-%m-%d}", "machine": machine()}
            record |= {"seconds": time.perf_counter() - started, "figures": figures}
            write(args.results, records | {part: record})
        record["whole"] = True
        records[part] = record
        write(args.results, records)
    print(f"\n{part}, {records[part]['seconds']:.0f} s\n")
    print("\n".join(lines_of(part, records[part]["figures"])))


def read(path: Path) -> dict[str, Any]:
    """Return the record of each part."""
    if not path.exists():
        return {}
    records = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return {record["part"]: record for record in records}


def write(path: Path, records: dict[str, Any]) -> None:
    """Write the records atomically, a line each."""
    lines = [json.dumps(records[part]) for part in DOCUMENTS if part in records]
    new = path.with_name(path.name + ".new")
    new.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    new.replace(path)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="+", choices=[*DOCUMENTS, "report"], metavar="PART")
    parser.add_argument("--documents", type=int, help="how many; the greatest number for growth")
    parser.add_argument("--queries", type=int, default=50, help="how many of each length")
    parser.add_argument("--checked", type=int, default=10, help="how many of them growth checks")
    parser.add_argument("--seconds", type=float, default=8, help="how long to ask each engine")
    parser.add_argument("--n-postings", type=int, nargs="*", default=[1000], help="of Seismic")
    parser.add_argument("--without", nargs="+", choices=["lucene", "seismic"], default=[])
    parser.add_argument("--directory", help="where indexes lie meanwhile; default: a temporary one")
    results = Path(__file__).parent / "results"
    parser.add_argument("--results", type=Path, default=results / "engines.jsonl")
    parser.add_argument("--page", type=Path, default=results / "engines.md")
    parser.add_argument("--plot", type=Path, default=results / "engines_growth.svg")
    args = parser.parse_args(arguments)
    for part in args.parts:
        if part == "report":
            write_report(list(read(args.results).values()), args.page, args.plot)
        else:
            run(part, args)


if __name__ == "__main__":
    main()
