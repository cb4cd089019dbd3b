from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from lexvla.errors import IndexCorruptError
from lexvla_indexer.embedded.arrays import mark as mark_of_file
from lexvla_indexer.embedded.postings import (
    BLOCK,
    LARGEST_WEIGHT,
    Postings,
    best,
    build,
    write_postings,
)
from postings_fakes import MASKS, WAYS, brute_force, mask, pairs, random_impacts, searching

FILES = ("block", "term", "start", "row", "impact", "bits", "begin", "peak")


def impacts(rows: list[list[int]]) -> sparse.csr_array:
    return sparse.csr_array(np.array(rows, np.uint8))


SMALL = impacts([[0, 5, 0, 1], [0, 0, 0, 0], [0, 2, 0, 3]])


def path_of(folder: Path, name: str) -> Path:
    return folder / f"lexical.posting.{name}.npy"


# Layout


@WAYS
def test_the_layout_is_as_stated(way):
    with searching(way):
        made = build(SMALL)
    assert (made.rows, made.width) == (3, 4)
    assert made.blocks.tolist() == [0, 2]
    assert made.terms.tolist() == [1, 3]
    assert made.starts.tolist() == [0, 2, 4]
    assert made.ids.tolist() == [0, 2, 0, 2]
    assert made.impacts.tolist() == [5, 2, 1, 3] + [0] * 64
    kinds = [array.dtype for array in (made.blocks, made.terms, made.starts, made.ids)]
    assert kinds == [np.int64, np.int32, np.int64, np.uint16]
    assert made.impacts.dtype == np.uint8


@WAYS
@pytest.mark.parametrize(("rows", "blocks"), [(BLOCK, 1), (BLOCK + 1, 2), (2 * BLOCK + 5, 3)])
def test_blocks_split_where_a_uint16_ends(way, rows, blocks):
    stored = random_impacts(np.random.default_rng(rows), rows, 7, 2, 255)
    with searching(way):
        made = build(stored)
        assert len(made.blocks) == blocks + 1
        for block in range(blocks):
            columns = stored[block * BLOCK : (block + 1) * BLOCK].tocsc()
            span = slice(*made.blocks[block : block + 2])
            assert made.terms[span].tolist() == np.flatnonzero(np.diff(columns.indptr)).tolist()
            for term in range(7):
                own = slice(*columns.indptr[term : term + 2])
                parts = {base: pair for base, *pair in made._of_term(term)}
                found = dict(zip(*parts.get(block * BLOCK, ((), ())), strict=True))
                assert found == dict(zip(columns.indices[own], columns.data[own], strict=True))
        for terms, weights in (([3], [9]), ([0, 2, 6], [1, 3, 2])):
            arrays = np.array(terms), np.array(weights)
            for k in (1, 1000, rows + 1):
                assert pairs(made.top(*arrays, k)) == brute_force(stored, *arrays, k)


@pytest.mark.parametrize(
    "bad", [SMALL.astype(np.int32), sparse.csr_array((np.ones(2, np.uint8), [2, 1], [0, 2]))]
)
def test_rows_of_another_form_are_refused(bad):
    with pytest.raises(ValueError, match=r"uint8|sorted"):
        build(bad)


# Search


@WAYS
def test_scores_of_a_tiny_segment(way):
    with searching(way):
        made = build(SMALL)
        assert pairs(made.top(np.array([1, 3]), np.array([2, 3]), 5)) == [(13, 0), (13, 2)]
        assert pairs(made.top(np.array([3]), np.array([2]), 1)) == [(6, 2)]
        assert pairs(made.top(np.array([1]), np.array([2]), 5, np.array([False, True, True]))) == [
            (4, 2)
        ]
        assert pairs(made.top(np.array([0, 2]), np.array([7, 7]), 5)) == []
        assert pairs(made.top(np.array([1]), np.array([0]), 5)) == []


@WAYS
@settings(max_examples=80)
@given(
    rows=st.sampled_from([0, 1, 2, 30, 255, 256, 257, 700, 3000]),
    width=st.integers(1, 12),
    levels=st.sampled_from([1, 3, 255]),
    words=st.integers(0, 6),
    k=st.sampled_from([1, 2, 10, 5000]),
    masked=MASKS,
    seed=st.integers(0, 2**32 - 1),
)
def test_top_equals_brute_force(way, rows, width, levels, words, k, masked, seed):
    rng = np.random.default_rng(seed)
    stored = random_impacts(rng, rows, width, words, levels)
    terms = np.flatnonzero(rng.random(width) < 0.5)
    weights = rng.integers(0, 256, len(terms))
    allowed = mask(masked, rows, rng)
    with searching(way):
        answer = build(stored).top(terms, weights, k, allowed)
    assert pairs(answer) == brute_force(stored, terms, weights, k, allowed)


@WAYS
@settings(max_examples=60)
@given(
    rows=st.sampled_from([1, 300, 5000]),
    k=st.sampled_from([1, 7, 400]),
    margin=st.sampled_from([0, 1, 40, 2**31 - 1]),
    masked=MASKS,
    seed=st.integers(0, 2**32 - 1),
)
def test_retrieve_returns_all_rows_within_the_margin(way, rows, k, margin, masked, seed):
    rng = np.random.default_rng(seed)
    stored = random_impacts(rng, rows, 9, 3, 20)
    terms, weights = np.array([1, 4, 8]), rng.integers(1, 4, 3)
    allowed = mask(masked, rows, rng)
    with searching(way):
        scores, found = build(stored).retrieve(terms, weights, k, margin, allowed)
    everything = brute_force(stored, terms, weights, rows, allowed)
    floor = everything[k - 1][0] - margin if len(everything) >= k else 1
    expected = sorted((row, score) for score, row in everything if score >= floor)
    assert list(zip(found.tolist(), scores.tolist(), strict=True)) == expected


@settings(max_examples=20)
@given(
    threads=st.sampled_from([2, 3, 7]),
    k=st.sampled_from([1, 10, 30_000]),
    margin=st.sampled_from([0, 40]),
    masked=MASKS,
    seed=st.integers(0, 2**32 - 1),
)
def test_several_threads_find_what_one_finds(threads, k, margin, masked, seed):
    rng = np.random.default_rng(seed)
    stored = random_impacts(rng, 2 * BLOCK + 77, 9, 3, 20)
    query = np.arange(9), rng.integers(0, 9, 9), k, margin, mask(masked, stored.shape[0], rng)
    module = "lexvla_indexer.embedded.postings"
    never_skips = mock.patch(f"{module}.MOST_TERMS", 0)
    with searching("numba"), never_skips, mock.patch(f"{module}._THREADED", 0):
        postings = build(stored)
        scores, rows = postings.retrieve(*query, threads)
        with mock.patch(f"{module}.ThreadPoolExecutor", None):
            alone = postings.retrieve(*query)
    assert rows.tolist() == alone[1].tolist()
    assert scores.tolist() == alone[0].tolist()


def test_long_queries_of_large_segments_alone_start_threads():
    postings = build(random_impacts(np.random.default_rng(0), BLOCK + 9, 9, 3, 20))
    terms, weights = np.arange(9), np.ones(9, np.int32)
    module = "lexvla_indexer.embedded.postings"
    with searching("numba"), mock.patch(f"{module}.ThreadPoolExecutor", None):
        assert len(postings.top(terms, weights, 5, threads=2)[0]) == 5
        never_skips = mock.patch(f"{module}.MOST_TERMS", 0)
        few = mock.patch(f"{module}._THREADED", 9 * BLOCK)
        with never_skips, few, pytest.raises(TypeError):  # None cannot be called
            postings.top(terms, weights, 5, threads=2)


@WAYS
def test_how_many_rows_have_a_term(way):
    stored = random_impacts(np.random.default_rng(4), BLOCK + 9, 6, 2, 255)
    stored.indices[stored.indices == 3] = 4
    stored.sum_duplicates()
    with searching(way):
        postings = build(stored)
    assert [postings.frequency(term) for term in range(6)] == [
        int((stored.indices == term).sum()) for term in range(6)
    ]


@WAYS
def test_equal_scores_are_in_row_order(way):
    stored = sparse.csr_array(np.full((BLOCK + 300, 1), 4, np.uint8))
    with searching(way):
        made = build(stored)
        assert pairs(made.top(np.array([0]), np.array([2]), 3)) == [(8, 0), (8, 1), (8, 2)]
        late = np.zeros(BLOCK + 300, bool)
        late[-300:] = True
        found = made.top(np.array([0]), np.array([2]), 2, late)
    assert pairs(found) == [(8, BLOCK), (8, BLOCK + 1)]


@WAYS
def test_the_greatest_scores_do_not_overflow(way):
    words = (2**31 - 1) // 255 // LARGEST_WEIGHT
    stored = sparse.csr_array(np.full((2, words), 255, np.uint8))
    with searching(way):
        found = build(stored).top(np.arange(words), np.full(words, LARGEST_WEIGHT), 1)
    assert pairs(found) == [(words * 255 * LARGEST_WEIGHT, 0)]


@WAYS
def test_no_query_and_no_rows_have_no_answers(way):
    nothing = np.empty(0, np.int32)
    with searching(way):
        for stored in (SMALL, SMALL[:0], sparse.csr_array((0, 0), dtype=np.uint8)):
            assert pairs(build(stored).top(nothing, nothing, 3)) == []
        assert pairs(build(SMALL[:0]).top(np.array([1]), np.array([1]), 3)) == []


@pytest.mark.parametrize(
    ("terms", "weights", "k", "allowed", "rule"),
    [
        ([4], [1], 1, None, "terms must be"),
        ([-1], [1], 1, None, "terms must be"),
        ([1.0], [1], 1, None, "terms must be"),
        ([1, 2], [1], 1, None, "2.* terms with"),
        ([1], [-1], 1, None, "whole numbers from 0 to 32767"),
        ([1], [0.5], 1, None, "whole numbers from 0 to 32767"),
        ([1], [2**15], 1, None, "whole numbers from 0 to 32767"),
        ([1], [1], 0, None, "k must be at least 1"),
        ([1], [1], 1, [True], "3 booleans"),
        ([1], [1], 1, [1, 1, 1], "3 booleans"),
    ],
)
def test_bad_queries_are_refused(terms, weights, k, allowed, rule):
    allowed = None if allowed is None else np.array(allowed)
    with pytest.raises(ValueError, match=rule):
        build(SMALL).top(np.array(terms), np.array(weights), k, allowed)


def test_best_takes_the_first_of_equal_ones():
    scores, rows = best(np.array([1, 3, 2, 3, 2]), np.array([10, 11, 12, 13, 14]), 3)
    assert (scores.tolist(), rows.tolist()) == ([3, 3, 2], [11, 13, 12])


@pytest.mark.parametrize(
    "without", ["sys.modules['numba'] = None", "os.environ['NUMBA_DISABLE_JIT'] = '1'"]
)
def test_without_numba_numpy_answers(without):
    code = (
        f"import os, sys; {without}\n"
        "import numpy as np; from scipy import sparse\n"
        "from lexvla_indexer.embedded.postings import build, kernels\n"
        "found = build(sparse.csr_array(np.array([[0, 7]], np.uint8))).top([1], [2], 1)\n"
        "print(kernels(), *found)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["None", "[14]", "[0]"]


def test_numba_is_loaded_only_when_it_is_needed():
    code = "import sys, lexvla_indexer.embedded.rescoring; print(sys.modules.get('numba'))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "None"


# Files


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    write_postings(tmp_path, random_impacts(np.random.default_rng(5), BLOCK + 9, 6, 2, 255))
    return tmp_path


@WAYS
def test_saved_postings_answer_as_before(tmp_path, way):
    rng = np.random.default_rng(6)
    stored = random_impacts(rng, BLOCK + 9, 6, 2, 255)
    query = np.array([0, 5]), np.array([3, 4])
    with searching(way):
        made = build(stored)
        marks = write_postings(tmp_path, stored, "codes")
        found = Postings.open(tmp_path, "codes")
        assert pairs(found.top(*query, 50)) == pairs(made.top(*query, 50))
    assert list(marks) == [f"codes.posting.{name}.npy" for name in FILES]
    assert marks == {path.name: mark_of_file(path) for path in tmp_path.iterdir()}
    assert not found.ids.flags.writeable
    for name in ("rows", "width"):
        assert getattr(found, name) == getattr(made, name)
    assert path_of(tmp_path, "row").exists() is False


def test_both_ways_write_the_same_files(tmp_path):
    """Of a frequent term, a rare one, and rows that end within 64 of the second block."""
    rng, rows = np.random.default_rng(8), BLOCK + 3000
    dense = rng.integers(1, 256, (rows, 3)).astype(np.uint8)
    dense[rng.random(rows) < 0.3, 0] = 0
    dense[rng.random(rows) < 0.99, 1] = 0
    stored = sparse.csr_array(dense)
    marks = {}
    for way in ("numba", "numpy") if find_spec("numba") else ("numpy",):
        (tmp_path / way).mkdir()
        with searching(way):
            marks[way] = write_postings(tmp_path / way, stored)
    assert marks == dict.fromkeys(marks, marks["numpy"])
    assert marks["numpy"]["lexical.posting.bits.npy"].size == 128 + 4 * 8 * 1024


def test_weights_are_turned_into_impacts_block_by_block(tmp_path):
    rows = sparse.csr_array(np.full((BLOCK + 2, 1), 0.5, np.float32))
    asked: list[int] = []

    def impacts_of(weights: np.ndarray) -> np.ndarray:
        asked.append(len(weights))
        return (weights * 8).astype(np.uint8)

    write_postings(tmp_path, rows, impacts_of=impacts_of)
    assert sorted(asked) == [2, BLOCK]
    found = Postings.open(tmp_path)
    assert found.impacts.tolist() == [4] * (BLOCK + 2) + [0] * 64


@pytest.mark.parametrize("rows", [0, 3])
def test_postings_without_words_can_be_saved(tmp_path, rows):
    write_postings(tmp_path, sparse.csr_array((rows, 4), dtype=np.uint8))
    found = Postings.open(tmp_path)
    assert (found.rows, found.width, len(found.ids)) == (rows, 4, 0)
    assert pairs(found.top(np.array([2]), np.array([1]), 3)) == []


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["removed", "emptied", "halved", "one byte short", "zeroed"])
def test_a_damaged_file_is_named(saved, name, damage):
    file = path_of(saved, name)
    data = file.read_bytes()
    sizes = {"emptied": 0, "halved": len(data) // 2, "one byte short": len(data) - 1}
    if damage == "removed":
        file.unlink()
    else:
        file.write_bytes(bytes(len(data)) if damage == "zeroed" else data[: sizes[damage]])
    with pytest.raises(IndexCorruptError, match=file.name):
        Postings.open(saved)


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_header_gives_a_typed_error_or_the_same_array(saved, name):
    file = path_of(saved, name)
    data, before = file.read_bytes(), np.load(file)
    errors = 0
    for position in range(128):
        flipped = bytes([data[position] ^ 0x10])
        file.write_bytes(data[:position] + flipped + data[position + 1 :])
        try:
            Postings.open(saved)
        except IndexCorruptError as error:
            errors += file.name in str(error)
        else:
            assert (np.load(file) == before).all()
    assert errors > 50


@pytest.mark.parametrize(
    ("name", "place", "value"),
    [
        ("block", 0, BLOCK),  # rows
        ("block", 0, 2**62),
        ("block", 1, 5),  # width
        ("block", 2, 1),
        ("block", 3, 99),
        ("block", 4, -1),
        ("term", 2, 0),
        ("term", 2, 6),
        ("term", 2, -1),
        ("start", 0, 1),
        ("start", 1, 2**62),
        ("start", 3, 0),
        ("start", -1, 1),
        ("row", -1, 9),  # the last block has nine rows
    ],
)
def test_numbers_out_of_range_are_refused(saved, name, place, value):
    file = path_of(saved, name)
    array = np.load(file)
    array[place] = value
    np.save(file, array)
    with pytest.raises(IndexCorruptError, match=r"posting\.\w+\.npy: must"):
        Postings.open(saved)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("change", ["another type", "two rows", "longer"])
def test_arrays_of_another_form_are_refused(saved, name, change):
    file = path_of(saved, name)
    array = np.load(file)
    forms = {
        "another type": array.astype(np.float32),
        "two rows": array[None],
        "longer": np.append(array, array[-1:]),
    }
    np.save(file, forms[change])
    with pytest.raises(IndexCorruptError, match=r"posting\.\w+\.npy: must"):
        Postings.open(saved)


@WAYS
def test_rows_out_of_range_that_pass_are_never_found(saved, way):
    """Only the last row of a term is checked before a search."""
    file = path_of(saved, "row")
    array = np.load(file)
    found = Postings.open(saved)
    first = int(found.starts[found.blocks[1]] - found.bitmaps.before[-1])
    assert found.starts[found.blocks[1] + 1] - found.starts[found.blocks[1]] > 1
    array[first] = 60_000
    np.save(file, array)
    found = Postings.open(saved)
    query = np.array([found.terms[found.blocks[1]]]), np.array([1])
    with searching(way):
        if way == "numpy":
            with pytest.raises(IndexCorruptError, match="rows above 8 of the last block"):
                found.top(*query, 10**6)
        else:
            assert found.top(*query, 10**6)[1].max() < found.rows
