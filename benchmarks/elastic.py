"""Compare the Elasticsearch engine with the bare client and with the embedded engine.

    python benchmarks/elastic.py [--documents N] [--model-documents N] [--out FILE]

Uses the server of LEXVLA_ELASTICSEARCH_URL, or starts one
(`python scripts/elasticsearch_server.py get` downloads it). The bare client sends prepared bodies,
the same as this package makes: by `streaming_bulk` with its defaults, by `search` and by `msearch`.
Both are interleaved, batch by batch and query by query, so that other load slows both alike:
compare ratios. Answers are checked against brute force before they are timed.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from elastic_bare import Bare, Request, pairs, sent, truncated
from engine_checks import WARM_ROUNDS, Answer, BruteForce, Contender, check_contender
from engine_contenders import K, of_index
from engine_data import SHAPES, Corpus, described
from engines import machine
from scipy import sparse

from lexvla.encoding import Encoding
from lexvla_indexer import ElasticIndex, Index, open_index
from lexvla_indexer.filters import Filter
from lexvla_search import Query, Searcher

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))

import elasticsearch_server

URL = "LEXVLA_ELASTICSEARCH_URL"
PIECE = 5_000  # documents that one side loads before it is the other's turn
BATCH = 32  # queries of one request
FILTERS = ('kind = "photo"', 'kind = "photo" and year >= 2000')
Truths = dict[str, list[Answer]]

TOLERANCE = 1e-5  # the server adds up in float32
LEAST_LOADING, MOST_TIME = 0.9, 1.1  # of the bare client's
OF_SEARCHER = "hits of the searcher"


@contextmanager
def server() -> Iterator[tuple[str, str]]:
    """Yield the address and description of a server."""
    if named := os.environ.get(URL):
        yield named.rstrip("/"), "a server that was there"
        return
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = 20_000 + taken.getsockname()[1] % 20_000  # that of nodes is 100 above
    try:
        address = elasticsearch_server.start(port=port, fresh=True)
        java = elasticsearch_server.java_for(elasticsearch_server.VERSION).version
        yield address, f"Java {java} with 512 MiB of heap, one shard, on the same machine"
    finally:
        elasticsearch_server.stop(port)
        elasticsearch_server.forget(port)


@dataclass(frozen=True)
class Table:
    """Documents in all three engines.

    Attributes:
        stored: The documents' vectors.
        cut: The same as the server stores them.
        ours: The measured engine.
        bare: The same documents for the bare client.
        embedded: The same documents in the embedded engine.
        seconds: How long to go on with each kind of question.
    """

    stored: sparse.csr_array
    cut: sparse.csr_array
    ours: ElasticIndex
    bare: Bare
    embedded: Index
    seconds: float

    def truths(self, queries: sparse.csr_array, chosen: str | None = None) -> Truths:
        """Return the true answers, by floats and by what the server stores."""
        numbers = np.arange(self.stored.shape[0])
        if chosen is not None:
            wanted = Filter.parse(chosen)
            matching = [wanted.matches(each) for each in described(0, len(numbers))]
            numbers = np.flatnonzero(matching)
        found = {}
        for kind, rows in (("floats", self.stored), ("cut", self.cut)):
            brute_force = BruteForce(queries, K)
            brute_force.add(rows[numbers])
            found[kind] = [(numbers[at], scores) for at, scores in brute_force.answers]
        return found

    def searching(
        self, queries: sparse.csr_array, truths: Truths, chosen: str | None = None
    ) -> dict[str, Any]:
        """Time single queries, with and without a filter."""
        bodies = [
            self.ours.requests(Encoding(queries[i : i + 1]), K, ("lexical",), chosen)["lexical"]
            for i in range(queries.shape[0])
        ]
        asked = [
            cut(of_index("ours", self.ours, queries, filter=chosen)),
            cut(Contender("bare", lambda i: self.bare.search(bodies[i]), read, "cut", True)),
            of_index("embedded", self.embedded, queries, filter=chosen),
        ]
        return self._race(asked, truths)

    def batches(self, queries: sparse.csr_array, truths: Truths) -> dict[str, Any]:
        """Time many queries in one request."""
        spans = [slice(at, at + BATCH) for at in range(0, queries.shape[0], BATCH)]
        asked = [Encoding(queries[span]) for span in spans]
        bodies = [
            [self.ours.requests(Encoding(queries[i : i + 1]))["lexical"] for i in range(*each)]
            for each in (span.indices(queries.shape[0]) for span in spans)
        ]

        asks: dict[str, Callable[[int], Any]] = {
            "ours": lambda i: self.ours.search(asked[i], K),
            "bare": lambda i: self.bare.many(bodies[i]),
            "embedded": lambda i: self.embedded.search(asked[i], K),
        }
        for name, ask in asks.items():
            found = [each for i in range(len(spans)) for each in ask(i)]
            one = Contender(name, found.__getitem__, _read_one, "floats", True)
            one = one if name == "embedded" else cut(one)
            check_contender(one, truths[one.truth])
        return self._time(asks, len(spans))

    def hits(self, queries: sparse.csr_array, truths: Truths, explain: bool) -> dict[str, Any]:
        """Time hits as the searcher returns them, with their documents."""
        ours, embedded = (Searcher(None, index) for index in (self.ours, self.embedded))
        words = self.ours.vocabulary.terms
        asked = []
        for row in range(queries.shape[0]):
            span = slice(*queries.indptr[row : row + 2].tolist())
            named = map(words.__getitem__, queries.indices[span].tolist())
            asked.append(Query(terms=dict(zip(named, queries.data[span].tolist(), strict=True))))

        def by(searcher: Searcher) -> Callable[[int], Any]:
            return lambda i: searcher.search(asked[i], K, explain=explain)

        def read_hits(found: Any) -> Answer:
            return read([(hit.id, hit.score) for hit in found])

        requests = [sent(self.ours, lambda i=i: by(ours)(i)) for i in range(len(asked))]
        contenders = [
            cut(Contender("ours", by(ours), read_hits, "cut", True)),
            cut(Contender("bare", self._repeat(requests), first_hits, "cut", True)),
            # The searcher makes queries unit once more.
            Contender("embedded", by(embedded), read_hits, "floats", True, TOLERANCE),
        ]
        return self._race(contenders, truths)

    def _repeat(self, requests: list[list[Request]]) -> Callable[[int], Any]:
        return lambda i: self.bare.repeat(requests[i])

    def _race(self, contenders: Sequence[Contender], truths: Truths) -> dict[str, Any]:
        for each in contenders:
            check_contender(each, truths[each.truth])
        return self._time({each.name: each.ask for each in contenders}, len(truths["cut"]))

    def _time(self, asks: Mapping[str, Callable[[int], Any]], count: int) -> dict[str, Any]:
        ours, bare, *embedded = asks.values()
        pairs_taken = turns([ours, bare], count, self.seconds)
        found = {"ratio": statistics.median(a / b for a, b in zip(*pairs_taken, strict=True))}
        # Separately, because it fills the processor's caches.
        taken = [*pairs_taken, *(turns([ask], count, self.seconds)[0] for ask in embedded)]
        medians = map(statistics.median, taken)
        return found | dict(zip(asks, medians, strict=True))


def cut(contender: Contender) -> Contender:
    """Check a contender against what the server stores."""
    return contender._replace(truth="cut", tolerance=TOLERANCE)


def read(hits: Sequence[tuple[str, float]]) -> Answer:
    """Return ids with scores as an answer."""
    return np.array([int(name) for name, _ in hits], np.int64), np.array([s for _, s in hits])


def _read_one(found: Any) -> Answer:
    # The bare client gives pairs, an index gives all ids and all scores.
    return read(found if isinstance(found, list) else list(zip(*found, strict=True)))


def first_hits(answers: Any) -> Answer:
    """Return the first hits of the only search among answers.

    A searcher asks for one more, to tell whether there is another page.
    """
    (found,) = (answer["responses"] for answer in answers if "responses" in answer)
    return read(pairs(found[0])[:K])


def turns(asks: Sequence[Callable[[int], Any]], count: int, seconds: float) -> list[list[float]]:
    """Return the seconds of calls that answer queries in turn.

    Args:
        asks: Each answers the query of a number.
        count: Number of queries.
        seconds: Time limit, after every query was answered twice.
    """
    taken: list[list[float]] = [[] for _ in asks]
    end, number = time.perf_counter() + seconds, -WARM_ROUNDS
    while number < 2 or time.perf_counter() < end:
        for query in range(count):
            for place in range(len(asks)):
                who = (place + query + number) % len(asks)  # each is the first as often
                started = time.perf_counter()
                asks[who](query)
                if number >= 0:
                    taken[who].append(time.perf_counter() - started)
        number += 1
    return taken


def load(ours: ElasticIndex, bare: Bare, stored: sparse.csr_array) -> dict[str, float]:
    """Fill both indexes in turns; return documents a second of each, and their ratio."""
    rates: dict[str, list[float]] = {"ours": [], "bare": []}
    documents = described(0, stored.shape[0])
    for first in range(0, len(documents), PIECE):
        part, rows = documents[first : first + PIECE], Encoding(stored[first : first + PIECE])
        actions = bare.actions(part, rows)

        def by_us(part: Any = part, rows: Encoding = rows) -> None:
            ours.add(part, rows)
            ours.commit()

        sides = {"ours": by_us, "bare": lambda actions=actions: bare.load(actions)}
        for name in sorted(sides, reverse=first // PIECE % 2 == 1):
            started = time.perf_counter()
            sides[name]()
            rates[name].append(len(part) / (time.perf_counter() - started))
    found = {name: statistics.median(each) for name, each in rates.items()}
    ratios = [a / b for a, b in zip(rates["ours"], rates["bare"], strict=True)]
    return found | {"ratio": statistics.median(ratios)}


def compare(
    url: str, stored: sparse.csr_array, asked: Sequence[sparse.csr_array], seconds: float
) -> dict[str, Any]:
    """Load and query all three engines.

    Args:
        url: The server's.
        stored: The documents' vectors.
        asked: Queries, those of one length together. The first are asked in all ways.
        seconds: How long to go on with each kind of question.
    """
    name = f"lexvla-bench-{uuid.uuid4().hex[:8]}"
    with tempfile.TemporaryDirectory() as folder, ExitStack() as opened:
        ours = opened.enter_context(ElasticIndex(f"elasticsearch+{url}/{name}", create=True))
        opened.callback(ours._client.indices.delete, index=ours._store.index)
        embedded = opened.enter_context(open_index(folder, create=True))
        width, asked_index = stored.shape[1], ours._store.index
        bare = opened.enter_context(Bare(url, f"{name}-bare", width, asked_index))
        embedded.add(described(0, stored.shape[0]), Encoding(stored))
        embedded.commit()
        figures: dict[str, Any] = {"loading": load(ours, bare, stored), "searching": {}}
        figures |= {"documents": stored.shape[0], "words": stored.nnz / stored.shape[0]}
        ours.compact()
        bare.compact()
        table = Table(stored, truncated(stored), ours, bare, embedded, seconds)
        searching = figures["searching"]
        for queries in asked:
            words = f"{queries.nnz / queries.shape[0]:.0f} words"
            truths = table.truths(queries)
            searching[words] = table.searching(queries, truths)
            for chosen in FILTERS if queries is asked[0] else ():
                found = table.searching(queries, table.truths(queries, chosen), chosen)
                searching[f"{words} where `{chosen}`"] = found
            searching[f"{words}, {BATCH} queries together"] = table.batches(queries, truths)
            searching[f"{words}, {OF_SEARCHER}"] = table.hits(queries, truths, False)
            searching[f"{words}, {OF_SEARCHER}, explained"] = table.hits(queries, truths, True)
        about = ours.info()  # now: sizes are told ten seconds late
        figures["bytes"] = about["bytes"] / stored.shape[0]
        figures["version"] = about["elasticsearch_version"]
    return figures


def lines_of(title: str, figures: dict[str, Any]) -> Iterator[str]:
    """Yield the tables of one kind of vectors as Markdown."""
    yield f"## {title}"
    yield ""
    yield "{documents:,} documents of {words:.0f} words.".format(**figures)
    yield ""
    loading = figures["loading"]
    yield "| loading, documents/s | ours | bare client | ours / bare | |"
    yield "|---|--:|--:|--:|---|"
    met = loading["ratio"] >= LEAST_LOADING
    rates = f"{loading['ours']:,.0f} | {loading['bare']:,.0f} | {loading['ratio']:.2f}"
    yield f"| add and commit, {PIECE:,} at a time | {rates} | {_shown(met)} |"
    yield ""
    yield f"| top {K}, p50 ms | ours | bare client | ours / bare | | embedded |"
    yield "|---|--:|--:|--:|---|--:|"
    for name, times in figures["searching"].items():
        ratio = times["ratio"]
        aim = "" if OF_SEARCHER in name else _shown(ratio <= MOST_TIME)
        cells = f"{times['ours'] * 1e3:.2f} | {times['bare'] * 1e3:.2f} | {ratio:.2f} | {aim}"
        beside = f"{times['embedded'] * 1e3:.2f}" if "embedded" in times else "-"
        yield f"| {name} | {cells} | {beside} |"
    yield ""
    yield f"The server keeps {figures['bytes']:,.0f} bytes a document, after `lexvla compact`."


def _shown(met: bool) -> str:
    return "met" if met else "**missed**"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--documents", type=int, default=100_000)
    parser.add_argument("--model-documents", type=int, default=100_000, help="0 leaves them out")
    parser.add_argument("--queries", type=int, default=2 * BATCH, help="of each length")
    parser.add_argument("--seconds", type=float, default=20, help="for each kind of question")
    parser.add_argument("--out", type=Path, help="write a page here too")
    args = parser.parse_args(arguments)
    parts = {"Documents of 125 words": _generated}
    if args.model_documents:
        parts["Vectors of the default model"] = _of_model
    page = ["# The Elasticsearch engine beside the bare client", "", INTRODUCTION]
    with server() as (url, about):
        for title, make in parts.items():
            figures = compare(url, *make(args), args.seconds)
            lines = list(lines_of(title, figures))
            print("\n".join(lines), flush=True)
            if len(page) == 3:
                client = f"client {version('elasticsearch')}"
                said = f"{machine()}, {client}; Elasticsearch {figures['version']}, {about}"
                page += ["", f"{said}; {datetime.now(UTC):%Y-%m-%d}."]
            page += ["", *lines]
            if args.out is not None:
                args.out.write_text("\n".join([*page, ""]), encoding="utf-8")


def _generated(args: argparse.Namespace) -> tuple[sparse.csr_array, list[sparse.csr_array]]:
    shape = SHAPES["million"]
    corpus = Corpus(shape.width, shape.words)
    queries = [corpus.queries(args.queries, words) for words in shape.query_words]
    return corpus.documents(0, args.documents), queries


def _of_model(args: argparse.Namespace) -> tuple[sparse.csr_array, list[sparse.csr_array]]:
    from real_vectors import real_vectors  # loads timm and torch

    vectors = real_vectors(args.model_documents)
    return vectors.stored, [vectors.queries["texts"][: args.queries]]


INTRODUCTION = """\
Ours and the client of Elasticsearch alone took turns in one process, piece by piece and query by
query, each first as often as the other: read the ratios, each the median over pairs of answers,
as whatever else the machine did slowed both. Answers were held against brute force before they
were timed: those of the server by weights of 9 significant bits, ids in order and scores to 1e-5;
those of the embedded engine exactly. **Loading** is `add` and `commit`, and of the bare client
`streaming_bulk` as it comes, of bodies that lay ready, and a refresh. **Searching** is
`index.search` with k = 10 on one merged segment; the bare client sends the bodies that
`index.requests` gives, by `search`, or by `msearch` where there are several. Aims: at least 0.9
of the bare client's documents a second, at most 1.1 of its time. *Hits of the searcher* are those
of `Searcher.search`, with documents, and explained with all their words; beside them the bare
client repeats the same requests. No aim is set for the searcher: it does more than ask."""

if __name__ == "__main__":
    main()
