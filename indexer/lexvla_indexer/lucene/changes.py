"""Changes to an index: staged in memory, then committed as a whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from lexvla.encoding import Encoding
from lexvla.vocabulary import Vocabulary
from lexvla_indexer.document import Document
from lexvla_indexer.impacts import ImpactQuantizer
from lexvla_indexer.lucene.fields import impact_terms
from lexvla_indexer.lucene.jvm import java_errors
from lexvla_indexer.lucene.reader import Snapshot
from lexvla_indexer.lucene.state import State
from lexvla_indexer.lucene.store import Store
from lexvla_indexer.lucene.writer import Writer
from lexvla_indexer.staging import Staging

__all__ = ["Changes"]


class Changes:
    """Be the one writer of a directory. For one thread at a time.

    Args:
        store: The directory.
        quantizer: How the words' weights become integers, if no commit has decided that.

    Attributes:
        staging: What was taken in and is not committed yet.

    Raises:
        IndexCorruptError: The index is damaged.
        IndexLockedError: Another writer has it.
    """

    def __init__(self, store: Store, quantizer: ImpactQuantizer | None) -> None:
        self.staging = Staging()
        self._store = store
        self._quantizer = quantizer
        self._writer: Writer | None = Writer(store)

    def begin(self, state: State, vocabulary: Vocabulary | None) -> None:
        """Make a new index, with nothing in it."""
        if vocabulary is not None:
            self._store.save_vocabulary(vocabulary)
            state = replace(state, vocabulary_sha256=vocabulary.sha256)
        with self._undoing() as writer:
            writer.commit(state)

    def add(
        self, documents: Sequence[Document], encoding: Encoding, vocabulary: Vocabulary
    ) -> None:
        """Stage documents.

        Raises:
            InputError: An id occurs twice.
            UnsupportedError: A term is longer than Lucene takes.
        """
        impact_terms(vocabulary)
        self.staging.add(documents, encoding)

    def delete(self, ids: Sequence[str], snapshot: Snapshot) -> int:
        """Stage deletions. Return how many of the ids were there."""
        committed = snapshot.places(ids).keys() - self.staging.deleted
        count = 0
        for name in set(ids):
            count += self.staging.discard(name) or name in committed
        self.staging.deleted |= committed
        return count

    def commit(self, snapshot: Snapshot, state: State, vocabulary: Vocabulary) -> None:
        """Make all that is staged durable and visible, or nothing of it.

        Args:
            snapshot: The newest commit.
            state: What it says of itself.
            vocabulary: The terms of the lexical columns.
        """
        staging = self.staging
        if staging.documents and state.vocabulary_sha256 != vocabulary.sha256:
            self._store.save_vocabulary(vocabulary)
            state = replace(state, vocabulary_sha256=vocabulary.sha256)
        with self._undoing() as writer:
            if snapshot.rows:
                writer.delete(staging.deleted | staging.documents.keys())
            if staging.documents:
                documents, encoding = staging.rows()
                given = {} if self._quantizer is None else {"lexical": self._quantizer}
                known = state.legs.keys()
                state = state.with_rows(encoding, given)
                if state.legs.keys() != known:  # the scale of a leg was fixed, once for all
                    self._store.save_quantizers(state.quantizers)
                writer.add(documents, encoding, state, impact_terms(vocabulary))
            writer.commit(state)
        self.staging = Staging()

    def merge(self, state: State) -> None:
        """Merge all segments into one, without the deleted rows."""
        with self._undoing() as writer:
            writer.merge(state)

    @contextmanager
    def _undoing(self) -> Iterator[Writer]:
        """Undo what is begun here if anything fails, so that it can be tried again."""
        if self._writer is None:  # the last one was undone
            self._writer = Writer(self._store)
        try:
            with java_errors(self._store.path):
                yield self._writer
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Give up what is not committed, and the lock."""
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()
