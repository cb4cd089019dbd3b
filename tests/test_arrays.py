"""The files of arrays: what is written part by part is what numpy reads, and so are the marks."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from lexvla_indexer.embedded.arrays import mark, open_array, save_array, writing_array


@pytest.mark.parametrize("part", [128, 192, 1 << 22])
def test_arrays_are_written_in_parts_and_checksummed(tmp_path: Path, part: int) -> None:
    array, file = np.arange(90, dtype=np.int32).reshape(45, 2), tmp_path / "a.npy"
    with mock.patch("lexvla_indexer.embedded.arrays._PART", part):
        assert save_array(file, array) == mark(file)
    assert np.load(file).tolist() == array.tolist()
    assert np.load(file).dtype == np.int32
    np.save(tmp_path / "b.npy", array)
    assert file.read_bytes() == (tmp_path / "b.npy").read_bytes()


def test_numbers_are_converted_as_they_are_written(tmp_path: Path) -> None:
    file = tmp_path / "a.npy"
    assert save_array(file, np.array([7, 300], np.int32), np.uint16) == mark(file)
    assert open_array(file, np.uint16).tolist() == [7, 300]
    assert save_array(file, np.arange(6)[::2]) == mark(file)
    assert open_array(file, np.int64).tolist() == [0, 2, 4]


@pytest.mark.parametrize("part", [128, 131, 1 << 22])
def test_numbers_may_lie_across_parts(tmp_path: Path, part: int) -> None:
    kind, file = np.dtype([("column", np.uint16), ("weight", np.float32)]), tmp_path / "a.npy"
    array = np.array([(7, 0.5), (300, 2.0), (1, 1.5)] * 40, kind)
    constants = {"_PART": part, "_CONVERTED": 50}
    with mock.patch.multiple("lexvla_indexer.embedded.arrays", **constants):
        assert save_array(file, array) == mark(file)
    assert open_array(file, kind).tolist() == array.tolist()


def test_parts_follow_each_other(tmp_path: Path) -> None:
    file = tmp_path / "a.npy"
    with writing_array(file, np.uint8, (3,)) as written:
        written.append(np.array([1, 2], np.uint8))
        written.append(np.empty(0, np.uint8))
        written.append(np.array([3], np.uint8))
    assert written.mark == mark(file)
    assert open_array(file, np.uint8).tolist() == [1, 2, 3]
    assert save_array(tmp_path / "b.npy", np.array([1, 2, 3], np.uint8)) == written.mark


def test_no_numbers(tmp_path: Path) -> None:
    file = tmp_path / "a.npy"
    assert save_array(file, np.empty((0, 4), np.float32)) == mark(file)
    assert open_array(file, np.float32, (0, 4)).shape == (0, 4)
