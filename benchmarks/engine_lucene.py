"""Lucene alone, through Pyserini, and through this package."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from engine_checks import Answer, Contender
from engine_contenders import K, of_index, small_integers
from scipy import sparse

from lexvla_indexer import Index

LUCENE = "org.apache.lucene."
FIELD = "contents"
TOLERANCE = 1e-6  # Lucene answers in float32


class LuceneAlone:
    """Lucene's `IndexSearcher`, with prepared Java queries and without reading hits.

    Args:
        directory: A Lucene index whose term frequencies are impacts.
        terms: The index's term of each column.
    """

    def __init__(self, directory: Path, terms: list[str]) -> None:
        from jnius import autoclass, cast

        self._class, self._cast = autoclass, cast
        files = autoclass(f"{LUCENE}store.FSDirectory")
        path = autoclass("java.nio.file.Paths").get(str(directory))
        reader = autoclass(f"{LUCENE}index.DirectoryReader").open(files.open(path))
        self._searcher = autoclass(f"{LUCENE}search.IndexSearcher")(
            reader, signature="(Lorg/apache/lucene/index/IndexReader;)V"
        )
        similarity = autoclass("io.anserini.search.similarity.ImpactSimilarity")()
        self._searcher.setSimilarity(similarity)
        self._collector = autoclass(f"{LUCENE}search.TopScoreDocCollector")
        self._terms = terms
        self._stored = self._searcher.storedFields()
        self.segments = reader.leaves().size()

    def contenders(self, queries: sparse.csr_array) -> list[Contender]:
        """Return the engine with prepared queries."""
        small = small_integers(queries)
        asked = [self._query(small[i : i + 1]) for i in range(small.shape[0])]

        def contender(name: str, ask: Callable[[int], Any]) -> Contender:
            return Contender(name, ask, self._read, "small", exact=False, tolerance=TOLERANCE)

        name = "Lucene, engine alone"
        return [
            contender(name, lambda number: self._searcher.search(asked[number], K)),
            contender(
                f"{name}, without skipping", lambda number: self._without_skipping(asked[number])
            ),
        ]

    def _without_skipping(self, query: Any) -> Any:
        collector = self._collector.create(K, 2**31 - 1)
        self._searcher.search(query, self._cast(f"{LUCENE}search.Collector", collector))
        return collector.topDocs()

    def _query(self, row: sparse.csr_array) -> Any:
        builder = self._class(f"{LUCENE}search.BooleanQuery$Builder")()
        should = self._class(f"{LUCENE}search.BooleanClause$Occur").SHOULD
        boosted = self._class(f"{LUCENE}search.BoostQuery")
        of_term = self._class(f"{LUCENE}search.TermQuery")
        term = self._class(f"{LUCENE}index.Term")
        for column, weight in zip(row.indices.tolist(), row.data.tolist(), strict=True):
            query = boosted(of_term(term(FIELD, self._terms[column])), float(weight))
            builder.add(query, should)
        return builder.build()

    def _read(self, top: Any) -> Answer:
        rows = [int(self._stored.document(hit.doc).get("id")) for hit in top.scoreDocs]
        scores = [hit.score for hit in top.scoreDocs]
        return np.array(rows, np.int64), np.array(scores, np.float64)


class ByPyserini:
    """Pyserini's `LuceneImpactSearcher`, with given words and weights of queries.

    Args:
        directory: A Lucene index as Anserini writes it.
        terms: The index's term of each column.
    """

    def __init__(self, directory: Path, terms: list[str]) -> None:
        from pyserini.search.lucene import LuceneImpactSearcher

        self._terms = terms
        self._weights: dict[str, dict[str, int]] = {}
        self._searcher = LuceneImpactSearcher(str(directory), self)

    def encode(self, query: str) -> dict[str, int]:
        """Return the weights of a query's terms for Pyserini."""
        return self._weights[query]

    def contenders(self, queries: sparse.csr_array) -> list[Contender]:
        """Return the engine with prepared queries."""
        small = small_integers(queries)
        names = []
        for i in range(small.shape[0]):
            span = slice(*small.indptr[i : i + 2].tolist())
            words = [self._terms[column] for column in small.indices[span]]
            names.append(f"{small.nnz} {i}")
            self._weights[names[-1]] = dict(zip(words, small.data[span].tolist(), strict=True))

        def read(hits: Any) -> Answer:
            rows = np.array([int(hit.docid) for hit in hits], np.int64)
            return rows, np.array([hit.score for hit in hits], np.float64)

        return [
            Contender(
                "Lucene, LuceneImpactSearcher",
                lambda number: self._searcher.search(names[number], K),
                read,
                "small",
                exact=False,
                tolerance=TOLERANCE,
            )
        ]


class OfThisPackage:
    """Lucene through an index of this package, whose integers have their own scales."""

    def __init__(self, index: Index) -> None:
        self._index = index

    def contenders(self, queries: sparse.csr_array) -> list[Contender]:
        """Return the engine with prepared queries."""
        contender = of_index("Lucene, by this package", self._index, queries)
        return [contender._replace(exact=False)]


def lucene_engines(index: Index, folder: Path, width: int) -> list[Any]:
    """Return the three ways to search an index of this package.

    Args:
        index: The open index; its terms are column numbers.
        folder: Its folder.
        width: Number of columns.
    """
    from lexvla_indexer.lucene import pyserini_imports

    terms = list(map(str, range(width)))
    with pyserini_imports():
        by_pyserini = ByPyserini(folder, terms)
    return [OfThisPackage(index), LuceneAlone(folder, terms), by_pyserini]
