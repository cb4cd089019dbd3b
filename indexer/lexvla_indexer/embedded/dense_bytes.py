"""A copy of the dense rows of a large segment in bytes: a quarter of what a scan must read.

    dense.byte.npy         int8     (n, width)
    dense.byte.scale.npy   float64  the middle of each column, then the step of each column, then
                                    the greatest distance of a row from what its bytes stand for

A byte b of a column stands for middle + b × step, where -127 and 127 are the column's least and
greatest value. By the inequality of Cauchy and Schwarz a product with what the bytes stand for is
off by at most the length of the query times that distance. Bytes only choose the rows to score, so
scores do not depend on them. Compiled loops read them; without numba a scan reads the floats.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lexvla_indexer.embedded import postings
from lexvla_indexer.embedded.arrays import demand, open_array, save_array

__all__ = ["BYTES_FROM", "AskedBytes", "DenseBytes", "write_bytes"]

BYTES_FROM = 1 << 16  # rows: of fewer, a scan of 128 columns of floats takes about a millisecond
_ROWS, _SCALE = "dense.byte.npy", "dense.byte.scale.npy"
_CHUNK = 1 << 14  # rows at a time
_MOST = 127
_INT16, _INT32 = 2**15 - 1, 2**31 - 1
_FLOAT32 = np.finfo(np.float32)


def write_bytes(folder: Path, rows: np.ndarray) -> list[Path]:
    """Write the bytes of (rows, width) float32, of which there is one. Return the files.

    They are not yet synced to the disk. There are none if a number is not finite.
    """
    least, most = rows.min(axis=0).astype(np.float64), rows.max(axis=0).astype(np.float64)
    middles, steps = (least + most) / 2, (most - least) / (2 * _MOST)
    divisors, distance = np.where(steps > 0, steps, 1), 0.0
    if not np.isfinite(middles).all():
        return []
    values = np.empty(rows.shape, np.int8)
    for span in _chunks(len(rows)):
        own = np.clip(np.rint((rows[span] - middles) / divisors), -_MOST, _MOST)
        values[span] = own
        off = rows[span] - (middles + own * steps)
        distance = max(distance, float(np.linalg.norm(off, axis=1).max()))
    paths = [folder / _ROWS, folder / _SCALE]
    save_array(paths[0], values)
    save_array(paths[1], np.concatenate([middles, steps, [distance]]))
    return paths


class AskedBytes(NamedTuple):
    """Hold a query to multiply bytes by; ``error`` is how far a product can be off."""

    integers: np.ndarray
    base: float
    scale: float
    error: float


class DenseBytes:
    """Multiply the bytes of rows, (n, width) int8; ``scale`` is as in the file."""

    def __init__(self, rows: np.ndarray, scale: np.ndarray) -> None:
        width = rows.shape[1]
        self._rows = postings.read_only(rows)
        self._middles, self._steps = scale[:width], scale[width : 2 * width]
        self._distance = float(scale[-1])

    @classmethod
    def open(cls, folder: Path, rows: int, width: int) -> DenseBytes:
        """Map the bytes of a segment into memory; damaged files raise IndexCorruptError."""
        scale = open_array(folder / _SCALE, np.float64, (2 * width + 1,))
        sound = bool(np.isfinite(scale).all() and (scale[width:] >= 0).all())
        demand(folder / _SCALE, sound, "must hold finite numbers, and steps not below 0")
        return cls(open_array(folder / _ROWS, np.int8, (rows, width)), scale)

    def ask(self, vector: np.ndarray) -> AskedBytes | None:
        """Return what to multiply the bytes by for a (width) float32 query.

        ``None`` if the floats are to be read: numba is missing, or numbers are too great.
        """
        # The time that it saves per byte is about a third of what it saves per posting.
        if postings.kernels(self._rows.size // 3) is None:
            return None
        query = vector.astype(np.float64)
        parts, width = query * self._steps, len(query)
        total = float(np.abs(parts).sum())
        box = np.abs(self._middles) + (_MOST + 1) * self._steps  # no value of a column is greater
        greatest = float((np.abs(query) * box).sum())
        if not greatest < float(_FLOAT32.max) / 2:
            return None
        rate = 1.0
        if total > float(_FLOAT32.tiny):
            rate = min(_INT16 / float(np.abs(parts).max()), (_INT32 // _MOST - width) / total)
        integers = np.clip(np.rint(parts * rate), -_INT16, _INT16)
        length = float(np.linalg.norm(query))
        error = length * self._distance + _MOST * float(np.abs(parts - integers / rate).sum())
        # Where few rows may be found, the floats are multiplied: the rest covers those products.
        tiny = float(_FLOAT32.tiny) * (1 + length + float(np.linalg.norm(box)))
        error = error * (1 + 1e-9) + (width + 3) * (float(_FLOAT32.eps) * greatest + tiny)
        base = float((query * self._middles).sum())
        return AskedBytes(integers.astype(np.int16), base, 1 / rate, error)

    def products(self, asked: AskedBytes, first: int, last: int) -> np.ndarray:
        """Return the products of the rows ``first`` to ``last`` - 1, float32."""
        from lexvla_indexer.embedded.dense_kernels import products_of

        rows = self._rows[first:last]
        room = np.empty(len(rows), np.float32)
        products_of(rows.shape[1])(rows, asked.integers, asked.base, asked.scale, room)
        return room


def _chunks(count: int) -> Iterator[slice]:
    return (slice(start, start + _CHUNK) for start in range(0, count, _CHUNK))
