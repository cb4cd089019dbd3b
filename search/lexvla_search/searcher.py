"""Encode a query, rank by each leg, fuse the rankings, explain the hits."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

from lexvla.encoding import Encoder, Encoding
from lexvla.errors import InputError, UnknownDocumentError, UnsupportedError
from lexvla_indexer.base import Index, check_match
from lexvla_indexer.document import Document
from lexvla_indexer.legs import Leg
from lexvla_search.candidates import Candidates
from lexvla_search.encoded_query import EncodedQuery, encode_query
from lexvla_search.explanation import Explanation, LegPart
from lexvla_search.fitting import load_fusion
from lexvla_search.fusion import (
    DEFAULT_FUSION,
    LEGS,
    Fused,
    Fusion,
    LegRanking,
    Weighted,
    named_fusion,
)
from lexvla_search.query import Query, check_page
from lexvla_search.typed_words import UnknownWord
from lexvla_search.words import PlainWords

if TYPE_CHECKING:
    from lexvla_search import schema

__all__ = ["Answer", "Hit", "LegScore", "Searcher", "document_to_dict"]

EXPLAIN_DEPTH = 1000  # how deep `Searcher.explain` looks for a document's rank
T = TypeVar("T")
_ATTEMPTS = 3  # to answer from one commit while a writer deletes


@dataclass(frozen=True)
class LegScore:
    """What one leg alone gave a document; no rank if it was not among the leg's candidates."""

    score: float
    rank: int | None

    def to_dict(self) -> schema.LegScore:
        """Return plain values for JSON."""
        return {"score": self.score, "rank": self.rank}


@dataclass(frozen=True)
class Hit:
    """One document found for a query.

    Attributes:
        id: The document's id.
        score: What hits are ordered by.
        rank: From 1; ``None`` if the document was not found.
        lexical: The lexical leg's own score and rank, or ``None``.
        codes: The same for the codes leg.
        dense: The same for the dense leg.
        document: What the index keeps beside the vectors.
        explanation: The score's parts, if asked for.
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
        """The best short name for people: label, else text, else uri, else id."""
        document = self.document
        return str(document.metadata.get("label") or document.text or document.uri or self.id)

    def to_dict(self) -> schema.Hit:
        """Return plain values for JSON."""
        return {
            "id": self.id,
            "score": self.score,
            "rank": self.rank,
            "lexical": None if self.lexical is None else self.lexical.to_dict(),
            "codes": None if self.codes is None else self.codes.to_dict(),
            "dense": None if self.dense is None else self.dense.to_dict(),
            "document": document_to_dict(self.document),
            "explanation": None if self.explanation is None else self.explanation.to_dict(),
        }


def document_to_dict(document: Document) -> schema.Document:
    """Return what people see of a document, as plain values for JSON."""
    return {
        "id": document.id,
        "uri": document.uri,
        "text": document.text,
        "metadata": dict(document.metadata),
    }


@dataclass(frozen=True)
class Answer:
    """Hits, and how they were found.

    Attributes:
        hits: Best first.
        encoding: The query as one row.
        words: The query's words with their weights, heaviest first.
        legs: The legs that were asked.
        fusion: What fused their rankings.
        encode_seconds: How long encoding the query took.
        search_seconds: How long the rest took.
        unknown: The words of the text that the model does not know; they were not asked for.
    """

    hits: list[Hit]
    encoding: Encoding
    words: list[tuple[str, float]]
    legs: tuple[Leg, ...]
    fusion: Fusion
    encode_seconds: float
    search_seconds: float
    unknown: tuple[UnknownWord, ...] = ()


class Searcher:
    """Answer queries from one index with one model.

    A search asks the index once for each leg, reads the candidates' vectors if the fusion scores
    them by every leg, and fetches the documents of its hits. Bans and requirements are checked
    against the stored words of the candidates, exactly; where too few are left, the leg is asked
    for more, to the end of the index.

    Args:
        model: Encodes the queries. ``None`` searches by the plain words of texts and by terms.
        index: Filled by the same model.

    Attributes:
        fusion: The fusion fitted for the index, used by queries that name none.

    Raises:
        IndexCorruptError: The index's fusion cannot be read.
        IndexVersionError: A newer program wrote the index's fusion.
        VocabularyMismatchError: The index was made with another vocabulary or by another model.
    """

    def __init__(self, model: Encoder | None, index: Index) -> None:
        self.model: Encoder = PlainWords(index.vocabulary) if model is None else model
        self.index = index
        if model is not None:
            check_match(model, index)
        self.fusion = load_fusion(index)

    def search(self, query: Query, k: int | None = None, explain: bool = False) -> list[Hit]:
        """Return the best hits, best first; equal scores by id.

        Args:
            query: What is asked for.
            k: The most hits to return; ``None`` for the query's own number.
            explain: Whether hits carry their explanations.

        Raises:
            InputError: k is below 1, the query cannot be encoded, or no document has a field of
                its filter.
            UnsupportedError: The index or the query lacks a leg that was asked for by name.
        """
        return self.answer(query, k, explain).hits

    def search_many(
        self, queries: Iterable[Query], k: int | None = None, explain: bool = False
    ) -> list[list[Hit]]:
        """Return the hits of each query; see `search`."""
        return [self.search(query, k, explain) for query in queries]

    def answer(self, query: Query, k: int | None = None, explain: bool = False) -> Answer:
        """Return the hits of a query, and how they were found; see `search`."""
        if k is not None:
            check_page(k, query.offset)
            query = replace(query, k=k)
        started = time.perf_counter()
        encoded = encode_query(query, self.model)
        encoded_at = time.perf_counter()
        ranked, hits = _retried(lambda: self._search(query, encoded, explain))
        ended = time.perf_counter()
        seconds = encoded_at - started, ended - encoded_at
        legs = tuple(ranked.rankings)
        found = hits, encoded.encoding, encoded.words, legs, ranked.fusion
        return Answer(*found, *seconds, encoded.unknown)

    def explain(self, query: Query, id: str) -> Hit:  # noqa: A002 - the public word for it
        """Return one document's hit with its explanation, found or not.

        The score is that of `search` for the documents that it finds; another document is scored
        as though it were a candidate. The rank is ``None`` if the document is not among the best
        of any leg, or is excluded by filter, bans or requirements.

        Raises:
            InputError: The query cannot be encoded.
            UnknownDocumentError: The index has no such id.
            UnsupportedError: As `search`.
        """
        self.index.fetch([id])
        encoded = encode_query(query, self.model)
        return _retried(lambda: self._explain(query, encoded, id))

    def leg_rankings(self, query: Query) -> Mapping[Leg, LegRanking]:
        """Return how each leg ranks and scores all candidates of a query; see `search`.

        Raises:
            InputError: The query has no known word, or as `search`.
        """
        query = replace(query, fusion=Weighted())
        encoded = encode_query(query, self.model)
        if not encoded:
            raise InputError(query.describe(), "the query has no known word")
        return _retried(lambda: self._rank(query, encoded)[1].rankings)

    def query_words(self, query: Query, top_k: int | None = None) -> list[tuple[str, float]]:
        """Return the words that a query searches by with their weights, heaviest first."""
        return encode_query(query, self.model).words[:top_k]

    def _search(
        self, query: Query, encoded: EncodedQuery, explain: bool
    ) -> tuple[_Ranked, list[Hit]]:
        _, ranked = self._rank(query, encoded)
        fused = ranked.fusion.fuse(ranked.rankings)
        if query.min_score is not None:
            fused = [one for one in fused if one.score >= query.min_score]
        page = fused[query.offset : query.offset + query.k]
        if not page:
            return ranked, []
        found = self.index.fetch([one.id for one in page])
        hits = []
        for row, (one, document) in enumerate(zip(page, found.documents, strict=True)):
            vectors = found.encoding[row] if explain else None
            hits.append(self._hit(ranked, one, query.offset + row + 1, document, vectors))
        return ranked, hits

    def _explain(self, query: Query, encoded: EncodedQuery, name: str) -> Hit:
        candidates, ranked = self._rank(query, encoded, EXPLAIN_DEPTH)
        fused = ranked.fusion.fuse(ranked.rankings)
        ranks = {one.id: rank for rank, one in enumerate(fused, 1)}
        ranked = replace(ranked, rankings=candidates.rankings(ranked.fusion.rescores, also=name))
        named = {one.id: one for one in ranked.fusion.fuse(ranked.rankings)}
        (document,), vectors = self.index.fetch([name])
        # A leg that did not find it may add nothing.
        one = named.get(name) or Fused(name, 0.0, {})
        return self._hit(ranked, one, ranks.get(name), document, vectors)

    def _rank(
        self, query: Query, encoded: EncodedQuery, single_depth: int = 1
    ) -> tuple[Candidates, _Ranked]:
        """Choose legs and fusion, and let each leg rank the candidates.

        Args:
            query: What is asked for.
            encoded: The same as vectors.
            single_depth: The least depth to look at if a single leg is asked.
        """
        asked = query.chosen_fusion
        if not encoded:
            candidates = Candidates(self.index, encoded)
            return candidates, _Ranked(encoded.encoding, {}, asked or DEFAULT_FUSION)
        given = [leg for leg in LEGS if getattr(encoded.encoding, leg) is not None]
        named = query.legs or (asked.legs if asked else None)
        for leg in named or ():
            if leg not in given:
                raise UnsupportedError(f"the query has no {leg} leg: its encoder gives none")
        fusion = asked or self._fitted(named or given)
        if fusion is None:
            fusion = DEFAULT_FUSION
            # Codes cost other legs more than they add (docs/search.md): they are asked by name.
            given = [leg for leg in given if leg != "codes"]
        legs = [leg for leg in fusion.legs or named or given if leg in (named or given)]
        alone = len(legs) == 1 and (asked is None or asked.name in LEGS)
        depth = max(single_depth if alone else fusion.depth, query.k + query.offset)
        candidates = Candidates(self.index, encoded)
        candidates.ask(legs, depth, named is not None)
        rankings = candidates.rankings(fusion.rescores)
        if asked is None:
            first, *others = rankings
            fusion = fusion.over(rankings) if others else named_fusion(first)
        return candidates, _Ranked(encoded.encoding, rankings, fusion)

    def _fitted(self, legs: Sequence[Leg]) -> Fusion | None:
        """Return the index's own fusion if it weighs any of these legs."""
        fusion = self.fusion
        if fusion is None or fusion.legs is None:
            return fusion
        return fusion if set(fusion.legs) & set(legs) else None

    def _hit(
        self,
        ranked: _Ranked,
        fused: Fused,
        rank: int | None,
        document: Document,
        vectors: Encoding | None,
    ) -> Hit:
        """Return a hit; explained if its stored vectors are given."""
        parts = []
        scores: dict[Leg, LegScore | None] = dict.fromkeys(LEGS)
        for leg, ranking in ranked.rankings.items():
            score, place = ranking.scores.get(fused.id), ranking.ranks.get(fused.id)
            parts.append(LegPart(leg, score, place, fused.parts.get(leg, 0.0)))
            if score is not None and (place is not None or ranked.fusion.rescores):
                scores[leg] = LegScore(score, place)
        explanation = None
        if vectors is not None:
            explanation = Explanation.of(
                ranked.query,
                vectors,
                self.index.vocabulary,
                fused.score,
                parts,
                str(ranked.fusion),
            )
        return Hit(
            id=fused.id,
            score=fused.score,
            rank=rank,
            lexical=scores["lexical"],
            codes=scores["codes"],
            dense=scores["dense"],
            document=document,
            explanation=explanation,
        )


@dataclass(frozen=True)
class _Ranked:
    """A query, the rankings of the legs that could be asked, and the fusion of these."""

    query: Encoding
    rankings: Mapping[Leg, LegRanking]
    fusion: Fusion


def _retried(answer: Callable[[], T]) -> T:
    """Answer again if a writer deleted a candidate between two reads."""
    for _ in range(_ATTEMPTS - 1):
        try:
            return answer()
        except UnknownDocumentError:
            continue
    return answer()
