"""The documents that each leg finds for a query, with their scores by every leg."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from operator import add

import numpy as np
from scipy import sparse

from lexvla.encoding import Encoding
from lexvla_indexer.base import Index, Results
from lexvla_indexer.legs import Leg, VectorLeg
from lexvla_search.encoded_query import Constraints, EncodedQuery
from lexvla_search.fusion import LegRanking

__all__ = ["Candidates", "bearers", "leg_scores"]

_DEEPER = 4  # times the depth, if constraints leave too few hits
_FEW = 10_000  # documents with a required word; up to this many are listed before searching


class Candidates:
    """Collect what an index's legs find for a query.

    `unseen` is, by leg, the most that it may give a document that it did not find.
    """

    def __init__(self, index: Index, query: EncodedQuery) -> None:
        limits = query.constraints
        view = index.constrained(limits.banned, limits.required) if limits else index
        self._index = index if view is None else view
        self._constraints = limits if view is None else Constraints()
        self._query = query
        self._parts: list[Encoding] = []  # stored vectors, in the order they were read
        self._rows: dict[str, tuple[int, int]] = {}  # which part, and which row of it
        self._allowed = dict.fromkeys(query.excluded, False)
        self._found: dict[Leg, Results] = {}
        self._known: dict[Leg, dict[str, float]] = {}  # further scores from the engine
        self._first: list[str] | None = None  # the best by a sum, if asked for
        self.unseen: dict[Leg, float] = {}
        self._bearers: set[str] | None = None  # all documents that have the required words

    def ask(self, legs: Sequence[Leg], depth: int) -> None:
        """Find each leg's best documents that meet filter and constraints, at most ``depth``."""
        for leg in legs:
            found = self._found[leg] = self._best(leg, depth)
            self.unseen[leg] = 0.0 if len(found.ids) < depth else float(found.scores[-1])

    def ask_sum(self, weights: Mapping[Leg, float], k: int, depth: int) -> bool:
        """Find the k best documents by the legs' weighted sum, and the ``depth`` best by each leg.

        Return False, having found nothing, if the engine cannot search by a sum.
        """
        query, times = self._query, 1
        while True:
            wide = k * times, depth * times
            found = self._index.search_legs(
                query.encoding, weights, *wide, query.filter, query.text
            )
            if found is None:
                return False
            allowed = np.ones(len(found.ids), np.bool_)
            if self._constraints or query.excluded:
                allowed[:] = self._allow(found.ids)
            total = np.zeros(len(found.ids))
            for leg, weight in weights.items():
                total += weight * np.maximum(found.scores[leg], 0)
            lists = [(total, k), *((found.scores[leg], depth) for leg in weights)]
            if not any(_is_short(scores, allowed, most, times) for scores, most in lists):
                break
            times *= _DEEPER
        # In the order of ids: of equal scores, the first id is the better.
        rows = sorted(np.flatnonzero(allowed).tolist(), key=found.ids.__getitem__)
        names = [found.ids[row] for row in rows]
        first = np.argsort(-total[rows], kind="stable")[:k]
        self._first = [names[place] for place in first.tolist()]
        for leg in weights:
            scores = found.scores[leg][rows]
            best = np.argsort(-scores, kind="stable")[:depth]
            best = best[scores[best] > 0]
            self._found[leg] = Results([names[place] for place in best.tolist()], scores[best])
            self._known[leg] = dict(zip(names, scores.tolist(), strict=True))
            self.unseen[leg] = 0.0
        return True

    def rankings(self, rescore: bool, also: str | None = None) -> dict[Leg, LegRanking]:
        """Return each searched leg's ranking of the candidates; after `ask_sum`, of the k best.

        With `rescore`, each leg also scores the candidates that only other legs found. `also` is a
        document to score as if it were a candidate. `UnknownDocumentError` if a candidate was
        deleted in the meantime.
        """
        first = None if also is not None else self._first
        rankings: dict[Leg, LegRanking] = {}
        for leg, found in self._found.items():
            known = self._known.get(leg, {})
            if first is not None:
                scores = {name: known[name] for name in first}
            else:
                scores = dict(zip(found.ids, found.scores.tolist(), strict=True)) | known
            ranks = dict(zip(found.ids, range(1, len(found.ids) + 1), strict=True))
            rankings[leg] = LegRanking(ranks, scores)
        if rescore and first is None:
            names = dict.fromkeys(name for found in self._found.values() for name in found.ids)
            if also is not None:
                names[also] = None
            for leg, ranking in rankings.items():
                if unscored := [name for name in names if name not in ranking.scores]:
                    scored = zip(unscored, self._scores(leg, unscored), strict=True)
                    ranking.scores.update(scored)
        return rankings

    def _best(self, leg: Leg, depth: int) -> Results:
        query, asked = self._query, depth
        while True:
            if leg == "text":
                results = self._index.search_text(query.text, asked, query.filter)
            else:
                (results,) = self._index.search(query.encoding, asked, leg, query.filter)
            if not self._constraints and not query.excluded:
                return results
            allowed = self._allow(results.ids)
            kept = [row for row, is_allowed in enumerate(allowed) if is_allowed][:depth]
            if len(kept) == depth or len(results.ids) < asked:
                return Results([results.ids[row] for row in kept], results.scores[kept])
            asked *= _DEEPER

    def _read(self, names: Sequence[str]) -> None:
        if new := [name for name in names if name not in self._rows]:
            self._parts.append(self._index.vectors(new))
            part = len(self._parts) - 1
            self._rows.update((name, (part, row)) for row, name in enumerate(new))

    def _allow(self, names: Sequence[str]) -> list[bool]:
        if not self._constraints:
            return [name not in self._query.excluded for name in names]
        bearers = self._list_bearers()
        new = [name for name in names if name not in self._allowed]
        if bearers is not None:
            self._allowed.update((name, False) for name in new if name not in bearers)
            new = [name for name in new if name in bearers]
        self._read(new)
        for name in new:
            part, row = self._rows[name]
            self._allowed[name] = self._constraints.allow_row(self._parts[part], row)
        return [self._allowed[name] for name in names]

    def _list_bearers(self) -> set[str] | None:
        """Return all documents that have a word of each requirement, if they are few."""
        if self._bearers is not None:
            return self._bearers
        for columns in self._constraints.required:
            names = bearers(self._index, self._query, columns, _FEW)
            if len(names) < _FEW:
                self._bearers = names if self._bearers is None else self._bearers & names
        return self._bearers

    def _scores(self, leg: Leg, names: Sequence[str]) -> list[float]:
        if leg == "text":
            # Added one by one, as engines do.
            parts = self._index.text_parts(self._query.text, names)
            return [reduce(add, own.values(), 0.0) for own in parts]
        own_scores = self._index.rescore(self._query.encoding, leg, names)
        if own_scores is not None:
            return own_scores
        self._read(names)
        by_part: dict[int, np.ndarray] = {}
        scores = []
        for name in names:
            part, row = self._rows[name]
            if part not in by_part:
                by_part[part] = leg_scores(leg, self._query.encoding, self._parts[part])
            scores.append(float(by_part[part][row]))
        return scores


def bearers(index: Index, query: EncodedQuery, columns: frozenset[int], most: int) -> set[str]:
    """Return at most ``most`` documents of the query's filter that have one of some words."""
    row = np.zeros((1, query.encoding.lexical.shape[1]), np.float32)
    row[0, list(columns)] = 1
    word = Encoding(sparse.csr_array(row))
    (results,) = index.search(word, most, "lexical", query.filter)
    return set(results.ids)


def _is_short(scores: np.ndarray, allowed: np.ndarray, most: int, times: int) -> bool:
    """Return whether constraints leave fewer than ``most`` of a list that may go on."""
    if np.count_nonzero(scores[allowed] > 0) >= most:
        return False
    return bool(np.count_nonzero(scores > 0) >= most * times)


def leg_scores(leg: VectorLeg, query: Encoding, stored: Encoding) -> np.ndarray:
    """Return the leg's dot products of one query with stored rows: (rows) float64.

    Products of float32 weights are exact in float64; they are summed in column order.
    """
    asked, rows = getattr(query, leg), getattr(stored, leg)
    if asked is None or rows is None:
        raise ValueError(f"query and rows must both have the leg {leg}")
    if leg == "dense":
        return np.multiply(rows, asked[0], dtype=np.float64).sum(axis=1)
    weights = np.zeros(asked.shape[1])
    weights[asked.indices] = asked.data
    products = rows.data.astype(np.float64) * weights[rows.indices]
    owners = np.repeat(np.arange(len(stored)), np.diff(rows.indptr))
    return np.bincount(owners, products, len(stored))
