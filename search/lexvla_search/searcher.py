"""Encode a query, rank by each leg, fuse the rankings, explain the hits."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from operator import add
from textwrap import shorten
from typing import TYPE_CHECKING, NamedTuple, TypeVar, cast

from lexvla.encoder import Encoder
from lexvla.encoding import Encoding
from lexvla.errors import InputError, UnknownDocumentError, UnsupportedError
from lexvla_indexer.base import Index, check_match
from lexvla_indexer.document import Document
from lexvla_indexer.facets import FacetCounts
from lexvla_indexer.legs import Leg
from lexvla_indexer.scope import Scope
from lexvla_search.admitted import admitted
from lexvla_search.candidates import Candidates
from lexvla_search.copies import group_copies
from lexvla_search.cursor import Cursor, read_cursor, write_cursor
from lexvla_search.encoded_query import EncodedQuery, encode_query
from lexvla_search.encoded_texts import EncodedTexts
from lexvla_search.explanation import Explanation, LegPart
from lexvla_search.fitting import load_fusion
from lexvla_search.fusion import (
    GOOD_MATCH,
    LEGS,
    MAX_HITS,
    Fused,
    Fusion,
    LegRanking,
    Weighted,
    default_fusion,
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
_DEEPER = 10  # times the depth, if candidates do not fill the page
COUNTED = 1000  # how far to go for a total, unless sort or facets need all there is


@dataclass(frozen=True)
class LegScore:
    """What one leg gave a document; no rank if it was not among the leg's candidates."""

    score: float
    rank: int | None

    def to_dict(self) -> schema.LegScore:
        """Return plain values for JSON."""
        return {"score": self.score, "rank": self.rank}


@dataclass(frozen=True)
class Hit:
    """One document found for a query.

    Attributes:
        score: What hits are ordered by; ``None`` if the query scores nothing.
        relevance: From 0 to 1, how likely the document is to be right; ``None`` if the fusion has
            no calibration.
        rank: From 1, the place among the hits; ``None`` if the document was not found.
        lexical: The lexical leg's own score and rank, or ``None``; likewise for the other legs.
        document: What the index keeps besides the vectors.
        explanation: The score's parts, if requested.
        copies: Ids of the near-identical documents that it stands for; ``None`` if documents were
            not grouped.
    """

    id: str
    score: float | None
    relevance: float | None
    rank: int | None
    lexical: LegScore | None
    codes: LegScore | None
    dense: LegScore | None
    text: LegScore | None
    document: Document
    explanation: Explanation | None = None
    copies: tuple[str, ...] | None = None

    def __repr__(self) -> str:
        shown = shorten(self.label, 60, placeholder="\u2026")
        rank = "" if self.rank is None else f"{self.rank}. "
        score = "" if self.score is None else f"{self.score:.4f} "
        return f"<Hit {rank}{self.id!r} {score}{shown!r}>"

    @property
    def label(self) -> str:
        """The best short name for display: label, else text, else uri, else id."""
        document = self.document
        return str(document.metadata.get("label") or document.text or document.uri or self.id)

    def to_dict(self) -> schema.Hit:
        """Return plain values for JSON."""
        return {
            "id": self.id,
            "score": self.score,
            "relevance": self.relevance,
            "rank": self.rank,
            "lexical": None if self.lexical is None else self.lexical.to_dict(),
            "codes": None if self.codes is None else self.codes.to_dict(),
            "dense": None if self.dense is None else self.dense.to_dict(),
            "text": None if self.text is None else self.text.to_dict(),
            "document": document_to_dict(self.document),
            "explanation": None if self.explanation is None else self.explanation.to_dict(),
            "copies": None if self.copies is None else list(self.copies),
        }


def document_to_dict(document: Document) -> schema.Document:
    """Return the parts of a document that people see, as plain values for JSON."""
    return {
        "id": document.id,
        "uri": document.uri,
        "text": document.text,
        "metadata": dict(document.metadata),
    }


@dataclass(frozen=True)
class Answer:
    """Hits, best first, and how they were found.

    Attributes:
        encoding: The query as one row.
        words: The query's words with their weights, heaviest first.
        legs: The legs that were searched.
        fusion: How they were fused; ``None`` if the query scores nothing.
        total: How many documents filter, bans and requirements admit, without the items of
            ``similar``; under `min_score` or `min_relevance`, how many hits reach these.
        total_exact: Whether there are exactly that many; otherwise there are at least that many.
        facets: The counts asked for, by field, over the documents of ``total``.
        next: Continues the answer, given as ``after`` in the same query; ``None`` at the end.
        good_match: Whether the best hit of all has a relevance of at least `GOOD_MATCH`; ``None``
            if hits have none.
        encode_seconds: How long encoding the query took; the rest is `search_seconds`.
        unknown: The words of the text that the model does not know: only documents' texts were
            searched for them.
        unread: The end of the text, if the model does not read it; otherwise empty.
    """

    hits: list[Hit]
    encoding: Encoding
    words: list[tuple[str, float]]
    legs: tuple[Leg, ...]
    fusion: Fusion | None
    total: int
    total_exact: bool
    facets: Mapping[str, FacetCounts]
    next: str | None
    good_match: bool | None
    encode_seconds: float
    search_seconds: float
    unknown: tuple[UnknownWord, ...] = ()
    unread: str = ""

    def __repr__(self) -> str:
        total = f"{self.total:,}" if self.total_exact else f"at least {self.total:,}"
        best = f", best {self.hits[0]!r}" if self.hits else ""
        return f"<Answer: {len(self.hits):,} hits of {total}{best}>"

    def facets_to_dict(self) -> dict[str, schema.CountedFacet]:
        """Return the facets as plain values for JSON."""
        counts = {field: counts.to_dict() for field, counts in self.facets.items()}
        return cast("dict[str, schema.CountedFacet]", counts)


class Searcher:
    """Answer queries from one index with one model.

    Hits by raw scores are the best of all documents, on an engine that can add up its legs'
    scores. Otherwise a search asks the index for each leg's best, the candidates, reads their
    vectors if the fusion scores them by every leg, and asks for ten times as many if they do
    not fill the page; these come after the first ones, so that pages fit together. Bans and
    requirements are part of what a server is asked; otherwise they are checked against the stored
    words of the candidates, and if too few are left, the index is asked for more, to its end.

    An index filled by another model raises `VocabularyMismatchError`. Without a model, texts are
    searched by their plain words.

    Attributes:
        default: The fusion that ships with the model; see `default_fusion`.
        fusion: The fusion of queries that name none: the one fitted for the index, or the default;
            see `lexvla_search.fitting.load_fusion` for errors.
    """

    def __init__(self, model: Encoder | None, index: Index) -> None:
        self.model: Encoder = PlainWords(index.vocabulary) if model is None else model
        self.index = index
        if model is not None:
            check_match(model, index)
        self.default = default_fusion(self.model)
        self.fusion: Fusion = load_fusion(index) or self.default

    def __repr__(self) -> str:
        return f"<Searcher of {self.index!r} by {self.model.name!r}>"

    def search(self, query: Query | str, k: int | None = None, explain: bool = False) -> list[Hit]:
        """Return the best hits, best first; equal scores by id. A string is a query's text.

        `k` overrides the query's own number; with `explain`, hits that have a score carry
        explanations. `InputError` if k is below 1, the query cannot be encoded, or no document has
        a field of its filter, sort or facets; `UnknownDocumentError` if there is no item of
        ``similar``; `UnsupportedError` if the index or the query lacks a leg that the query names.
        """
        return self.answer(query, k, explain).hits

    def search_many(
        self, queries: Iterable[Query | str], k: int | None = None, explain: bool = False
    ) -> list[list[Hit]]:
        """Return the hits of each query; see `search`. Their texts are encoded together."""
        if isinstance(queries, str | Query):
            raise TypeError("expected a list of queries, not a single one")
        asked = [_query_of(query) for query in queries]
        searcher = self.prepared([query.text for query in asked if query.text])
        return [searcher.search(query, k, explain) for query in asked]

    def prepared(self, texts: Iterable[str]) -> Searcher:
        """Return a searcher that has encoded some queries' texts already, in one call."""
        made = copy(self)
        made.model = EncodedTexts(self.model, texts)
        return made

    def answer(self, query: Query | str, k: int | None = None, explain: bool = False) -> Answer:
        """Return the hits of a query and how they were found; see `search`."""
        query = _query_of(query)
        if k is not None:
            check_page(k, query.offset)
            query = replace(query, k=k)
        if query.alike is not None:
            alike = query.alike
            return _retried(lambda: self._answer_grouped(query, alike, explain))
        started = time.perf_counter()
        encoded = self.encode(query)
        encoded_at = time.perf_counter()
        at = read_cursor(query, encoded.picture)
        if query.is_scored:
            searcher = self.within(query)
            found = _retried(lambda: searcher._search(query, encoded, at, explain))
        else:
            found = _retried(lambda: self._list(query, encoded, at))
        next_cursor = None
        if found.end is not None:
            next_cursor = write_cursor(query, encoded.picture, found.end)
        return Answer(
            hits=found.hits,
            encoding=encoded.encoding,
            words=encoded.words,
            legs=found.legs,
            fusion=found.fusion,
            total=found.total,
            total_exact=found.total_exact,
            facets=found.facets,
            next=next_cursor,
            good_match=found.good_match,
            encode_seconds=encoded_at - started,
            search_seconds=time.perf_counter() - encoded_at,
            unknown=encoded.unknown,
            unread=encoded.unread,
        )

    def encode(self, query: Query) -> EncodedQuery:
        """Return a query as vectors, words and conditions; errors are those of `search`."""
        similar = list(query.similar_weights)
        stored = self.index.vectors(similar) if similar else None
        return encode_query(query, self.model, stored)

    def _answer_grouped(self, query: Query, alike: float, explain: bool) -> Answer:
        """Answer with one hit for each group of copies, from as many hits as fill the page."""
        end, depth = query.offset + query.k, 0
        while True:
            depth = min(2 * max(depth, end), MAX_HITS)
            deeper = replace(query, group_copies=False, offset=0, k=depth)
            answer = self.answer(deeper, explain=explain)
            found = answer.hits
            vectors = self.index.vectors([hit.id for hit in found])
            groups = group_copies([hit.document.fingerprint for hit in found], vectors, alike)
            if len(groups) >= end or len(found) < depth or depth == MAX_HITS:
                break
        hits = [
            replace(found[first], rank=rank, copies=tuple(found[row].id for row in others))
            for rank, (first, *others) in enumerate(groups, start=1)
        ]
        return replace(answer, hits=hits[query.offset : end], next=None)

    def explain(
        self,
        query: Query | str,
        id: str,  # noqa: A002 - the public word for it
    ) -> Hit:
        """Return one document's hit with its explanation, found or not.

        The score is that of `search` for the documents that it finds; another document is scored
        as if it were a candidate. The rank is ``None`` if the document is not among the first
        1,000, or is excluded by filter, bans or requirements. `UnknownDocumentError` if the index
        has no such id, `InputError` if the query scores nothing; otherwise errors are those of
        `search`.
        """
        query = _query_of(query)
        _check_scored(query)
        self.index.documents([id])
        encoded, searcher = self.encode(query), self.within(query)
        return _retried(lambda: searcher._explain(query, encoded, id))

    def leg_rankings(self, query: Query) -> Mapping[Leg, LegRanking]:
        """Return how each leg ranks and scores all candidates of a query; see `search`.

        `InputError` if no word of the query is known.
        """
        _check_scored(query)
        query = replace(query, fusion="minmax")
        encoded = self.encode(query)
        if encoded.legs in ((), ("text",)):
            raise InputError(query.describe(), "the query has no known word")
        fusion, legs = self._choose(query, encoded)

        def rankings() -> Mapping[Leg, LegRanking]:
            candidates = Candidates(self.within(query).index, encoded)
            candidates.ask(legs, fusion.depth)
            return candidates.rankings(rescore=True)

        return _retried(rankings)

    def within(self, query: Query) -> Searcher:
        """Return a searcher that looks for words in the query's text fields, if it names some.

        Errors are those of `Index.with_text_fields`.
        """
        if query.text_weights is None:
            return self
        made = copy(self)
        made.index = self.index.with_text_fields(query.text_weights)
        return made

    def plan(self, query: Query, encoded: EncodedQuery) -> tuple[Fusion, tuple[Leg, ...]] | None:
        """Return how `search` merges which legs; ``None`` if the index is not asked at all."""
        return self._choose(query, encoded) if self._can_find(query, encoded) else None

    def query_words(self, query: Query, top_k: int | None = None) -> list[tuple[str, float]]:
        """Return the words that a query searches by with their weights, heaviest first."""
        return self.encode(query).words[:top_k]

    def _search(self, query: Query, encoded: EncodedQuery, at: Cursor, explain: bool) -> _Found:
        start = at.rank or query.offset
        # One more than the page tells whether another follows.
        wanted = min(start + query.k + 1, MAX_HITS)
        if query.is_bounded:
            wanted = MAX_HITS if query.sort or query.facets else max(wanted, COUNTED)
        ranked = self._rank(query, encoded, wanted)
        placed = ranked.placed
        if query.is_bounded:
            placed = [one for one in placed if _reaches(query, ranked.fusion, one.fused.score)]
        found = Scope(only=[one.fused.id for one in placed])
        if query.sort:  # what is sorted is bounded
            documents, end = self._ordered(self.index, found, query, at)
            by_id = {one.fused.id: one for one in placed}
            page = [by_id[document.id] for document in documents]
        else:
            page = placed[start : start + query.k]
            more = len(placed) > start + query.k
            end = Cursor(start + query.k, None) if more else None
        # Before all is counted, which may be in a newer commit.
        hits = self._hits(ranked, page, start, explain)
        counted: tuple[Index, Scope] | None = self.index, found
        total, exact = len(placed), ranked.complete
        if not query.is_bounded:
            counted = admitted(self.index, encoded, None if query.facets else COUNTED)
            total = total if counted is None else counted[0].count(counted[1])
            exact = counted is not None
        return _Found(
            hits,
            ranked.legs,
            ranked.fusion,
            total,
            exact,
            {} if counted is None else counted[0].facets(query.asked_facets, counted[1]),
            end,
            ranked.good_match,
        )

    def _hits(
        self, ranked: _Ranked, page: Sequence[_Placed], start: int, explain: bool
    ) -> list[Hit]:
        if not page:
            return []
        names = [one.fused.id for one in page]
        placed = enumerate(page)
        if not explain:
            documents = self.index.documents(names)
            return [self._hit(ranked, one, start + row + 1, documents[row]) for row, one in placed]
        documents, vectors = self.index.fetch(names)
        texts = self._text_parts(ranked, names)
        return [
            self._hit(ranked, one, start + row + 1, documents[row], vectors, texts[row], row)
            for row, one in placed
        ]

    def _list(self, query: Query, encoded: EncodedQuery, at: Cursor) -> _Found:
        """Return what conditions admit, in order, without scores."""
        index, scope = admitted(self.index, encoded) or (self.index, Scope())
        documents, end = self._ordered(index, scope, query, at)
        start, nothing = at.rank or query.offset, dict.fromkeys(LEGS)
        hits = [
            Hit(document.id, None, None, rank, document=document, **nothing)
            for rank, document in enumerate(documents, start + 1)
        ]
        total, facets = index.count(scope), index.facets(query.asked_facets, scope)
        return _Found(hits, (), None, total, True, facets, end, None)

    def _ordered(
        self, index: Index, scope: Scope, query: Query, at: Cursor
    ) -> tuple[list[Document], Cursor | None]:
        """Return a page in the order of metadata, and where it ends if more follow."""
        skipped = query.offset if at.position is None else 0
        listed = index.list_documents(scope, query.sort, skipped + query.k + 1, at.position)
        page = listed.documents[skipped : skipped + query.k]
        if len(listed.documents) <= skipped + query.k:
            return page, None
        rank = (at.rank or query.offset) + len(page)
        return page, Cursor(rank, listed.positions[skipped + len(page) - 1])

    def _explain(self, query: Query, encoded: EncodedQuery, name: str) -> Hit:
        ranked = self._rank(query, encoded, max(EXPLAIN_DEPTH, query.k + query.offset), name)
        (document,), vectors = self.index.fetch([name])
        (words,) = self._text_parts(ranked, [name])
        for rank, one in enumerate(ranked.placed, 1):
            if one.fused.id == name:
                return self._hit(ranked, one, rank, document, vectors, words)
        rankings = ranked.candidates.rankings(ranked.fusion.rescores, also=name)
        named = {one.id: one for one in ranked.fusion.fuse(rankings)}
        # A leg that did not find it may add nothing.
        fused = named.get(name) or Fused(name, 0.0, {})
        return self._hit(ranked, _Placed(fused, rankings), None, document, vectors, words)

    def _text_parts(self, ranked: _Ranked, names: Sequence[str]) -> list[dict[str, float]]:
        """Return what each word adds to each document's score by the leg ``text``."""
        if "text" not in ranked.legs:
            return [{}] * len(names)
        return self.index.text_parts(ranked.query.text, names)

    def _rank(
        self, query: Query, encoded: EncodedQuery, wanted: int, name: str | None = None
    ) -> _Ranked:
        """Rank the `wanted` best documents.

        Fewer will do if `name` is among them, or if no other reaches the query's bounds.
        """
        candidates = Candidates(self.index, encoded)
        if not self._can_find(query, encoded):
            asked = query.chosen_fusion or self.fusion
            return _Ranked(encoded, asked, (), [], candidates, True)
        fusion, legs = self._choose(query, encoded)
        weights, summed = fusion.weighed(legs), fusion.absolute and len(legs) > 1
        if summed and candidates.ask_sum(weights, wanted, fusion.depth):
            rankings = candidates.rankings(rescore=True)
            best = [_Placed(one, rankings) for one in fusion.fuse(rankings)]
            complete = len(best) < wanted or not _reaches(query, fusion, best[-1].fused.score)
            return _Ranked(encoded, fusion, legs, best, candidates, complete)
        placed: dict[str, _Placed] = {}
        depth, first = 0, wanted if fusion.absolute and not summed else fusion.depth
        complete = False
        while depth < MAX_HITS and len(placed) < wanted and name not in placed:
            depth = min(depth * _DEEPER or first, MAX_HITS)
            candidates.ask(legs, depth)
            rankings = candidates.rankings(fusion.rescores)
            fused = fusion.fuse(rankings)
            most = reduce(add, (weights[leg] * candidates.unseen[leg] for leg in weights), 0.0)
            if summed and depth == first:
                # First place only those that no other document can precede.
                fused = [one for one in fused if one.score > most]
            for one in fused:
                placed.setdefault(one.id, _Placed(one, rankings))
            complete = not any(candidates.unseen.values())
            complete |= fusion.absolute and not _reaches(query, fusion, most)
            if complete:
                break
        return _Ranked(encoded, fusion, legs, list(placed.values()), candidates, complete)

    def _can_find(self, query: Query, encoded: EncodedQuery) -> bool:
        """Return whether there is anything to find; unknown words are looked for in texts only."""
        if encoded.legs != ("text",):
            return bool(encoded.legs)
        named = _named_legs(query)
        if named is None and query.min_relevance is not None:
            return False  # scores of texts alone have no relevance
        return (named is None or "text" in named) and "text" in self.index.legs()

    def _choose(self, query: Query, encoded: EncodedQuery) -> tuple[Fusion, tuple[Leg, ...]]:
        given = list(encoded.legs)
        asked = query.chosen_fusion
        named = _named_legs(query)
        if given == ["text"]:
            named = None if named is None else ("text",)
        for leg in named or ():
            if leg not in given:
                raise UnsupportedError(f"the query has no {leg} leg")
        fusion = asked or self._own(given, query.legs)
        if asked is None and named is None and fusion == Weighted():
            # Codes cost more than they add to other legs (docs/search.md): only searched if named.
            given = [leg for leg in given if leg != "codes"]
        legs = [leg for leg in fusion.legs or named or given if leg in (named or given)]
        if named is None:
            there = self.index.legs()
            legs = [leg for leg in legs if leg in there]
        if not legs:
            raise UnsupportedError(f"{self.index} and the query share no leg that {fusion} weighs")
        if asked is None:
            fusion = fusion.over(legs)
            if len(legs) == 1 and fusion.relevance_of(0) is None:
                fusion = named_fusion(legs[0])
        if query.min_relevance is not None and fusion.relevance_of(0) is None:
            rule = f"scores of {fusion} are not calibrated; lexvla fit-fusion does that"
            raise UnsupportedError(f"min_relevance: {rule}")
        return fusion, tuple(legs)

    def _own(self, given: Sequence[Leg], named: Sequence[Leg] | None) -> Fusion:
        """Return the fusion of a query that does not name one, though it may name legs."""
        own = self.fusion.legs
        if own is None or (set(named) <= set(own) if named else set(given) & set(own)):
            return self.fusion
        return Weighted()

    def _hit(
        self,
        ranked: _Ranked,
        placed: _Placed,
        rank: int | None,
        document: Document,
        vectors: Encoding | None = None,
        text: Mapping[str, float] | None = None,
        row: int = 0,
    ) -> Hit:
        fused, rankings = placed
        parts = []
        scores: dict[Leg, LegScore | None] = dict.fromkeys(LEGS)
        for leg, ranking in rankings.items():
            score, place = ranking.scores.get(fused.id), ranking.ranks.get(fused.id)
            if vectors is not None:
                parts.append(LegPart(leg, score, place, fused.parts.get(leg, 0.0)))
            if score is not None and (place is not None or ranked.fusion.rescores):
                scores[leg] = LegScore(score, place)
        explanation = None
        if vectors is not None:
            explanation = Explanation.of(
                ranked.query.encoding,
                vectors,
                self.index.vocabulary,
                fused.score,
                parts,
                ranked.said,
                text,
                row,
            )
        return Hit(
            id=fused.id,
            score=fused.score,
            relevance=ranked.fusion.relevance_of(fused.score),
            rank=rank,
            lexical=scores["lexical"],
            codes=scores["codes"],
            dense=scores["dense"],
            text=scores["text"],
            document=document,
            explanation=explanation,
        )


class _Found(NamedTuple):
    hits: list[Hit]
    legs: tuple[Leg, ...]
    fusion: Fusion | None
    total: int
    total_exact: bool
    facets: Mapping[str, FacetCounts]
    end: Cursor | None  # if more hits follow
    good_match: bool | None


class _Placed(NamedTuple):
    fused: Fused
    rankings: Mapping[Leg, LegRanking]


@dataclass(frozen=True)
class _Ranked:
    query: EncodedQuery
    fusion: Fusion
    legs: tuple[Leg, ...]
    placed: list[_Placed]
    candidates: Candidates
    complete: bool  # whether no other document reaches the query's bounds

    @cached_property
    def said(self) -> str:
        return str(self.fusion)

    @property
    def good_match(self) -> bool | None:
        relevance = self.fusion.relevance_of(self.placed[0].fused.score) if self.placed else None
        return None if relevance is None else relevance >= GOOD_MATCH


def _query_of(query: object) -> Query:
    if isinstance(query, str):
        return Query(text=query)
    if not isinstance(query, Query):
        rule = "a query must be a text or a Query, such as Query(image=...)"
        raise TypeError(f"{rule}, not {type(query).__name__}")
    return query


def _check_scored(query: Query) -> None:
    if not query.is_scored:
        raise InputError(query.describe(), "scores no document: nothing can be explained")


def _reaches(query: Query, fusion: Fusion, score: float) -> bool:
    """Return whether a score reaches what a query demands."""
    if query.min_score is not None and score < query.min_score:
        return False
    least = query.min_relevance
    return least is None or (fusion.relevance_of(score) or 0) >= least


def _named_legs(query: Query) -> tuple[Leg, ...] | None:
    """Return the legs that a query names, perhaps by its fusion."""
    asked = query.chosen_fusion
    return query.legs or (asked.legs if asked else None)


def _retried(answer: Callable[[], T]) -> T:
    """Try again if a writer deleted a candidate between two reads."""
    for _ in range(_ATTEMPTS - 1):
        try:
            return answer()
        except UnknownDocumentError:
            continue
    return answer()
