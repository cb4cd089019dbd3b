"""A segment: vectors of one commit, as plain arrays that never change.

A segment of n rows is a directory of ``.npy`` files, readable with numpy alone, and one of JSON.
Rows are in the order of their ids, and so are rows of equal score.

    segment.json         the quantisers of the postings; size and CRC-32 of each other file
    ids.*                the ids: see `lexvla_indexer.embedded.stored_strings`
    LEG.row.start        int64    (n + 1) the rows, exact: compressed sparse rows
    LEG.row.entry        their entries: the column, uint16, or int32 if the leg has more than 65,536
                         of them, and the weight, float32
    LEG.posting.*        the postings, for searches: see `lexvla_indexer.embedded.postings`
    text.word.*          the words of the documents' texts, ascending, stored as the ids are: the
                         columns of the leg ``text``
    patch                int16    aligned with lexical.row.entry; -1 for a word without one;
                                  no such file if no word has one
    dense                float32  (n, width)
    dense.byte.*         a copy in bytes, of a large segment: see
                         `lexvla_indexer.embedded.dense_bytes`
    dense.list.*         the rows of a large segment by code: see
                         `lexvla_indexer.embedded.dense_lists`

LEG is ``lexical``, ``codes`` or ``text``, whose weights are the impacts of `lexvla_indexer.bm25`.
An index without codes or dense vectors has no such files, nor has a segment without texts.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lexvla.encoding import Encoding
from lexvla.errors import IndexCorruptError
from lexvla_indexer.bm25 import TextRows, used_columns
from lexvla_indexer.durable import fsync, writing
from lexvla_indexer.embedded.arrays import Mark, demand, mark, save_array
from lexvla_indexer.embedded.dense import DenseLeg
from lexvla_indexer.embedded.dense_bytes import BYTES_FROM, DenseBytes, write_bytes
from lexvla_indexer.embedded.dense_lists import DenseLists, wants_lists, write_lists
from lexvla_indexer.embedded.sparse_leg import SparseLeg, write_leg
from lexvla_indexer.embedded.stored_rows import StoredArray
from lexvla_indexer.embedded.stored_strings import StoredStrings, string_arrays
from lexvla_indexer.legs import Leg

__all__ = ["Segment", "write_segment"]

_HEAD = "segment.json"


def write_segment(folder: Path, ids: Sequence[str], encoding: Encoding, text: TextRows) -> int:
    """Write a segment into a new directory, sync it to the disk, and return its checksum.

    Ids are ascending, one for each row.
    """
    folder.mkdir()
    arrays = string_arrays("ids", ids)
    if text.words:
        arrays |= string_arrays("text.word", text.words)
    if encoding.patches is not None and (encoding.patches >= 0).any():
        arrays["patch"] = encoding.patches
    if encoding.dense is not None:
        arrays["dense"] = encoding.dense
    files = {f"{name}.npy": save_array(folder / f"{name}.npy", arrays[name]) for name in arrays}
    quantizers = {}
    impacts = text.impacts if text.words else None
    for leg, rows in (("lexical", encoding.lexical), ("codes", encoding.codes), ("text", impacts)):
        if rows is not None:
            written, quantizer = write_leg(folder, leg, rows)
            files |= written
            quantizers[leg] = quantizer.to_dict()
    dense, codes = encoding.dense, encoding.codes
    if dense is not None and codes is not None and wants_lists(len(ids), codes):
        files |= {file.name: mark(file) for file in write_lists(folder, dense, codes)}
    if dense is not None and len(ids) >= BYTES_FROM:
        files |= {file.name: mark(file) for file in write_bytes(folder, dense)}
    for name in files:
        fsync(folder / name)
    head = {"quantizers": quantizers, "files": files}
    content = json.dumps(head, indent=1).encode()
    with writing(folder / _HEAD) as head_file:
        head_file.write(content)
    fsync(folder / _HEAD)
    fsync(folder)
    return zlib.crc32(content)


class Segment:
    """Open one segment: search its legs, read its rows. Damaged files raise IndexCorruptError.

    ``widths`` are those of the index's legs of vectors; ``checksum`` is what `write_segment`
    returned.

    Attributes:
        count: How many rows there are.
        sparse: The legs ``lexical``; ``codes``, if the index has it; ``text``, if a row has words.
        words: The columns of the leg ``text``, if there is one.
        dense: The dense leg, if the index has it.
    """

    def __init__(self, folder: Path, rows: int, widths: Mapping[str, int], checksum: int) -> None:
        self.count = rows
        self._folder = folder
        self._checksum = checksum
        self._files: dict[str, Mark] = {}
        quantizers = self._read_head(checksum)
        try:
            self._open(rows, widths, quantizers)
        except IndexCorruptError as error:
            for damage in self.damage():  # another file may be the cause
                raise IndexCorruptError(damage) from error
            raise

    def _open(self, rows: int, widths: Mapping[str, int], quantizers: Mapping[str, Any]) -> None:
        folder = self._folder
        self._ids = StoredStrings(folder, "ids", rows)
        self.words: StoredStrings | None = None
        columns = {leg: widths[leg] for leg in ("lexical", "codes") if leg in widths}
        if "text" in quantizers:
            self.words = StoredStrings(folder, "text.word")
            columns["text"] = len(self.words)
        self.sparse = {
            leg: SparseLeg(folder, leg, rows, width, quantizers[leg])
            for leg, width in columns.items()
        }
        self._patch: StoredArray | None = None
        # Not by a look into the folder: a writer that has merged this segment may be removing its
        # files.
        if "patch.npy" in self._files:
            stored = self.sparse["lexical"].stored
            self._patch = StoredArray(folder / "patch.npy", np.int16, (stored,))
        self.dense: DenseLeg | None = None
        if "dense" in widths:
            shape = rows, widths["dense"]
            self._dense = StoredArray(folder / "dense.npy", np.float32, shape)
            has_lists = any(name.startswith("dense.list.") for name in self._files)
            lists = DenseLists.open(folder, *shape) if has_lists else None
            has_bytes = "dense.byte.npy" in self._files
            copy = DenseBytes.open(folder, *shape) if has_bytes else None
            self.dense = DenseLeg(self._dense.mapped, lists, copy)

    def _read_head(self, checksum: int) -> dict[str, Any]:
        path = self._folder / _HEAD
        try:
            content = path.read_bytes()
        except OSError as error:
            raise IndexCorruptError(f"{path}: missing ({error})") from error
        demand(path, zlib.crc32(content) == checksum, "damaged, or of another segment")
        head = json.loads(content)
        self._files = {name: Mark(*values) for name, values in head["files"].items()}
        for name, known in self._files.items():
            file = self._folder / name
            try:
                size = file.stat().st_size
            except OSError as error:
                raise IndexCorruptError(f"{file}: missing ({error})") from error
            demand(file, size == known.size, f"must have {known.size} bytes, not {size}")
        return dict(head["quantizers"])

    def damage(self) -> Iterator[str]:
        """Read all files, and yield what is wrong with each that changed since it was written."""
        known = {_HEAD: self._checksum}
        known |= {name: wanted.crc32 for name, wanted in self._files.items()}
        for name, checksum in known.items():
            file = self._folder / name
            try:
                found = mark(file).crc32
            except OSError as error:
                yield f"{file}: cannot be read ({error})"
                continue
            if found != checksum:
                yield f"{file}: damaged: its checksum is {found:08x}, not {checksum:08x}"

    def scores(self, leg: Leg, query: Any, rows: np.ndarray) -> np.ndarray:
        """Return the exact scores of some rows, float64.

        ``query`` is its row of a sparse leg, or its dense vector.
        """
        if leg == "dense" and self.dense is not None:
            return self.dense.scores(rows, query)
        return self.sparse[leg].scores(rows, query)

    def ids(self, rows: np.ndarray) -> list[str]:
        """Return the ids of rows."""
        return self._ids.take(rows)

    def text(self, rows: np.ndarray) -> TextRows:
        """Return the words of rows, with their impacts."""
        if self.words is None:
            return TextRows.of([""] * len(rows))
        impacts, _ = self.sparse["text"].take(rows)
        impacts, kept = used_columns(impacts)
        return TextRows(self.words.take(kept), impacts)

    def encoding(self, rows: np.ndarray) -> Encoding:
        """Return the stored vectors of rows in the given order; damage raises IndexCorruptError."""
        patches, vectors = None, None
        try:
            lexical, firsts = self.sparse["lexical"].take(rows)
            if self._patch is not None:
                patches = self._patch.take(firsts, np.diff(lexical.indptr).astype(np.int64))
            if self.dense is not None:
                width = self.dense.rows.shape[1]
                vectors = self._dense.take(rows * width, np.full(len(rows), width, np.int64))
                vectors = vectors.reshape(len(rows), width)
            codes = self.sparse["codes"].take(rows)[0] if "codes" in self.sparse else None
            return Encoding(lexical, patches, codes, vectors)
        except (ValueError, IndexError) as error:
            raise IndexCorruptError(f"{self._folder}: a stored row is damaged ({error})") from error

    def active_words(self, allowed: np.ndarray | None) -> int:
        """Return the number of words stored in the allowed rows."""
        lengths = self.sparse["lexical"].lengths
        return int(lengths.sum() if allowed is None else lengths[allowed].sum())
