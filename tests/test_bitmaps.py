"""Frequent terms are stored as bits; with them, skipping finds what brute force finds."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from lexvla.errors import IndexCorruptError
from lexvla_indexer.embedded.bitmaps import (
    BLOCK,
    FREQUENT,
    mark_rows,
    rows_of_bits,
)
from lexvla_indexer.embedded.postings import Postings, build, write_postings
from lexvla_indexer.embedded.rescoring import exact_top
from lexvla_indexer.impacts import ImpactQuantizer
from postings_fakes import MASKS, WAYS, brute_force, mask, pairs, random_impacts, searching

MOST_TERMS = "lexvla_indexer.embedded.postings.MOST_TERMS"


@contextmanager
def frequent_from(postings: int, way: str) -> Iterator[None]:
    """Let terms of so many postings in a block be frequent, and search in one of the ways."""
    with mock.patch("lexvla_indexer.embedded.bitmaps.FREQUENT", postings), searching(way):
        yield


def uneven(rng: np.random.Generator, rows: int, levels: int) -> sparse.csr_array:
    """Return rows of which a few have much greater impacts than the others."""
    stored = random_impacts(rng, rows, 10, 4, levels)
    great = rng.random(rows) < 20 / max(rows, 20)
    factor = np.where(great, 255 // levels, 1).repeat(np.diff(stored.indptr))
    stored.data = (stored.data * factor).astype(np.uint8)
    return stored


@WAYS
@settings(max_examples=60)
@given(
    rows=st.sampled_from([1, 15, 16, 17, 64, 65, 1000, 8191, 8192, 8193, 20_000]),
    levels=st.sampled_from([1, 3, 255]),
    frequent=st.sampled_from([1, 300, 2000]),
    k=st.sampled_from([1, 10, 300, 30_000]),
    margin=st.sampled_from([0, 3, 500]),
    most_terms=st.sampled_from([0, 64]),
    known=st.booleans(),
    masked=MASKS,
    seed=st.integers(0, 2**32 - 1),
)
def test_retrieve_equals_brute_force(
    way, rows, levels, frequent, k, margin, most_terms, known, masked, seed
):
    rng = np.random.default_rng(seed)
    stored = uneven(rng, rows, levels)
    terms = np.flatnonzero(rng.random(10) < 0.5)
    weights = rng.integers(0, 9, len(terms))
    allowed = mask(masked, rows, rng)
    everything = brute_force(stored, terms, weights, rows, allowed)
    floor = everything[k - 1][0] - margin if len(everything) >= k else 1
    # A floor that is known before the first row: so small indexes skip rows too.
    least = everything[:k][-1][0] if known and everything else 0
    with frequent_from(frequent, way), mock.patch(MOST_TERMS, most_terms):
        postings = build(stored)
        scores, found = postings.retrieve(terms, weights, k, margin, allowed, least=least)
        assert pairs(postings.top(terms, weights, k, allowed)) == everything[:k]
    near = {row: score for score, row in everything if score >= floor}
    returned = dict(zip(found.tolist(), scores.tolist(), strict=True))
    assert returned.items() <= near.items()
    assert {row: score for row, score in near.items() if score >= least} == {
        row: score for row, score in returned.items() if score >= least
    }
    assert least or returned == near
    assert found.tolist() == sorted(found.tolist())


@WAYS
@pytest.mark.parametrize("most_terms", [0, 64])
@pytest.mark.parametrize("levels", [1, 255])
def test_over_blocks_and_spans(way, most_terms, levels):
    rng = np.random.default_rng(levels)
    stored = uneven(rng, 2 * BLOCK + 5000, levels)
    terms, weights = np.arange(10), rng.integers(1, 9, 10)
    with searching(way), mock.patch(MOST_TERMS, most_terms):
        postings = build(stored)
        frequent = postings.bitmaps.frequent
        assert 0 < len(frequent) < len(postings.terms)  # few in the last block
        for term in (0, 9):
            column = stored[:, [term]].toarray()[:, 0]
            assert postings.rows_of(term).tolist() == np.flatnonzero(column).tolist()
        for k in (1, 10, 1000):
            for name in ("no mask", "half", "none"):
                allowed = mask(name, len(stored.indptr) - 1, rng)
                found = postings.top(terms, weights, k, allowed)
                assert pairs(found) == brute_force(stored, terms, weights, k, allowed)


@WAYS
@settings(max_examples=20)
@given(
    rows=st.sampled_from([1, 70, 9000]),
    k=st.sampled_from([1, 10, 10_000]),
    equal=st.booleans(),
    masked=MASKS,
    seed=st.integers(0, 2**32 - 1),
)
def test_float_answers_are_those_of_brute_force(way, rows, k, equal, masked, seed):
    rng = np.random.default_rng(seed)
    stored = uneven(rng, rows, 3).astype(np.float32)
    stored.data = stored.data if equal else stored.data * rng.random(stored.nnz, np.float32) + 1e-6
    quantizer = ImpactQuantizer.fit(stored)
    query = sparse.csr_array(rng.random((1, 10), np.float32))
    allowed = mask(masked, rows, rng)
    with frequent_from(1, way):
        postings = build(quantizer.quantize(stored))
        found = exact_top(query, stored, quantizer, postings, k, allowed)
    scores = np.zeros(rows)
    for column in range(10):  # in column order, as the products are added
        scores += stored[:, [column]].toarray()[:, 0].astype(np.float64) * query[0, column]
    scores[scores < 0 if allowed is None else ~allowed] = 0
    order = np.lexsort((np.arange(rows), -scores))[:k]
    assert pairs(found) == [(scores[row], row) for row in order.tolist() if scores[row] > 0]


@WAYS
@pytest.mark.parametrize("most_terms", [0, 64])
def test_all_rows_that_are_equal_to_the_best_are_returned(way, most_terms):
    """The bound of each group is its rows' score; there are more rows than there was room for."""
    rows = BLOCK + 20_000
    with searching(way), mock.patch(MOST_TERMS, most_terms):
        postings = build(sparse.csr_array(np.full((rows, 2), 7, np.uint8)))
        scores, found = postings.retrieve(np.array([0, 1]), np.array([1, 2]), 1, 0)
    assert found.tolist() == list(range(rows))
    assert (scores == 21).all()


def test_what_cannot_be_found_is_not_read():
    """Impacts of low rows that became great would be found if they were read."""
    pytest.importorskip("numba", reason="needs numba: pip install 'lexvla[fast]'")
    rows = 40_000
    dense = np.ones((rows, 2), np.uint8)
    dense[100:112] = 200  # among the first ones, so that the others are skipped
    with searching("numba"):
        postings = build(sparse.csr_array(dense))
        terms, weights = np.array([0, 1]), np.array([1, 2])
        before = postings.top(terms, weights, 10)
        assert before[0].tolist() == [600] * 10
        later = np.array(postings.impacts)
        later[rows - 10_048 : rows - 48] = 255  # of the first word, in whole pieces
        changed = replace(postings, impacts=later)
        assert pairs(changed.top(terms, weights, 10)) == pairs(before)
        # A query of more words than skipping is for reads everything.
        with mock.patch("lexvla_indexer.embedded.postings.MOST_TERMS", 1):
            assert changed.top(terms, weights, 12)[0][0] == 600
            assert len(changed.retrieve(terms, weights, 12, 343)[0]) == 10_012


@WAYS
def test_the_arrays_of_a_block(way):
    dense = np.zeros((FREQUENT + 200, 2), np.uint8)
    dense[:FREQUENT, 0] = 1
    dense[[1, 15, 16, 70], 0] = [6, 9, 8, 7]
    dense[:10, 1] = 5  # not frequent
    with searching(way):
        made = build(sparse.csr_array(dense))
    bitmaps = made.bitmaps
    assert (bitmaps.frequent.tolist(), bitmaps.before.tolist()) == ([0], [0, FREQUENT])
    assert made.ids.tolist() == list(range(10))
    assert bitmaps.peaks.shape == (1, BLOCK // 16)
    assert bitmaps.peaks[0, :6].tolist() == [9, 8, 1, 1, 7, 1]
    assert bitmaps.peaks[0, FREQUENT // 16 :].tolist() == [0] * ((BLOCK - FREQUENT) // 16)
    assert bitmaps.begins[0, :3].tolist() == [0, 64, 128]
    assert bitmaps.begins[0, FREQUENT // 64 :].tolist() == [FREQUENT] * ((BLOCK - FREQUENT) // 64)
    assert bitmaps.bits[0, : FREQUENT // 64 + 1].tolist() == [2**64 - 1] * (FREQUENT // 64) + [0]
    # Bits of the first 64 rows: rows 0, 16, 32, 48, then 1, 17 and so on.
    assert made.impacts[:6].tolist() == [1, 8, 1, 1, 6, 1]
    assert made.impacts[60:68].tolist() == [9, 1, 1, 1, 1, 1, 1, 1]
    assert made.impacts[FREQUENT:].tolist() == [5] * 10 + [0] * 64


def test_bits_are_in_the_order_of_bytes_and_then_numbers():
    rows, impacts = np.array([0, 1, 16, 65, 127]), np.array([10, 11, 12, 13, 14], np.uint8)
    bits, peaks = np.zeros(2, np.uint64), np.zeros(8, np.uint8)
    assert mark_rows(rows, impacts, bits, peaks).tolist() == [10, 12, 11, 13, 14]
    assert bits.tolist() == [0b10011, 2**4 + 2**63]
    assert peaks.tolist() == [11, 12, 0, 0, 13, 0, 0, 14]
    assert rows_of_bits(bits).tolist() == [0, 16, 1, 65, 127]
    assert rows_of_bits(bits).dtype == np.uint16


@WAYS
def test_a_term_that_every_row_has(way):
    """Its postings of a block are more than a uint16 holds: only where they start is stored."""
    with searching(way):
        postings = build(sparse.csr_array(np.full((BLOCK, 1), 7, np.uint8)))
        assert postings.bitmaps.begins[0, -1] == BLOCK - 64
        assert pairs(postings.top(np.array([0]), np.array([2]), 2)) == [(14, 0), (14, 1)]


def test_small_postings_have_no_bitmaps(tmp_path):
    write_postings(tmp_path, sparse.csr_array(np.full((FREQUENT - 1, 2), 7, np.uint8)))
    assert Postings.open(tmp_path).bitmaps.bits.shape == (0, BLOCK // 64)


def test_damaged_bits_are_told_where_numpy_reads_them(tmp_path):
    write_postings(tmp_path, sparse.csr_array(np.full((FREQUENT, 1), 7, np.uint8)))
    file = tmp_path / "lexical.posting.bits.npy"
    bits = np.load(file)
    bits[0, 5] = 1
    np.save(file, bits)
    with searching("numpy"), pytest.raises(IndexCorruptError, match="rows of a term do not fit"):
        Postings.open(tmp_path).top(np.array([0]), np.array([1]), 3)


def test_bits_of_rows_that_a_block_does_not_have_are_told_by_numpy(tmp_path):
    write_postings(tmp_path, sparse.csr_array(np.full((FREQUENT, 1), 7, np.uint8)))
    file = tmp_path / "lexical.posting.bits.npy"
    bits = np.load(file)
    bits[0, [5, FREQUENT // 64]] = bits[0, [FREQUENT // 64, 5]]
    np.save(file, bits)
    found = Postings.open(tmp_path)
    with searching("numpy"), pytest.raises(IndexCorruptError, match="rows above 2047"):
        found.top(np.array([0]), np.array([1]), 3)


def test_rows_of_frequent_terms_are_found_once_and_kept_within_a_bound():
    rng = np.random.default_rng(3)
    stored = random_impacts(rng, BLOCK + 9, 3, 2, 255)
    query = np.array([0, 2]), np.array([1, 2]), 20
    with searching("numpy"):
        made = build(stored)
        assert len(made.bitmaps.frequent) == 3  # of the first block; the last has few rows
        expected = brute_force(stored, *query)
        assert pairs(made.top(*query)) == expected
        with mock.patch("lexvla_indexer.embedded.postings.rows_of_bits", None):
            assert pairs(made.top(*query)) == expected
            with pytest.raises(TypeError):  # the other word; None cannot be called
                made.top(np.array([1]), np.array([1]), 20)
        bound = int(made.bitmaps.before[1])
        kept = {0: 2 * bound, 2: 2 * int(np.diff(made.bitmaps.before)[2])}
        assert {own: rows.nbytes for own, rows in made._found.items()} == kept
        with mock.patch("lexvla_indexer.embedded.postings._KEPT", bound):
            limited = build(stored)
            assert pairs(limited.top(*query)) == expected
            assert list(limited._found) == [0]


@WAYS
@pytest.mark.parametrize("value", [0, 255, 2**63 - 1, -(2**63)])
@pytest.mark.parametrize("name", ["term", "start", "row", "impact", "bits", "begin", "peak"])
def test_nothing_outside_the_files_is_read_when_one_changes_later(tmp_path, way, name, value):
    """Vector instructions take addresses, which nothing else checks."""
    dense = np.full((BLOCK + 3000, 3), 7, np.uint8)
    dense[3::4, 2] = 0
    dense[BLOCK + 1000 :, 2] = 0  # has a list in the last block
    write_postings(tmp_path, sparse.csr_array(dense))
    opened = Postings.open(tmp_path)
    file = tmp_path / f"lexical.posting.{name}.npy"
    array = np.load(file, mmap_mode="r+")
    array[array.shape[0] // 2 :] = np.array(value).astype(array.dtype)
    array.flush()
    for most_terms in (0, 64):
        with searching(way), mock.patch(MOST_TERMS, most_terms):
            for terms in (np.arange(3), np.array([2])):
                try:
                    _, rows = opened.top(terms, np.ones(len(terms), np.int64), 9)
                except (IndexCorruptError, ValueError):  # numpy's
                    assert way == "numpy"
                else:
                    assert (rows < len(dense)).all()


@pytest.mark.parametrize(
    ("target", "instructions"),
    [
        ({"NUMBA_CPU_NAME": "x86-64", "NUMBA_CPU_FEATURES": "+avx2,+bmi2"}, {"bmi2"}),
        ({"NUMBA_CPU_NAME": "x86-64", "NUMBA_CPU_FEATURES": "+sse4.2"}, {""}),
        ({"NUMBA_CPU_NAME": "x86-64", "NUMBA_CPU_FEATURES": ""}, {""}),
        ({"NUMBA_ENABLE_AVX": "0"}, {"", "bmi2"}),
    ],
)
def test_other_processors_find_the_same(tmp_path, target, instructions):
    """Loops compiled for processors without AVX-512 answer as brute force does."""
    pytest.importorskip("numba", reason="needs numba: pip install 'lexvla[fast]'")
    if platform.machine() != "x86_64":
        pytest.skip("needs a processor of the x86-64 kind")
    code = (
        "import numpy as np\n"
        "from lexvla_indexer.embedded import kernels\n"
        "from lexvla_indexer.embedded.postings import build\n"
        "from postings_fakes import brute_force, pairs, random_impacts, searching\n"
        f"assert kernels.INSTRUCTIONS in {instructions!r}\n"
        "stored = random_impacts(np.random.default_rng(1), 70_000, 9, 5, 255)\n"
        "terms, weights = np.arange(9), np.arange(1, 10) * 3000\n"
        "with searching('numba'):\n"
        "    postings = build(stored)\n"
        "    assert len(postings.bitmaps.frequent) >= 9\n"
        "    for few in (slice(0, 4), slice(0, 9)):\n"
        "        found = postings.top(terms[few], weights[few], 50)\n"
        "        assert pairs(found) == brute_force(stored, terms[few], weights[few], 50)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | target | {"NUMBA_CACHE_DIR": str(tmp_path)},
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
