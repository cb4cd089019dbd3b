from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from dense_fakes import (
    FILES,
    HEAD,
    INDEX,
    OF,
    as_asked,
    brute_force,
    clustered,
    codes_of,
    listed,
    one_code,
    pairs,
    score,
)
from lexvla.errors import IndexCorruptError
from lexvla_indexer.embedded import dense_lists
from lexvla_indexer.embedded.dense import DenseLeg
from lexvla_indexer.embedded.dense_lists import DenseLists, wants_lists, write_lists


def test_each_row_stands_in_the_list_of_its_heaviest_code(tmp_path):
    codes = codes_of(
        {5: 0.2, 9: 0.7},
        {5: 0.5, 9: 0.5},  # equal: the lowest
        {},  # none: the nearest list, here that of code 9
        {2: 0.1},
        {9: 0.3, 2: 0.2},
    )
    rows = np.array([[0, 1], [1, 0], [0.1, 0.9], [-1, 0], [0, 3]], np.float32)
    lists = listed(tmp_path, rows, codes)
    assert lists.lists == 3
    assert np.load(tmp_path / OF).tolist() == [2, 1, 2, 0, 2]  # codes 2, 5 and 9
    faiss = pytest.importorskip("faiss", reason="needs faiss: pip install 'lexvla[fast]'")
    index = faiss.read_index(str(tmp_path / INDEX))
    assert (index.ntotal, index.nlist, index.metric_type) == (5, 3, faiss.METRIC_INNER_PRODUCT)
    mean = np.array([0.1, 4.9]) / np.hypot(0.1, 4.9)
    expected = np.array([[-1, 0], [1, 0], mean], np.float32)
    np.testing.assert_allclose(index.quantizer.reconstruct_n(0, 3), expected, rtol=1e-6)


def test_the_nearest_lists_with_allowed_rows_are_chosen_until_they_have_enough(tmp_path):
    """Four lists at 0, 30, 60 and 90 degrees, of one to four rows."""
    own = np.repeat([0, 1, 2, 3], [1, 2, 3, 4])
    angles = np.radians(30.0 * own)
    rows = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    lists = listed(tmp_path, rows, one_code(own))
    ends = rows[[0, 9]]
    sizes = lists.count(None)
    assert sizes.tolist() == [1, 2, 3, 4]
    assert lists.choose(ends, sizes, 1, 1).tolist() == [[0], [3]]
    assert lists.choose(ends, sizes, 3, 1).tolist() == [[0, 1, 2], [3, 2, 1]]
    assert lists.choose(ends, sizes, 1, 3).tolist() == [[0, 1], [3, -1]]
    assert lists.choose(ends, sizes, 9, 99).tolist() == [[0, 1, 2, 3], [3, 2, 1, 0]]
    few, many = own == 2, own != 2
    many[0] = False
    assert lists.count(few).tolist() == [0, 0, 3, 0]
    assert lists.count(many).tolist() == [0, 2, 0, 4]
    assert lists.choose(ends, lists.count(many), 1, 1).tolist() == [[1], [3]]
    assert lists.choose(ends, lists.count(many), 4, 1).tolist() == [[1, 3], [3, 1]]


def test_codes_that_are_no_rows_heaviest_have_no_list(tmp_path):
    rows = np.array([[1, 0], [0, 1], [-1, 0]], np.float32)
    codes = codes_of({70: 1.0}, {3: 0.4, 70: 0.9}, {41: 0.1}, width=1000)
    lists = listed(tmp_path, rows, codes)
    assert (lists.lists, lists.nprobe) == (2, 16)
    leg = DenseLeg(rows, lists)
    assert pairs(leg.top(np.array([1, 2], np.float32), 9)) == [(2.0, 1), (1.0, 0)]
    opposite = listed(tmp_path / "opposite", rows[[0, 2]], one_code([0, 0]))  # add up to 0
    found = DenseLeg(rows[[0, 2]], opposite).top(rows[0], 9)
    assert pairs(found) == [(1.0, 0)]


def test_rows_without_any_code_get_no_lists(tmp_path):
    pytest.importorskip("faiss", reason="needs faiss: pip install 'lexvla[fast]'")
    rows = np.ones((2, 3), np.float32)
    with pytest.raises(ValueError, match="no row has a code"):
        write_lists(tmp_path, rows, codes_of({}, {}, width=4))
    with pytest.raises(ValueError, match="2 rows with the codes of 1"):
        write_lists(tmp_path, rows, codes_of({0: 1.0}))
    assert list(tmp_path.iterdir()) == []


def test_large_segments_with_codes_want_lists():
    pytest.importorskip("faiss", reason="needs faiss: pip install 'lexvla[fast]'")
    codes = one_code([0])
    assert dense_lists.LISTED_ROWS == 100_000
    assert wants_lists(100_000, codes)
    assert not wants_lists(99_999, codes)
    assert not wants_lists(100_000, None)
    assert not wants_lists(100_000, codes_of({}, width=4))


def test_lists_are_the_same_to_the_bit_in_every_build_and_all_files_are_named(tmp_path):
    rows, codes = clustered(3)
    for name in ("a", "b"):
        listed(tmp_path / name, rows, codes)
    paths = write_lists(tmp_path / "a", rows, codes)
    assert sorted(paths) == sorted((tmp_path / "a").iterdir())
    assert [path.name for path in paths] == list(FILES)
    for path in paths:
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_open_lists_are_mapped_and_outlive_their_files(tmp_path):
    rows, codes = clustered(4)
    leg = DenseLeg(rows, listed(tmp_path, rows, codes))
    maps = Path("/proc/self/maps")
    if maps.exists():
        assert str(tmp_path / INDEX) in maps.read_text()
    for name in FILES:
        (tmp_path / name).unlink()
    assert pairs(leg.top(rows[0], 1, nprobe=2)) == brute_force(rows, rows[0], 1)


@contextmanager
def refused(name: str):
    with pytest.raises(IndexCorruptError) as caught:
        yield
    assert name in str(caught.value)


def small(folder: Path) -> tuple[np.ndarray, DenseLists]:
    rows, codes = clustered(6, 30, 3)
    return rows, listed(folder, rows, codes)


@pytest.mark.parametrize("name", FILES)
def test_missing_cut_and_grown_files_are_refused(tmp_path, name):
    rows, _ = small(tmp_path)
    file = tmp_path / name
    whole = file.read_bytes()
    for length in {0, 1, 50, 130, len(whole) // 2, len(whole) - 1}:
        file.write_bytes(whole[:length])
        with refused(name):
            DenseLists.open(tmp_path, *rows.shape)
    file.write_bytes(whole + b"\0")
    with refused(name):
        DenseLists.open(tmp_path, *rows.shape)
    file.unlink()
    with refused(name):
        DenseLists.open(tmp_path, *rows.shape)


def test_lists_of_another_segment_are_refused(tmp_path):
    rows, _ = small(tmp_path)
    with refused(HEAD):
        DenseLists.open(tmp_path, len(rows) + 1, 5)
    with refused(HEAD):
        DenseLists.open(tmp_path, len(rows), 4)
    listed(tmp_path / "other", rows[::-1].copy(), one_code(np.arange(30) % 3))
    for name in (OF, INDEX):
        kept = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes((tmp_path / "other" / name).read_bytes())
        with refused(INDEX):
            DenseLists.open(tmp_path, *rows.shape)
        (tmp_path / name).write_bytes(kept)


def test_a_flipped_byte_before_the_lists_is_refused_and_one_in_them_makes_no_false_score(tmp_path):
    rows, _ = small(tmp_path)
    file = tmp_path / INDEX
    whole = file.read_bytes()
    head = len(whole) - len(rows) * (4 * 5 + 8)
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 0x41
        file.write_bytes(damaged)
        if place < head:
            with refused(INDEX):
                DenseLists.open(tmp_path, *rows.shape)
            continue
        leg = DenseLeg(rows, DenseLists.open(tmp_path, *rows.shape))
        try:
            with as_asked():
                answer = pairs(leg.top(rows[0], 4, nprobe=2))
        except IndexCorruptError as error:
            assert INDEX in str(error)
            continue
        assert len({row for _, row in answer}) == len(answer) == 4
        assert all(found == score(rows[row], rows[0]) for found, row in answer)


@pytest.mark.parametrize("place", range(6))
@pytest.mark.parametrize("value", [-1, 0.5, 10**9, np.nan, np.inf])
def test_false_numbers_in_the_head_are_refused(tmp_path, place, value):
    rows, _ = small(tmp_path)
    head = np.load(tmp_path / HEAD)
    head[place] = value
    np.save(tmp_path / HEAD, head)
    if place == 5 and value in (0.5, 10**9):  # a length of rows as any other
        return
    with pytest.raises(IndexCorruptError, match=r"dense\.list\.\w+"):
        DenseLists.open(tmp_path, *rows.shape)
