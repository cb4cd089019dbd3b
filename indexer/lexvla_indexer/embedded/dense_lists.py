"""Inverted lists of dense rows: each row is in the list of its heaviest code.

A search reads only the lists nearest to the query. The lists never change and lie in three files
of a segment:

    dense.list.head.npy   float64   rows, width, lists, the length and CRC-32 of the part of the
                                    index before its lists, and the length of the longest row
    dense.list.of.npy     int32     (rows) the list of each row
    dense.list.faiss                faiss's IndexIVFFlat, inner product: a copy of all rows, in
                                    order of the lists

The centre of a list is the unit mean of its members, because an index knows the codes of rows but
not their codebook. A code that is not the heaviest of any row has no list.

faiss parses what precedes the lists; a wrong number there could make it allocate or read out of
bounds. So the checksum of that part is verified when the lists are opened. The lists themselves
only choose rows: a damaged number can hide a row or bring in a wrong one, but scores come from the
segment's own rows.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from lexvla.errors import IndexCorruptError, OptionalDependencyError
from lexvla_indexer.durable import writing
from lexvla_indexer.embedded.arrays import demand, open_array, save_array

__all__ = ["LISTED_ROWS", "DenseLists", "longest_of", "wants_lists", "write_lists"]

LISTED_ROWS = 100_000  # a scan of fewer, of 128 columns, takes under 2 ms on one core
_CHUNK = 1 << 14  # rows at a time
_HEAD, _OF, _INDEX = "dense.list.head.npy", "dense.list.of.npy", "dense.list.faiss"


def _import_faiss() -> Any:
    """Return faiss, or ``None`` where it is missing."""
    try:
        import faiss
    except ImportError:
        return None
    return faiss


def wants_lists(rows: int, codes: sparse.csr_array | None) -> bool:
    """Return whether a new segment gets lists: it has many rows, with codes, and faiss is there."""
    return rows >= LISTED_ROWS and codes is not None and codes.nnz > 0 and bool(_import_faiss())


def write_lists(folder: Path, rows: np.ndarray, codes: sparse.csr_array) -> list[Path]:
    """Write the lists of a segment. Return the files, not yet synced to the disk.

    A row goes to the list of its heaviest code, of equal ones the lowest; a row without codes to
    the nearest list. There must be a code. All rows pass through memory at once: (rows, width)
    float32, and (rows, codes) weights above 0.
    """
    if codes.shape[0] != len(rows):
        raise ValueError(f"{len(rows)} rows with the codes of {codes.shape[0]}")
    if not codes.nnz:
        raise ValueError("no row has a code")
    faiss = _import_faiss()
    if faiss is None:
        raise OptionalDependencyError("faiss-cpu", "fast")
    lists = _assign(rows, codes)
    centroids = _centroids(rows, lists)
    width = rows.shape[1]
    index = faiss.IndexIVFFlat(
        faiss.IndexFlatIP(width), width, len(centroids), faiss.METRIC_INNER_PRODUCT
    )
    index.quantizer.add(centroids)
    index.is_trained = True
    for span in _chunks(len(rows)):
        block = np.ascontiguousarray(rows[span], np.float32)
        own = lists[span].astype(np.int64)
        numbers = np.arange(span.start, span.start + len(block))
        pointers = map(faiss.swig_ptr, (block, numbers, own))
        index.add_core(len(block), *pointers)
    paths = [folder / name for name in (_HEAD, _OF, _INDEX)]
    with writing(paths[2]) as file:  # faiss does not report whether its last bytes were written
        faiss.write_index(index, faiss.PyCallbackIOWriter(file.write))
    save_array(paths[1], lists)
    length = paths[2].stat().st_size - len(rows) * _row_bytes(width)
    facts = [*rows.shape, len(centroids), length, _crc32(paths[2], length), longest_of(rows)]
    save_array(paths[0], np.array(facts, np.float64))
    return paths


def longest_of(rows: np.ndarray) -> float:
    """Return the length of the longest row, in float64."""
    squares = [
        np.einsum("ij,ij->i", rows[span], rows[span], dtype=np.float64).max()
        for span in _chunks(len(rows))
    ]
    return float(np.sqrt(max(squares, default=0.0)))


class DenseLists:
    """Read the rows of some lists; ``longest`` is the length of the longest row."""

    def __init__(self, path: Path, head: np.ndarray, of: np.ndarray, index: Any) -> None:
        self.rows, self.width, self.lists = (int(fact) for fact in head[:3])
        self.longest = float(head[5])
        self._path, self._of, self._index = path, of, index
        self._sizes = np.bincount(of, minlength=self.lists)
        if index is not None:
            self._centroids: np.ndarray = index.quantizer.reconstruct_n(0, self.lists)

    @classmethod
    def open(cls, folder: Path, rows: int, width: int) -> DenseLists:
        """Map the lists of a segment into memory.

        Without faiss they open all the same, but cannot be searched. Files that are missing,
        damaged before their lists, or about other rows raise IndexCorruptError.
        """
        head = open_array(folder / _HEAD, np.float64, (6,))
        path, counts = folder / _HEAD, head[:5]
        is_finite = bool(np.isfinite(head).all() and (head >= 0).all())
        demand(path, is_finite, "must hold finite numbers not below 0")
        demand(path, bool((counts == np.floor(counts)).all()), "must hold whole numbers")
        fits = counts[:2].tolist() == [rows, width]
        demand(path, fits, f"must describe {rows} rows of {width} columns")
        demand(path, 1 <= counts[2] <= rows, f"must name between 1 and {rows} lists")
        of = open_array(folder / _OF, np.int32, (rows,))
        lists = int(head[2])
        within = 0 <= int(of.min()) <= int(of.max()) < lists
        demand(folder / _OF, within, f"must hold lists below {lists}")
        _check_index(folder / _INDEX, head)
        index = _read_index(folder / _INDEX)
        found = cls(folder / _INDEX, head, of, index)
        if index is not None:
            found._check()
        return found

    def _check(self) -> None:
        """Refuse an index whose parts do not fit: faiss would read past the end of the file."""
        index, path = self._index, self._path
        demand(path, (index.ntotal, index.d) == (self.rows, self.width), "must hold all rows")
        demand(path, index.nlist == self.lists, f"must hold {self.lists} lists")
        sizes = [index.invlists.list_size(number) for number in range(self.lists)]
        demand(path, sizes == self._sizes.tolist(), f"must hold the lists that {_OF} names")

    @property
    def nprobe(self) -> int:
        """How many lists a search reads unless told otherwise: a quarter, and at least 16.

        An eighth found 0.91 to 0.95 of the ten best emoji for their labels, with lists from
        k-means of the default model's vectors; a quarter found 0.97 to 0.99.
        """
        return max(16, self.lists // 4)

    def count(self, allowed: np.ndarray | None) -> np.ndarray:
        """Return how many rows of each list are allowed; (rows) bool, or ``None`` for all."""
        if allowed is None:
            return self._sizes
        if 2 * np.count_nonzero(allowed) > self.rows:
            return self._sizes - self._count(~allowed)
        return self._count(allowed)

    def _count(self, chosen: np.ndarray) -> np.ndarray:
        return np.bincount(self._of[np.flatnonzero(chosen)], minlength=self.lists)

    def choose(
        self, vectors: np.ndarray, sizes: np.ndarray, nprobe: int, wanted: int
    ) -> np.ndarray:
        """Return the lists to read for each query, nearest first, padded with -1.

        They are at least ``nprobe``, and have at least ``wanted`` allowed rows together. ``sizes``
        is how many each list has, as `count` returns them; lists without any are never read.
        """
        self._demand_faiss()
        nearness = vectors @ self._centroids.T
        nearness[:, sizes == 0] = -np.inf
        ranks = np.argsort(-nearness, axis=1, kind="stable")
        read = np.cumsum(sizes[ranks], axis=1)
        enough = np.maximum((read < wanted).sum(axis=1) + 1, nprobe)
        counts = np.minimum(enough, np.count_nonzero(sizes))
        ranks = ranks[:, : counts.max(initial=0)]
        ranks[np.arange(ranks.shape[1]) >= counts[:, None]] = -1
        return ranks

    def nearest(
        self, vectors: np.ndarray, k: int, lists: np.ndarray, allowed: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the k greatest products of each query with allowed rows of its lists.

        ``lists`` are as `choose` gives them; ``allowed`` is (rows) bool, or ``None`` for all. The
        result is (queries, k) float32 products, descending, and the int64 numbers of their rows; -1
        where there are no more.
        """
        faiss = self._demand_faiss()
        settings: dict[str, Any] = {"nprobe": lists.shape[1]}
        if allowed is not None:
            settings["sel"] = faiss.IDSelectorBitmap(np.packbits(allowed, bitorder="little"))
        arrays = (
            np.ascontiguousarray(vectors, np.float32),
            np.ascontiguousarray(lists, np.int64),
            np.zeros(lists.shape, np.float32),
            np.empty((len(vectors), k), np.float32),
            np.empty((len(vectors), k), np.int64),
        )
        queries, *rest = map(faiss.swig_ptr, arrays)
        self._index.search_preassigned_c(
            len(vectors), queries, k, *rest, False, faiss.SearchParametersIVF(**settings)
        )
        scores, rows = arrays[3:]
        there = bool(((rows >= -1) & (rows < self.rows)).all())
        demand(self._path, there, f"must hold rows below {self.rows}")
        return scores, rows

    def _demand_faiss(self) -> Any:
        if self._index is None:
            raise OptionalDependencyError("faiss-cpu", "fast")
        return _import_faiss()


def _assign(rows: np.ndarray, codes: sparse.csr_array) -> np.ndarray:
    """Return the list of each row, int32; lists are numbered in the order of their codes."""
    heaviest = np.full(len(rows), -1, np.int64)
    for span in _chunks(len(rows)):
        part = codes[span]
        lengths = np.diff(part.indptr)
        coded = np.flatnonzero(lengths)
        if len(coded):
            starts = part.indptr[coded]
            most = np.repeat(np.maximum.reduceat(part.data, starts), lengths[coded])
            named = np.where(part.data == most, part.indices, codes.shape[1])
            heaviest[span.start + coded] = np.minimum.reduceat(named, starts)
    coded = np.flatnonzero(heaviest >= 0)
    lists = np.empty(len(rows), np.int32)
    lists[coded] = np.unique(heaviest[coded], return_inverse=True)[1]
    if len(coded) < len(rows):
        centroids = _centroids(rows[coded], lists[coded])
        bare = np.flatnonzero(heaviest < 0)
        for span in _chunks(len(bare)):
            lists[bare[span]] = np.argmax(rows[bare[span]] @ centroids.T, axis=1)
    return lists


def _centroids(rows: np.ndarray, lists: np.ndarray) -> np.ndarray:
    """Return the unit mean of each list's rows, float32; 0 if they sum to 0."""
    order = np.argsort(lists, kind="stable")
    starts = np.concatenate([[0], np.cumsum(np.bincount(lists))])
    members = sparse.csr_array((np.ones(len(rows), np.float32), order, starts))
    sums = members @ rows
    norms = np.linalg.norm(sums, axis=1, keepdims=True)
    return np.ascontiguousarray(sums / np.where(norms == 0, 1, norms), np.float32)


def _chunks(count: int) -> Iterator[slice]:
    return (slice(start, start + _CHUNK) for start in range(0, count, _CHUNK))


def _row_bytes(width: int) -> int:
    return 4 * width + 8  # plus its number


def _crc32(path: Path, length: int) -> int:
    with path.open("rb") as file:
        return zlib.crc32(file.read(length))


def _check_index(path: Path, head: np.ndarray) -> None:
    """Refuse a file that faiss must not read."""
    rows, width, _, length, checksum = (int(fact) for fact in head[:5])
    whole = length + rows * _row_bytes(width)
    try:
        size = path.stat().st_size
        demand(path, size == whole, f"must have {whole} bytes, not {size}")
        demand(path, _crc32(path, length) == checksum, "damaged before its lists")
    except OSError as error:
        raise IndexCorruptError(f"{path}: missing or unreadable ({error})") from error


def _read_index(path: Path) -> Any:
    faiss = _import_faiss()
    if faiss is None:
        return None
    try:
        index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY)
    except RuntimeError as error:
        raise IndexCorruptError(f"{path}: damaged ({error})") from error
    demand(path, isinstance(index, faiss.IndexIVFFlat), "must be an IndexIVFFlat")
    index.parallel_mode = 3  # queries in parallel, by as many threads as OpenMP has
    # By default it would start threads at each search that prefetch all lists.
    faiss.downcast_InvertedLists(index.invlists).prefetch_nthread = 0
    return index
