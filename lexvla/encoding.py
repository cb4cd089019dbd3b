"""The vectors of a batch of items."""

from __future__ import annotations

import json
import re
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
from scipy import sparse

from lexvla.errors import UnsupportedError, VocabularyMismatchError
from lexvla.vocabulary import Vocabulary

__all__ = ["Encoding"]

_FORMAT_VERSION = 1
# Java's white space, where Lucene's WhitespaceTokenizer splits; it excludes non-breaking spaces.
_JAVA_SPACE = re.compile(
    "[\\t-\\r\\x1c-\\x20\\u1680\\u2000-\\u2006\\u2008-\\u200a\\u2028\\u2029\\u205f\\u3000]"
)
# What zipfile and numpy raise for damage, besides ValueError.
_DAMAGED: Final = (
    *(OSError, EOFError, KeyError, TypeError, RuntimeError),
    *(zlib.error, zipfile.BadZipFile),
)
_LONGEST_TOKEN = 255  # UTF-16 units, of the same tokenizer


@dataclass(frozen=True, eq=False)  # arrays cannot be compared by ==
class Encoding:
    """The vectors of n items, one a row; indexing and slicing return an `Encoding`.

    Attributes:
        lexical: (n, V) float32 CSR, values > 0, sorted columns; rows may be empty.
        patches: (lexical.nnz,) int16, aligned with ``lexical.data``: the image patch of each word,
            counted row by row over the patch grid; ``None`` for text.
        codes: (n, K) float32 CSR of codebook weights, or ``None``.
        dense: (n, d) float32 unit rows, or ``None``.
    """

    lexical: sparse.csr_array
    patches: np.ndarray | None = None
    codes: sparse.csr_array | None = None
    dense: np.ndarray | None = None

    def __post_init__(self) -> None:
        for name in ("lexical", "codes"):
            matrix = getattr(self, name)
            if matrix is None:
                continue
            if not isinstance(matrix, sparse.csr_array):
                matrix = sparse.csr_array(matrix)
            width = matrix.shape[1]
            if matrix.dtype != np.float32:
                raise ValueError(f"{name} must be float32, not {matrix.dtype}")
            if not matrix.has_canonical_format:
                raise ValueError(f"{name} must have sorted column numbers, each once in a row")
            # scipy trusts columns: wrong ones read and write outside its arrays.
            if matrix.nnz and not 0 <= matrix.indices.min() <= matrix.indices.max() < width:
                raise ValueError(f"{name} must have column numbers from 0 to {width - 1}")
            if matrix.nnz and not (np.isfinite(matrix.data).all() and matrix.data.min() > 0):
                raise ValueError(f"{name} must hold finite values above zero only")
            if matrix.shape[0] != len(self):
                raise ValueError(f"{name} has {matrix.shape[0]} rows, lexical has {len(self)}")
            object.__setattr__(self, name, matrix)
        if self.patches is not None and (
            self.patches.shape != (self.lexical.nnz,) or self.patches.dtype != np.int16
        ):
            raise ValueError("patches must be int16, one for each stored word")
        if self.dense is not None and (
            self.dense.ndim != 2
            or self.dense.shape[0] != len(self)
            or self.dense.dtype != np.float32
        ):
            raise ValueError("dense must be a float32 matrix with one row for each item")
        if self.dense is not None and not np.isfinite(self.dense).all():
            raise ValueError("dense must hold finite values only")

    def __len__(self) -> int:
        return int(self.lexical.shape[0])

    def __getitem__(self, index: int | slice | Sequence[int] | np.ndarray) -> Encoding:
        rows = np.atleast_1d(np.arange(len(self))[index])
        lexical, places = _taken(self.lexical, rows)
        return Encoding(
            lexical,
            None if self.patches is None else self.patches[places],
            None if self.codes is None else _taken(self.codes, rows)[0],
            None if self.dense is None else self.dense[rows],
        )

    def words(self, row: int) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Return the columns and weights of a row's words, and their patches if there are any.

        They are views of the arrays: much faster than an encoding of the row.
        """
        span = slice(*self.lexical.indptr[row : row + 2].tolist())
        patches = None if self.patches is None else self.patches[span]
        return self.lexical.indices[span], self.lexical.data[span], patches

    def __iter__(self) -> Iterator[Encoding]:
        return (self[i] for i in range(len(self)))

    @classmethod
    def concat(cls, parts: Sequence[Encoding]) -> Encoding:
        """Stack encodings.

        Raises:
            ValueError: There are none, or their legs differ.
        """
        if not parts:
            raise ValueError("nothing to concatenate")
        if len(parts) == 1:
            return parts[0]
        for leg in ("patches", "codes", "dense"):
            if len({getattr(part, leg) is None for part in parts}) > 1:
                raise ValueError(f"some encodings have {leg} and some have none")
        first = parts[0]
        return cls(
            sparse.csr_array(sparse.vstack([p.lexical for p in parts], format="csr")),
            None if first.patches is None else np.concatenate([p.patches for p in parts]),
            None
            if first.codes is None
            else sparse.csr_array(sparse.vstack([p.codes for p in parts], format="csr")),
            None if first.dense is None else np.concatenate([p.dense for p in parts]),
        )

    def save(self, path: str | Path) -> None:
        """Write one ``.npz`` file, without pickle."""
        arrays: dict[str, Any] = {"format_version": np.array(_FORMAT_VERSION)}
        for name in ("lexical", "codes"):
            matrix = getattr(self, name)
            if matrix is not None:
                arrays[f"{name}_data"] = matrix.data
                arrays[f"{name}_indices"] = matrix.indices
                arrays[f"{name}_indptr"] = matrix.indptr
                arrays[f"{name}_shape"] = np.array(matrix.shape)
        for name in ("patches", "dense"):
            if getattr(self, name) is not None:
                arrays[name] = getattr(self, name)
        with Path(path).open("wb") as file:
            np.savez_compressed(file, **arrays)

    @classmethod
    def load(cls, path: str | Path) -> Encoding:
        """Read what `save` wrote.

        Raises:
            OSError: The file cannot be opened.
            ValueError: It is damaged or was written by a newer version.
        """
        with Path(path).open("rb") as file:
            return cls._read(file, path)

    @classmethod
    def _read(cls, file: BinaryIO, path: str | Path) -> Encoding:
        try:
            if not zipfile.is_zipfile(file):  # np.load would advise to allow pickle
                raise zipfile.BadZipFile("not an .npz archive")
            file.seek(0)
            with np.load(file, allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive.files}
            version = int(arrays["format_version"])
            if version > _FORMAT_VERSION:
                raise ValueError(f"{path}: encoding format {version} is newer than this program")

            def matrix(name: str) -> sparse.csr_array:
                parts = tuple(arrays[f"{name}_{part}"] for part in ("data", "indices", "indptr"))
                return sparse.csr_array(parts, shape=tuple(arrays[f"{name}_shape"]))

            codes = matrix("codes") if "codes_data" in arrays else None
            return cls(matrix("lexical"), arrays.get("patches"), codes, arrays.get("dense"))
        except _DAMAGED as error:
            raise ValueError(f"{path}: the encoding cannot be read ({error})") from error

    def to_jsonl(
        self,
        path: str | Path,
        ids: Sequence[str],
        vocabulary: Vocabulary,
        scale: float = 100,
        contents: Sequence[str] | None = None,
    ) -> None:
        """Write Anserini's JsonVectorCollection: a line an item, integer weights by term.

        Args:
            path: The file to write.
            ids: One id for each item.
            vocabulary: The terms of the columns.
            scale: A weight w is written as round(w * scale), at least 1.
            contents: A text for each item, which Anserini stores; empty by default.

        Raises:
            UnsupportedError: Anserini would split a term that has white space or is longer than
                255 UTF-16 units.
        """
        if len(vocabulary) != self.lexical.shape[1]:
            columns = self.lexical.shape[1]
            raise VocabularyMismatchError(f"{len(vocabulary)} terms for {columns} columns")
        if len(ids) != len(self):
            raise ValueError(f"{len(ids)} ids for {len(self)} items")
        texts = [""] * len(self) if contents is None else contents
        if len(texts) != len(self):
            raise ValueError(f"{len(texts)} texts for {len(self)} items")
        for column in np.unique(self.lexical.indices).tolist():
            term = vocabulary.terms[column]
            units = len(term.encode("utf-16-le", "surrogatepass")) // 2
            if units > _LONGEST_TOKEN or _JAVA_SPACE.search(term):
                rule = "Anserini splits terms at white space and after 255 characters"
                raise UnsupportedError(f"{rule}: {term[:40]!r}")
        with Path(path).open("w", encoding="utf-8") as file:
            for row, (name, text) in enumerate(zip(ids, texts, strict=True)):
                columns, weights, _ = self.words(row)
                impacts = np.maximum(np.rint(weights * scale), 1).astype(int)
                terms = (vocabulary.terms[column] for column in columns.tolist())
                vector = dict(zip(terms, impacts.tolist(), strict=True))
                line = {"id": name, "contents": text, "vector": vector}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")


def _taken(matrix: sparse.csr_array, rows: np.ndarray) -> tuple[sparse.csr_array, np.ndarray]:
    """Return rows, and where their entries were: scipy makes three matrices on the way."""
    starts = matrix.indptr[rows].astype(np.int64)
    lengths = matrix.indptr[rows + 1] - starts
    ends = np.concatenate([[0], np.cumsum(lengths)])
    places = np.arange(ends[-1]) + np.repeat(starts - ends[:-1], lengths)
    parts = (matrix.data[places], matrix.indices[places], ends)
    return sparse.csr_array(parts, shape=(len(rows), matrix.shape[1])), places
