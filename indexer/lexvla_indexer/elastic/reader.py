"""What an index answers: searches by legs, documents with their rows, counts."""

from __future__ import annotations

import base64
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
from scipy import sparse

from lexvla.encoding import Encoding
from lexvla.errors import UnknownDocumentError, UnsupportedError
from lexvla.vocabulary import Vocabulary
from lexvla_indexer.base import Fetched, Results
from lexvla_indexer.elastic.answers import Answers, ElasticExplanation, results
from lexvla_indexer.elastic.connection import elastic_errors, found_documents, whole
from lexvla_indexer.elastic.facts import facts
from lexvla_indexer.elastic.layout import FILTER, ID, SHOWN, document_of
from lexvla_indexer.elastic.requests import WINDOW, dense_scale, leg_query
from lexvla_indexer.elastic.selection import selection
from lexvla_indexer.elastic.store import Store
from lexvla_indexer.filter_terms import typed_term
from lexvla_indexer.filters import Comparison, Filter
from lexvla_indexer.legs import Leg, check_asked, no_rows, widths_of
from lexvla_indexer.packed_rows import unpack

if TYPE_CHECKING:
    from elasticsearch import Elasticsearch

__all__ = ["Reader"]

Json = dict[str, Any]

TRUNCATION = 2.0**-8  # what cutting a weight to 9 significant bits takes off, relative, at the most
FETCHED = 500  # documents of a request: their rows take some kilobytes each


class Reader:
    """Ask the index that a store has found.

    Args:
        client: Of the server.
        store: Has found an index.
        vocabulary: The terms of the lexical columns.

    Attributes:
        index: The name of that index.
    """

    def __init__(self, client: Elasticsearch, store: Store, vocabulary: Vocabulary) -> None:
        self._client = client
        self._place = store.place
        self.index = store.index
        self._meta = store.meta
        self._vocabulary = vocabulary
        self._answers = Answers(client, store.place, store.index)

    def search(
        self,
        queries: Encoding,
        k: int,
        legs: Sequence[Leg],
        filter: str | None,  # noqa: A002 - the public word for it
    ) -> dict[Leg, list[Results]]:
        """Return the k best for each query and leg, by one request for all."""
        if k < 1:
            raise ValueError(f"k must be at least 1, not {k}")
        asked: list[Json] = []
        places: list[tuple[Leg, int, float | None]] = []
        chosen = self._chosen(filter)
        for leg in legs:
            self.check_leg(queries, leg, k)
            for row in range(len(queries)):
                made = leg_query(queries, leg, self._vocabulary.terms, self._meta, k, chosen, row)
                if made is not None:
                    places.append((leg, row, self._scale(queries, row, leg)))
                    asked.append(made)
        none = Results([], np.empty(0))
        found: dict[Leg, list[Results]] = {leg: [none] * len(queries) for leg in legs}
        answered = self._answers.many(asked, min(k, WINDOW) if "dense" in legs else k)
        for (leg, row, scale), hits in zip(places, answered, strict=True):
            found[leg][row] = results(hits, scale)
        return found

    def bound(self, queries: Encoding, leg: Leg) -> np.ndarray:
        """Return how far each query's scores can be from the exact dot products, float64."""
        best = self.search(queries, 1, [leg], None)[leg]
        top = np.array([found.scores[0] if found.ids else 0.0 for found in best])
        if leg == "dense":
            return top * 1e-5 + np.linalg.norm(np.asarray(queries.dense), axis=1) * 1e-6
        # Weights are cut, never raised: no exact score is above the best one by more than this.
        rows = queries.lexical if leg == "lexical" else queries.codes
        words = np.diff(sparse.csr_array(rows).indptr)
        return top * (TRUNCATION / (1 - TRUNCATION) + (words + 2) * 2.0**-23)

    def queries(
        self,
        query: Encoding,
        k: int,
        legs: Sequence[Leg],
        filter: str | None,  # noqa: A002
    ) -> dict[Leg, Json]:
        """Return the query of each leg, as the server takes it, of one row."""
        if k < 1:
            raise ValueError(f"k must be at least 1, not {k}")
        if len(query) != 1:
            raise ValueError(f"one query makes a request, not {len(query)}")
        chosen = self._chosen(filter)
        made: dict[Leg, Json] = {}
        for leg in legs:
            self.check_leg(query, leg, k)
            one = leg_query(query, leg, self._vocabulary.terms, self._meta, k, chosen)
            if one is not None:
                made[leg] = one
        return made

    def shared_legs(self, query: Encoding) -> list[Leg]:
        """Return the legs that a query and the index both have."""
        return [
            leg for leg in get_args(Leg) if leg in self._meta.widths and leg in widths_of(query)
        ]

    def explain(self, query: Encoding, name: str, leg: Leg) -> ElasticExplanation:
        """Take one document's score for one query apart.

        Raises:
            UnknownDocumentError: The index has no such id.
        """
        if len(query) != 1:
            raise ValueError(f"one query is explained, not {len(query)}")
        self.check_leg(query, leg, 1)
        if leg == "dense":
            raise UnsupportedError("the dense leg has no terms to explain a score by")
        stored = self.vectors([name])
        return self._answers.explain(query, leg, name, self._vocabulary.terms, stored)

    def send(self, request: Mapping[str, Any]) -> list[tuple[str, float]]:
        """Send a whole request. Return ids with the server's scores."""
        with elastic_errors(self._place):
            answer = self._client.search(
                index=self.index, body=dict(request), allow_partial_search_results=False
            )
        return [(hit["_id"], float(hit["_score"])) for hit in answer["hits"]["hits"]]

    def fetch(self, ids: Sequence[str]) -> Fetched:
        """Return documents with their stored vectors, in the order of the ids.

        Raises:
            UnknownDocumentError: The index has no such id.
        """
        found = self._sources(ids, [*SHOWN, "vectors"])
        documents = [document_of(name, found[name]) for name in ids]
        return Fetched(documents, self._unpacked(ids, found))

    def vectors(self, ids: Sequence[str]) -> Encoding:
        """Return documents' stored vectors alone, in the order of the ids.

        Raises:
            UnknownDocumentError: The index has no such id.
        """
        return self._unpacked(ids, self._sources(ids, ["vectors"]))

    def _sources(self, ids: Sequence[str], fields: list[str]) -> dict[str, Json]:
        """Return what is kept of documents in some fields."""
        found: dict[str, Json] = {}
        names = list(dict.fromkeys(ids))
        for start in range(0, len(names), FETCHED):
            with elastic_errors(self._place):
                # Not realtime: what searches do not see yet is not there.
                answer = self._client.mget(
                    index=self.index,
                    ids=names[start : start + FETCHED],
                    realtime=False,
                    source_includes=fields,
                )
            for each in found_documents(self._place, answer.body):
                if not each.get("found"):
                    raise UnknownDocumentError(each["_id"])
                found[each["_id"]] = each["_source"]
        return found

    def _unpacked(self, ids: Sequence[str], sources: Mapping[str, Json]) -> Encoding:
        widths = self._meta.widths
        if not ids:
            return no_rows(dict(widths) or {"lexical": len(self._vocabulary)})
        return unpack([base64.b64decode(sources[name]["vectors"]) for name in ids], widths)

    def count(self) -> int:
        """Return the number of searchable documents."""
        with elastic_errors(self._place):
            answer = self._client.count(index=self.index, query={"exists": {"field": ID}})
        return int(whole(self._place, answer.body)["count"])

    def info(self) -> Json:
        """Describe the index: counts, size in bytes, health, vocabulary and model."""
        counts = {"documents": self.count(), "vocabulary_size": len(self._vocabulary)}
        return counts | facts(self._client, self._place, self.index, self._meta)

    def check_leg(self, queries: Encoding, leg: Leg, k: int) -> None:
        """Refuse a leg that cannot be asked for.

        Raises:
            UnsupportedError: The index or the queries lack it, or k is too large for it.
            ValueError: There is no leg of that name.
            VocabularyMismatchError: It has another width in the index.
        """
        check_asked(queries, leg, self._meta.widths, self._place)
        if leg == "dense" and k > WINDOW and self.count() > WINDOW:
            rule = f"Elasticsearch gives at most {WINDOW:,} hits by dense vectors, not {k:,}"
            raise UnsupportedError(f"{self._place}: {rule}")

    def _scale(self, queries: Encoding, row: int, leg: Leg) -> float | None:
        if leg != "dense" or queries.dense is None:
            return None
        return dense_scale(queries.dense[row], self._meta)

    def _chosen(self, text: str | None) -> Json | None:
        return None if text is None else selection(Filter.parse(text), self._matching)

    def _matching(self, part: Filter) -> Collection[str]:
        """Return the ids of documents that match a range which terms cannot tell of."""
        if not isinstance(part, Comparison):
            raise TypeError(f"no range: {part!r}")
        typed = {"term": {FILTER: typed_term(part.field, part.value)}}
        pages = self._answers.pages(typed, source=True)
        return [name for name, source in pages if part.matches(document_of(name, source))]
