"""Skipping finds what brute force finds, and reads little of what is left out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from lexvla_indexer.embedded.postings import BLOCK, Postings, build
from lexvla_indexer.embedded.rescoring import exact_top
from lexvla_indexer.embedded.skipping import FREQUENT
from lexvla_indexer.impacts import ImpactQuantizer
from postings_fakes import MASKS, brute_force, mask, pairs, random_impacts, searching

pytest.importorskip("numba", reason="needs numba: pip install 'lexvla[fast]'")


@contextmanager
def frequent_from(postings: int) -> Iterator[None]:
    """Let terms of so many postings in a block be frequent, and search by compiled loops."""
    with mock.patch("lexvla_indexer.embedded.skipping.FREQUENT", postings), searching("numba"):
        yield


def uneven(rng: np.random.Generator, rows: int, levels: int) -> sparse.csr_array:
    """Return rows of which a few have much greater impacts than the others."""
    stored = random_impacts(rng, rows, 10, 4, levels)
    great = rng.random(rows) < 20 / max(rows, 20)
    factor = np.where(great, 255 // levels, 1).repeat(np.diff(stored.indptr))
    stored.data = (stored.data * factor).astype(np.uint8)
    return stored


@settings(max_examples=60)
@given(
    rows=st.sampled_from([1, 15, 16, 17, 64, 65, 1000, 8191, 8192, 8193, 20_000]),
    levels=st.sampled_from([1, 3, 255]),
    frequent=st.sampled_from([1, 300, 2000]),
    k=st.sampled_from([1, 10, 300, 30_000]),
    margin=st.sampled_from([0, 3, 500]),
    masked=MASKS,
    seed=st.integers(0, 2**32 - 1),
)
def test_retrieve_equals_brute_force(rows, levels, frequent, k, margin, masked, seed):
    rng = np.random.default_rng(seed)
    stored = uneven(rng, rows, levels)
    terms = np.flatnonzero(rng.random(10) < 0.5)
    weights = rng.integers(0, 9, len(terms))
    allowed = mask(masked, rows, rng)
    with frequent_from(frequent):
        postings = build(stored)
        scores, found = postings.retrieve(terms, weights, k, margin, allowed)
        assert pairs(postings.top(terms, weights, k, allowed)) == brute_force(
            stored, terms, weights, k, allowed
        )
    everything = brute_force(stored, terms, weights, rows, allowed)
    floor = everything[k - 1][0] - margin if len(everything) >= k else 1
    expected = sorted((row, score) for score, row in everything if score >= floor)
    assert list(zip(found.tolist(), scores.tolist(), strict=True)) == expected


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("levels", [1, 255])
def test_over_blocks_and_spans(seed, levels):
    rng = np.random.default_rng(seed)
    stored = uneven(rng, 2 * BLOCK + 5000, levels)
    terms, weights = np.arange(10), rng.integers(1, 9, 10)
    with searching("numba"):
        postings = build(stored)
        assert 0 < len(postings.peaks.frequent) < len(postings.terms)  # few in the last block
        for k in (1, 10, 1000):
            for name in ("no mask", "half", "none"):
                allowed = mask(name, len(stored.indptr) - 1, rng)
                found = postings.top(terms, weights, k, allowed)
                assert pairs(found) == brute_force(stored, terms, weights, k, allowed)


@settings(max_examples=20)
@given(
    rows=st.sampled_from([1, 70, 9000]),
    k=st.sampled_from([1, 10, 10_000]),
    equal=st.booleans(),
    masked=MASKS,
    seed=st.integers(0, 2**32 - 1),
)
def test_float_answers_are_those_of_brute_force(rows, k, equal, masked, seed):
    rng = np.random.default_rng(seed)
    stored = uneven(rng, rows, 3).astype(np.float32)
    stored.data = stored.data if equal else stored.data * rng.random(stored.nnz, np.float32) + 1e-6
    quantizer = ImpactQuantizer.fit(stored)
    query = sparse.csr_array(rng.random((1, 10), np.float32))
    allowed = mask(masked, rows, rng)
    with frequent_from(1):
        postings = build(quantizer.quantize(stored))
        found = exact_top(query, stored, quantizer, postings, k, allowed)
    scores = np.zeros(rows)
    for column in range(10):  # in column order, as the products are added
        scores += stored[:, [column]].toarray()[:, 0].astype(np.float64) * query[0, column]
    scores[scores < 0 if allowed is None else ~allowed] = 0
    order = np.lexsort((np.arange(rows), -scores))[:k]
    assert pairs(found) == [(scores[row], row) for row in order.tolist() if scores[row] > 0]


def test_what_cannot_be_found_is_not_read():
    """Impacts of low rows that became great would be found if they were read."""
    rows = 40_000
    dense = np.ones((rows, 2), np.uint8)
    dense[100:112] = 200  # the first ones of the first span, which is read as a whole
    with searching("numba"):
        postings = build(sparse.csr_array(dense))
        terms, weights = np.array([0, 1]), np.array([1, 2])
        before = postings.top(terms, weights, 10)
        assert before[0].tolist() == [600] * 10
        later = np.array(postings.impacts)
        later[rows - 10_000 : rows] = 255  # of the first word, in the last spans
        changed = replace(postings, impacts=later)
        assert pairs(changed.top(terms, weights, 10)) == pairs(before)
        # A query of more words than skipping is for reads everything.
        with mock.patch("lexvla_indexer.embedded.postings.MOST_TERMS", 1):
            assert changed.top(terms, weights, 12)[0][0] == 600
            assert len(changed.retrieve(terms, weights, 12, 343)[0]) == 10_012


def test_peaks_and_begins_of_a_block():
    dense = np.zeros((FREQUENT + 200, 2), np.uint8)
    dense[:FREQUENT, 0] = 1
    dense[[15, 16, 70], 0] = [9, 8, 7]
    dense[:10, 1] = 5  # not frequent
    peaks = build(sparse.csr_array(dense)).peaks
    assert peaks.frequent.tolist() == [0]
    assert peaks.peaks.shape == (1, BLOCK // 16)
    assert peaks.peaks[0, :6].tolist() == [9, 8, 1, 1, 7, 1]
    assert peaks.peaks[0, FREQUENT // 16 :].tolist() == [0] * ((BLOCK - FREQUENT) // 16)
    assert peaks.begins[0, :3].tolist() == [0, 64, 128]
    assert peaks.begins[0, FREQUENT // 64 :].tolist() == [FREQUENT] * ((BLOCK - FREQUENT) // 64)


def test_a_term_that_every_row_has():
    """Its postings of a block are more than a uint16 holds: only where they start is stored."""
    with searching("numba"):
        postings = build(sparse.csr_array(np.full((BLOCK, 1), 7, np.uint8)))
        assert postings.peaks.begins[0, -1] == BLOCK - 64
        assert pairs(postings.top(np.array([0]), np.array([2]), 2)) == [(14, 0), (14, 1)]


def test_small_postings_have_no_peaks(tmp_path):
    build(sparse.csr_array(np.full((FREQUENT - 1, 2), 7, np.uint8))).save(tmp_path)
    assert len(Postings.open(tmp_path).peaks.frequent) == 0
