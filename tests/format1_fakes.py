"""Write an index as format 1 did: other postings, no checksums, segments numbered by commit."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from scipy import sparse

from lexvla.encoding import Encoding
from lexvla.vocabulary import Vocabulary
from lexvla_indexer import Document

_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE segments (number INTEGER PRIMARY KEY, rows INTEGER NOT NULL);
CREATE TABLE tombstones (
    segment INTEGER NOT NULL, row INTEGER NOT NULL, PRIMARY KEY (segment, row)
) WITHOUT ROWID;
CREATE TABLE documents (
    id TEXT PRIMARY KEY, segment INTEGER NOT NULL, row INTEGER NOT NULL,
    uri TEXT NOT NULL, text TEXT NOT NULL, metadata TEXT NOT NULL, fingerprint TEXT NOT NULL
);
"""

Commit = tuple[Sequence[Document], Encoding | None, Sequence[str]]


def write_format_1(path: Path, vocabulary: Vocabulary, commits: Sequence[Commit]) -> None:
    """Write an index.

    Args:
        path: The directory to make.
        vocabulary: Its terms.
        commits: Of each, the documents by ascending id, their vectors, and ids to delete.
    """
    (path / "segments").mkdir(parents=True)
    (path / "lock").touch()
    vocabulary.save(path / "vocabulary.json")
    db = sqlite3.connect(path / "manifest.sqlite", isolation_level=None)
    db.execute("PRAGMA journal_mode = WAL")
    db.executescript(f"BEGIN; {_SCHEMA}")
    meta: dict[str, object] = {
        "format_version": 1,
        "commit": len(commits),
        "widths": {},
        "vocabulary_sha256": vocabulary.sha256,
        "model": "the old one",
        "writer_version": "0.1.0",
    }
    for number, (documents, encoding, removed) in enumerate(commits, 1):
        gone = [(name,) for name in {*removed, *(document.id for document in documents)}]
        bury = "INSERT INTO tombstones SELECT segment, row FROM documents WHERE id = ?"
        db.executemany(bury, gone)
        db.executemany("DELETE FROM documents WHERE id = ?", gone)
        if encoding is None:
            continue
        meta["widths"] = _write_segment(
            path / "segments" / f"{number:08d}", [document.id for document in documents], encoding
        )
        db.execute("INSERT INTO segments VALUES (?, ?)", (number, len(documents)))
        db.executemany(
            "INSERT INTO documents VALUES (?, ?, ?, ?, ?, ?, ?)",
            (
                (d.id, number, row, d.uri, d.text, _to_json(d.metadata), d.fingerprint)
                for row, d in enumerate(documents)
            ),
        )
    rows = [(key, json.dumps(value)) for key, value in meta.items()]
    db.executemany("INSERT INTO meta VALUES (?, ?)", rows)
    db.execute("COMMIT")
    db.close()


def _write_segment(folder: Path, ids: Sequence[str], encoding: Encoding) -> Mapping[str, int]:
    names = [name.encode() for name in ids]
    arrays = {
        "ids.text": np.frombuffer(b"".join(names), np.uint8),
        "ids.start": np.cumsum([0, *map(len, names)], dtype=np.int64),
        **_sparse_arrays("lexical", encoding.lexical),
    }
    widths = {"lexical": encoding.lexical.shape[1]}
    if encoding.patches is not None:
        arrays["patch"] = encoding.patches
    if encoding.codes is not None:
        arrays |= _sparse_arrays("codes", encoding.codes)
        widths["codes"] = encoding.codes.shape[1]
    if encoding.dense is not None:
        arrays["dense"] = encoding.dense
        widths["dense"] = encoding.dense.shape[1]
    folder.mkdir()
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    return widths


def _sparse_arrays(leg: str, rows: sparse.csr_array) -> dict[str, np.ndarray]:
    columns = rows.tocsc()
    return {
        f"{leg}.row.start": rows.indptr.astype(np.int64),
        f"{leg}.row.column": rows.indices.astype(np.int32),
        f"{leg}.row.weight": rows.data,
        f"{leg}.column.start": columns.indptr.astype(np.int64),
        f"{leg}.column.row": columns.indices.astype(np.int32),
        f"{leg}.column.weight": columns.data,
    }


def _to_json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
