"""The manifest of an index: one SQLite file that says which documents and segments are live."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lexvla.errors import IndexCorruptError, IndexVersionError, InputError
from lexvla_indexer.document import Document, MetadataValue
from lexvla_indexer.embedded.selection import condition, path_of
from lexvla_indexer.filters import Filter, check_fields
from lexvla_indexer.known_fields import check_known

__all__ = ["FORMAT_VERSION", "Entry", "Manifest", "Place", "State"]

FORMAT_VERSION = 7

_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE segments (
    number INTEGER PRIMARY KEY, rows INTEGER NOT NULL, checksum INTEGER NOT NULL
);
CREATE TABLE tombstones (
    segment INTEGER NOT NULL, row INTEGER NOT NULL, PRIMARY KEY (segment, row)
) WITHOUT ROWID;
CREATE TABLE documents (
    id TEXT PRIMARY KEY, segment INTEGER NOT NULL, row INTEGER NOT NULL,
    uri TEXT NOT NULL, text TEXT NOT NULL, metadata TEXT NOT NULL, fingerprint TEXT NOT NULL
);
"""
_BUSY_SECONDS = 30
# How SQLite names damage; anything else (disk full, no permission, ...) is not damage.
_DAMAGE = ("SQLITE_CORRUPT", "SQLITE_NOTADB", "SQLITE_ERROR", "SQLITE_IOERR_SHORT_READ")


class Entry(NamedTuple):
    """A segment's number of rows, and the checksum of its segment.json."""

    rows: int
    checksum: int


class Place(NamedTuple):
    """Where a document's vectors lie."""

    segment: int
    row: int


@dataclass(frozen=True)
class State:
    """Describe one commit.

    Attributes:
        commit: Its number, one higher than that of the previous commit.
        vocabulary_sha256: The hash of the vocabulary; empty if there is none yet.
        widths: The number of columns of each leg; empty until the first vectors come.
        next_segment: The first number that no segment has had.
        tombstones: The deleted rows of each segment that has any.
    """

    commit: int
    vocabulary_sha256: str
    model: str | None
    writer_version: str
    widths: dict[str, int]
    segments: dict[int, Entry]
    next_segment: int
    tombstones: dict[int, np.ndarray]


class Manifest:
    """Read a manifest as of one commit, and write the next.

    All reads between two calls of `refresh` see the same commit: they share one read transaction.
    A manifest that is not ``writable`` cannot `commit`, `merge` or `shrink`. IndexVersionError if
    another version of this program wrote it, perhaps just before a `refresh`.
    """

    def __init__(self, path: Path, writable: bool = False) -> None:
        self._path = path
        self._seen, self._commit = -1, 0  # the data version of SQLite, and its commit
        mode = "rw" if writable else "ro"
        if not os.access(path.parent, os.W_OK) and not path.with_name(path.name + "-wal").exists():
            mode = "ro&immutable=1"  # SQLite cannot keep its own files beside the manifest
        with _errors(self._path):
            self._db = sqlite3.connect(
                f"{path.resolve().as_uri()}?mode={mode}",
                uri=True,
                isolation_level=None,
                timeout=_BUSY_SECONDS,
                check_same_thread=False,
            )
        try:
            if writable:
                self._db.execute("PRAGMA synchronous = FULL")
            self.refresh()
        except BaseException:
            self._db.close()
            raise

    @staticmethod
    def create(path: Path, meta: Mapping[str, str | int | None]) -> None:
        """Write the manifest of an empty index, not yet under the name that makes it one."""
        fixed: dict[str, object] = {"format_version": FORMAT_VERSION, "commit": 0, "widths": {}}
        rows = [(key, json.dumps(value)) for key, value in {**fixed, **meta}.items()]
        with _errors(path), closing(sqlite3.connect(path, isolation_level=None)) as db:
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = FULL")
            db.executescript(f"BEGIN; {_SCHEMA}")
            db.executemany("INSERT INTO meta VALUES (?, ?)", rows)
            db.execute("COMMIT")

    def refresh(self) -> int:
        """Move to the newest commit, and return its number."""
        with _errors(self._path):
            if self._db.in_transaction:
                self._db.execute("COMMIT")
            self._db.execute("BEGIN")
            # Reading this shows the transaction the newest commit. It changes with the commits of
            # other connections; for those of this one see `_transaction`.
            seen = int(self._db.execute("PRAGMA data_version").fetchone()[0])
            if seen == self._seen:
                return self._commit
            self._seen = -1
            meta = self._meta()
            version = int(meta["format_version"])
            if version != FORMAT_VERSION:
                written = f"index format {version}, written by lexvla {meta.get('writer_version')}"
                rule = f"is newer than this program reads ({FORMAT_VERSION})"
                if version < FORMAT_VERSION:
                    rule = f"is older than this program reads ({FORMAT_VERSION})"
                    rule += "; index the items again"
                raise IndexVersionError(f"{self._path}: {written}, {rule}")
            self._commit, self._seen = int(meta["commit"]), seen
            return self._commit

    def state(self) -> State:
        """Describe the commit that reads see."""
        with _errors(self._path):
            meta = self._meta()
            query = "SELECT * FROM segments ORDER BY number"
            segments = {int(row[0]): Entry(*map(int, row[1:])) for row in self._db.execute(query)}
            deleted: dict[int, list[int]] = {}
            for number, row in self._db.execute("SELECT segment, row FROM tombstones"):
                if not 0 <= row < segments[number].rows:
                    raise ValueError(f"segment {number} has no row {row}")
                deleted.setdefault(number, []).append(row)
            used = max(int(meta.get("last_segment", 0)), 0, *segments)
            return State(
                commit=int(meta["commit"]),
                vocabulary_sha256=str(meta["vocabulary_sha256"]),
                model=meta["model"],
                writer_version=str(meta["writer_version"]),
                widths={str(leg): int(width) for leg, width in meta["widths"].items()},
                segments=segments,
                next_segment=used + 1,
                tombstones={n: np.array(rows, np.int64) for n, rows in deleted.items()},
            )

    def find(self, ids: Iterable[str]) -> dict[str, tuple[Document, Place]]:
        """Return those of the documents that exist."""
        found = {}
        with _errors(self._path):
            for name, segment, row, *held in self._named("*", ids):
                found[name] = (self._document(name, *held), Place(int(segment), int(row)))
        return found

    def documents(self, ids: Iterable[str]) -> dict[str, Document]:
        """Return those of the documents that exist, without their places."""
        columns = "id, uri, text, metadata, fingerprint"
        with _errors(self._path):
            return {held[0]: self._document(*held) for held in self._named(columns, ids)}

    def places(self, ids: Iterable[str]) -> dict[str, Place]:
        """Return where the vectors of those of the documents that exist lie."""
        with _errors(self._path):
            found = self._named("id, segment, row", ids)
            return {name: Place(int(segment), int(row)) for name, segment, row in found}

    def fingerprints(self, ids: Iterable[str]) -> dict[str, str]:
        """Return the fingerprints of those of the documents that exist."""
        with _errors(self._path):
            return dict(self._named("id, fingerprint", ids))

    def fingerprinted(self, start: str) -> list[tuple[str, str]]:
        """Return id and fingerprint of each document whose fingerprint starts so, by id."""
        query = "SELECT id, fingerprint FROM documents WHERE substr(fingerprint, 1, ?) = ?"
        with _errors(self._path):
            return sorted(self._db.execute(query, (len(start), start)))

    def select(self, filter: Filter, segments: Mapping[int, Entry]) -> dict[int, np.ndarray]:  # noqa: A002
        """Return a mask over the rows of each segment: those whose documents a filter chooses.

        Exceptions of `Filter.matches` pass through unchanged; a field that no document has raises
        `InputError`.
        """
        check_fields(filter, self._has_field, self._fields)
        test = condition(filter)
        masks = {number: np.zeros(e.rows, bool) for number, e in segments.items()}
        raised: list[BaseException] = []

        def decide(name: str, uri: str, text: str, metadata: str) -> bool:
            try:
                return filter.matches(self._document(name, uri, text, metadata))
            except BaseException as error:  # SQLite only says that there was one
                raised.append(error)
                raise

        try:
            with _errors(self._path):
                self._db.create_function("decide", 4, decide)
                query = f"""
                    SELECT segment, row FROM documents
                    WHERE coalesce({test.sql}, decide(id, uri, text, metadata))
                """  # noqa: S608 - the condition binds all its values
                for number, row in self._db.execute(query, test.values):
                    masks[number][row] = True
        except (IndexCorruptError, MemoryError, OSError):
            if raised:
                raise raised[0] from None
            raise
        return masks

    def check_known(self, fields: Iterable[str], purpose: str) -> None:
        """Refuse metadata fields that no document has (InputError)."""
        check_known(fields, purpose, self._has_field, self._fields)

    def held(self) -> Iterator[tuple[Place, str, dict[str, MetadataValue]]]:
        """Yield where each document's vectors lie, its id and its metadata."""
        with _errors(self._path):
            query = "SELECT segment, row, id, metadata FROM documents"
            for number, row, name, metadata in self._db.execute(query):
                yield Place(int(number), int(row)), str(name), json.loads(metadata)

    def _has_field(self, name: str) -> bool:
        """Tell whether a document has a metadata field; ``True`` if SQLite cannot name it."""
        path = path_of(name)
        if path is None:
            return True
        query = "SELECT 1 FROM documents WHERE json_type(metadata, ?) IS NOT NULL LIMIT 1"
        with _errors(self._path):
            return self._db.execute(query, (path,)).fetchone() is not None

    def _fields(self) -> list[str] | None:
        """Return all metadata fields; ``None`` if there are no documents."""
        with _errors(self._path):
            if not self._db.execute("SELECT 1 FROM documents LIMIT 1").fetchone():
                return None
            query = "SELECT DISTINCT key FROM documents, json_each(metadata)"
            keys = [key for (key,) in self._db.execute(query)]
            if not all(isinstance(key, str) for key in keys):
                raise ValueError("metadata must be an object")
            return keys

    def commit(
        self,
        rows: Mapping[int, int],
        documents: Sequence[Document],
        removed: Collection[str],
        meta: Mapping[str, str | dict[str, int]],
        written: Callable[[], Mapping[int, Entry]],
    ) -> None:
        """Add segments with their documents, and mark rows as deleted, in one transaction.

        ``rows`` has the number of rows of each new segment, whose documents come in order;
        ``removed`` the ids whose old rows are deleted or replaced; ``meta`` the values that change.
        ``written`` waits until the segments are on the disk, and returns them.
        """
        places = ((number, row) for number, count in rows.items() for row in range(count))
        with self._transaction():
            if self._db.execute("SELECT 1 FROM documents LIMIT 1").fetchone():
                gone = [(name,) for name in removed]
                bury = "INSERT INTO tombstones SELECT segment, row FROM documents WHERE id = ?"
                self._db.executemany(bury, gone)
                self._db.executemany("DELETE FROM documents WHERE id = ?", gone)
            self._db.executemany(
                "INSERT INTO documents VALUES (?, ?, ?, ?, ?, ?, ?)",
                (
                    (d.id, *place, d.uri, d.text, _to_json(d.metadata), d.fingerprint)
                    for place, d in zip(places, documents, strict=True)
                ),
            )
            for key, value in meta.items():
                self._db.execute("UPDATE meta SET value = ? WHERE key = ?", (_to_json(value), key))
            self._add(written())

    def merge(self, old: Iterable[int], new: Mapping[int, Entry], ids: Sequence[str]) -> None:
        """Replace segments by others, whose rows have these ids in order, in one transaction."""
        gone = [(number,) for number in old]
        places = ((number, row) for number, entry in new.items() for row in range(entry.rows))
        with self._transaction():
            self._db.executemany("DELETE FROM tombstones WHERE segment = ?", gone)
            self._db.executemany("DELETE FROM segments WHERE number = ?", gone)
            self._add(new)
            self._db.executemany(
                "UPDATE documents SET segment = ?, row = ? WHERE id = ?",
                ((*place, name) for place, name in zip(places, ids, strict=True)),
            )

    def shrink(self) -> None:
        """Return the space of what was deleted to the disk."""
        with _errors(self._path):
            if self._db.in_transaction:
                self._db.execute("COMMIT")
            if self._db.execute("PRAGMA freelist_count").fetchone()[0]:
                self._db.execute("VACUUM")
        self.refresh()

    def _add(self, segments: Mapping[int, Entry]) -> None:
        rows = [(number, *entry) for number, entry in segments.items()]
        self._db.executemany("INSERT INTO segments VALUES (?, ?, ?)", rows)
        if segments:
            last = ("last_segment", str(max(segments)))
            self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", last)

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def _named(self, columns: str, ids: Iterable[str]) -> sqlite3.Cursor:
        """Select the documents of all these ids: a query for each would take five times as long."""
        query = f"""
            SELECT {columns} FROM documents WHERE id IN (SELECT value FROM json_each(?))
        """  # noqa: S608 - columns are ours
        return self._db.execute(query, (json.dumps(list(ids), ensure_ascii=False),))

    def _document(
        self, name: str, uri: str, text: str, metadata: str, fingerprint: str = ""
    ) -> Document:
        try:
            return Document(name, uri, text, json.loads(metadata), fingerprint)
        except (ValueError, TypeError, AttributeError, InputError) as error:
            raise IndexCorruptError(f"{self._path}: damaged ({error!r})") from error

    def _meta(self) -> dict[str, Any]:
        rows = self._db.execute("SELECT key, value FROM meta")
        return {str(key): json.loads(value) for key, value in rows}

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """Make one commit, durable if nothing fails; then move to it."""
        number = self.refresh() + 1
        self._seen = -1
        with _errors(self._path):
            self._db.execute("COMMIT")
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("UPDATE meta SET value = ? WHERE key = 'commit'", (str(number),))
                self._db.execute("COMMIT")
            finally:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
        self.refresh()


@contextmanager
def _errors(path: Path) -> Iterator[None]:
    """Name the damaged file in place of the errors of SQLite and JSON."""
    try:
        yield
    except sqlite3.ProgrammingError:
        raise
    except sqlite3.DatabaseError as error:
        name = getattr(error, "sqlite_errorname", "SQLITE_CORRUPT")
        if name.startswith(_DAMAGE):
            raise IndexCorruptError(f"{path}: damaged ({error})") from error
        raise OSError(f"{path}: {error}") from error
    except (ValueError, TypeError, LookupError, OverflowError) as error:
        raise IndexCorruptError(f"{path}: damaged ({error!r})") from error


# Made once: for many documents, making it takes longer than using it.
_to_json = json.JSONEncoder(ensure_ascii=False).encode
