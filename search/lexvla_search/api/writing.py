"""Write to the index, one process at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from lexvla.encoder import Encoder
from lexvla.encoding import Encoding
from lexvla.errors import IndexLockedError, InputError, UnsupportedError
from lexvla_indexer import Document, Index, open_index
from lexvla_indexer.base import check_match
from lexvla_indexer.pipeline import take_writer_lock

__all__ = ["IndexWriter"]

_CLOSE = 0.02  # square of the relative difference of vectors that are the same text's
_PAUSE = 0.02  # seconds between attempts to become the writer


class IndexWriter:
    """Write to an index in turns with other processes; for one thread.

    The engine's lock is held for one commit only, so that a server's workers and commands such as
    ``lexvla index`` take turns. A writer waits `seconds` for its turn.
    """

    def __init__(self, address: str, encoder: Encoder | None, seconds: float) -> None:
        self._address = address
        self._encoder = encoder
        self._seconds = seconds

    def put(self, parts: Sequence[tuple[Sequence[Document], Encoding]]) -> None:
        """Add documents and commit; `IndexLockedError` if another process keeps the lock."""
        with self._index() as index:
            self._matching(index)
            for documents, encoding in parts:
                index.add(documents, encoding)
            index.commit()

    def delete(self, ids: Sequence[str]) -> int:
        """Delete documents and commit. Return how many existed; `IndexLockedError` as in `put`."""
        with self._index() as index:
            deleted = index.delete(ids)
            index.commit()
            return deleted

    def change(self, name: str, change: Callable[[Document], Document]) -> tuple[Document, bool]:
        """Change a document and commit; return it, and whether its new text was encoded.

        The vectors stay, unless the text is new and they are those of the old one. Errors beside
        those of `put`: `UnknownDocumentError`; `InputError` if no text is left to encode;
        `UnsupportedError` if there is no model that tells.
        """
        with self._index() as index:
            (old,), vectors = index.fetch([name])
            new = change(old)
            again = new.text != old.text and self._is_of_text(index, old.text, vectors)
            if again:
                if not new.text.strip():
                    raise InputError(name, "a document without an image needs a text")
                vectors = self._matching(index).encode_text([new.text])
            if new != old:
                index.add([new], vectors)
                index.commit()
            return new, again

    def _is_of_text(self, index: Index, text: str, vectors: Encoding) -> bool:
        """Return whether these vectors were made of the text, and not of an image or elsewhere."""
        if vectors.patches is not None and (vectors.patches >= 0).any():
            return False
        made = self._matching(index).encode_text([text]).lexical
        # Not exactly, as engines keep weights in fewer bits.
        return _square(made - vectors.lexical) <= _CLOSE * _square(made)

    def _matching(self, index: Index) -> Encoder:
        if self._encoder is None:
            raise UnsupportedError("this server runs without a model: it cannot encode")
        check_match(self._encoder, index)
        return self._encoder

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


def _square(rows: Any) -> float:
    return float(rows.multiply(rows).sum())
