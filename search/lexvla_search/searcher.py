"""Encode a query, retrieve by each leg, fuse the answers, explain the hits."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

from lexvla.encoding import Encoder, Encoding
from lexvla.errors import InputError, UnsupportedError
from lexvla_indexer.base import Index, check_match
from lexvla_indexer.document import Document
from lexvla_indexer.legs import Leg
from lexvla_search.candidates import Candidates
from lexvla_search.explanation import Explanation, LegPart
from lexvla_search.fitting import load_fusion
from lexvla_search.fusion import (
    DEFAULT_FUSION,
    LEGS,
    Fused,
    Fusion,
    LegAnswer,
    Weighted,
    named_fusion,
)
from lexvla_search.query import Query, check_place
from lexvla_search.words import PlainWords

__all__ = ["Answer", "Hit", "LegScore", "Searcher"]

EXPLAIN_DEPTH = 1000  # how far down `Searcher.explain` looks for an item's rank
T = TypeVar("T")
_ATTEMPTS = 3  # to answer from one commit while a writer deletes


@dataclass(frozen=True)
class LegScore:
    """What one leg alone gave an item; no rank where it was not among the leg's candidates."""

    score: float
    rank: int | None


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
        legs = {name: getattr(self, name) for name in LEGS}
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


@dataclass(frozen=True)
class Answer:
    """Hits, and how they were found.

    Attributes:
        hits: Best first.
        encoding: The query as one row.
        words: The query's words with their weights, heaviest first.
        legs: Those that were asked.
        fusion: What made one list of their answers.
        encode_seconds: How long encoding the query took.
        search_seconds: How long the rest took.
    """

    hits: list[Hit]
    encoding: Encoding
    words: list[tuple[str, float]]
    legs: tuple[Leg, ...]
    fusion: Fusion
    encode_seconds: float
    search_seconds: float


class Searcher:
    """Answer queries from one index with one model.

    A search asks the index once for each leg, for the candidates, reads their vectors where the
    fusion scores them by every leg, and fetches the documents of its hits. Bans
    and requirements are held against the stored words of the candidates, exactly; where they
    leave too few, the leg is asked for more, to the end of the index.

    Args:
        model: Encodes the queries. ``None`` searches by the plain words of texts and by terms.
        index: Was filled by the same model.

    Attributes:
        fusion: The fusion of queries that name none, if one was fitted for the index.

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
            InputError: k is below 1, or the query cannot be encoded.
            UnsupportedError: The index or the query lacks a leg that was asked for by name.
        """
        return self.answer(query, k, explain).hits

    def search_many(
        self, queries: Iterable[Query], k: int | None = None, explain: bool = False
    ) -> list[list[Hit]]:
        """Return the hits of each query; see `search`."""
        return [self.search(query, k, explain) for query in queries]

    def answer(self, query: Query, k: int | None = None, explain: bool = False) -> Answer:
        """Return what `search` does, and how it was found.

        Raises:
            InputError: As `search`.
            UnsupportedError: As `search`.
        """
        if k is not None:
            check_place(k, query.offset)
            query = replace(query, k=k)
        started = time.perf_counter()
        encoded = query.resolve(self.model)
        words = self._words(encoded)
        encoded_at = time.perf_counter()
        run, hits = self._read(lambda: self._hits(query, encoded, explain))
        ended = time.perf_counter()
        seconds = encoded_at - started, ended - encoded_at
        return Answer(hits, encoded, words, run.legs, run.fusion, *seconds)

    def leg_answers(self, query: Query) -> dict[Leg, LegAnswer]:
        """Return what each leg says of all candidates of a query, each candidate by each leg.

        Raises:
            InputError: As `search`.
            UnsupportedError: As `search`.
        """
        encoded = query.resolve(self.model)

        def answers() -> dict[Leg, LegAnswer]:
            run = self._run(replace(query, fusion=Weighted()), encoded)
            run.fuse()
            return run.answers

        return self._read(answers)

    def query_words(self, query: Query, top_k: int | None = None) -> list[tuple[str, float]]:
        """Return the words that a query searches by with their weights, heaviest first.

        Raises:
            InputError: The query cannot be encoded.
        """
        return self._words(query.resolve(self.model))[:top_k]

    def explain(self, query: Query, id: str) -> Hit:  # noqa: A002 - the public word for it
        """Return one item's hit with its explanation, retrieved or not.

        The score is that of `search` for the items that it finds; another item is scored as
        though it were among the candidates. The rank is ``None`` where the item is not: it is not
        among the best of any leg, or is kept out by filter, bans or requirements.

        Raises:
            InputError: The index has no such id, or the query cannot be encoded.
            UnsupportedError: As `search`.
        """
        try:
            self.index.fetch([id])
        except KeyError as error:
            raise InputError(id, "the index has no such id") from error
        encoded = query.resolve(self.model)
        return self._read(lambda: self._hit_of(query, encoded, id))

    def _read(self, answer: Callable[[], T]) -> T:
        """Answer again where a writer deleted a candidate between two reads."""
        for _ in range(_ATTEMPTS - 1):
            try:
                return answer()
            except KeyError:
                continue
        return answer()

    def _hits(self, query: Query, encoded: Encoding, explain: bool) -> tuple[_Run, list[Hit]]:
        run = self._run(query, encoded)
        fused = run.fuse()
        if query.min_score is not None:
            fused = [one for one in fused if one.score >= query.min_score]
        page = fused[query.offset : query.offset + query.k]
        run.candidates.load_documents([one.id for one in page])
        places = enumerate(page, query.offset + 1)
        return run, [self._hit(run, one, rank, explain) for rank, one in places]

    def _hit_of(self, query: Query, encoded: Encoding, name: str) -> Hit:
        run = self._run(query, encoded, EXPLAIN_DEPTH)
        ranks = {one.id: rank for rank, one in enumerate(run.fuse(), 1)}
        run.candidates.load_documents([name])
        named = {one.id: one for one in run.fuse(name)}
        # A leg that did not find it may add nothing.
        fused = named.get(name) or Fused(name, 0.0, {})
        return self._hit(run, fused, ranks.get(name), True)

    def _run(self, query: Query, encoded: Encoding, single_depth: int = 1) -> _Run:
        """Ask the legs.

        Args:
            query: What is asked for.
            encoded: The same as vectors.
            single_depth: How far down to look at the least, where a single leg is asked.
        """
        candidates = Candidates(self.index, encoded, query.filter, query.constraints(self.model))
        fusion = query.fusion if isinstance(query.fusion, Fusion) else None
        wanted = query.legs or (fusion.legs if fusion else None)
        given = [leg for leg in LEGS if getattr(encoded, leg) is not None]
        for leg in wanted or ():
            if leg not in given:
                raise UnsupportedError(f"the query has no {leg} leg: its encoder gives none")
        chosen = fusion or self._fitted(wanted or given)
        planned = chosen or DEFAULT_FUSION
        legs = [leg for leg in planned.legs or wanted or given if leg in (wanted or given)]
        alone = len(legs) == 1 and (fusion is None or fusion.name in LEGS)
        depth = max(single_depth if alone else planned.depth, query.k + query.offset)
        asked: list[Leg] = []
        # Codes cost other legs more than they tell (docs/search.md): they are asked by name alone.
        either = not (chosen or wanted)
        for leg in sorted(legs, key=lambda leg: either and leg == "codes"):
            if either and leg == "codes" and asked:
                continue
            try:
                candidates.ask(leg, depth)
                asked.append(leg)
            except UnsupportedError:
                if wanted or leg == "lexical":
                    raise
        asked.sort(key=LEGS.index)
        if fusion is None:
            planned = planned.over(asked) if len(asked) > 1 else named_fusion(asked[0])
        return _Run(candidates, tuple(asked), planned)

    def _fitted(self, legs: Sequence[Leg]) -> Fusion | None:
        """Return the index's own fusion, if it weighs all of these legs or some of them."""
        fusion = self.fusion
        if fusion is None or fusion.legs is None:
            return fusion
        return fusion if set(fusion.legs) & set(legs) else None

    def _hit(self, run: _Run, fused: Fused, rank: int | None, explain: bool) -> Hit:
        parts = []
        scores: dict[Leg, LegScore | None] = dict.fromkeys(LEGS)
        for leg, answer in run.answers.items():
            score, place = answer.scores.get(fused.id), answer.ranks.get(fused.id)
            parts.append(LegPart(leg, score, place, fused.parts.get(leg, 0.0)))
            if score is not None and (place is not None or run.fusion.rescores):
                scores[leg] = LegScore(score, place)
        candidates, explanation = run.candidates, None
        if explain:
            explanation = Explanation.of(
                candidates.query,
                candidates.vectors(fused.id),
                self.index.vocabulary,
                fused.score,
                parts,
                str(run.fusion),
            )
        document = candidates.document(fused.id)
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

    def _words(self, encoded: Encoding) -> list[tuple[str, float]]:
        row = encoded.lexical
        order = (-row.data).argsort(kind="stable").tolist()
        word = self.model.vocabulary.word
        return [(word(int(row.indices[i])), float(row.data[i])) for i in order]


class _Run:
    """Candidates of the legs that could be asked, and the fusion for them."""

    def __init__(self, candidates: Candidates, legs: tuple[Leg, ...], fusion: Fusion) -> None:
        self.candidates, self.legs, self.fusion = candidates, legs, fusion
        self.answers: dict[Leg, LegAnswer] = {}

    def fuse(self, also: str | None = None) -> list[Fused]:
        """Return all candidates as the fusion ranks them; see `Candidates.answers`."""
        rescore = self.fusion.rescores and (len(self.legs) > 1 or also is not None)
        self.answers = self.candidates.answers(self.legs, rescore, also)
        return self.fusion.fuse(self.answers)
