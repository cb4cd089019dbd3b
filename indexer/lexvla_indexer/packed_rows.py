"""A document's exact vectors as bytes, for engines that store rounded ones themselves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from scipy import sparse

from lexvla.encoding import Encoding

__all__ = ["pack", "unpack"]


def pack(encoding: Encoding) -> Iterator[bytes]:
    """Yield each row's exact values, little-endian so that any program can read them.

    int32: number of words, patches (0 or 1), number of codes, width of the dense vector (-1: none).
    Then int32 columns and float32 weights of the words, int16 patches, columns and weights of the
    codes, and the float32 dense vector.
    """
    lexical, codes, dense = encoding.lexical, encoding.codes, encoding.dense
    words, weights = lexical.indices.astype("<i4"), lexical.data.astype("<f4")
    head = np.full(4, -1, "<i4")
    if codes is not None:
        code_columns, code_weights = codes.indices.astype("<i4"), codes.data.astype("<f4")
    for row in range(len(encoding)):
        span = slice(lexical.indptr[row], lexical.indptr[row + 1])
        read_from = None if encoding.patches is None else encoding.patches[span]
        head[:2] = span.stop - span.start, read_from is not None and (read_from >= 0).any()
        parts = [words[span], weights[span]]
        if head[1]:
            parts.append(np.asarray(read_from, "<i2"))
        if codes is not None:
            span = slice(codes.indptr[row], codes.indptr[row + 1])
            head[2] = span.stop - span.start
            parts += [code_columns[span], code_weights[span]]
        if dense is not None:
            head[3] = dense.shape[1]
            parts.append(dense[row].astype("<f4"))
        yield b"".join(part.tobytes() for part in (head, *parts))


def unpack(rows: Sequence[bytes], widths: Mapping[str, int]) -> Encoding:
    """Return the rows that `pack` wrote, at least one; a damaged one raises ValueError."""
    words, weights, patches, code_columns, code_weights, dense = ([] for _ in range(6))
    has_any_patch = False
    for row in rows:
        count, has_patches, codes, width = np.frombuffer(row, "<i4", 4).tolist()
        at = 16
        words.append(np.frombuffer(row, "<i4", count, at))
        weights.append(np.frombuffer(row, "<f4", count, at := at + 4 * count))
        at += 4 * count
        if has_patches:
            patches.append(np.frombuffer(row, "<i2", count, at))
            at += 2 * count
            has_any_patch = True
        else:
            patches.append(np.full(count, -1, np.int16))
        if codes >= 0:
            code_columns.append(np.frombuffer(row, "<i4", codes, at))
            code_weights.append(np.frombuffer(row, "<f4", codes, at := at + 4 * codes))
            at += 4 * codes
        if width >= 0:
            dense.append(np.frombuffer(row, "<f4", width, at))
    return Encoding(
        _stacked(words, weights, widths["lexical"]),
        np.concatenate(patches).astype(np.int16) if has_any_patch else None,
        _stacked(code_columns, code_weights, widths["codes"]) if "codes" in widths else None,
        np.stack(dense).astype(np.float32) if "dense" in widths else None,
    )


def _stacked(columns: list[np.ndarray], weights: list[np.ndarray], width: int) -> sparse.csr_array:
    starts = np.cumsum([0, *map(len, columns)])
    parts = (
        np.concatenate(weights).astype(np.float32),
        np.concatenate(columns).astype(np.int32),
        starts.astype(np.int32) if starts[-1] < 2**31 else starts,
    )
    return sparse.csr_array(parts, shape=(len(columns), width))
