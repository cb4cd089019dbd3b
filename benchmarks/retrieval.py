"""Measure search over the bundled emoji: legs, fusions, engines, active words, and BM25.

    python benchmarks/retrieval.py [--model M] [--scenes N] [--without lucene] [--out FILE]

The documents are the demo's drawings, which the default model has not seen, found by their pixels.
Queries are their labels, shortcodes that share no word with the label, and pictures composed of
four drawings, for all four. Elasticsearch is included if LEXVLA_ELASTICSEARCH_URL is set.

Everything is encoded once. Engines and truncated vectors are compared with the exact product of the
full vectors, in the same run. Ties are ordered by id.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rank_bm25 import BM25Okapi

from lexvla import LexVLA
from lexvla.data.demo_corpus import DemoItem, load_demo_corpus
from lexvla.encoding import Encoding
from lexvla_indexer import Document, Index, open_index
from lexvla_search import Query, Searcher
from lexvla_search.evaluation.batches import keep_heaviest
from lexvla_search.evaluation.measures import Measured, measure
from lexvla_search.evaluation.runs import Beforehand, System, retrieve
from lexvla_search.evaluation.scenes import DemoScenes
from lexvla_search.evaluation.significance import compare
from lexvla_search.evaluation.trec import Qrels, Run, falling

MEASURES = ("R@1", "R@5", "R@10", "nDCG@10", "RR@10")
RECALLS = MEASURES[:3]
WORDS = (16, 32, 64, 128, 256)
DEPTH = 10
BATCH = 64
SHORTCODES = Path(__file__).parent / "shortcodes.json"
SYSTEMS = (
    System(("lexical",)),
    System(("dense",)),
    System(None, "rrf"),
    System(None, "weighted"),
)
URL = "LEXVLA_ELASTICSEARCH_URL"


@dataclass(frozen=True)
class Asked:
    """Queries of one kind with their qrels, and the vectors of queries and documents."""

    name: str
    queries: dict[str, Query]
    qrels: Qrels
    encoding: Encoding
    stored: Encoding


class Kind(NamedTuple):
    """The same queries and documents with the model's words, and with all words."""

    own: Asked
    all: Asked


def ask_all(items: Sequence[DemoItem], encoder: Beforehand, scenes: int) -> list[Asked]:
    """Return the three kinds of queries, encoded like the documents."""
    stored = encoder.encode_image([item.image for item in items])
    labels = {item.id: Query(text=item.label) for item in items}
    other: dict[str, Query] = {}
    meant: Qrels = {}
    for name, phrases in json.loads(SHORTCODES.read_text("utf-8"))["shortcodes"].items():
        for phrase in phrases:
            key = phrase.replace(" ", "_")
            other[key] = Query(text=phrase)
            meant.setdefault(key, {})[name] = 1
    composed = DemoScenes(items, count=scenes)
    pictures: dict[str, Query] = {}
    shown: Qrels = {}
    for number, (picture, mask) in enumerate(composed):
        pictures[f"scene-{number}"] = Query(image=picture)
        numbers = [int(place) for place in np.unique(mask) if place >= 0]
        shown[f"scene-{number}"] = {composed.items[place].id: 1 for place in numbers}
    kinds = [
        ("labels", labels, {item.id: {item.id: 1} for item in items}),
        ("shortcodes", other, meant),
        ("scenes", pictures, shown),
    ]
    asked = []
    for kind, queries, qrels in kinds:
        # Not by `Query.resolve`, which refuses a text without a known word; here it counts as 0.
        if kind == "scenes":
            rows = encoder.encode_image([query.image for query in queries.values()])
        else:
            rows = encoder.encode_text([query.text for query in queries.values()])
        asked.append(Asked(kind, queries, qrels, rows, stored))
    return asked


def cut(asked: Asked, words: int) -> Asked:
    """Return the same with at most so many words of each vector."""
    pair = (asked.encoding, asked.stored)
    rows = [Encoding(keep_heaviest(one.lexical, words), dense=one.dense) for one in pair]
    return replace(asked, encoding=rows[0], stored=rows[1])


def exact(asked: Asked, ids: Sequence[str], leg: str) -> Run:
    """Return the best positive scores by the full product in float64, ties by id."""
    rows, columns = getattr(asked.encoding, leg), getattr(asked.stored, leg)
    order = np.argsort(np.argsort(ids))  # of each column, the place of its id
    run: Run = {}
    names = list(asked.queries)
    for at in range(0, len(names), BATCH):
        scores = rows[at : at + BATCH].astype(np.float64) @ columns.astype(np.float64).T
        scores = scores if isinstance(scores, np.ndarray) else scores.toarray()
        for name, row_of in zip(names[at : at + BATCH], scores, strict=True):
            best = np.lexsort((order, -row_of))[:DEPTH]
            run[name] = falling((ids[i], row_of[i]) for i in best if row_of[i] > 0)
    return run


def overlap(run: Run, reference: Run) -> float:
    """Return the mean share of the reference's hits in a run."""
    shares = [len(run[q].keys() & hits.keys()) / len(hits) for q, hits in reference.items() if hits]
    return float(np.mean(shares))


def ask(index: Index, asked: Asked, leg: str = "lexical", **how: Any) -> Run:
    """Search by one leg, all queries at once."""
    found = index.search(asked.encoding, DEPTH, leg, **how)
    return {
        name: falling(zip(one.ids, one.scores.tolist(), strict=True))
        for name, one in zip(asked.queries, found, strict=True)
    }


@contextmanager
def built(
    address: str, encoder: Beforehand, items: Sequence[DemoItem], rows: Encoding
) -> Iterator[Any]:
    """Open a new index of the items; one on a server is deleted afterwards."""
    index = open_index(address, True, encoder.vocabulary, encoder.name)
    try:
        index.add([Document(item.id, text=item.label) for item in items], rows)
        index.commit()
        yield index
    finally:
        index.close()
        if address.startswith("elasticsearch"):
            from lexvla_indexer.elastic.connection import Address, connect

            place = Address.parse(address)
            with connect(place) as client:
                for name in client.indices.get_alias(name=place.name).body:
                    client.indices.delete(index=name)


def bm25(items: Sequence[DemoItem], asked: Asked, with_labels: bool) -> Run:
    """Return the best by BM25 over people's words for the drawings."""
    texts = [" ".join([*item.tags, *([item.label] if with_labels else [])]) for item in items]
    engine = BM25Okapi([re.findall(r"\w+", text.lower()) for text in texts])
    run: Run = {}
    for name, query in asked.queries.items():
        scores = engine.get_scores(re.findall(r"\w+", (query.text or "").lower()))
        pairs = sorted((-score, items[i].id) for i, score in enumerate(scores) if score > 0)
        run[name] = falling((found, -score) for score, found in pairs[:DEPTH])
    return run


def quality(
    items: Sequence[DemoItem],
    encoder: Beforehand,
    kinds: Sequence[Asked],
    indexes: Mapping[str, Index],
) -> Iterator[str]:
    """Yield a table of systems and measures for each kind of query."""
    for asked in kinds:
        measured: dict[str, Measured] = {}
        for engine, index in indexes.items():
            searcher = Searcher(encoder, index)
            for system in SYSTEMS if engine != "lucene" else SYSTEMS[:1]:
                run = retrieve(searcher, asked.queries, DEPTH, system).run
                measured[f"{engine}: {system.name}"] = measure(run, asked.qrels, MEASURES)
        if asked.name != "scenes":
            for name, labels in (("tags", False), ("labels and tags", True)):
                run = bm25(items, asked, labels)
                measured[f"BM25 of {name}"] = measure(run, asked.qrels, MEASURES)
        base = measured["embedded: dense"].per_query["nDCG@10"]
        tests = {name: one.per_query["nDCG@10"] for name, one in measured.items()}
        tests.pop("embedded: dense")
        against = compare(tests, base)
        yield f"\n### {asked.name}: {len(asked.queries):,} queries\n"
        yield table("system", [*MEASURES, "p against dense"])
        for name, one in measured.items():
            p = f"{against[name].corrected:.2g}" if name in against else ""
            yield row(name, [*percent(one.mean[m] for m in MEASURES), p])
        chance = [f"{100 * int(m[2:]) / len(items):.2f}" for m in RECALLS]
        yield row("chance", [*chance, "", "", ""])


def by_words(kinds: Sequence[Kind], ids: Sequence[str]) -> Iterator[str]:
    """Yield a table of the exact product by number of words for each kind of query."""
    for kind in kinds:
        whole = exact(kind.all, ids, "lexical")
        yield f"\n### {kind.own.name}\n"
        yield table("words kept", ["of a query", "of a drawing", *MEASURES, "overlap@10"])
        settings = [(str(words), cut(kind.all, words)) for words in WORDS]
        for name, asked in [*settings, ("all", kind.all), ("the model's rule", kind.own)]:
            run = whole if asked is kind.all else exact(asked, ids, "lexical")
            mean = measure(run, asked.qrels, MEASURES).mean
            sizes = [rows.lexical.nnz / len(rows) for rows in (asked.encoding, asked.stored)]
            cells = [*(f"{size:.1f}" for size in sizes), *percent(mean[m] for m in MEASURES)]
            yield row(name, [*cells, f"{overlap(run, whole):.4f}"])


def approximation(
    encoder: Beforehand,
    items: Sequence[DemoItem],
    kinds: Sequence[Kind],
    addresses: Mapping[str, Callable[[], str]],
) -> Iterator[str]:
    """Yield a table of engines and the exact product for each kind of query."""
    ids = [item.id for item in items]
    lines: dict[str, list[str]] = {kind.own.name: [] for kind in kinds}

    def compare_with(asked: Asked, reference: Run, name: str, words: str, run: Run) -> None:
        right = measure(reference, asked.qrels, MEASURES).mean
        here = measure(run, asked.qrels, MEASURES).mean
        drops = [f"{100 * (right[m] - here[m]):+.2f}" for m in MEASURES]
        lines[asked.name].append(row(name, [words, f"{overlap(run, reference):.4f}", *drops]))

    for words in (*WORDS, "all", "rule"):
        if words == "rule":
            chosen = [kind.own for kind in kinds]
        else:
            chosen = [kind.all if words == "all" else cut(kind.all, words) for kind in kinds]
        truths = {id(asked): exact(asked, ids, "lexical") for asked in chosen}
        for engine, address in addresses.items():
            if words == "all" and engine != "embedded":
                continue  # queries of thousands of words take the others minutes
            with built(address(), encoder, items, chosen[0].stored) as index:
                settings: dict[str, dict[str, Any]] = {engine: {}}
                if engine == "embedded":
                    settings = {"embedded, exact": {}, "embedded, impacts": {"exact": False}}
                for asked in chosen:
                    for name, how in settings.items():
                        run = ask(index, asked, **how)
                        compare_with(asked, truths[id(asked)], name, str(words), run)
                    if words == "rule" and engine != "lucene":
                        truth = exact(asked, ids, "dense")
                        run = ask(index, asked, "dense")
                        compare_with(asked, truth, f"{engine}, dense", "", run)
    for name, found in lines.items():
        yield f"\n### {name}\n"
        yield table("engine", ["words", "overlap@10", *(f"{m} lost" for m in MEASURES)])
        yield from sorted(found, key=lambda line: line.split("|")[1])


def percent(values: Any) -> list[str]:
    """Return shares in percent."""
    return [f"{100 * value:.2f}" for value in values]


def table(first: str, columns: Sequence[str]) -> str:
    """Return the header of a Markdown table."""
    return row(first, columns) + "\n|---|" + "---:|" * len(columns)


def row(first: str, cells: Sequence[str]) -> str:
    """Return a line of a Markdown table."""
    return "| " + " | ".join([first, *cells]) + " |"


def report(arguments: argparse.Namespace, folder: Path) -> Iterator[str]:
    """Yield the lines of the results."""
    items = load_demo_corpus("emoji")
    model = LexVLA.from_pretrained(arguments.model)
    encoder = Beforehand(model)
    started = time.perf_counter()
    kinds = [Kind(own, own) for own in ask_all(items, encoder, arguments.scenes)]
    model.config.sparsification, model.config.threshold = "threshold", 0.0
    everything = Beforehand(model)
    everything.name = encoder.name  # the name follows from the configuration
    kinds = [
        Kind(kind.own, whole)
        for kind, whole in zip(kinds, ask_all(items, everything, arguments.scenes), strict=True)
    ]
    stored = kinds[0].own.stored
    seconds = time.perf_counter() - started

    def fresh(before: str) -> Callable[[], str]:
        return lambda: f"{before}{folder / uuid.uuid4().hex}"

    addresses = {"embedded": fresh(""), "lucene": fresh("lucene:")}
    if url := os.environ.get(URL):
        addresses["elasticsearch"] = lambda: f"elasticsearch+{url}/lexvla-bench-{uuid.uuid4().hex}"
    for name in arguments.without:
        addresses.pop(name, None)
    versions = f"Python {platform.python_version()}, numpy {np.__version__}"
    per_image = stored.lexical.nnz / len(items)
    yield "# Retrieval over the bundled emoji\n"
    yield f"`python benchmarks/retrieval.py`; model {encoder.name}; {versions};"
    yield f"engines: {', '.join(addresses)}. {len(items):,} drawings of {per_image:.0f} words each"
    yield f"on average, of {len(encoder.vocabulary):,}; {DEPTH} hits of a query. All was encoded in"
    yield f"{seconds:.0f} s on CPU."
    yield "In percent; equal scores stand by id. The model has no codes.\n"
    yield "- **labels**: the name of each drawing."
    yield "- **shortcodes**: what people type instead (`shortcodes.json`), no word of the label's."
    yield "- **scenes**: pictures of four drawings, side by side; all four are to be found, so that"
    yield "  no answer reaches an R@1 of more than 25.\n"
    yield "## Legs and fusions\n"
    yield "`p against dense`: paired randomisation test of nDCG@10 against the dense vectors of the"
    yield "same model, two-sided, with Holm's correction over the table. BM25 reads what people"
    yield "wrote about each drawing; where the labels are the queries, its line with labels finds"
    yield "them by themselves."
    with ExitStack() as stack:
        indexes = {
            name: stack.enter_context(built(address(), encoder, items, stored))
            for name, address in addresses.items()
        }
        yield from quality(items, encoder, [kind.own for kind in kinds], indexes)
    yield "\n## Active words\n"
    yield "The exact product in float64, of vectors of queries and documents cut to their heaviest"
    yield "words. `overlap@10`: the share of the ten best by all words that are among the ten best."
    yield from by_words(kinds, [item.id for item in items])
    yield "\n## What engines lose\n"
    yield "Each line is an engine with vectors of so many words (`rule`: those of the model's own)."
    yield "`overlap@10` and `lost`, in points, are against the exact product of the same vectors in"
    yield "float64; for dense lines, of the dense vectors. Only embedded is asked by all words."
    yield from approximation(encoder, items, kinds, addresses)


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", metavar="M", help="a saved model; else the default one")
    parser.add_argument("--scenes", type=int, default=400, metavar="N", help="how many pictures")
    parser.add_argument("--without", nargs="+", default=[], metavar="ENGINE", help="leave out")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write Markdown here")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        lines = []
        for line in report(arguments, Path(folder)):
            print(line, flush=True)
            lines.append(line)
    if arguments.out:
        arguments.out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
