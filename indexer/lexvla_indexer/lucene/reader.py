"""One commit of a Lucene index, open to answer."""

from __future__ import annotations

import base64
import json
import re
import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from functools import cache, cached_property, lru_cache
from typing import Any

import numpy as np
from scipy import sparse

from lexvla.encoding import Encoding
from lexvla.errors import UnknownDocumentError, UnsupportedError
from lexvla.vocabulary import Vocabulary
from lexvla_indexer.accuracy import DEPTH, SAMPLED_QUERIES, SAMPLED_ROWS, overlap, spread
from lexvla_indexer.base import Fetched, Results
from lexvla_indexer.bm25 import idf
from lexvla_indexer.columns import Column, count_facet, in_order, position_of
from lexvla_indexer.document import Document
from lexvla_indexer.durable import total_bytes
from lexvla_indexer.facets import Facet, FacetCounts
from lexvla_indexer.filter_terms import listed_fields, terms_of_field
from lexvla_indexer.filters import ATTRIBUTES, Filter, check_fields
from lexvla_indexer.impacts import ImpactQuantizer
from lexvla_indexer.known_fields import check_known
from lexvla_indexer.legs import VectorLeg, check_asked
from lexvla_indexer.listing import Listed, Order, Position
from lexvla_indexer.lucene.jvm import java_cast, java_class, java_errors, java_exception
from lexvla_indexer.lucene.layout import (
    FIELD_OF,
    FILTER,
    FINGERPRINT,
    FORMAT_VERSION,
    ID,
    KEY,
    KEYS,
    LEXICAL,
    RAW,
    TEXT,
    VECTORS,
    Commit,
    LegState,
    State,
    Store,
    document_of,
    impact_terms,
)
from lexvla_indexer.lucene.scoring import error_bound, query_weights
from lexvla_indexer.lucene.selection import any_of, narrowed, scoped, selection
from lexvla_indexer.packed_rows import unpack
from lexvla_indexer.scope import EVERYTHING, Scope
from lexvla_indexer.text_words import text_words

__all__ = ["Reader"]

_SEARCH = "org.apache.lucene.search."
_PATH = "org/apache/lucene/search/"
_INDEX = "org/apache/lucene/index/"
_DIRECTORY_READER = "org.apache.lucene.index.DirectoryReader"
_ALL = 2**31 - 1
# Lucene's skipping of documents that cannot be among the best pays off for short queries only: with
# 1,000 words of 32,000 it takes 1.5 times as long as scoring all that match.
SKIPPING_WORDS = 64
_NEEDS_ESCAPE = re.compile(r"[^\w]|_")
_KEYWORDS = ("AND", "OR", "NOT")
_OF_NUMBER = "(I)Lorg/apache/lucene/document/Document;"


class Reader:
    """Answer from one commit, by an open DirectoryReader that this object closes.

    Attributes:
        vocabulary: The terms of the lexical columns.
        quantizer: How the words' weights became integers in an index of Anserini, if known.
    """

    def __init__(self, store: Store, java: Any, file: Commit) -> None:
        self.vocabulary = Vocabulary(())
        self.quantizer: ImpactQuantizer | None = None
        self._store = store
        self._java = java
        self._file = file
        searcher, signature = java_class(f"{_SEARCH}IndexSearcher"), f"(L{_INDEX}IndexReader;)V"
        self._searcher = searcher(java, signature=signature)
        similarity = java_class("io.anserini.search.similarity.ImpactSimilarity")
        self._searcher.setSimilarity(similarity())
        self._text_searcher = searcher(java, signature=signature)  # by BM25, Lucene's default
        sort_field = java_class(f"{_SEARCH}SortField")
        by_bytes = java_class(f"{_SEARCH}SortField$Type").STRING_VAL
        sort = java_class(f"{_SEARCH}Sort")
        by_id = sort_field(ID, by_bytes)
        self._by_score = sort(sort_field.FIELD_SCORE, by_id)
        self._by_id = sort(by_id, sort_field(FINGERPRINT, by_bytes))
        by_number = sort_field.FIELD_DOC
        self._by_number = sort(by_number)
        self._by_number_with_keys = sort(by_number, by_id, sort_field(KEYS, by_bytes))
        self._chosen: tuple[str, Any] | None = None
        self._reading = threading.Lock()
        self._ids: Column | None = None
        self._columns: dict[str, Column] = {}

    @classmethod
    def open(cls, store: Store) -> Reader:
        """Open the newest commit."""
        file = store.newest()  # before it is read: of a newer one `newer` is told
        with java_errors(store.path):
            java = java_class(_DIRECTORY_READER).open(
                store.directory(),
                signature=f"(Lorg/apache/lucene/store/Directory;)L{_INDEX}DirectoryReader;",
            )
            return cls(store, java, file)

    def newer(self) -> Reader:
        """Return the reader of the newest commit, which may be this one."""
        # Lucene would read its newest file each time, which takes longer than some searches.
        file = self._store.newest()
        if file == self._file:
            return self
        java = None
        if file.number > self.commit:
            signature = f"(L{_INDEX}DirectoryReader;)L{_INDEX}DirectoryReader;"
            with suppress(java_exception()):  # Lucene throws if segments were made anew
                java = java_class(_DIRECTORY_READER).openIfChanged(self._java, signature=signature)
        # Without it, the index was deleted and made anew.
        return Reader.open(self._store) if java is None else Reader(self._store, java, file)

    def hold(self) -> None:
        """Keep it open until one more `close`."""
        self._java.incRef()

    def close(self) -> None:
        """Release it; others who hold it may finish."""
        self._java.decRef()

    @cached_property
    def state(self) -> State | None:
        """How the commit describes itself; ``None`` if another program wrote it."""
        data = self._java.getIndexCommit().getUserData().get(KEY)
        return None if data is None else State.load(self._store.path, data)

    def ours(self) -> State:
        """Return how the commit describes itself; UnsupportedError if another program wrote it."""
        if self.state is None:
            rule = "another program built this index: it can be searched by its words only"
            raise UnsupportedError(f"{self._store.path}: {rule}")
        return self.state

    @cached_property
    def commit(self) -> int:
        """The number of the commit."""
        return int(self._java.getIndexCommit().getGeneration())

    @property
    def rows(self) -> int:
        """The number of documents, deleted ones included."""
        return int(self._java.maxDoc())

    @property
    def segments(self) -> int:
        """The number of segments."""
        return int(self._java.leaves().size())

    def count(self, scope: Scope = EVERYTHING) -> int:
        """Return the number of documents in a scope."""
        if scope.is_everything:
            return int(self._java.numDocs())
        return int(self._searcher.count(self._scoped(scope)))

    def list_documents(
        self, scope: Scope, sort: Sequence[Order], limit: int, after: Position | None
    ) -> Listed:
        """Return documents in order; see `Index.list_documents`."""
        self.ours()
        rows = self._chosen_rows(scope)
        ids, columns = self._columns_of([order.field for order in sort], "sort by")
        by = [(c, order.descending) for c, order in zip(columns, sort, strict=True)]
        found = in_order(rows, ids, by, limit, after).tolist()
        places = self._places_of([str(ids.key_at(row, False)) for row in found])
        documents = [
            document_of(self._stored(number).get(RAW), fingerprint)
            for number, fingerprint in sorted(places.values())
        ]
        by_id = {document.id: document for document in documents}
        ordered = [by_id[str(ids.key_at(row, False))] for row in found]
        return Listed(ordered, [position_of(row, ids, by) for row in found])

    def facets(self, facets: Sequence[Facet], scope: Scope) -> dict[str, FacetCounts]:
        """Count values; see `Index.facets`."""
        self.ours()
        chosen = np.zeros(self.rows, bool)
        chosen[self._chosen_rows(scope)] = True
        _, columns = self._columns_of([facet.field for facet in facets], "count by")
        pairs = zip(facets, columns, strict=True)
        return {facet.field: count_facet(facet, column, chosen) for facet, column in pairs}

    def _scoped(self, scope: Scope) -> Any:
        self.ours()
        return scoped(scope, None if scope.filter is None else self._choose(scope.filter))

    def _chosen_rows(self, scope: Scope) -> np.ndarray:
        """Return the numbers of the documents in a scope, ascending."""
        hits = self._run(self._scoped(scope), self._by_number, max(self.rows, 1), _ALL)
        return np.fromiter((hit["doc"] for hit in hits), np.int64, len(hits))

    def _columns_of(self, fields: Sequence[str], purpose: str) -> tuple[Column, list[Column]]:
        """Return the column of the ids, whose keys are the ids, and those of these fields."""
        check_known(fields, purpose, self._has_field, self._fields)
        ids, columns = self._read_once(fields)
        for field, column in zip(fields, columns, strict=True):
            if field in ATTRIBUTES and not column.keys:  # a document's own is not metadata
                check_known([field], purpose, lambda _: False, self._fields)
        return ids, columns

    def _read_once(self, fields: Sequence[str]) -> tuple[Column, list[Column]]:
        with self._reading:
            new = [field for field in dict.fromkeys(fields) if field not in self._columns]
            if new or self._ids is None:
                self._ids = self._read_columns(new)
            return self._ids, [self._columns[field] for field in fields]

    def _read_columns(self, fields: Sequence[str]) -> Column:
        every = java_class(f"{_SEARCH}MatchAllDocsQuery")()
        ids: list[tuple[int, list[str]]] = []
        held: dict[str, list[tuple[int, list[str]]]] = {field: [] for field in fields}
        for hit in self._run(every, self._by_number_with_keys, max(self.rows, 1), _ALL):
            row, (name, written) = hit["doc"], map(_text, hit["fields"][1:])
            keys = json.loads(written)
            ids.append((row, [name]))
            for field, pairs in held.items():
                if field in keys:
                    pairs.append((row, keys[field]))
        self._columns |= {field: Column(self.rows, pairs) for field, pairs in held.items()}
        return self._ids or Column(self.rows, ids)

    def damage(self) -> Iterator[str]:
        """Read all files. Yield a line for each segment that is damaged."""
        thrown = java_exception()
        for number in range(self.segments):
            try:
                self._java.leaves().get(number).reader().checkIntegrity()
            except thrown as error:
                yield f"{self._store.path}: {error.innermessage}"

    def search(
        self,
        queries: Encoding,
        k: int,
        leg: VectorLeg,
        filter: str | None,  # noqa: A002 - the public word for it
    ) -> list[Results]:
        """Return the k best documents for each query, by integer scores."""
        rows, known = self._asked(queries, k, leg)
        chosen = None
        if filter is not None:
            self.ours()
            chosen = self._choose(filter)
        return [self._top(rows[[i]], k, leg, known, chosen) for i in range(len(queries))]

    def search_text(self, text: str, k: int, filter: str | None) -> Results:  # noqa: A002
        """Return the k best documents by Lucene's BM25, divided by the sum of the words' idf."""
        self.ours()
        chosen = None if filter is None else self._choose(filter)
        weights = self._idf(text)
        if not weights or not self.count():
            return Results([], np.empty(0))
        hits = self._text_hits(list(weights), k, chosen)
        scores = np.array(list(hits.values()), np.float64)
        return Results(list(hits), scores / sum(weights.values()))

    def text_parts(self, text: str, ids: Sequence[str]) -> list[dict[str, float]]:
        """Return what each word adds to each document's score, by a search for each word."""
        self._known_places(ids)
        parts: dict[str, dict[str, float]] = {name: {} for name in ids}
        weights, chosen = self._idf(text), any_of(ID, set(ids))
        for word in weights:
            for name, score in self._text_hits([word], len(parts), chosen).items():
                parts[name][word] = score / sum(weights.values())
        return [parts[name] for name in ids]

    def has_text(self) -> bool:
        """Return whether there is a document with text, perhaps a deleted one."""
        return int(self._java.getDocCount(TEXT)) > 0

    def _idf(self, text: str) -> dict[str, float]:
        """Return Lucene's idf of the query's words that documents have, ascending.

        Deleted documents count until their segments are merged.
        """
        term = java_class("org.apache.lucene.index.Term")
        words = sorted(set(text_words(text)))
        counts = np.array([self._java.docFreq(term(TEXT, word)) for word in words], np.int64)
        weights = idf(int(self._java.getDocCount(TEXT)), counts).tolist()
        return {word: weight for word, weight in zip(words, weights, strict=True) if weight}

    def _text_hits(self, words: Sequence[str], k: int, chosen: Any) -> dict[str, float]:
        """Return the best documents' ids and scores, best first."""
        parser = java_class("org.apache.lucene.queryparser.classic.QueryParser")
        # Words without weights would be read as one term.
        query = parser(TEXT, _whole()).parse(" ".join(f"{word}^1" for word in words))
        if chosen is not None:
            query = narrowed(query, chosen)
        hits = self._run(query, self._by_score, k, max(k, 1000), self._text_searcher)
        return {_text(hit["fields"][1]): hit["fields"][0] for hit in hits}

    def bound(self, queries: Encoding, leg: VectorLeg) -> np.ndarray:
        """Return how far each query's scores can be from the exact dot products, float64."""
        rows, (longest, quantizer) = self._asked(queries, 1, leg)
        each = (rows[[i]] for i in range(len(queries)))
        return np.array([error_bound(row, query_weights(row, longest), quantizer) for row in each])

    def fetch(self, ids: Sequence[str]) -> Fetched:
        """Return documents of ours with their stored vectors."""
        widths, places = self.ours().widths, self._known_places(ids)
        documents, packed = [], []
        for name in ids:
            number, fingerprint = places[name]
            stored = self._stored(number)
            documents.append(document_of(stored.get(RAW), fingerprint))
            packed.append(_bytes(stored.getBinaryValue(VECTORS)))
        return Fetched(documents, unpack(packed, widths))

    def documents(self, ids: Sequence[str]) -> list[Document]:
        """Return documents, of another program's index only their ids."""
        places = self._known_places(ids)
        if self.state is None:
            return [Document(name) for name in ids]
        return [document_of(self._stored(places[n][0]).get(RAW), places[n][1]) for n in ids]

    def vectors(self, ids: Sequence[str]) -> Encoding:
        """Return the stored vectors of documents of ours."""
        widths, places = self.ours().widths, self._known_places(ids)
        return self._unpacked([places[name][0] for name in ids], widths)

    def fingerprints(self, ids: Collection[str]) -> dict[str, str]:
        """Return the fingerprint of each of these documents that exists."""
        return {name: place[1] for name, place in self._places_of(ids).items()}

    def info(self) -> dict[str, Any]:
        """Describe the commit.

        ``quantization`` has for each leg with weights: ``bits``; ``scale``, the integer of a weight
        of 1; ``top``, the weight that the greatest integer stands for. For an index of ours also:
        ``clipped``, how many weights exceeded it; ``mean_error`` and ``max_error`` of a weight,
        over all that were ever committed; ``rows``, how many were sampled; and ``overlap@10``, the
        mean share of the 10 best of these by exact scores that are among the 10 best by integers,
        with some of them as queries.
        """
        state, rows = self.state, self.rows
        widths = {"lexical": len(self.vocabulary)} if state is None else dict(state.widths)
        quantization: dict[str, Any] = {}
        if state is not None:
            quantization = self._accuracy(state)
        elif self.quantizer is not None:
            quantization = {"lexical": _scale(self.quantizer)}
        words = self._java.getSumDocFreq(LEXICAL)  # of deleted rows too
        return {
            "engine": "lucene",
            "documents": self.count(),
            "segments": self.segments,
            "deleted_rows": rows - self.count(),
            "bytes": total_bytes(self._store.path),
            "mean_active_words": words / rows if rows else 0.0,
            "documents_with_text": int(self._java.getDocCount(TEXT)),
            "legs": widths,
            **({"quantization": quantization} if state or quantization else {}),
            "commit": self.commit,
            "format_version": FORMAT_VERSION if state else None,
            "writer_version": state.writer_version if state else "another program",
            "lucene_version": str(java_class("org.apache.lucene.util.Version").LATEST.toString()),
        }

    def _accuracy(self, state: State) -> dict[str, Any]:
        bits = java_class("org.apache.lucene.index.MultiBits").getLiveDocs(self._java)
        sampled = spread(np.arange(self.rows), SAMPLED_ROWS).tolist()
        live = [number for number in sampled if bits is None or bits.get(number)]
        if not live:
            return {}
        sample = self._unpacked(live, state.widths)
        rows = {"lexical": sample.lexical, "codes": sample.codes}
        return {leg: _facts(kept, rows[leg]) for leg, kept in state.legs.items()}

    def _asked(
        self, queries: Encoding, k: int, leg: VectorLeg
    ) -> tuple[sparse.csr_array, tuple[float | None, ImpactQuantizer | None]]:
        """Return the queries' rows of a leg, and the greatest length and quantiser of documents."""
        if leg == "dense":
            rule = "Lucene indexes store dense vectors and do not search them"
            raise UnsupportedError(f"{rule}: use the legs {' and '.join(FIELD_OF)}")
        if self.state is None and not len(self.vocabulary):
            get = "give one, or save it there as vocabulary.json"
            raise UnsupportedError(f"{self._store.path} names no vocabulary; {get}")
        widths = {"lexical": len(self.vocabulary)} if self.state is None else self.state.widths
        check_asked(queries, k, leg, widths, self._store.path)
        rows = queries.lexical if leg == "lexical" else queries.codes
        kept = None if self.state is None else self.state.legs.get(leg)
        return rows, (None, self.quantizer) if kept is None else (kept.longest, kept.quantizer)

    def _top(
        self,
        row: sparse.csr_array,
        k: int,
        leg: VectorLeg,
        known: tuple[float | None, ImpactQuantizer | None],
        chosen: Any,
    ) -> Results:
        """Return the k best documents for one row, of those that a Lucene query chooses."""
        if not row.nnz or not self.count():
            return Results([], np.empty(0))
        longest, quantizer = known
        weights, scale = query_weights(row, longest)
        columns: list[Any] = row.indices.tolist()
        if leg == "lexical":
            terms = _escaped(self.vocabulary)
            columns = [terms[column] for column in columns]
        pairs = zip(columns, weights.tolist(), strict=True)
        # Text crosses over to Java in one piece. A parser is cheap, and not thread-safe.
        parser = java_class("org.apache.lucene.queryparser.classic.QueryParser")
        text = " ".join(f"{term}^{weight}" for term, weight in pairs)
        query = parser(FIELD_OF[leg], _whole()).parse(text)
        if chosen is not None:
            query = narrowed(query, chosen)
        threshold = _ALL if row.nnz > SKIPPING_WORDS else max(k, 1000)
        hits = self._run(query, self._by_score, k, threshold)
        scores = np.array([hit["fields"][0] for hit in hits], np.float64)
        step = 1.0 if quantizer is None else quantizer.step
        return Results([_text(hit["fields"][1]) for hit in hits], scores * (step / scale))

    def _run(
        self, query: Any, sort: Any, k: int, threshold: int, searcher: Any = None
    ) -> list[dict[str, Any]]:
        collector = java_class(f"{_SEARCH}TopFieldCollector").create(
            sort,
            min(k, max(self.rows, 1)),
            threshold,
            signature=f"(L{_PATH}Sort;II)L{_PATH}TopFieldCollector;",
        )
        (searcher or self._searcher).search(query, java_cast(f"{_SEARCH}Collector", collector))
        # All hits come back in one piece too: one by one they would take longer.
        text = _json_writer().writeValueAsString(collector.topDocs())
        hits: list[dict[str, Any]] = json.loads(text)["scoreDocs"]
        return hits

    def _places_of(self, ids: Collection[str]) -> dict[str, tuple[int, str]]:
        """Return the number and the fingerprint of each of these documents that exists."""
        return self._places(any_of(ID, set(ids)), len(set(ids))) if ids else {}

    def _known_places(self, ids: Collection[str]) -> dict[str, tuple[int, str]]:
        places = self._places_of(ids)
        for name in ids:
            if name not in places:
                raise UnknownDocumentError(name)
        return places

    def _places(self, query: Any, count: int) -> dict[str, tuple[int, str]]:
        hits = self._run(query, self._by_id, count, _ALL)
        return {_text(hit["fields"][0]): (hit["doc"], _text(hit["fields"][1])) for hit in hits}

    def _choose(self, text: str) -> Any:
        # A search over several legs uses the same filter for each.
        if self._chosen is None or self._chosen[0] != text:
            parsed = Filter.parse(text)
            check_fields(parsed, self._has_field, self._fields)
            self._chosen = text, selection(parsed, self._matching)
        return self._chosen[1]

    def _has_field(self, name: str) -> bool:
        """Tell whether a document has a metadata field, or had it before it was deleted."""
        term = java_class("org.apache.lucene.index.Term")
        return any(self._java.docFreq(term(FILTER, each)) for each in terms_of_field(name))

    def _fields(self) -> set[str] | None:
        """Return all metadata fields; ``None`` if there are no documents."""
        if not self.count():
            return None
        leaves = self._java.leaves()
        parts = [leaves.get(number).reader().terms(FILTER) for number in range(self.segments)]
        return {field for terms in parts if terms for field in _fields_of(terms)}

    def _matching(self, part: Filter) -> list[str]:
        """Return the ids of the documents that a filter chooses, by looking at each."""
        every = self._places(java_class(f"{_SEARCH}MatchAllDocsQuery")(), self.rows)
        return [
            name
            for name, (number, fingerprint) in every.items()
            if part.matches(document_of(self._stored(number).get(RAW), fingerprint))
        ]

    def _unpacked(self, numbers: Sequence[int], widths: Any) -> Encoding:
        stored = (self._stored(number).getBinaryValue(VECTORS) for number in numbers)
        return unpack([_bytes(value) for value in stored], widths)

    def _stored(self, number: int) -> Any:
        return self._java.storedFields().document(number, signature=_OF_NUMBER)


def _fields_of(terms: Any) -> Iterator[str]:
    """Give the metadata fields of a segment."""
    place = java_cast("org.apache.lucene.index.TermsEnum", terms.iterator())
    to_bytes = java_class("org.apache.lucene.util.BytesRef")

    def next_term(text: str) -> str | None:
        found = str(place.seekCeil(to_bytes(text.encode())).toString())
        return None if found == "END" else str(place.term().utf8ToString())

    return listed_fields(next_term)


def _facts(leg: LegState, rows: sparse.csr_array) -> dict[str, Any]:
    quantizer = leg.quantizer
    asked = spread(np.arange(rows.shape[0]), SAMPLED_QUERIES)
    impacts = quantizer.quantize(rows).astype(np.float64)
    exact = (rows.astype(np.float64) @ rows[asked].astype(np.float64).T).toarray()
    found = (impacts @ impacts[asked].T).toarray()
    return {
        **_scale(quantizer),
        "clipped": leg.clipped,
        "mean_error": leg.total_error / max(leg.weights, 1),
        "max_error": leg.max_error,
        "rows": rows.shape[0],
        f"overlap@{DEPTH}": overlap(map(_best, exact.T), map(_best, found.T)),
    }


def _scale(quantizer: ImpactQuantizer) -> dict[str, Any]:
    return {"bits": quantizer.bits, "scale": quantizer.scale, "top": quantizer.top}


def _best(scores: np.ndarray) -> set[int]:
    order = np.argsort(-scores, kind="stable")[:DEPTH]
    return {int(row) for row in order if scores[row] > 0}


@lru_cache(maxsize=4)
def _escaped(vocabulary: Vocabulary) -> list[str]:
    """Return the terms as Lucene's query parser reads them."""

    def escape(term: str) -> str:
        if term in _KEYWORDS:
            return f"\\{term}"
        return _NEEDS_ESCAPE.sub(lambda match: f"\\{match[0]}", term)

    return [escape(term) for term in impact_terms(vocabulary)]


@cache
def _whole() -> Any:
    return java_class("org.apache.lucene.analysis.core.KeywordAnalyzer")()


@cache
def _json_writer() -> Any:
    return java_class("com.fasterxml.jackson.databind.ObjectMapper")()


def _text(value: dict[str, Any] | None) -> str:
    if value is None:
        return ""
    start = value["offset"]
    return base64.b64decode(value["bytes"])[start : start + value["length"]].decode()


def _bytes(value: Any) -> bytes:
    found: bytes = value.bytes.tostring()
    return found
