"""All engines on the same vectors: building and searching."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from engine_checks import race
from engine_contenders import ByScipy, BySeismic, batch, embedded, truths
from engine_data import described
from engine_lucene import lucene_engines
from engine_touched import touched
from scipy import sparse

from lexvla.encoding import Encoding
from lexvla_indexer import Index, open_index
from lexvla_indexer.embedded.postings import build, kernels
from lexvla_indexer.impacts import ImpactQuantizer

HERE = Path(__file__).resolve().parent
SOURCES = [str(HERE.parent / folder) for folder in (".", "indexer", "search")]
BATCH = 50_000  # documents that Lucene is given at a time
FRESH_QUERIES = 100


class Effort(NamedTuple):
    """The extent of a comparison.

    Attributes:
        queries: Number of timed queries of each length.
        seconds: Time for each length and engine.
        n_postings: Values of Seismic's setting, an index for each.
        without: Engines to leave out: ``lucene``, ``seismic``.
        directory: Folder of the indexes.
    """

    queries: int
    seconds: float
    n_postings: Sequence[int]
    without: Sequence[str]
    directory: str | None


def fill(
    index: Index, folder: Path, stored: sparse.csr_array, batch: int, merge: bool = False
) -> dict[str, Any]:
    """Add all documents with ids and metadata, and commit once; return times and sizes.

    Args:
        index: The index.
        folder: Its folder.
        stored: The vectors.
        batch: Documents to add at a time.
        merge: Whether to merge all segments afterwards, timed separately.
    """
    count = stored.shape[0]
    documents = described(0, count)
    started = time.perf_counter()
    for first in range(0, count, batch):
        index.add(documents[first : first + batch], Encoding(stored[first : first + batch]))
    index.commit()
    facts = {"build_s": time.perf_counter() - started}
    if merge:
        started = time.perf_counter()
        index.compact()
        facts["merge_s"] = time.perf_counter() - started
    sizes = [file.stat().st_size for file in folder.rglob("*") if file.is_file()]
    return facts | {"documents_a_second": count / facts["build_s"], "bytes": sum(sizes)}


def in_fresh_process(folder: Path, queries: sparse.csr_array) -> dict[str, Any]:
    """Open and search an index in a new process; return its times and memory."""
    with tempfile.TemporaryDirectory() as temporary:
        file = Path(temporary) / "queries.npz"
        sparse.save_npz(file, queries)
        command = [sys.executable, str(HERE / "engine_fresh.py"), str(folder), str(file)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(SOURCES)}
        done = subprocess.run(command, env=environment, check=True, capture_output=True)  # noqa: S603
    facts: dict[str, Any] = json.loads(done.stdout)
    return facts


def compare(
    stored: sparse.csr_array, asked: list[tuple[str, sparse.csr_array]], effort: Effort
) -> Iterator[dict[str, Any]]:
    """Yield the figures of all engines on the same vectors: building, then searching.

    ``asked`` has the queries of each kind, with its name.
    """
    kernels()  # so that few documents are searched by compiled loops too
    quantizer = ImpactQuantizer.fit(stored)
    impacts = quantizer.quantize(stored)
    builds: dict[str, dict[str, Any]] = {}
    figures = {
        "documents": stored.shape[0],
        "width": stored.shape[1],
        "words": stored.nnz / stored.shape[0],
        "builds": builds,
        "races": [],
    }
    with tempfile.TemporaryDirectory(dir=effort.directory) as temporary, ExitStack() as opened:
        folder = Path(temporary) / "embedded"
        index = opened.enter_context(open_index(str(folder), create=True))
        builds["embedded"] = fill(index, folder, stored, stored.shape[0])
        queries = asked[0][1][:FRESH_QUERIES]
        figures["fresh"] = in_fresh_process(folder, queries) | touched(
            index, stored, build(impacts), queries
        )
        note(builds["embedded"], figures["fresh"])
        engines: list[Any] = [ByScipy(impacts)]
        builds["scipy, columns"] = engines[0].facts
        if "lucene" not in effort.without:
            folder = Path(temporary) / "lucene"
            lucene = opened.enter_context(open_index(f"lucene:{folder}", create=True))
            builds["Lucene"] = fill(lucene, folder, stored, BATCH, merge=True)
            note(builds["Lucene"])
            engines += lucene_engines(lucene, folder, stored.shape[1])
        if "seismic" not in effort.without:
            for n_postings in effort.n_postings:
                engines.append(BySeismic(stored, n_postings))
                builds[f"Seismic, n_postings {n_postings}"] = engines[-1].facts
                note(engines[-1].facts)
        yield figures
        for kind, every in asked:
            queries = every[: effort.queries]
            contenders = embedded(index, queries)
            contenders += [c for engine in engines for c in engine.contenders(queries)]
            true = truths(stored, impacts, quantizer, queries)
            words = queries.nnz / queries.shape[0]
            rows = race(contenders, true, effort.seconds)
            own = {"kind": kind, "words": words, "engines": rows}
            figures["races"].append(own | {"batch": batch(index, every[:FRESH_QUERIES])})
            yield figures


def note(*figures: dict[str, Any]) -> None:
    """Report results while the rest is measured."""
    for found in figures:
        print(json.dumps(found), file=sys.stderr, flush=True)
