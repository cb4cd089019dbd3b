"""One commit of a Lucene index, open for searches."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, cached_property
from typing import Any

from lexvla.errors import UnknownDocumentError
from lexvla_indexer.document import Document
from lexvla_indexer.filters import Filter
from lexvla_indexer.lucene.fields import FINGERPRINT, ID, LEXICAL, RAW, VECTORS, document_of
from lexvla_indexer.lucene.jvm import java_cast, java_class, java_exception
from lexvla_indexer.lucene.selection import add_clause, any_of, selection
from lexvla_indexer.lucene.state import KEY, State

__all__ = ["Snapshot", "escaped"]

_SEARCH = "org.apache.lucene.search."
_PATH = "org/apache/lucene/search/"
_ALL = 2**31 - 1
# Lucene's skipping of documents that cannot be among the best pays for short queries only: at
# 1,000 words of 32,000 it takes half as long again as scoring all that match.
SKIPPING_WORDS = 64
_NEEDS_ESCAPE = re.compile(r"[^\w]|_")
_KEYWORDS = ("AND", "OR", "NOT")


class Snapshot:
    """Search and read one commit.

    Args:
        place: The directory, for messages.
        reader: An open DirectoryReader; this object closes it.
    """

    def __init__(self, place: object, reader: Any) -> None:
        self.reader = reader
        self._place = place
        self._searcher = java_class(f"{_SEARCH}IndexSearcher")(
            reader, signature="(Lorg/apache/lucene/index/IndexReader;)V"
        )
        similarity = java_class("io.anserini.search.similarity.ImpactSimilarity")
        self._searcher.setSimilarity(similarity())
        sort_field = java_class(f"{_SEARCH}SortField")
        by_bytes = java_class(f"{_SEARCH}SortField$Type").STRING_VAL
        sort = java_class(f"{_SEARCH}Sort")
        by_id = sort_field(ID, by_bytes)
        self._by_score = sort(sort_field.FIELD_SCORE, by_id)
        self._by_id = sort(by_id, sort_field(FINGERPRINT, by_bytes))
        self._chosen: tuple[str, Any] | None = None

    @cached_property
    def state(self) -> State | None:
        """What the commit says of itself; ``None`` if another program wrote it."""
        data = self.reader.getIndexCommit().getUserData().get(KEY)
        return None if data is None else State.load(self._place, data)

    @cached_property
    def generation(self) -> int:
        """Which commit of the directory this is."""
        return int(self.reader.getIndexCommit().getGeneration())

    @property
    def rows(self) -> int:
        """The number of documents, deleted ones included."""
        return int(self.reader.maxDoc())

    @property
    def count(self) -> int:
        """The number of documents."""
        return int(self.reader.numDocs())

    @property
    def segments(self) -> int:
        """The number of segments."""
        return int(self.reader.leaves().size())

    def mean_words(self) -> float:
        """Return the mean number of words of a row, deleted ones included."""
        return self.reader.getSumDocFreq(LEXICAL) / self.rows if self.rows else 0.0

    def damage(self) -> Iterator[str]:
        """Read all files. Give a line for each segment that is damaged."""
        thrown = java_exception()
        for number in range(self.segments):
            try:
                self.reader.leaves().get(number).reader().checkIntegrity()
            except thrown as error:
                yield f"{self._place}: {error.innermessage}"

    @contextmanager
    def held(self) -> Iterator[Snapshot]:
        """Keep it open for a while, whoever closes it."""
        self.reader.incRef()
        try:
            yield self
        finally:
            self.reader.decRef()

    def close(self) -> None:
        """Give it up; those who hold it may finish."""
        self.reader.decRef()

    def query(self, field: str, terms: Sequence[str], weights: Sequence[int]) -> Any:
        """Return a query for any of some terms. It crosses over to Java in one piece.

        Args:
            field: The field that has them.
            terms: At least one, as they stand in the index.
            weights: One for each, above 0.
        """
        # A parser for each query: it is not for several threads, and costs little.
        parser = java_class("org.apache.lucene.queryparser.classic.QueryParser")(field, _whole())
        pairs = zip(terms, weights, strict=True)
        return parser.parse(" ".join(f"{term}^{weight}" for term, weight in pairs))

    def top(self, query: Any, words: int, k: int, chosen: Any = None) -> list[tuple[str, float]]:
        """Return ids and scores of the k best documents, best first, equal ones by id.

        Args:
            query: What `query` made.
            words: How many words it has.
            k: The most documents to return.
            chosen: A query for the documents that may be returned; ``None`` for all.
        """
        if chosen is not None:
            occurs = java_class(f"{_SEARCH}BooleanClause$Occur")
            builder = java_class(f"{_SEARCH}BooleanQuery$Builder")()
            add_clause(builder, query, occurs.MUST)
            add_clause(builder, chosen, occurs.FILTER)
            query = builder.build()
        is_long = words > SKIPPING_WORDS
        hits = self._run(query, self._by_score, k, _ALL if is_long else max(k, 1000))
        return [(_text(hit["fields"][1]), hit["fields"][0]) for hit in hits]

    def places(self, ids: Collection[str]) -> dict[str, tuple[int, str]]:
        """Return the number and the fingerprint of each of these documents that is there."""
        if not ids:
            return {}
        return self._places(any_of(ID, set(ids)), len(set(ids)))

    def known_places(self, ids: Sequence[str]) -> dict[str, tuple[int, str]]:
        """Return what `places` does, of documents that must be there.

        Raises:
            UnknownDocumentError: There is no such document.
        """
        places = self.places(ids)
        for name in ids:
            if name not in places:
                raise UnknownDocumentError(name)
        return places

    def _places(self, query: Any, count: int) -> dict[str, tuple[int, str]]:
        hits = self._run(query, self._by_id, count, _ALL)
        return {_text(hit["fields"][0]): (hit["doc"], _text(hit["fields"][1])) for hit in hits}

    def _run(self, query: Any, sort: Any, k: int, threshold: int) -> list[dict[str, Any]]:
        collector = java_class(f"{_SEARCH}TopFieldCollector").create(
            sort,
            min(k, max(self.rows, 1)),
            threshold,
            signature=f"(L{_PATH}Sort;II)L{_PATH}TopFieldCollector;",
        )
        self._searcher.search(query, java_cast(f"{_SEARCH}Collector", collector))
        # All hits come back in one piece too: each number and id alone would take its time.
        text = _json_writer().writeValueAsString(collector.topDocs())
        hits: list[dict[str, Any]] = json.loads(text)["scoreDocs"]
        return hits

    def stored(self, ids: Sequence[str]) -> list[tuple[Document, bytes]]:
        """Return documents of ours, with the vectors by `lexvla_indexer.lucene.fields.pack`.

        Raises:
            UnknownDocumentError: There is no such document.
        """
        places = self.known_places(ids)
        found = []
        for name in ids:
            number, fingerprint = places[name]
            stored = self._stored(number)
            vectors = _bytes(stored.getBinaryValue(VECTORS))
            found.append((document_of(stored.get(RAW), fingerprint), vectors))
        return found

    def vectors_of(self, ids: Sequence[str]) -> list[bytes]:
        """Return the vectors of documents of ours, as `stored` does.

        Raises:
            UnknownDocumentError: There is no such document.
        """
        places = self.known_places(ids)
        return [self.vectors(places[name][0]) for name in ids]

    def choose(self, text: str) -> Any:
        """Return a filter as a query of Lucene.

        Raises:
            FilterSyntaxError: It cannot be read.
        """
        # A search over several legs asks with the same one for each.
        if self._chosen is None or self._chosen[0] != text:
            self._chosen = text, selection(Filter.parse(text), self._matching)
        return self._chosen[1]

    def _matching(self, part: Filter) -> list[str]:
        """Return the ids of the documents that a filter chooses, by looking at each."""
        every = self._places(java_class(f"{_SEARCH}MatchAllDocsQuery")(), self.rows)
        return [
            name
            for name, (number, fingerprint) in every.items()
            if part.matches(document_of(self._stored(number).get(RAW), fingerprint))
        ]

    def vectors(self, number: int) -> bytes:
        """Return a document's vectors as `lexvla_indexer.lucene.fields.pack` wrote them."""
        return _bytes(self._stored(number).getBinaryValue(VECTORS))

    def _stored(self, number: int) -> Any:
        return self.reader.storedFields().document(number, signature=_OF_NUMBER)

    def live(self, numbers: Iterable[int]) -> list[int]:
        """Return those numbers of rows that are not deleted."""
        bits = java_class("org.apache.lucene.index.MultiBits").getLiveDocs(self.reader)
        return [int(n) for n in numbers if bits is None or bits.get(int(n))]

    def explain(self, query: Any, number: int) -> tuple[dict[str, Any], str]:
        """Return Lucene's own explanation of a document's score, as plain values and as text."""
        explanation = self._searcher.explain(
            query, number, signature=f"(L{_PATH}Query;I)L{_PATH}Explanation;"
        )
        found: dict[str, Any] = json.loads(_json_writer().writeValueAsString(explanation))
        return found, str(explanation.toString())


_OF_NUMBER = "(I)Lorg/apache/lucene/document/Document;"


@cache
def _whole() -> Any:
    """Return what takes a term of a query as it is."""
    return java_class("org.apache.lucene.analysis.core.KeywordAnalyzer")()


@cache
def _json_writer() -> Any:
    return java_class("com.fasterxml.jackson.databind.ObjectMapper")()


def escaped(term: str) -> str:
    """Return a term as Lucene's query parser reads it."""
    if term in _KEYWORDS:
        return f"\\{term}"
    return _NEEDS_ESCAPE.sub(lambda match: f"\\{match[0]}", term)


def _text(value: dict[str, Any] | None) -> str:
    if value is None:
        return ""
    start = value["offset"]
    return base64.b64decode(value["bytes"])[start : start + value["length"]].decode()


def _bytes(value: Any) -> bytes:
    found: bytes = value.bytes.tostring()
    return found
