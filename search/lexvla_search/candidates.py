"""The documents that the legs find for one query, with their stored vectors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from scipy import sparse

from lexvla.encoding import Encoding
from lexvla_indexer.base import Index, Results
from lexvla_indexer.document import Document
from lexvla_indexer.legs import Leg
from lexvla_search.fusion import LegAnswer
from lexvla_search.words import Constraints

__all__ = ["Candidates", "leg_scores"]

_DEEPER = 4  # times as many hits of a leg to look at, where constraints leave too few
_FEW = 10_000  # documents with a required word: so few are listed before the legs are asked


class Candidates:
    """Ask an index's legs for documents that a query may find.

    Args:
        index: Where to look.
        query: One row.
        filter: Which documents may be candidates.
        constraints: What their strongest words must be.
    """

    def __init__(
        self,
        index: Index,
        query: Encoding,
        filter: str | None = None,  # noqa: A002 - the public word for it
        constraints: Constraints | None = None,
    ) -> None:
        self.query = query
        self._index = index
        self._filter = filter
        self._constraints = constraints or Constraints(frozenset(), ())
        self._parts: list[Encoding] = []
        self._places: dict[str, tuple[int, int]] = {}  # which part, and which row of it
        self._documents: dict[str, Document] = {}
        self._allowed: dict[str, bool] = {}
        self._found: dict[Leg, Results] = {}
        self._bearers: set[str] | None = None  # where not None, all documents of required words

    @property
    def legs(self) -> tuple[Leg, ...]:
        """Those that were asked."""
        return tuple(self._found)

    def ask(self, leg: Leg, depth: int) -> None:
        """Find the leg's best documents, as many as ``depth``, that meet filter and constraints.

        Raises:
            UnsupportedError: The index cannot search by the leg.
        """
        self._found[leg] = self._best(leg, depth)

    def answers(
        self, legs: Iterable[Leg], rescore: bool, also: str | None = None
    ) -> dict[Leg, LegAnswer]:
        """Return what the legs say of all candidates.

        Args:
            legs: Of those that were asked.
            rescore: Score by each leg the candidates that only others found.
            also: The id of a document to score as though it were a candidate.
        """
        chosen = {leg: self._found[leg] for leg in legs}
        answers = {}
        names = dict.fromkeys(name for found in chosen.values() for name in found.ids)
        if also is not None:
            names[also] = None
        if rescore:
            self.load(list(names))
        for leg, found in chosen.items():
            scores = dict(zip(found.ids, map(float, found.scores), strict=True))
            ranks = {name: rank for rank, name in enumerate(found.ids, 1)}
            if rescore:
                missing = [name for name in names if name not in scores]
                scores.update(zip(missing, self._scores(leg, missing), strict=True))
            answers[leg] = LegAnswer(ranks, scores)
        return answers

    def load(self, names: Sequence[str]) -> None:
        """Read the vectors of documents that were not read yet, in one go.

        Raises:
            KeyError: The index has one of them no more.
        """
        if new := [name for name in dict.fromkeys(names) if name not in self._places]:
            self._keep(new, self._index.vectors(new))

    def load_documents(self, names: Sequence[str]) -> None:
        """Fetch documents, with the vectors of those whose were not read yet.

        Raises:
            KeyError: The index has one of them no more.
        """
        if new := [name for name in dict.fromkeys(names) if name not in self._documents]:
            fetched = self._index.fetch(new)
            self._documents.update(zip(new, fetched.documents, strict=True))
            self._keep(new, fetched.encoding)

    def _keep(self, names: Sequence[str], rows: Encoding) -> None:
        for row, name in enumerate(names):
            self._places.setdefault(name, (len(self._parts), row))
        self._parts.append(rows)

    def document(self, name: str) -> Document:
        """Return a document that was loaded."""
        return self._documents[name]

    def vectors(self, name: str) -> Encoding:
        """Return the stored vectors of a document whose were read."""
        part, row = self._places[name]
        return self._parts[part][row]

    def _best(self, leg: Leg, depth: int) -> Results:
        asked = depth
        while True:
            (results,) = self._index.search(self.query, asked, leg, self._filter)
            if not self._constraints:
                return results
            allowed = self._allow(results.ids)
            kept = [i for i, is_allowed in enumerate(allowed) if is_allowed][:depth]
            if len(kept) == depth or len(results.ids) < asked:
                return Results([results.ids[i] for i in kept], results.scores[kept])
            asked *= _DEEPER

    def _allow(self, names: Sequence[str]) -> list[bool]:
        """Say which documents meet the constraints, by their stored words."""
        bearers = self._list_bearers()
        new = [name for name in names if name not in self._allowed]
        if bearers is not None:
            self._allowed.update((name, False) for name in new if name not in bearers)
            new = [name for name in new if name in bearers]
        self.load(new)
        for name in new:
            part, row = self._places[name]
            lexical = self._parts[part].lexical
            span = slice(lexical.indptr[row], lexical.indptr[row + 1])
            self._allowed[name] = self._constraints.allow(lexical.indices[span], lexical.data[span])
        return [self._allowed[name] for name in names]

    def _list_bearers(self) -> set[str] | None:
        """Return all documents that have a word of each requirement, if they are few."""
        if self._bearers is not None or not self._constraints.required:
            return self._bearers
        for columns in self._constraints.required:
            row = np.zeros((1, self.query.lexical.shape[1]), np.float32)
            row[0, list(columns)] = 1
            word = Encoding(sparse.csr_array(row))
            (results,) = self._index.search(word, _FEW, "lexical", self._filter)
            if len(results.ids) < _FEW:
                names = set(results.ids)
                self._bearers = names if self._bearers is None else self._bearers & names
        return self._bearers

    def _scores(self, leg: Leg, names: Sequence[str]) -> list[float]:
        by_part: dict[int, np.ndarray] = {}
        scores = []
        for name in names:
            part, row = self._places[name]
            if part not in by_part:
                by_part[part] = leg_scores(leg, self.query, self._parts[part])
            scores.append(float(by_part[part][row]))
        return scores


def leg_scores(leg: Leg, query: Encoding, stored: Encoding) -> np.ndarray:
    """Return the leg's dot products of one query with stored rows: (rows) float64.

    Products of float32 weights are exact in float64; they are added up in column order.

    Raises:
        ValueError: Query or rows lack the leg.
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
