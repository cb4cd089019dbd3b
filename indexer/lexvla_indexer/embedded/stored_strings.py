"""Strings of a segment, such as its ids, as two arrays.

NAME.text    uint8    the strings as UTF-8, one after the other
NAME.start   int64    (n + 1) where each of them starts in it
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lexvla.errors import IndexCorruptError
from lexvla_indexer.embedded.arrays import demand, open_array

__all__ = ["StoredStrings", "string_arrays"]


def string_arrays(name: str, strings: Sequence[str]) -> dict[str, np.ndarray]:
    """Return the arrays of strings, none of them empty, by the names of their files."""
    coded = [string.encode() for string in strings]
    return {
        f"{name}.text": np.frombuffer(b"".join(coded), np.uint8),
        f"{name}.start": np.cumsum([0, *map(len, coded)], dtype=np.int64),
    }


class StoredStrings:
    """Read strings, ``count`` of them if that is known; damaged files raise IndexCorruptError."""

    def __init__(self, folder: Path, name: str, count: int | None = None) -> None:
        path = folder / f"{name}.start.npy"
        self._file = folder / f"{name}.text.npy"
        self._starts = open_array(path, np.int64, None if count is None else (count + 1,))
        starts = self._starts
        rising = bool(len(starts) and starts[0] == 0 and (starts[1:] > starts[:-1]).all())
        demand(path, rising, "must rise from 0")
        # Not as an array, whose slices take three times as long to make.
        self._text = open_array(self._file, np.uint8, (int(starts[-1]),)).data

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, place: int) -> str:
        return self.take(np.array([place]))[0]

    def take(self, places: np.ndarray) -> list[str]:
        """Return some of the strings."""
        try:
            starts, stops = self._starts[places].tolist(), self._starts[places + 1].tolist()
            spans = zip(starts, stops, strict=True)
            return [str(self._text[start:stop], "utf-8") for start, stop in spans]
        except (ValueError, IndexError) as error:
            raise IndexCorruptError(f"{self._file}: a string is damaged ({error})") from error

    def find(self, string: str) -> int | None:
        """Return the place of a string, if it is there; the strings must ascend."""
        place = bisect_left(self, string)
        return place if place < len(self) and self[place] == string else None
