"""The leg ``text`` of a user's own index: BM25 over fields of theirs, as the server scores it.

A query is cut into words as the fields' own analyzers cut it. A document scores, over words and
fields, the sum of the field's weight times its BM25, divided by the most that these words can
score: weight x idf x (K1 + 1) for a text, weight x idf for a keyword, and the weight alone where
the similarity is ``boolean``. The idf is that of all shards together, as the server computes it,
including deleted documents that are not merged away yet; the most is computed without them, so that
until then a score can be a little above 1.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from lexvla_indexer.bm25 import K1, idf
from lexvla_indexer.elastic.mapped_fields import MappedFields
from lexvla_indexer.elastic.product import Json

__all__ = ["AskedFields"]

Words = dict[str, list[str]]  # with the fields that have each


class AskedFields:
    """Fields to look for words in, with their weights.

    An unknown field, or one of another type, raises InputError.
    """

    def __init__(self, weights: Mapping[str, float], mapped: MappedFields) -> None:
        self._weights = dict(weights)
        self._mapped = {field: mapped.text(field) for field in weights}

    def cut_request(self, text: str) -> Json:
        """Return the body of a ``_termvectors`` request that cuts a text into words."""
        analyzers = {
            field: described["search_analyzer"]
            for field, described in self._mapped.items()
            if "search_analyzer" in described
        }
        holders = {described.get("sub_of", field) for field, described in self._mapped.items()}
        return {
            "doc": _nested(holders, text),
            "fields": list(self._mapped),
            "positions": False,
            "payloads": False,
            "field_statistics": False,
            **({"per_field_analyzer": analyzers} if analyzers else {}),
        }

    def words(self, text: str, answer: Mapping[str, Any]) -> Words:
        """Return the words of a text as it writes them, in its order, with fields that have them.

        A word comes once, whatever its case.
        """
        units = text.encode("utf-16-le")  # the server counts in these
        spans = {
            (token["start_offset"], token["end_offset"], field)
            for field, own in answer["term_vectors"].items()
            for term in own["terms"].values()
            for token in term["tokens"]
        }
        found: Words = {}
        written: dict[str, str] = {}
        for start, end, field in sorted(spans):
            word = units[2 * start : 2 * end].decode("utf-16-le", "ignore")
            own = found.setdefault(written.setdefault(word.casefold(), word), [])
            if field not in own:
                own.append(field)
        return found

    def count_queries(self, words: Words) -> list[Json]:
        """Return queries whose counts `leg` takes."""
        fields = [{"exists": {"field": field}} for field in self._weights]
        return [*fields, *(_match(word, field) for word, own in words.items() for field in own)]

    def leg(self, words: Words, counts: Sequence[int]) -> tuple[Words, float]:
        """Return the words that documents have, and the most that a document can score by them."""
        documents = dict(zip(self._weights, counts, strict=False))
        rest = iter(counts[len(documents) :])
        most, there = 0.0, Words()
        for word, fields in words.items():
            held = [(field, count) for field in fields if (count := next(rest))]
            for field, count in held:
                most += self._weights[field] * self._most(field, documents[field], count)
            if held:
                there[word] = [field for field, _ in held]
        return there, most

    def query(self, words: Words, chosen: Json | None) -> Json:
        """Return the query of the leg, whose clauses bear the names of their words."""
        clauses = []
        for word, fields in words.items():
            own = [_match(word, field, boost=self._weights[field]) for field in fields]
            clauses.append({"bool": {"should": own, "_name": word}})
        found: Json = {"should": clauses, "minimum_should_match": 1}
        return {"bool": found if chosen is None else {**found, "filter": [chosen]}}

    def _most(self, field: str, documents: int, count: int) -> float:
        described = self._mapped[field]
        if described.get("similarity") == "boolean" or described["type"] == "match_only_text":
            return 1.0
        rarity = float(idf(documents, np.array([count]))[0])
        # The server multiplies by K1 + 1, as Lucene once did. A keyword has no length and is there
        # once: that factor is cancelled.
        return rarity if described["type"] == "keyword" else rarity * (K1 + 1)


def _match(word: str, field: str, **settings: Any) -> Json:
    return {"match": {field: {"query": word, **settings}}}


def _nested(paths: Collection[str], value: str) -> Json:
    made: Json = {}
    for path in paths:
        *parents, last = path.split(".")
        place = made
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
    return made
