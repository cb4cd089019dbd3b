"""The Elasticsearch engine: an index behind an alias of a server, which searches it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any, ClassVar

from lexvla.encoding import Encoding
from lexvla.errors import LexVLAError
from lexvla.vocabulary import Vocabulary
from lexvla_indexer.document import Document
from lexvla_indexer.elastic.connection import Address, connect
from lexvla_indexer.elastic.elasticsearch_product import ELASTICSEARCH
from lexvla_indexer.elastic.layout import State, Store
from lexvla_indexer.elastic.product import Product
from lexvla_indexer.elastic.served_index import ServedIndex
from lexvla_indexer.elastic.writer import Writer, check_rows, patiently
from lexvla_indexer.legs import check_terms

__all__ = ["ElasticIndex"]

LISTED = 100  # documents that `verify` names


class ElasticIndex(ServedIndex):
    """Keep an index on an Elasticsearch server, behind an alias.

    The server keeps weights with 9 significant bits, truncated, so that scores are up to 0.4%
    below the dot products; `bound` says how far. The exact rows are stored beside them and come
    back from `fetch`. The dense leg is searched exactly up to 100,000 documents, then by a graph
    of 8-bit vectors, approximately.

    What a commit can promise here: documents that were sent stay, even if the commit fails
    halfway; nothing is shown before all of it was sent, unless the server itself restarts
    meanwhile; each shard shows its part in one step, so that an index of one shard shows
    everything at once. A commit that failed can be retried, by this object or by a later run: each
    document is stored under its own id, so that repeats change nothing. There is no lock: of two
    writers of one document the later wins. For changes that readers see whole or not at all, on
    any number of shards, use ``rebuild``.

    Credentials come from the environment; see `lexvla_indexer.elastic.connection.connect`.

    Arguments and errors are those of `lexvla_indexer.open_index`. Without a vocabulary, a new index
    names its terms by their column numbers. ``rebuild`` fills a new index, which readers see once
    `publish` gives it the alias; if it is closed before that, it is deleted. A new index has
    ``shards`` shards: by default 1, or as many as the one that is rebuilt.
    """

    product: ClassVar[Product] = ELASTICSEARCH

    def __init__(
        self,
        address: str,
        create: bool = False,
        vocabulary: Vocabulary | None = None,
        model: str | None = None,
        rebuild: bool = False,
        shards: int | None = None,
    ) -> None:
        place = Address.parse(address, self.product)
        super().__init__(Store(connect(place), place))
        self._writer = Writer(self._store, rebuild)
        self._writes = False  # whether something was staged, be it nothing
        with self._opening():
            if rebuild:
                self._store.begin_rebuild(State(model), shards)
            elif not create:
                self._store.check()
            elif not self._store.find():
                self._store.make(State(model), shards or 1)
            self._store.refuse_filtered()
            self._store.wait()
            self._follow()
            is_new = not len(self.vocabulary)
            self._agree(vocabulary)
            if vocabulary is not None and is_new and (create or rebuild):
                self._store.save_vocabulary(vocabulary)

    def commit(self) -> None:
        """Send everything staged, and show it; the class says what that promises.

        Raises:
            EngineUnavailableError: The server went away, or was too busy for minutes. Everything
                is still staged: commit again.
            InputError: The server refuses a document. All others are stored.
        """
        with self._writing:
            self._own_writer().commit(self._staging, self.vocabulary)

    def compact(self) -> None:
        """Commit, then merge each shard to one segment, without the deleted documents.

        Those deleted in the last half minute stay: the server may need them for copies.
        """
        with self._writing:
            self.commit()
            self._writer.compact()

    def verify(self) -> list[str]:
        """Return a line for each document that has lost vectors, up to 100.

        Other programs may write to the index. The next run over the source that has such a document
        stores it again. The server checks its files itself, when it opens them.
        """
        lost = self._ask(lambda reader: reader.lost())
        rule = "has lost vectors or its id; index its source again"
        lines = [f"document {name!r} {rule}" for name in lost[:LISTED]]
        return [*lines, f"and {len(lost) - LISTED:,} more"] if len(lost) > LISTED else lines

    def publish(self, keep_old: int = 0) -> None:
        """Commit, compare the count, and give the alias to the new index, in one step.

        Before that it waits until the new index has its replicas, as far as the old one had. Of the
        indices that it replaces, the newest ``keep_old`` are kept for `rollback`.

        Raises:
            EngineUnavailableError: Documents were lost on the way, so that the server has fewer; or
                replicas did not come up within ten minutes. The old index stays.
            UnsupportedError: The index was not opened to be rebuilt.
        """
        with self._writing:
            self.commit()
            self._writer.publish(keep_old)

    def rollback(self, to: str | None = None) -> str:
        """Give the alias to an index that `publish` kept, in one step; return its name.

        The present one is kept. The default is the one before it.

        Raises:
            InputError: No index of that name is kept.
            UnsupportedError: No earlier index is kept.
        """
        with self._writing:
            self._check_open()
            self._store.rollback(to)
            self._follow()
            return self._store.index

    def info(self) -> dict[str, Any]:
        """Return the facts of `Index.info`, and the names of kept indices, if there are any."""
        facts = super().info()
        kept = self._store.kept()
        return facts | {"kept_indices": kept} if kept else facts

    def fingerprinted(self, start: str = "") -> Iterator[tuple[str, str]]:
        """Yield ids and fingerprints; a writer waits for a server that restarts."""
        every = super().fingerprinted
        yield from patiently(lambda: list(every(start))) if self._writes else every(start)

    def read_note(self, name: str) -> Any:
        """Return what `write_note` stored under that name, or ``None``.

        A writer waits for a server that restarts, as `commit` does; a reader does not.
        """

        def read() -> Any:
            with self._writing:
                self._check_open()
                self._store.check()
                return self._store.state.notes.get(name)

        return patiently(read) if self._writes else read()

    def write_note(self, name: str, value: Any) -> None:
        """Keep a small JSON value with the index; ``None`` takes it back.

        A writer waits for a server that restarts, as `commit` does.
        """

        def write() -> None:
            with self._writing:
                self._check_open()
                self._store.check()
                notes = {**self._store.state.notes, name: value}
                kept = {n: each for n, each in notes.items() if each is not None}
                self._store.describe(notes=kept)

        return patiently(write) if self._writes else write()

    def _fingerprints(self, ids: Sequence[str]) -> dict[str, str]:
        return self._writer.fingerprints(ids)  # including what a failed commit has sent

    def _own_writer(self) -> Writer:
        self._check_open()
        self._writes = True
        return self._writer

    def _check_storable(
        self, documents: Sequence[Document], encoding: Encoding, vocabulary: Vocabulary
    ) -> None:
        check_terms(vocabulary.terms, self.product.name)
        check_rows(documents, encoding, self.product)

    def _close(self) -> None:
        with suppress(LexVLAError):
            self._store.abandon()
        self._client.close()
