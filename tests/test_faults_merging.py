"""Which segments are merged when, and what becomes of their rows."""

from __future__ import annotations

import math
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from indexer_fakes import LEGS, VOCABULARY, brute_force, documents, encode, found, random_rows
from kill_fakes import files_of
from lexvla.encoding import Encoding
from lexvla_indexer import EmbeddedIndex
from lexvla_indexer.bm25 import TextRows
from lexvla_indexer.embedded import merging, writer
from lexvla_indexer.embedded.merging import FAN_IN, SEGMENT_ROWS, due, live_rows, merged
from lexvla_indexer.embedded.segment import Segment, write_segment


@pytest.fixture(autouse=True)
def _without_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)  # saves time


# What is due

SMALL, MIDDLE = [1] * 8, [1024] * 8


def numbered(*rows: int) -> dict[int, int]:
    return dict(enumerate(rows))


@pytest.mark.parametrize(
    ("rows", "deleted", "expected"),
    [
        ([], {}, []),
        ([5], {}, []),
        ([1] * 7, {}, []),
        (SMALL, {}, range(8)),
        ([1023] * 8, {}, range(8)),
        ([1023] * 4 + [1024] * 4, {}, []),  # of two sizes
        (MIDDLE, {}, range(8)),
        ([*MIDDLE, 3, 8191, 8192], {}, range(10)),  # with all smaller ones, of 8192 none
        ([*SMALL, *[1024] * 7], {}, range(8)),
        ([*SMALL, *MIDDLE], {}, range(16)),  # the larger ones, and so the smaller ones too
        ([SEGMENT_ROWS // 2] * 20, {}, []),
        ([SEGMENT_ROWS // 2 - 1] * 8, {}, range(8)),
        ([10], {0: 5}, []),
        ([10], {0: 6}, [0]),
        ([10], {0: 10}, [0]),
        ([10, 10, 10], {0: 6, 2: 10}, [0, 2]),
        ([SEGMENT_ROWS, 10], {0: SEGMENT_ROWS // 2}, []),
        ([SEGMENT_ROWS, 10], {0: SEGMENT_ROWS // 2 + 1}, [0]),
        ([9000] * 8, dict.fromkeys(range(8), 4400), range(8)),  # by what is left: of one size
    ],
)
def test_what_is_due(rows, deleted, expected):
    assert due(numbered(*rows), deleted) == list(expected)


class Sizes:
    """Play commits and merges with numbers of rows alone."""

    def __init__(self) -> None:
        self.rows: dict[int, int] = {}
        self.deleted: dict[int, int] = {}
        self.copied = self.merges = self.last = 0

    def add(self, rows: int) -> None:
        for part in writer._cut(rows):
            self.last += 1
            self.rows[self.last] = part

    def commit(self, rows: int, deleted: int, rng: np.random.Generator) -> None:
        self.add(rows)
        for number in rng.permutation(list(self.rows))[:3].tolist():
            left = self.rows[number] - self.deleted.get(number, 0)
            self.deleted[number] = self.deleted.get(number, 0) + min(deleted, left)
        for _ in range(20):
            numbers = due(self.rows, self.deleted)
            if not numbers:
                return
            self.merges += 1
            live = sum(self.rows.pop(n) - self.deleted.pop(n, 0) for n in numbers)
            self.copied += live
            self.add(live)
        raise AssertionError("merging does not end")

    @property
    def live(self) -> int:
        return sum(self.rows.values()) - sum(self.deleted.values())

    def check(self) -> None:
        """Demand what the docstring says of an index of so many rows."""
        live = [n - self.deleted.get(number, 0) for number, n in self.rows.items()]
        small = [n for n in live if 2 * n < SEGMENT_ROWS]
        tiers = 1 + math.floor(max(math.log(max(self.live, 1) / 1024, FAN_IN) + 1, 0))
        assert len(small) <= (FAN_IN - 1) * tiers
        assert all(2 * n >= self.rows[number] for number, n in zip(self.rows, live, strict=True))


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.integers(0, 6), st.integers(0, 4)), min_size=1, max_size=60),
    st.integers(0, 2**32 - 1),
)
def test_merging_ends_and_leaves_few_segments(commits, seed):
    rng, sizes = np.random.default_rng(seed), Sizes()
    for size, deleted in commits:
        sizes.commit(int(rng.integers(1, 9)) * 8**size, 8**deleted // 2, rng)
        sizes.check()


@pytest.mark.parametrize(("size", "commits"), [(1, 3000), (37, 3000), (1024, 2000), (5000, 700)])
def test_a_row_is_copied_about_once_for_each_eightfold_growth(size, commits):
    rng, sizes = np.random.default_rng(1), Sizes()
    for _ in range(commits):
        sizes.commit(size, 0, rng)
        sizes.check()
    rows = size * commits
    assert sizes.live == rows
    growths = math.ceil(math.log(max(rows / max(size, 1024), 1), FAN_IN))
    # Below 1,024 rows sizes do not matter: of each seven commits, one copies all of these.
    below = 1024 / size / 2 / (FAN_IN - 1) if size < 1024 else 0
    assert sizes.copied <= rows * (growths + below + 1)
    assert sizes.merges <= commits / (FAN_IN - 1) * 2


# Rows of several segments


def segment_of(folder: Path, ids: list[str], rows: Encoding) -> Segment:
    checksum = write_segment(folder, ids, rows, TextRows.of(ids))
    widths = {"lexical": len(VOCABULARY), "codes": 4, "dense": 3}
    return Segment(folder, len(ids), widths, checksum)


@settings(max_examples=40)
@given(
    st.lists(st.lists(st.integers(0, 60), max_size=25, unique=True), min_size=1, max_size=7),
    st.integers(1, 30),
    st.integers(0, 2**32 - 1),
)
def test_merged_rows_are_all_live_rows_by_id(held, most, seed):
    """An id may be in many segments, and lives in one at the most."""
    rng = np.random.default_rng(seed)
    left: dict[str, Encoding] = {}
    with tempfile.TemporaryDirectory() as home:
        parts = []
        for number, keys in enumerate(key for key in held if key):
            ids = [f"é{key:02}" for key in sorted(keys)]
            rows = encode(random_rows(rng, len(ids)), patches=bool(rng.integers(2)))
            mine = [i for i, name in enumerate(ids) if name not in left and rng.random() < 0.8]
            left |= {ids[i]: rows[i] for i in mine}
            deleted = np.array([i for i in range(len(ids)) if i not in mine], np.int64)
            part = segment_of(Path(home, str(number)), ids, rows)
            parts.append((part, live_rows(len(ids), rng.permutation(deleted))))
        chunks = list(merged(parts, most))
    names = sorted(left)
    assert [name for ids, *_ in chunks for name in ids] == names
    assert [len(ids) for ids, *_ in chunks] == [
        min(most, len(names) - first) for first in range(0, len(names), most)
    ]
    for ids, encoding, text in chunks:
        expected_text = TextRows.of(ids)
        assert text.words == expected_text.words
        assert (text.impacts != expected_text.impacts).nnz == 0
        for name, row in zip(ids, encoding, strict=True):
            assert (row.lexical != left[name].lexical).nnz == 0
            assert (row.codes != left[name].codes).nnz == 0
            assert np.array_equal(row.dense, left[name].dense)
            kept = left[name].patches
            expected = np.full(row.lexical.nnz, -1) if kept is None else kept
            assert row.patches is None or row.patches.tolist() == expected.tolist()
            assert kept is None or row.patches is not None


# Segments that are cut


@pytest.fixture
def few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (merging, writer):
        monkeypatch.setattr(module, "SEGMENT_ROWS", 16)


def sizes_of(index: EmbeddedIndex) -> list[int]:
    return [entry.rows for entry in index._refresh().state.segments.values()]


def test_a_large_commit_makes_several_segments(tmp_path, few_rows):
    ids = [f"d{i:02}" for i in range(50)]
    rows = encode(random_rows(np.random.default_rng(3), 50))
    with EmbeddedIndex(tmp_path / "i.lex", create=True, vocabulary=VOCABULARY) as index:
        index.add(documents(ids[::-1]), rows[::-1])
        index.commit()
        assert sizes_of(index) == [16, 16, 16, 2]
        for leg in LEGS:
            assert found(index, rows[0], 50, leg) == brute_force(leg, ids, rows, rows[0], 50)
        assert index.fetch(ids).documents == documents(ids)


@pytest.mark.parametrize("count", [7, 16, 17, 48, 61])
def test_compact_into_several_segments_equals_a_rebuild(tmp_path, few_rows, count):
    rng = np.random.default_rng(count)
    ids = [f"d{i:02}" for i in range(count)]
    rows = encode(random_rows(rng, count))
    held: dict[str, int] = {}
    with EmbeddedIndex(tmp_path / "i.lex", create=True, vocabulary=VOCABULARY) as index:
        for _ in range(12):  # each id a few times, with its last vector
            chosen = rng.choice(count, int(rng.integers(1, count + 1)), replace=False)
            vectors = rng.permutation(count)[: len(chosen)]
            index.add(documents([ids[i] for i in chosen]), rows[vectors])
            gone = [ids[i] for i in rng.choice(count, 2, replace=False)]
            held |= dict(zip((ids[i] for i in chosen), vectors.tolist(), strict=True))
            index.delete(gone)
            held = {name: row for name, row in held.items() if name not in gone}
            index.commit()
            names = list(held)
            for leg in LEGS if names else ():
                assert found(index, rows[0], 99, leg) == brute_force(
                    leg, names, rows[list(held.values())], rows[0], 99
                )
        index.compact()
        assert sizes_of(index) == writer._cut(len(held))
        assert index.verify() == []
    with EmbeddedIndex(tmp_path / "new.lex", create=True, vocabulary=VOCABULARY) as rebuilt:
        rebuilt.add(documents(list(held)), rows[list(held.values())])
        rebuilt.commit()
    assert files_of(tmp_path / "i.lex") == files_of(tmp_path / "new.lex")


def test_what_is_compact_is_left_as_it_is(tmp_path, few_rows):
    ids = [f"d{i:02}" for i in range(40)]
    rows = encode(random_rows(np.random.default_rng(3), 40))
    folder = tmp_path / "i.lex" / "segments"
    with EmbeddedIndex(tmp_path / "i.lex", create=True, vocabulary=VOCABULARY) as index:
        index.compact()
        index.add(documents(ids), rows)
        index.commit()
        before = sorted(file.name for file in folder.iterdir())
        index.compact()
        assert sorted(file.name for file in folder.iterdir()) == before
        index.add(documents(["c"]), rows[:1])  # as many as fit, but its place is before the others
        index.commit()
        index.compact()
        after = sorted(file.name for file in folder.iterdir())
        assert not {*before} & {*after}
        assert sizes_of(index) == [16, 16, 9]
