"""What queries read of an index: bytes, and the pieces of files that Linux maps for them.

Linux maps the pages around one that is asked for, if it has them in memory: 64 KiB at a time. So a
process that reads a few bytes of a large file here and there has more of it mapped than it read,
and yet more where that memory is in larger pieces. Rows that the engine reads by place are not
mapped.
"""

from __future__ import annotations

from unittest import mock

import numpy as np
from engine_contenders import of_index
from scipy import sparse

from lexvla_indexer import Index
from lexvla_indexer.embedded import rescoring
from lexvla_indexer.embedded.postings import Postings
from lexvla_indexer.embedded.stored_rows import StoredRows

PIECE = 1 << 16


def touched(
    index: Index, stored: sparse.csr_array, postings: Postings, queries: sparse.csr_array
) -> dict[str, int | float]:
    """Return what queries read, each byte once: postings of their words, and rescored rows.

    Args:
        index: An index of these rows, in one segment.
        stored: The rows.
        postings: The segment's.
        queries: Rows too.
    """
    rescored: list[np.ndarray] = []
    mapped: list[np.ndarray] = [np.empty(0, np.int64)]
    row_scores = rescoring._row_scores

    def noted(forward: StoredRows, rows: np.ndarray, query: sparse.csr_array) -> np.ndarray:
        rescored.append(rows)
        if not forward.reads(len(rows)):
            mapped.append(rows)
        return row_scores(forward, rows, query)

    contender = of_index("", index, queries)
    with mock.patch.object(rescoring, "_row_scores", noted):
        for number in range(queries.shape[0]):
            contender.ask(number)
    places = np.flatnonzero(np.isin(postings.terms, queries.indices))
    found = postings.starts[places], postings.starts[places + 1]
    own, touched_rows = (
        (stored.indptr[rows].astype(np.int64), stored.indptr[rows + 1].astype(np.int64))
        for rows in (np.unique(np.concatenate(some)) for some in (rescored, mapped))
    )
    count, words = (int((last - first).sum()) for first, last in (found, own))
    held = pieces(*found, 2) + pieces(*found, 1) + 2 * pieces(*touched_rows, 4)
    return {
        "posting_bytes": count * 3,
        "row_bytes": words * 8,  # a column and a weight of four bytes each
        "mapped_bytes": held * PIECE,
        "rescored": float(np.mean([len(rows) for rows in rescored])),
    }


def pieces(firsts: np.ndarray, lasts: np.ndarray, size: int) -> int:
    """Return how many pieces of a file hold some of these spans of entries of so many bytes."""
    kept = lasts > firsts
    firsts, lasts = firsts[kept] * size // PIECE, (lasts[kept] * size - 1) // PIECE
    if not len(firsts):
        return 0
    changes = np.zeros(int(lasts.max()) + 2, np.int64)
    np.add.at(changes, firsts, 1)
    np.add.at(changes, lasts + 1, -1)
    return int((np.cumsum(changes) > 0).sum())
