"""The documents that each leg finds for one query, with their scores by every leg."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import sparse

from lexvla.encoding import Encoding
from lexvla.errors import UnsupportedError
from lexvla_indexer.base import Index, Results
from lexvla_indexer.legs import Leg
from lexvla_search.encoded_query import EncodedQuery
from lexvla_search.fusion import LegRanking

__all__ = ["Candidates", "leg_scores"]

_DEEPER = 4  # how many times deeper to look where constraints leave too few hits
_FEW = 10_000  # documents with a required word: so few are listed before the legs are asked


class Candidates:
    """Collect what an index's legs find for a query.

    Args:
        index: Where to look.
        query: What to look for.
    """

    def __init__(self, index: Index, query: EncodedQuery) -> None:
        self._index = index
        self._query = query
        self._parts: list[Encoding] = []  # stored vectors, as they were read
        self._rows: dict[str, tuple[int, int]] = {}  # which part, and which row of it
        self._allowed: dict[str, bool] = {}
        self._found: dict[Leg, Results] = {}
        self._bearers: set[str] | None = None  # all documents that have the required words

    def ask(self, legs: Sequence[Leg], depth: int, named: bool) -> None:
        """Find each leg's best documents that meet filter and constraints, at most ``depth``.

        Args:
            legs: Which legs.
            depth: How many documents.
            named: Refuse legs that the index lacks, rather than leave them out.

        Raises:
            UnsupportedError: The index cannot search by a leg.
        """
        for leg in legs:
            try:
                self._found[leg] = self._best(leg, depth)
            except UnsupportedError:
                if named or leg == "lexical":
                    raise

    def rankings(self, rescore: bool, also: str | None = None) -> dict[Leg, LegRanking]:
        """Return the ranking of the candidates by each leg that could be asked.

        Args:
            rescore: Also score by each leg the candidates that only other legs found.
            also: A document to score as though it were a candidate.

        Raises:
            UnknownDocumentError: A candidate was deleted meanwhile.
        """
        names = dict.fromkeys(name for found in self._found.values() for name in found.ids)
        if also is not None:
            names[also] = None
        rankings, missing = {}, {}
        for leg, found in self._found.items():
            scores = dict(zip(found.ids, map(float, found.scores), strict=True))
            ranks = {name: rank for rank, name in enumerate(found.ids, 1)}
            rankings[leg] = LegRanking(ranks, scores)
            missing[leg] = [name for name in names if rescore and name not in scores]
        self._read(list(dict.fromkeys(name for names in missing.values() for name in names)))
        for leg, unscored in missing.items():
            rankings[leg].scores.update(zip(unscored, self._scores(leg, unscored), strict=True))
        return rankings

    def _best(self, leg: Leg, depth: int) -> Results:
        query, asked = self._query, depth
        while True:
            (results,) = self._index.search(query.encoding, asked, leg, query.filter)
            if not query.constraints:
                return results
            allowed = self._allow(results.ids)
            kept = [row for row, is_allowed in enumerate(allowed) if is_allowed][:depth]
            if len(kept) == depth or len(results.ids) < asked:
                return Results([results.ids[row] for row in kept], results.scores[kept])
            asked *= _DEEPER

    def _read(self, names: Sequence[str]) -> None:
        """Read the vectors of documents that were not read yet."""
        if new := [name for name in names if name not in self._rows]:
            self._parts.append(self._index.vectors(new))
            part = len(self._parts) - 1
            self._rows.update((name, (part, row)) for row, name in enumerate(new))

    def _allow(self, names: Sequence[str]) -> list[bool]:
        """Return which documents meet the constraints, by their stored words."""
        bearers = self._list_bearers()
        new = [name for name in names if name not in self._allowed]
        if bearers is not None:
            self._allowed.update((name, False) for name in new if name not in bearers)
            new = [name for name in new if name in bearers]
        self._read(new)
        for name in new:
            part, row = self._rows[name]
            lexical = self._parts[part].lexical
            span = slice(lexical.indptr[row], lexical.indptr[row + 1])
            columns, weights = lexical.indices[span], lexical.data[span]
            self._allowed[name] = self._query.constraints.allow(columns, weights)
        return [self._allowed[name] for name in names]

    def _list_bearers(self) -> set[str] | None:
        """Return all documents that have a word of each requirement, if they are few."""
        if self._bearers is not None:
            return self._bearers
        for columns in self._query.constraints.required:
            row = np.zeros((1, self._query.encoding.lexical.shape[1]), np.float32)
            row[0, list(columns)] = 1
            word = Encoding(sparse.csr_array(row))
            (results,) = self._index.search(word, _FEW, "lexical", self._query.filter)
            if len(results.ids) < _FEW:
                names = set(results.ids)
                self._bearers = names if self._bearers is None else self._bearers & names
        return self._bearers

    def _scores(self, leg: Leg, names: Sequence[str]) -> list[float]:
        by_part: dict[int, np.ndarray] = {}
        scores = []
        for name in names:
            part, row = self._rows[name]
            if part not in by_part:
                by_part[part] = leg_scores(leg, self._query.encoding, self._parts[part])
            scores.append(float(by_part[part][row]))
        return scores


def leg_scores(leg: Leg, query: Encoding, stored: Encoding) -> np.ndarray:
    """Return the leg's dot products of one query with stored rows: (rows) float64.

    Products of float32 weights are exact in float64; they are added up in column order.
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
