"""Write to the index, one process at a time."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from lexvla.encoder import Encoder
from lexvla.encoding import Encoding
from lexvla.errors import IndexLockedError
from lexvla_indexer import Document, Index, open_index
from lexvla_indexer.base import check_match
from lexvla_indexer.pipeline import take_writer_lock

__all__ = ["IndexWriter"]

_PAUSE = 0.02  # seconds between attempts to become the writer


class IndexWriter:
    """Write to an index in turns with other processes; for one thread.

    The engine's lock is held for one commit only, so that a server's workers and commands such as
    ``lexvla index`` take turns. A writer waits `seconds` for its turn.
    """

    def __init__(self, address: str, encoder: Encoder, seconds: float) -> None:
        self._address = address
        self._encoder = encoder
        self._seconds = seconds

    def put(self, parts: Sequence[tuple[Sequence[Document], Encoding]]) -> None:
        """Add documents and commit; `IndexLockedError` if another process keeps the lock."""
        with self._index() as index:
            check_match(self._encoder, index)
            for documents, encoding in parts:
                index.add(documents, encoding)
            index.commit()

    def delete(self, ids: Sequence[str]) -> int:
        """Delete documents and commit. Return how many existed; `IndexLockedError` as in `put`."""
        with self._index() as index:
            deleted = index.delete(ids)
            index.commit()
            return deleted

    @contextmanager
    def _index(self) -> Iterator[Index]:
        deadline = time.monotonic() + self._seconds
        while True:
            index = open_index(self._address)
            try:
                take_writer_lock(index)
                break
            except IndexLockedError:
                index.close()
                if time.monotonic() > deadline:
                    raise
                time.sleep(_PAUSE)
            except BaseException:
                index.close()
                raise
        with index:
            yield index
