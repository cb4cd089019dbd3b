from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from lexvla.errors import IndexCorruptError
from lexvla_indexer.embedded import rescoring
from lexvla_indexer.embedded.postings import BLOCK, build
from lexvla_indexer.embedded.rescoring import exact_top, integer_top
from lexvla_indexer.impacts import ImpactQuantizer
from postings_fakes import MASKS, WAYS, brute_force, mask, pairs, random_impacts, searching


def random_rows(
    rng: np.random.Generator, rows: int, width: int, words: int, kinds: int | None = None
) -> sparse.csr_array:
    """Return float32 rows, as a log-normal law or with so many kinds of weights."""
    stored = random_impacts(rng, rows, width, words, 255)
    if kinds is None:
        stored.data = np.exp(rng.normal(-2, 1, stored.nnz)).astype(np.float32)
    else:
        stored.data = (rng.integers(1, kinds + 1, stored.nnz) / 7).astype(np.float32)
    return stored


def expected(stored, query, k, allowed=None) -> list[tuple[float, int]]:
    return brute_force(stored, query.indices, query.data.astype(np.float64), k, allowed)


def search(stored, query, k, allowed=None, **options) -> list[tuple[float, int]]:
    quantizer = ImpactQuantizer.fit(stored, **options)
    postings = build(quantizer.quantize(stored))
    scores, rows = exact_top(query, stored, quantizer, postings, k, allowed)
    assert scores.dtype == np.float64
    return pairs((scores, rows))


def row(*weights: float) -> sparse.csr_array:
    return sparse.csr_array(np.array([weights], np.float32))


@WAYS
def test_rows_that_integers_confuse_are_put_in_order(way):
    stored = sparse.csr_array(
        np.array([[0.5, 1, 0], [0.5001, 1, 0], [0, 0, 2]], np.float32),
    )
    quantizer = ImpactQuantizer.fit(stored)
    assert quantizer.quantize(stored)[:2].toarray().tolist() == [[64, 128, 0]] * 2
    with searching(way):
        found = search(stored, row(1, 0.5, 0), 3)
    assert found == [(float(np.float32(0.5001)) + 0.5, 1), (1.0, 0)]


@WAYS
@pytest.mark.parametrize("many", [0, 32])
def test_the_best_row_may_be_two_errors_below_the_best_integer(way, many, monkeypatch):
    """A step is 1: all words of row 0 are rounded up, and those of row 1 down, by half a step."""
    stored = np.zeros((20, 32), np.float32)
    stored[0, :30], stored[1, :30] = 1.501, 1.499
    stored[1, 30] = 1
    stored[2, 31] = 255
    matrix, query = sparse.csr_array(stored), row(*[1] * 31, 0)
    impacts = ImpactQuantizer.fit(matrix).quantize(matrix)
    assert (impacts @ query.toarray()[0])[:3].tolist() == [60, 31, 0]
    monkeypatch.setattr(rescoring, "MANY", many)
    with searching(way):
        found = search(matrix, query, 1)
    assert found == expected(matrix, query, 1)
    assert found[0][1] == 1


@WAYS
def test_a_row_of_dropped_words_may_be_two_errors_below_the_best_integer(way):
    stored = np.zeros((20, 31), np.float32)
    stored[0, :30], stored[1, :29] = 0.499, 0.501  # dropped, and rounded up to a step
    stored[2, 30] = 255
    matrix, query = sparse.csr_array(stored), row(*[1] * 30, 0)
    with searching(way):
        found = search(matrix, query, 1, drop_zero=True)
    assert found == expected(matrix, query, 1)
    assert found[0][1] == 0


@WAYS
@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
@settings(max_examples=50)
@given(
    rows=st.sampled_from([0, 1, 40, 2000]),
    width=st.integers(1, 30),
    words=st.integers(0, 8),
    kinds=st.sampled_from([None, 1, 3]),
    k=st.sampled_from([1, 10, 3000]),
    options=st.fixed_dictionaries(
        {
            "bits": st.sampled_from([1, 3, 8]),
            "percentile": st.sampled_from([50, 99, 100]),
            "drop_zero": st.booleans(),
        }
    ),
    masked=MASKS,
    seed=st.integers(0, 2**32 - 1),
)
def test_answers_are_those_of_floats(
    way, share, rows, width, words, kinds, k, options, masked, seed
):
    rng = np.random.default_rng(seed)
    stored = random_rows(rng, rows, width, words, kinds)
    query = random_rows(rng, 1, width, 5, kinds)
    allowed = mask(masked, rows, rng)
    with searching(way), pytest.MonkeyPatch.context() as patch:
        patch.setattr(rescoring, "SHARE", share)
        found = search(stored, query, k, allowed, **options)
    assert found == expected(stored, query, k, allowed)


@WAYS
def test_weights_of_very_different_sizes(way):
    rng = np.random.default_rng(2)
    stored = random_rows(rng, 500, 20, 6)
    stored.data *= (10.0 ** rng.integers(-30, 10, stored.nnz)).astype(np.float32)
    query = row(*(10.0 ** rng.integers(-30, 10, 20)))
    with searching(way):
        for percentile in (100, 50):
            found = search(stored, query, 20, percentile=percentile)
            assert found == expected(stored, query, 20)


@WAYS
def test_a_row_of_the_query_s_least_word_is_found(way):
    """The word is too light for one of the integer steps, of which the heaviest has 32,767."""
    stored = sparse.csr_array(np.eye(20, dtype=np.float32))
    with searching(way):
        found = search(stored, row(1, 1e-6, *[0] * 18), 3)
    assert found == [(1.0, 0), (float(np.float32(1e-6)), 1)]


@WAYS
def test_many_words_that_count_for_more_as_integers_than_they_weigh(way):
    """Row 0 has 2,000 words whose weights of the query are lifted to 1 of 32,767."""
    stored = np.zeros((20, 2001), np.float32)
    stored[0, 1:] = 1
    stored[1, 0] = 1 / 255
    matrix, query = sparse.csr_array(stored), row(1, *[1e-9] * 2000)
    with searching(way):
        found = search(matrix, query, 1)
    assert found == [(float(np.float32(1 / 255)), 1)]


@WAYS
def test_a_large_segment_is_not_scored_whole(way, monkeypatch):
    rng = np.random.default_rng(4)
    stored = random_rows(rng, BLOCK + 50, 200, 5)
    query = random_rows(rng, 1, 200, 10)
    scored = []
    real = rescoring.row_scores
    monkeypatch.setattr(
        rescoring, "row_scores", lambda f, rows, q: (scored.append(len(rows)), real(f, rows, q))[1]
    )
    with searching(way):
        assert search(stored, query, 10) == expected(stored, query, 10)
    assert 10 <= scored[0] < 2000


@pytest.mark.parametrize(("drop_zero", "scored"), [(False, 1), (True, 3)])
def test_all_are_scored_where_dropped_words_could_matter(drop_zero, scored, monkeypatch):
    stored = sparse.csr_array(np.array([[1e-4, 1], [0, 1], [0, 0.5]], np.float32))
    counts = []
    real = rescoring.row_scores
    monkeypatch.setattr(rescoring, "SHARE", 1.0)
    monkeypatch.setattr(
        rescoring, "row_scores", lambda f, rows, q: (counts.append(len(rows)), real(f, rows, q))[1]
    )
    found = search(stored, row(2, 0), 3, drop_zero=drop_zero)
    assert found == [(2 * float(np.float32(1e-4)), 0)]
    assert counts == [scored]


@WAYS
def test_integers_alone_give_scores_within_the_bound(way):
    rng = np.random.default_rng(8)
    stored, query = random_rows(rng, 4000, 30, 6), random_rows(rng, 1, 30, 4)
    quantizer = ImpactQuantizer.fit(stored)
    impacts = quantizer.quantize(stored)
    allowed = rng.random(4000) < 0.7
    with searching(way):
        scores, rows = integer_top(query, quantizer, build(impacts), 50, allowed)
    assert scores.dtype == np.float64
    dense = query.toarray()[0].astype(float)
    exact = stored.astype(float) @ dense
    assert np.abs(scores - exact[rows]).max() <= quantizer.bound(query)
    rounded = (impacts.astype(float) @ dense) * quantizer.step
    # The greatest weight of the query becomes 32,767, and each is rounded to a whole number.
    off = quantizer.top * query.nnz * dense.max() / 32_767 / 2
    assert scores == pytest.approx(rounded[rows], abs=off)
    assert scores.tolist() == sorted(scores, reverse=True)
    left = np.delete(np.flatnonzero(allowed), np.searchsorted(np.flatnonzero(allowed), rows))
    assert rounded[left].max() <= scores[-1] + off


def test_mapped_rows_answer_as_loaded_ones(tmp_path: Path):
    rng = np.random.default_rng(9)
    stored, query = random_rows(rng, 300, 30, 6), random_rows(rng, 1, 30, 4)
    parts = {"data": stored.data, "indices": stored.indices, "indptr": stored.indptr}
    for name, array in parts.items():
        np.save(tmp_path / f"{name}.npy", array)
    mapped = {name: np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in parts}
    forward = sparse.csr_array((*mapped.values(),), shape=stored.shape)
    assert search(forward, query, 5) == expected(stored, query, 5)


@WAYS
def test_damaged_rows_are_an_error_and_no_crash(way):
    stored = random_rows(np.random.default_rng(1), 50, 9, 4)
    quantizer = ImpactQuantizer.fit(stored)
    postings = build(quantizer.quantize(stored))
    for name, value in (("indices", 10**6), ("indptr", 10**6)):
        damaged = stored.copy()
        getattr(damaged, name)[3:40] = value
        with searching(way), pytest.raises(IndexCorruptError, match="damaged"):
            exact_top(row(*[1.0] * 9), damaged, quantizer, postings, 50)


def test_shapes_that_do_not_fit_are_refused():
    stored = random_rows(np.random.default_rng(1), 50, 9, 4)
    quantizer = ImpactQuantizer.fit(stored)
    postings = build(quantizer.quantize(stored))
    good = row(*[1.0] * 9)
    for query, forward in ((row(1, 2), stored), (stored[:2], stored), (good, stored[:49])):
        with pytest.raises(ValueError, match="do not fit 50 rows of 9 terms"):
            exact_top(query, forward, quantizer, postings, 5)
    with pytest.raises(ValueError, match="weights must be"):
        exact_top(row(*[-1.0] * 9), stored, quantizer, postings, 5)
    with pytest.raises(ValueError, match="k must be"):
        exact_top(good, stored, quantizer, postings, 0)


def test_integer_scores_are_within_the_margin():
    rng = np.random.default_rng(3)
    stored, query = random_rows(rng, 400, 30, 8), random_rows(rng, 1, 30, 9)
    stored.data = np.maximum(stored.data, np.float32(0.05))  # no word is lifted to 1
    quantizer = ImpactQuantizer.fit(stored)
    integers, rate, bound = rescoring._integers(query, quantizer)
    assert integers.min() >= 1
    assert int(integers.sum()) * 255 < 2**31
    dense = np.zeros(30)
    dense[query.indices] = integers
    scale = integers.sum() / query.data.sum(dtype=np.float64) / quantizer.step
    exact = stored.astype(np.float64) @ query.toarray()[0].astype(np.float64) * scale
    found = quantizer.quantize(stored).astype(np.float64) @ dense
    margin = bound * rate / quantizer.step
    assert np.abs(exact - found).max() <= margin
    # Nearly all of it is the postings' half step: the query's own rounding is far smaller.
    assert margin == pytest.approx(integers.sum() / 2, rel=0.01)
