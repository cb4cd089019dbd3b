"""What queries read of an index at most: bytes, and the blocks of files that Linux maps for them.

Short queries skip part of their words' postings; all of them are counted here.

Linux maps the cached pages around a requested one, 64 KiB at a time, so a process that reads
scattered bytes of a large file maps more than it reads, and even more if memory is in larger
blocks. Rows that the engine reads with pread are not mapped.
"""

from __future__ import annotations

from collections.abc import Iterator
from unittest import mock

import numpy as np
from engine_contenders import of_index
from scipy import sparse

from lexvla_indexer import Index
from lexvla_indexer.embedded import rescoring
from lexvla_indexer.embedded.postings import Postings
from lexvla_indexer.embedded.stored_rows import StoredRows

PIECE = 1 << 16
ROW_BYTES = 6  # of an entry of a row: a column of two bytes and a weight of four


def touched(
    index: Index, stored: sparse.csr_array, postings: Postings, queries: sparse.csr_array
) -> dict[str, int | float]:
    """Return what queries may read, each byte once: postings of their words, and rescored rows.

    ``index`` has the rows ``stored`` in one segment, with these ``postings``.
    """
    rescored: list[np.ndarray] = []
    mapped: list[np.ndarray] = [np.empty(0, np.int64)]
    row_scores = rescoring.row_scores

    def noted(forward: StoredRows, rows: np.ndarray, query: sparse.csr_array) -> np.ndarray:
        rescored.append(rows)
        if not forward.reads(len(rows)):
            mapped.append(rows)
        return row_scores(forward, rows, query)

    contender = of_index("", index, queries)
    with mock.patch.object(rescoring, "row_scores", noted):
        for number in range(queries.shape[0]):
            contender.ask(number)
    own, touched_rows = (
        (stored.indptr[rows].astype(np.int64), stored.indptr[rows + 1].astype(np.int64))
        for rows in (np.unique(np.concatenate(some)) for some in (rescored, mapped))
    )
    spans = [*_spans(postings, np.flatnonzero(np.isin(postings.terms, queries.indices)))]
    held = sum(pieces(*span) for span in spans) + pieces(*touched_rows, ROW_BYTES)
    return {
        "posting_bytes": sum(int((lasts - firsts).sum()) * size for firsts, lasts, size in spans),
        "row_bytes": int((own[1] - own[0]).sum()) * ROW_BYTES,
        "mapped_bytes": held * PIECE,
        "rescored": float(np.mean([len(rows) for rows in rescored])),
    }


def _spans(postings: Postings, places: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """Yield what each file has of some terms: where their entries start and end, and their size."""
    firsts, lasts = postings.starts[places], postings.starts[places + 1]
    yield firsts, lasts, 1  # impacts
    owns, shifts = postings.bitmaps.find(places)
    listed = owns < 0
    yield (firsts - shifts)[listed], (lasts - shifts)[listed], 2  # rows
    for marks in postings.bitmaps[2:]:
        yield owns[~listed], owns[~listed] + 1, marks.itemsize * marks.shape[1]


def pieces(firsts: np.ndarray, lasts: np.ndarray, size: int) -> int:
    """Return how many blocks of a file overlap spans of entries of ``size`` bytes."""
    kept = lasts > firsts
    firsts, lasts = firsts[kept] * size // PIECE, (lasts[kept] * size - 1) // PIECE
    if not len(firsts):
        return 0
    changes = np.zeros(int(lasts.max()) + 2, np.int64)
    np.add.at(changes, firsts, 1)
    np.add.at(changes, lasts + 1, -1)
    return int((np.cumsum(changes) > 0).sum())
