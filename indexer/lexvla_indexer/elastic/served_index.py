"""What indexes on an Elasticsearch server have in common: how they are asked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from typing import Any, Self, TypeVar

import numpy as np

from lexvla.encoding import Encoding
from lexvla_indexer.base import Index
from lexvla_indexer.elastic.connection import following
from lexvla_indexer.elastic.layout import Store
from lexvla_indexer.elastic.reader import Reader
from lexvla_indexer.elastic.requests import console_text
from lexvla_indexer.legs import Leg, VectorLeg

__all__ = ["ServedIndex"]

T = TypeVar("T")


class ServedIndex(Index):
    """Ask the index that a store finds."""

    def __init__(self, store: Store) -> None:
        super().__init__(store.address)
        self._store = store
        self._client = store.client
        self._constraints: tuple[frozenset[int], tuple[frozenset[int], ...]] = frozenset(), ()

    def bound(self, queries: Encoding, leg: VectorLeg = "lexical") -> np.ndarray:
        """Return how far each query's scores can be from the exact dot products, float64.

        Raises as `search` does.
        """
        return self._ask(lambda reader: reader.bound(queries, leg))

    def requests(
        self,
        query: Encoding,
        k: int = 10,
        legs: Sequence[Leg] | None = None,
        filter: str | None = None,  # noqa: A002 - the public word for it
        text: str = "",
        offset: int = 0,
        least: Mapping[Leg, float] | None = None,
        named: bool = False,
    ) -> dict[Leg, dict[str, Any]]:
        """Return the JSON of a request for each leg of one query; see `Index.requests`."""
        rest = legs, filter, text, offset, least or {}, named
        return self._ask(lambda reader: reader.requests(query, k, *rest))

    def show(self, requests: Mapping[Leg, dict[str, Any]], named: bool = False) -> str:
        """Return requests as text to paste into the console of Kibana."""
        return console_text(self._store.address.name, requests, named)

    def constrained(self, banned: Iterable[int], required: Iterable[Iterable[int]]) -> Self:
        """Return a view that finds only documents with certain words; see `Index.constrained`."""
        view = copy(self)
        view._constraints = frozenset(banned), tuple(map(frozenset, required))
        return view

    def rescore(self, query: Encoding, leg: VectorLeg, ids: Sequence[str]) -> list[float]:
        """Return the server's own scores of some documents; see `Index.rescore`."""
        return self._ask(lambda reader: reader.rescore(query, leg, ids)) if ids else []

    def _ask(self, ask: Callable[[Reader], T], newest: bool = True) -> T:
        return following(self._reader, ask)

    def _reader(self, newest: bool) -> Reader:
        with self._writing:
            self._check_open()
            if newest:
                self._store.check()
            else:
                self._store.refresh()
            self._follow()
            return self._made_reader()

    def _made_reader(self) -> Reader:
        return Reader(self._store, self.vocabulary, *self._constraints)

    def _follow(self) -> None:
        if self._store.state.vocabulary_sha256 not in ("", self.vocabulary.sha256):
            self.vocabulary = self._store.load_vocabulary()
        self.model = self._store.state.model

    def _widths(self) -> Mapping[str, int]:
        return self._store.state.widths

    def _look_up(self, ask: Callable[[Reader], T]) -> T:
        return self._ask(ask)
