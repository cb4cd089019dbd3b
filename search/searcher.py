"""Encode a query, retrieve from an index, explain the hits."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from indexer.base import Document, Index, check_match
from lexvla.encoding import Encoder, Encoding
from lexvla.errors import InputError
from search.explanation import Explanation
from search.query import Query

__all__ = ["Hit", "LegScore", "Searcher"]

EXPLAIN_DEPTH = 1000  # how far down `Searcher.explain` looks for an item's rank


@dataclass(frozen=True)
class LegScore:
    """What one leg alone gave an item."""

    score: float
    rank: int


@dataclass(frozen=True)
class Hit:
    """One answer to a query.

    Attributes:
        id: Names the document.
        score: What hits are ordered by.
        rank: Place in the answer, from 1; ``None`` where the item was not retrieved.
        lexical: The lexical leg's own score and rank, or ``None``.
        codes: The same for the codes leg.
        dense: The same for the dense leg.
        document: What the index keeps beside the vectors.
        explanation: The score's parts, if they were asked for.
    """

    id: str
    score: float
    rank: int | None
    lexical: LegScore | None
    codes: LegScore | None
    dense: LegScore | None
    document: Document
    explanation: Explanation | None = None

    @property
    def label(self) -> str:
        """Return the best short name for people: label, else text, else uri, else id."""
        document = self.document
        return str(document.metadata.get("label") or document.text or document.uri or self.id)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can hold."""
        legs = {name: getattr(self, name) for name in ("lexical", "codes", "dense")}
        return {
            "id": self.id,
            "score": self.score,
            "rank": self.rank,
            **{name: None if leg is None else asdict(leg) for name, leg in legs.items()},
            "document": {
                "id": self.document.id,
                "uri": self.document.uri,
                "text": self.document.text,
                "metadata": dict(self.document.metadata),
            },
            "explanation": None if self.explanation is None else self.explanation.to_dict(),
        }


class Searcher:
    """Answer queries from one index with one model.

    Args:
        model: Encodes the queries.
        index: Was filled by the same model.

    Raises:
        VocabularyMismatchError: The index was made with another vocabulary or by another model.
    """

    def __init__(self, model: Encoder, index: Index) -> None:
        self.model = model
        self.index = index
        check_match(model, index)

    def search(self, query: Query, k: int = 10, explain: bool = False) -> list[Hit]:
        """Return the k best hits, best first; equal scores by id.

        Raises:
            InputError: k is below 1, or the query cannot be encoded.
        """
        if k < 1:
            raise InputError(str(k), "the number of hits must be at least 1")
        encoded = query.resolve(self.model)
        (results,) = self.index.search(encoded, k=k, leg="lexical", filter=query.filter)
        if not results.ids:
            return []
        documents, stored = self.index.fetch(results.ids)
        return [
            self._hit(encoded, document, stored[i], float(results.scores[i]), i + 1, explain)
            for i, document in enumerate(documents)
        ]

    def explain(self, query: Query, id: str) -> Hit:  # noqa: A002 - the public word for it
        """Return one item's hit with its explanation, retrieved or not.

        The rank is ``None`` where the item shares no word with the query, is kept out by its
        filter, or is not among the first thousand.

        Raises:
            InputError: The index has no such id, or the query cannot be encoded.
        """
        try:
            (document,), stored = self.index.fetch([id])
        except KeyError as error:
            raise InputError(id, "the index has no such id") from error
        encoded = query.resolve(self.model)
        (results,) = self.index.search(encoded, k=EXPLAIN_DEPTH, leg="lexical", filter=query.filter)
        if id in results.ids:
            at = results.ids.index(id)
            return self._hit(encoded, document, stored, float(results.scores[at]), at + 1, True)
        return self._hit(encoded, document, stored, None, None, True)

    def _hit(
        self,
        query: Encoding,
        document: Document,
        stored: Encoding,
        score: float | None,
        rank: int | None,
        explain: bool,
    ) -> Hit:
        explanation = None
        if explain or score is None:
            explanation = Explanation.of(query, stored, self.index.vocabulary, score)
            score = explanation.score
        leg = None if rank is None else LegScore(score, rank)
        return Hit(document.id, score, rank, leg, None, None, document, explanation)
