"""Small copies of uploaded pictures, in a file of bounded size that several processes share."""

from __future__ import annotations

import io
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from lexvla.errors import LexVLAError

__all__ = ["Thumbnail", "Thumbnails", "thumbnail_of"]

_FILE = "thumbnails.sqlite"
_FORMAT_VERSION = 1
_SIDE, _QUALITY = 512, 85
_SECONDS = 10.0  # to wait for another process
_SCHEMA = f"""
PRAGMA journal_mode = WAL;
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS thumbnails (
    number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, fingerprint TEXT NOT NULL,
    size INTEGER NOT NULL, jpeg BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS sizes ON thumbnails (size);
PRAGMA user_version = {_FORMAT_VERSION};
COMMIT
"""


class Thumbnail(NamedTuple):
    """A picture of a document, which is only shown while the document has this fingerprint."""

    id: str
    fingerprint: str
    jpeg: bytes


def thumbnail_of(image: Image.Image) -> bytes:
    """Return an RGB image as JPEG, its longer side at most 512 pixels."""
    scale = min(1.0, _SIDE / max(image.size))
    width, height = (max(1, round(side * scale)) for side in image.size)
    data = io.BytesIO()
    image.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3.0).save(
        data, "JPEG", quality=_QUALITY
    )
    return data.getvalue()


class Thumbnails:
    """Keep at most `most` bytes of thumbnails in a folder; the oldest make room for new ones.

    Threads may share an object. A folder that cannot be written raises `LexVLAError`.
    """

    def __init__(self, folder: Path, most: int) -> None:
        self._path = folder / _FILE
        self._most = most
        self._lock = threading.Lock()
        try:
            self._data = sqlite3.connect(self._path, _SECONDS, check_same_thread=False)
            (version,) = self._data.execute("PRAGMA user_version").fetchone()
            if version not in (0, _FORMAT_VERSION):
                raise LexVLAError(f"{self._path}: thumbnails of format {version} are not read")
            self._data.executescript(_SCHEMA)
        except sqlite3.Error as error:
            raise LexVLAError(f"{self._path}: thumbnails cannot be kept here ({error})") from error

    def has(self, name: str, fingerprint: str) -> bool:
        """Return whether there is a thumbnail of this version of a document."""
        return self._find("1", name, fingerprint) is not None

    def get(self, name: str, fingerprint: str) -> bytes | None:
        """Return the JPEG of this version of a document, if it is there."""
        return self._find("jpeg", name, fingerprint)

    def replace(self, names: Sequence[str], new: Sequence[Thumbnail]) -> None:
        """Delete the thumbnails of these documents, and add new ones."""
        with self._change() as data:
            data.executemany("DELETE FROM thumbnails WHERE id = ?", [(name,) for name in names])
            data.executemany(
                "INSERT OR REPLACE INTO thumbnails (id, fingerprint, size, jpeg)"
                " VALUES (?, ?, ?, ?)",
                [(one.id, one.fingerprint, len(one.jpeg), one.jpeg) for one in new],
            )
            (total,) = data.execute("SELECT total(size) FROM thumbnails").fetchone()
            oldest = data.execute("SELECT number, size FROM thumbnails ORDER BY number")
            last = None
            while total > self._most:
                last, size = oldest.fetchone()
                total -= size
            oldest.close()
            data.execute("DELETE FROM thumbnails WHERE number <= ?", (last,))

    def close(self) -> None:
        """Close the file."""
        self._data.close()

    def _find(self, what: str, name: str, fingerprint: str) -> bytes | None:
        query = f"SELECT {what} FROM thumbnails WHERE id = ? AND fingerprint = ?"  # noqa: S608
        with self._lock:
            found = self._data.execute(query, (name, fingerprint)).fetchone()
        return None if found is None else found[0]

    @contextmanager
    def _change(self) -> Iterator[sqlite3.Connection]:
        with self._lock, self._data:
            self._data.execute("BEGIN IMMEDIATE")
            yield self._data
