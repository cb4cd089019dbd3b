"""One index of a server, as it is now: searches by legs, documents with their rows, facts."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from itertools import islice
from typing import Any, NamedTuple, get_args

import numpy as np
from scipy import sparse

from lexvla.encoding import Encoding
from lexvla.errors import UnknownDocumentError, UnsupportedError
from lexvla.vocabulary import Vocabulary
from lexvla_indexer.base import Fetched, Results
from lexvla_indexer.bm25 import idf
from lexvla_indexer.document import Document
from lexvla_indexer.elastic.connection import elastic_errors, found_documents, whole
from lexvla_indexer.elastic.layout import (
    FILTER,
    FLAT,
    FLAT_DOCUMENTS,
    FORMAT_VERSION,
    ID,
    SHOWN,
    WORDS,
    Store,
    document_of,
)
from lexvla_indexer.elastic.listings import (
    after_of,
    counted,
    facet_body,
    has_value,
    names_of,
    number_range,
    position_of,
    sort_of,
)
from lexvla_indexer.elastic.product import DENSE_STORED, Json
from lexvla_indexer.elastic.refusals import refusal
from lexvla_indexer.elastic.requests import (
    CANDIDATES,
    RESULT_WINDOW,
    constraint_query,
    dense_scale,
    leg_query,
    search_body,
    text_query,
)
from lexvla_indexer.elastic.selection import any_of, selection
from lexvla_indexer.elastic.stored_vectors import STORED, incomplete, rows_of
from lexvla_indexer.facets import Facet, FacetCounts, Range
from lexvla_indexer.filter_terms import terms_of_field, typed_term
from lexvla_indexer.filters import ATTRIBUTES, Comparison, Filter, check_fields
from lexvla_indexer.known_fields import check_known
from lexvla_indexer.legs import Leg, VectorLeg, check_asked, widths_of
from lexvla_indexer.listing import Listed, Order, Position
from lexvla_indexer.scope import EVERYTHING, Scope
from lexvla_indexer.text_words import text_words

__all__ = ["Reader", "TextLeg"]

Hits = Sequence[tuple[str, float]]

TRUNCATION = 2.0**-8  # the greatest relative error of truncating a weight to 9 bits
LISTED = 1000  # documents of a request without their vectors
FETCHED = 500  # documents of a request: each takes a few kilobytes
REQUEST_BYTES = 16 * 1024 * 1024  # of several searches together
REQUEST_HITS = 100_000  # of their answers together
PIT_TIME = "2m"
# The words' idf is that of all shards together: otherwise copies would score differently.
_GLOBAL: Json = {"search_type": "dfs_query_then_fetch"}
_ITEMS: Json = {"exists": {"field": ID}}
_HITS = "hits.hits._id,hits.hits._score,hits.hits.sort,pit_id"
_MANY = "responses.hits.hits._id,responses.hits.hits._score,responses.error,responses.status"


class TextLeg(NamedTuple):
    """How to search for some words.

    Attributes:
        query: Return the query, given that of a filter or ``None``.
        most: What the server's score of a document stays below.
    """

    query: Callable[[Json | None], Json]
    most: float


class Reader:
    """Answer from the index that a store has found.

    Attributes:
        index: The name of that index.
    """

    def __init__(
        self,
        store: Store,
        vocabulary: Vocabulary,
        banned: Iterable[int] = (),
        required: Iterable[Iterable[int]] = (),
    ) -> None:
        self.index = store.index
        self._client = store.client
        self._address = store.address
        self._state = store.state
        self._product = store.product
        self._vocabulary = vocabulary
        self._seen_fields = store.seen_fields
        terms = vocabulary.terms
        self._banned = sorted(terms[column] for column in banned)
        self._required = [sorted(terms[column] for column in columns) for columns in required]

    def search(
        self,
        queries: Encoding,
        k: int,
        leg: VectorLeg,
        filter: str | None,  # noqa: A002 - the public word for it
    ) -> list[Results]:
        """Return the k best for each query, by one request for all."""
        self._check_asked(queries, k, leg)
        chosen = self._chosen(filter)
        found = [Results([], np.empty(0))] * len(queries)

        def hits_of(rows: Iterable[int], most: int) -> dict[int, Hits]:
            made = {row: self._leg_query(queries, leg, most, chosen, row) for row in rows}
            asked = {row: query for row, query in made.items() if query is not None}
            return dict(zip(asked, self._many(list(asked.values()), most), strict=True))

        every = range(len(queries))
        if leg != "dense" or not self._product.asks_neighbours:
            answers = hits_of(every, k)
        elif self._state.dense != FLAT or k >= RESULT_WINDOW:
            answers = hits_of(every, min(k, RESULT_WINDOW))
        else:
            # One more than wanted tells whether the last has an equal: of those a shard returns
            # any, and the first by id are wanted.
            answers = hits_of(every, k + 1)
            tied = [row for row, hits in answers.items() if _is_tied(hits, k)]
            answers |= hits_of(tied, RESULT_WINDOW) if tied else {}
        for row, hits in answers.items():
            found[row] = _results(hits[:k], self._scale(queries, leg, row))
        return found

    def rescore(self, query: Encoding, leg: VectorLeg, ids: Sequence[str]) -> list[float]:
        """Return what the server gives some documents for one query; see `Index.rescore`."""
        self._check_asked(query, 1, leg)
        scores: dict[str, float] = {}
        for start in range(0, len(ids), RESULT_WINDOW):
            some = list(ids[start : start + RESULT_WINDOW])
            chosen = {"ids": {"values": some}}
            made = self._leg_query(query, leg, len(some), chosen)
            if made is not None:
                (hits,) = self._many([made], len(some))
                given = _scores(hits, self._scale(query, leg, 0))
                scores.update(zip((name for name, _ in hits), given.tolist(), strict=True))
        return [scores.get(name, 0.0) for name in ids]

    def _scale(self, queries: Encoding, leg: VectorLeg, row: int) -> float | None:
        if leg != "dense" or queries.dense is None:
            return None
        return dense_scale(queries.dense[row], self._state)

    def search_text(self, text: str, k: int, filter: str | None) -> Results:  # noqa: A002
        """Return the k best by the server's BM25, divided by the most that the words can score."""
        chosen, leg = self._chosen(filter), self._text_leg(text)
        if leg is None:
            return Results([], np.empty(0))
        (hits,) = self._many([leg.query(chosen)], k, **_GLOBAL)
        found = _results(hits)
        return Results(found.ids, found.scores / leg.most)

    def text_parts(self, text: str, ids: Sequence[str]) -> list[dict[str, float]]:
        """Return what each word adds to each document's score, as the server says."""
        leg = self._text_leg(text)
        parts = {name: dict[str, float]() for name in self._sources(ids, [])}
        if leg is None:
            return [{} for _ in ids]
        names = list(parts)
        for start in range(0, len(names), FETCHED):
            some = names[start : start + FETCHED]
            query = leg.query({"ids": {"values": some}})
            with elastic_errors(self._address):
                answer = self._client.search(
                    index=self.index,
                    query=query,
                    size=len(some),
                    source=False,
                    include_named_queries_score=True,
                    allow_partial_search_results=False,
                    **_GLOBAL,
                )
            for hit in answer["hits"]["hits"]:
                scores = sorted(hit["matched_queries"].items())
                parts[hit["_id"]] = {word: score / leg.most for word, score in scores}
        return [parts[name] for name in ids]

    def has_text(self) -> bool:
        """Return whether a document with text was ever added."""
        return self._state.has_text

    def _text_leg(self, text: str) -> TextLeg | None:
        """Return how to search for the words of a text that documents have, if there are any."""
        words = sorted(set(text_words(text)))
        if not words or not self._state.has_text:
            return None
        terms = ({"term": {WORDS: word}} for word in words)
        documents, *counts = self._counts([{"exists": {"field": WORDS}}, *terms])
        there = [word for word, count in zip(words, counts, strict=True) if count]
        scale = self._product.text_scale
        most = float(idf(documents, np.array(counts)).sum()) * scale
        return TextLeg(partial(text_query, there), most) if there else None

    def _counts(self, queries: Sequence[Json]) -> list[int]:
        """Return how many documents each query finds, by one request."""
        with elastic_errors(self._address):
            answer = self._client.search(
                index=self.index,
                size=0,
                track_total_hits=False,
                aggregations={"counts": {"filters": {"filters": list(queries)}}},
                allow_partial_search_results=False,
            )
        return [bucket["doc_count"] for bucket in answer["aggregations"]["counts"]["buckets"]]

    def bound(self, queries: Encoding, leg: VectorLeg) -> np.ndarray:
        """Return how far each query's scores can be from the exact dot products, float64."""
        best = self.search(queries, 1, leg, None)
        top = np.array([found.scores[0] if found.ids else 0.0 for found in best])
        if leg == "dense":
            return top * 1e-5 + np.linalg.norm(np.asarray(queries.dense), axis=1) * 1e-6
        # Weights are truncated: no exact score exceeds the best one by more than this.
        rows = queries.lexical if leg == "lexical" else queries.codes
        words = np.diff(sparse.csr_array(rows).indptr)
        return top * (TRUNCATION / (1 - TRUNCATION) + (words + 2) * 2.0**-23)

    def requests(
        self,
        query: Encoding,
        k: int,
        legs: Sequence[Leg] | None,
        filter: str | None,  # noqa: A002
        text: str,
        offset: int,
        least: Mapping[Leg, float],
        named: bool,
    ) -> dict[Leg, Json]:
        """Return the request of each leg of one query; see `Index.requests`."""
        if len(query) != 1:
            raise ValueError(f"one query makes a request, not {len(query)}")
        if legs is None:
            shared = self._state.widths.keys() & widths_of(query).keys()
            legs = [leg for leg in get_args(Leg) if leg in shared or leg == "text"]
        chosen = self._chosen(filter)
        made: dict[Leg, Json] = {}
        for leg in legs:
            one: Json | None = None
            server_score = 1.0
            if leg == "text":
                text_leg = self._text_leg(text)
                if text_leg is not None:
                    one, server_score = text_leg.query(chosen), text_leg.most
            else:
                self._check_asked(query, k, leg)
                server_score = self._scale(query, leg, 0) or 1.0
                # More neighbours than wanted, as of equal ones the first by id are wanted.
                one = self._leg_query(query, leg, RESULT_WINDOW, chosen, named=named)
            if one is None:
                continue
            made[leg] = search_body(one, min(k, RESULT_WINDOW), self._state.fields.id)
            if offset:
                made[leg]["from"] = offset
            if least.get(leg, 0) > 0:
                made[leg]["min_score"] = least[leg] * server_score + (leg == "dense")
        return made

    def fetch(self, ids: Sequence[str]) -> Fetched:
        """Return documents with their stored vectors."""
        found = self._sources(ids, [*SHOWN, *STORED])
        documents = [self._document(name, found[name]) for name in ids]
        return Fetched(documents, self._rows(ids, found))

    def documents(self, ids: Sequence[str]) -> list[Document]:
        """Return only the documents."""
        found = self._sources(ids, [*SHOWN])
        return [self._document(name, found[name]) for name in ids]

    def vectors(self, ids: Sequence[str]) -> Encoding:
        """Return only the documents' stored vectors."""
        return self._rows(ids, self._sources(ids, [*STORED]))

    def _document(self, name: str, source: Json) -> Document:
        return document_of(name, source)

    def lost(self) -> list[str]:
        """Return the ids of documents that searches cannot find, as something of theirs is gone."""
        with closing(self._pages(incomplete(self._state, self._product))) as pages:
            return [name for name, _ in pages]

    def count(self, scope: Scope = EVERYTHING) -> int:
        """Return the number of searchable documents in a scope."""
        return self._count(self._scoped(scope))

    def list_documents(
        self, scope: Scope, sort: Sequence[Order], limit: int, after: Position | None
    ) -> Listed:
        """Return documents in order; see `Index.list_documents`."""
        self._check_typed([order.field for order in sort], "sort by")
        query, found = self._scoped(scope), Listed([], [])
        last = None if after is None else after_of(after)
        while len(found.documents) < limit:
            size = min(limit - len(found.documents), LISTED)
            body = {
                "query": query,
                "size": size,
                "sort": sort_of(sort, self._product),
                "_source": list(SHOWN),
            }
            if last is not None:
                body["search_after"] = last
            with elastic_errors(self._address):
                answer = self._client.search(
                    index=self.index,
                    body={**body, "track_total_hits": False},
                    allow_partial_search_results=False,
                )
            hits = answer["hits"]["hits"]
            for hit in hits:
                found.documents.append(document_of(hit["_id"], hit["_source"]))
                found.positions.append(position_of(hit["sort"]))
            if len(hits) < size:
                break
            last = hits[-1]["sort"]
        return found

    def facets(self, facets: Sequence[Facet], scope: Scope) -> dict[str, FacetCounts]:
        """Count values, each facet by a request; see `Index.facets`."""
        self._check_typed([facet.field for facet in facets], "count by")
        query, found = self._scoped(scope), {}
        for facet in facets:
            ranges = [self._range(facet.field, each) for each in facet.asked_ranges]
            with elastic_errors(self._address):
                answer = self._client.search(
                    index=self.index,
                    query=query,
                    size=0,
                    track_total_hits=False,
                    aggregations=facet_body(facet, ranges, *self._counted(facet.field)),
                    allow_partial_search_results=False,
                )
            found[facet.field] = counted(self._address, facet, answer["aggregations"])
        return found

    def _counted(self, field: str) -> tuple[dict[str, str], Json]:
        """Return the server's fields of a metadata field by kind, and what finds any value."""
        # Not by "exists": of a field "a" that is not there, that finds "a.b".
        return names_of(field, self._product), has_value(field)

    def _range(self, field: str, limits: Range) -> Json:
        if isinstance(limits.high if limits.low is None else limits.low, str):
            pairs = {"gte": limits.low, "lt": limits.high}
            given = {sign: at for sign, at in pairs.items() if at is not None}
            return {"range": {f"keyword.{self._product.part(field)}": given}}
        return selection(number_range(field, limits), self._matching)

    def _check_typed(self, fields: Sequence[str], purpose: str) -> None:
        """Refuse fields that no document has, or that the server has no typed field of."""
        check_known(fields, purpose, self._has_field, self._fields)
        typed = [name for field in fields for name in names_of(field, self._product).values()]
        with elastic_errors(self._address):
            known = (
                self._client.field_caps(index=self.index, fields=typed)["fields"] if typed else {}
            )
        for field in fields:
            if not known.keys().isdisjoint(names_of(field, self._product).values()):
                continue
            if field in ATTRIBUTES:  # each document has its own, which is not metadata
                check_known([field], purpose, lambda _: False, self._fields)
            elif self._count(has_value(field)):
                rule = f"has no typed field of {field!r} to {purpose}: see its documentation"
                raise UnsupportedError(f"{self._address}: {rule}")

    def _scoped(self, scope: Scope) -> Json:
        chosen: list[Json] = [_ITEMS]
        if (query := self._chosen(scope.filter)) is not None:
            chosen.append(query)
        if scope.only is not None:
            chosen.append(any_of(ID, scope.only))
        return {"bool": {"filter": chosen, "must_not": [any_of(ID, scope.but)]}}

    def _count(self, query: Json) -> int:
        with elastic_errors(self._address):
            answer = self._client.count(index=self.index, query=query)
        return int(whole(self._address, answer.body)["count"])

    def info(self) -> Json:
        """Return counts, size in bytes, health, versions, and how exact scores are."""
        with elastic_errors(self._address):
            health = self._client.cluster.health(index=self.index)
            stats = self._client.indices.stats(
                index=self.index, metric=["docs", "store", "segments"]
            )
            kept = self._client.indices.get_settings(index=self.index, human=True).body
        primaries = whole(self._address, stats.body)["_all"]["primaries"]
        settings = kept[self.index]["settings"]["index"]
        state = self._state
        found: Json = {
            "engine": self._product.engine,
            "documents": self.count(),
            "index": self.index,
            "health": health["status"],
            "shards": int(settings["number_of_shards"]),
            "replicas": int(settings["number_of_replicas"]),
            "segments": primaries["segments"]["count"],
            "deleted_rows": primaries["docs"]["deleted"],
            "bytes": primaries["store"]["size_in_bytes"],
            "legs": dict(state.widths),
            **self._own_facts(),
            "weights": "9 significant bits, cut off: scores are up to 0.4% low",
            "writer_version": state.writer_version,
            f"{self._product.engine}_version": str(settings["version"].get("created_string", "")),
        }
        if "dense" in state.widths:
            found["dense_search"] = self._dense_search()
        return found

    def _own_facts(self) -> Json:
        return {
            "documents_with_text": self._count({"exists": {"field": WORDS}}),
            "notes": sorted(self._state.notes),
            "format_version": FORMAT_VERSION,
        }

    def _dense_search(self) -> str:
        if self._state.dense == DENSE_STORED:
            return f"none: {self._product.lacks_dense}"
        if self._state.dense != FLAT:
            kind = f"approximate: {self._state.dense}"
            return f"{kind}, of each shard's {CANDIDATES:,} candidates or k"
        return f"exact, up to {FLAT_DOCUMENTS:,} documents" if self._product.graph else "exact"

    def _leg_query(
        self,
        queries: Encoding,
        leg: VectorLeg,
        k: int,
        chosen: Json | None,
        row: int = 0,
        named: bool = False,
    ) -> Json | None:
        terms = self._vocabulary.terms
        return leg_query(queries, leg, terms, self._state, self._product, k, chosen, row, named)

    def _check_asked(self, queries: Encoding, k: int, leg: VectorLeg) -> None:
        check_asked(queries, k, leg, self._state.widths, self._address)
        if leg == "dense" and self._state.dense == DENSE_STORED:
            rule = "dense vectors are stored, but the server cannot search them"
            raise UnsupportedError(f"{self._address}: {rule}: {self._product.lacks_dense}")
        is_deep = leg == "dense" and self._product.asks_neighbours and k > RESULT_WINDOW
        if is_deep and self.count() > RESULT_WINDOW:
            rule = f"gives at most {RESULT_WINDOW:,} hits by dense vectors, not {k:,}"
            raise UnsupportedError(f"{self._address}: {self._product.name} {rule}")

    def _many(self, queries: Sequence[Json], k: int, **options: Any) -> list[Hits]:
        """Return the k best ids with scores for each query, best first, equal ones by id."""
        found: list[Hits] = []
        if k > RESULT_WINDOW:
            for query in queries:
                with closing(self._pages(query, **options)) as pages:
                    found.append(list(islice(pages, k)))
            return found
        header = json.dumps({"index": self.index, "allow_partial_search_results": False, **options})
        bodies = (search_body(query, k, self._state.fields.id) for query in queries)
        for batch in _batches(bodies, REQUEST_HITS // k):
            # As text, whose length is known and which the client sends unchanged.
            searches: Any = [part for body in batch for part in (header, body)]
            with elastic_errors(self._address):
                answered = self._client.msearch(searches=searches, filter_path=_MANY)
            for each in answered["responses"]:
                if "error" in each:
                    raise refusal(self._address, each.get("status", 500), each)
                hits = each.get("hits", {}).get("hits", [])
                found.append([(hit["_id"], hit["_score"]) for hit in hits])
        return found

    def _pages(
        self, query: Json, source: bool = False, **options: Any
    ) -> Generator[tuple[str, Any]]:
        """Yield all hits of a query from one moment's view of the index, with their scores.

        With ``source``, by ascending id, with what is stored of each instead of its score.
        """
        body = search_body(query, RESULT_WINDOW, self._state.fields.id)
        if source:
            body |= {"sort": [{ID: "asc"}], "_source": list(SHOWN), "size": 1000}
        with closing(self._hits(body, **options)) as hits:
            for hit in hits:
                yield hit["_id"], hit["_source"] if source else hit["_score"]

    def _hits(self, body: Json, **options: Any) -> Generator[Json]:
        """Yield all hits of a search from one moment's view of the index, a page at a time."""
        path = f"{_HITS},hits.hits._source" if body["_source"] else _HITS
        with elastic_errors(self._address):
            opened = self._client.open_point_in_time(index=self.index, keep_alive=PIT_TIME)
            pit, after = opened["id"], body.get("search_after")
            try:
                while True:
                    page = {**body, "pit": {"id": pit, "keep_alive": PIT_TIME}}
                    if after is not None:
                        page["search_after"] = after
                    answer = self._client.search(
                        body=page,
                        filter_path=path,
                        allow_partial_search_results=False,
                        **options,
                    )
                    pit = answer.get("pit_id", pit)
                    hits = answer.get("hits", {}).get("hits", [])
                    yield from hits
                    if len(hits) < body["size"]:
                        return
                    after = hits[-1]["sort"]
            finally:
                self._client.options(ignore_status=404).close_point_in_time(id=pit)

    def _chosen(self, text: str | None) -> Json | None:
        """Return the query of a filter, and of the words that documents must and must not have."""
        words = None
        if self._banned or self._required:
            strongest = self._state.fields.strongest
            words = constraint_query(self._banned, self._required, strongest)
        if text is None:
            return words
        chosen = self._selected(Filter.parse(text))
        return chosen if words is None else {"bool": {"filter": [chosen, words]}}

    def _selected(self, filter: Filter) -> Json:  # noqa: A002 - the public word for it
        check_fields(filter, self._has_field, self._fields)
        return selection(filter, self._matching)

    def _has_field(self, name: str) -> bool:
        """Tell whether a document has a metadata field; asked once of each that there is."""
        if (self.index, name) in self._seen_fields:
            return True
        query = {"terms": {FILTER: terms_of_field(name)}}
        with elastic_errors(self._address):
            answer = self._client.count(index=self.index, query=query, terminate_after=1)
        has = int(whole(self._address, answer.body)["count"]) > 0
        if has:
            self._seen_fields.add((self.index, name))
        return has

    def _fields(self) -> Iterable[str] | None:
        """Return all metadata fields; ``None`` if there are no documents."""
        if not self._count(_ITEMS):
            return None
        with elastic_errors(self._address):
            return list(self._product.metadata_fields(self._client, self.index))

    def _matching(self, part: Filter) -> Collection[str]:
        """Return the ids of documents that match a range which terms cannot decide."""
        if not isinstance(part, Comparison):
            raise TypeError(f"not a range: {part!r}")
        typed = {"term": {FILTER: typed_term(part.field, part.value)}}
        pages = self._pages(typed, source=True)
        return [name for name, source in pages if part.matches(document_of(name, source))]

    def _sources(self, ids: Sequence[str], fields: list[str]) -> dict[str, Json]:
        found: dict[str, Json] = {}
        names = list(dict.fromkeys(ids))
        for start in range(0, len(names), FETCHED):
            with elastic_errors(self._address):
                # Not realtime: what searches do not see yet does not exist.
                answer = self._client.mget(
                    index=self.index,
                    ids=names[start : start + FETCHED],
                    realtime=False,
                    source_includes=[ID, *fields],
                )
            for each in found_documents(self._address, answer.body):
                # One that another program put there is not an item.
                if ID not in each.get("_source", {}):
                    raise UnknownDocumentError(each["_id"])
                found[each["_id"]] = each["_source"]
        return found

    def _rows(self, ids: Sequence[str], sources: Mapping[str, Json]) -> Encoding:
        rows = [sources[name] for name in ids]
        return rows_of(rows, self._vocabulary, self._state.widths, self._product)


def _is_tied(hits: Hits, k: int) -> bool:
    """Tell whether the hit after the k-th has its score, of an inner product above 0."""
    return len(hits) > k and hits[k - 1][1] == hits[k][1] > 1


def _scores(hits: Hits, scale: float | None) -> np.ndarray:
    """Return scores as float64.

    A dense query was multiplied by ``scale``. The server scores an inner product p of at least 0 by
    1 + p, and otherwise by 1 / (1 - p).
    """
    # The server's numbers are float32, written as short as they can be.
    scores = np.array([score for _, score in hits], np.float32).astype(np.float64)
    if scale is None:
        return scores
    # Beside a filter, 9.2 lists documents without a vector, with a score of 0.
    low = np.where(scores > 0, np.minimum(scores, 1), 1)
    return np.where(scores < 1, 1 - 1 / low, scores - 1) / scale


def _results(hits: Hits, scale: float | None = None) -> Results:
    """Return the hits that have a score above 0, given best first; see `_scores`."""
    scores = _scores(hits, scale)
    count = int(np.count_nonzero(scores > 0))
    return Results([name for name, _ in hits[:count]], scores[:count])


def _batches(bodies: Iterable[Json], most: int) -> Iterator[list[str]]:
    """Yield searches as text, grouped into requests of ``most`` or of a limited size."""
    batch: list[str] = []
    size = 0
    for body in bodies:
        text = json.dumps(body, ensure_ascii=False, separators=(",", ":"))
        if batch and (size + len(text) > REQUEST_BYTES or len(batch) >= most):
            yield batch
            batch, size = [], 0
        batch.append(text)
        size += len(text)
    if batch:
        yield batch
