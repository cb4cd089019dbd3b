"""Which ids were ever taken from which source: what a prune checks."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from lexvla_indexer.base import Index
from lexvla_indexer.document import Document
from lexvla_indexer.roots import source_of

__all__ = ["Ledger"]

_NAME = "sources.sqlite"
_SCHEMA = """
CREATE TABLE IF NOT EXISTS documents (
    source TEXT NOT NULL, id TEXT NOT NULL, PRIMARY KEY (source, id)
) WITHOUT ROWID
"""


class Ledger:
    """List the ids of each source, in a SQLite file beside the index; created if missing.

    The list may hold too much, never too little: an id is noted before its document is committed.
    The fingerprint of a document in the index names its source, so entries of a killed run do no
    harm.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    @classmethod
    def beside(cls, index: Index) -> Ledger | None:
        """Return the ledger of an index, or ``None`` if the index has no directory."""
        return None if index.directory is None else cls(index.directory / _NAME)

    def note(self, documents: Iterable[Document]) -> None:
        """Record documents, durably."""
        rows = [(source_of(each.fingerprint), each.id) for each in documents]
        self._change("INSERT OR IGNORE INTO documents VALUES (?, ?)", rows)

    def forget(self, source: str, ids: Iterable[str]) -> None:
        """Remove ids."""
        rows = [(source, name) for name in ids]
        self._change("DELETE FROM documents WHERE source = ? AND id = ?", rows)

    def ids(self, source: str) -> list[str]:
        """Return the ids of a source, sorted."""
        with self._open() as db:
            query = "SELECT id FROM documents WHERE source = ? ORDER BY id"
            return [name for (name,) in db.execute(query, (source,))]

    def _change(self, statement: str, rows: Sequence[tuple[str, str]]) -> None:
        if rows:
            with self._open() as db, db:
                db.executemany(statement, rows)

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        try:
            with closing(sqlite3.connect(self._path)) as db:
                db.execute("PRAGMA synchronous = FULL")
                db.execute(_SCHEMA)
                yield db
        except sqlite3.Error as error:
            raise OSError(f"{self._path}: {error}") from error
