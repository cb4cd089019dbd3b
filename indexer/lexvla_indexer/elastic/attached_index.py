"""A user's own index that ``lexvla attach`` has filled: searched as it is, and never written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from typing import Any, NoReturn, Self, TypeVar

from lexvla.errors import UnsupportedError
from lexvla.vocabulary import Vocabulary
from lexvla_indexer.elastic.attached_reader import AttachedReader
from lexvla_indexer.elastic.attached_store import AttachedStore
from lexvla_indexer.elastic.connection import Address, connect
from lexvla_indexer.elastic.served_index import ServedIndex

__all__ = ["AttachedIndex"]

T = TypeVar("T")


class AttachedIndex(ServedIndex):
    """Search a user's own index by the vectors that were added to its documents.

    Ids are those of the server. Filters, orders and facets are of the user's own fields, and the
    leg ``text`` is BM25 over them. Whatever would write raises UnsupportedError: documents are the
    user's, and ``lexvla attach`` keeps their vectors up to date.

    Arguments and errors are those of `lexvla_indexer.open_index`.
    """

    equal_scores_by_id = False
    is_writable = False

    def __init__(
        self,
        address: str,
        create: bool = False,
        vocabulary: Vocabulary | None = None,
        rebuild: bool = False,
    ) -> None:
        place = Address.parse(address)
        self._store: AttachedStore
        super().__init__(AttachedStore(connect(place), place))
        self._text_fields: dict[str, float] | None = None
        with self._opening():
            if create or rebuild:
                self._refuse()
            self._store.check()
            self._store.refuse_filtered()
            self._follow()
            self._agree(vocabulary)

    def with_text_fields(self, weights: Mapping[str, float]) -> Self:
        """Return a view whose leg ``text`` looks into these fields; see `Index`."""
        view = copy(self)
        view._text_fields = dict(weights)
        view._ask(lambda reader: reader.has_text())  # refuses unknown fields
        return view

    def commit(self) -> None:
        """Raise UnsupportedError, as everything that writes does."""
        self._refuse()

    def compact(self) -> None:
        """Raise UnsupportedError, as everything that writes does."""
        self._refuse()

    def publish(self, keep_old: int = 0) -> None:
        """Raise UnsupportedError, as everything that writes does."""
        self._refuse()

    def rollback(self, to: str | None = None) -> str:
        """Raise UnsupportedError, as everything that writes does."""
        self._refuse()

    def write_note(self, name: str, value: Any) -> None:
        """Raise UnsupportedError, as everything that writes does."""
        self._refuse()

    def verify(self) -> list[str]:
        """Return a line for each document that was filled and has lost vectors, up to 100."""
        lost = self._ask(lambda reader: reader.lost())
        return [f"document {name!r} has lost vectors; attach the index again" for name in lost]

    def _ask(self, ask: Callable[[Any], T], newest: bool = True) -> T:
        def named(reader: Any) -> T:
            with reader.naming_fields():
                return ask(reader)

        return super()._ask(named, newest)

    def _made_reader(self) -> AttachedReader:
        return AttachedReader(
            self._store, self.vocabulary, *self._constraints, text_fields=self._text_fields
        )

    def _fingerprints(self, ids: Sequence[str]) -> dict[str, str]:
        self._refuse()

    def _own_writer(self) -> NoReturn:
        self._check_open()
        self._refuse()

    def _refuse(self) -> NoReturn:
        rule = "is an index of your own, which is attached: LexVLA only searches it"
        raise UnsupportedError(f"{self}: {rule}; lexvla attach keeps its vectors up to date")

    def _close(self) -> None:
        self._client.close()
