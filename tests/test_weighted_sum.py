"""The best rows of a segment by a sum of legs, beside brute force over the floats."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import sparse

from lexvla.encoding import Encoding
from lexvla_indexer import Document, open_index
from lexvla_indexer.bm25 import TextRows
from lexvla_indexer.embedded.segment import Segment, write_segment
from lexvla_indexer.embedded.weighted_sum import best_by_sum
from lexvla_indexer.impacts import ImpactQuantizer
from postings_fakes import WAYS, searching

WORDS, CODES, WIDTH = 6, 4, 3
SUM = "lexvla_indexer.embedded.weighted_sum"
eighths = st.integers(0, 8).map(lambda n: n / 8)
positive = st.floats(2**-20, 4, width=32)
any_floats = st.floats(width=32, allow_nan=False, allow_infinity=False)


@st.composite
def searches(draw, sparse_values, dense_values):
    """Return rows of three legs, a query of each, weights, k, depth, and which rows to find."""
    matrix = partial(arrays, np.float32)
    count = draw(st.integers(1, 9))
    copies = draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=20))
    stored, asked = (
        {
            "lexical": draw(matrix((rows, WORDS), elements=st.just(0.0) | sparse_values)),
            "codes": draw(matrix((rows, CODES), elements=st.just(0.0) | sparse_values)),
            "dense": draw(matrix((rows, WIDTH), elements=dense_values)),
        }
        for rows in (count, 1)
    )
    stored = {leg: rows[copies] for leg, rows in stored.items()}
    weights = st.dictionaries(st.sampled_from(list(stored)), st.sampled_from([0.1, 0.5, 1.0, 7.0]))
    chosen = draw(weights.filter(bool))
    allowed = draw(st.none() | arrays(np.bool_, len(copies)))
    return stored, asked, chosen, draw(st.integers(1, 22)), draw(st.integers(1, 22)), allowed


def encoding_of(rows: dict[str, np.ndarray]) -> Encoding:
    words, codes = (sparse.csr_array(rows[leg]) for leg in ("lexical", "codes"))
    return Encoding(words, None, codes, rows["dense"])


def segment_of(folder: Path, stored: dict[str, np.ndarray]) -> Segment:
    """Return a segment that has bytes, as a large one has."""
    rows = len(stored["dense"])
    encoding = encoding_of(stored)
    names = [f"d{i:05}" for i in range(rows)]
    with mock.patch("lexvla_indexer.embedded.segment.BYTES_FROM", 1):
        checksum = write_segment(folder, names, encoding, TextRows.of([""] * rows))
    assert (folder / "dense.byte.npy").exists()
    widths = {leg: matrix.shape[1] for leg, matrix in stored.items()}
    return Segment(folder, rows, widths, checksum)


def brute_force(stored, asked, weights, k, depth, allowed):
    """Return what `best_by_sum` does, by sorting all rows."""
    count = len(stored["dense"])
    chosen = range(count) if allowed is None else np.flatnonzero(allowed).tolist()
    scores = {}
    for leg in weights:
        products = np.multiply(stored[leg], asked[leg], dtype=np.float64)
        # Sparse products are added in order, dense ones by numpy.
        added = products.sum(axis=1) if leg == "dense" else np.cumsum(products, axis=1)[:, -1]
        scores[leg] = added.tolist()
    total = [0.0] * count
    for leg, weight in weights.items():
        total = [
            before + weight * max(score, 0.0)
            for before, score in zip(total, scores[leg], strict=True)
        ]
    rows = set()
    for own, most in ((total, k), *((scores[leg], depth) for leg in weights)):
        rows |= set(sorted((r for r in chosen if own[r] > 0), key=lambda r: (-own[r], r))[:most])
    return sorted(rows), {leg: [own[row] for row in sorted(rows)] for leg, own in scores.items()}


def queries_of(asked):
    return {
        leg: rows[0] if leg == "dense" else sparse.csr_array(rows) for leg, rows in asked.items()
    }


def answer(segment, asked, weights, k, depth, allowed):
    rows, scores = best_by_sum(segment, queries_of(asked), weights, k, depth, allowed)
    assert rows.dtype == np.int64
    assert {own.dtype for own in scores.values()} == {np.dtype(np.float64)}
    return rows.tolist(), {leg: own.tolist() for leg, own in scores.items()}


@WAYS
@pytest.mark.parametrize("few", [0, 2, 4096])
@pytest.mark.parametrize(
    ("sparse_values", "dense_values"),
    [(eighths, st.integers(-8, 8).map(lambda n: n / 8)), (positive, any_floats)],
    ids=["ties", "any floats"],
)
def test_it_equals_brute_force(tmp_path_factory, way, few, sparse_values, dense_values):
    @settings(max_examples=60)
    @given(searches(sparse_values, dense_values))
    def check(case):
        stored, asked, weights, k, depth, allowed = case
        segment = segment_of(tmp_path_factory.mktemp("sum") / "segment", stored)
        with (
            searching(way),
            mock.patch(f"{SUM}._FEW", few),
            mock.patch("lexvla_indexer.embedded.dense._CHUNK", 5),
            np.errstate(all="ignore"),
        ):
            found = answer(segment, asked, weights, k, depth, allowed)
        assert found == brute_force(stored, asked, weights, k, depth, allowed)

    check()


@WAYS
@pytest.mark.parametrize(
    ("sparse_values", "dense_values"),
    [(eighths, st.integers(-8, 8).map(lambda n: n / 8)), (positive, any_floats)],
    ids=["ties", "any floats"],
)
def test_several_segments_equal_brute_force(tmp_path_factory, way, sparse_values, dense_values):
    """Ids are in the order of no segment; some documents are deleted, and some filtered out."""

    @settings(max_examples=40)
    @given(
        searches(sparse_values, dense_values),
        st.lists(st.integers(0, 19), max_size=4),
        st.randoms(use_true_random=False),
        st.sampled_from([0, 2, 4096]),
        st.booleans(),
    )
    def check(case, cuts, random, few, filtered):
        stored, asked, weights, k, depth, allowed = case
        count = len(stored["dense"])
        names = [f"d{i:05}" for i in range(count)]
        order = random.sample(range(count), count)
        kept = np.ones(count, np.bool_) if allowed is None else allowed
        folder = tmp_path_factory.mktemp("index") / "i.lex"
        ends = sorted({min(cut, count) for cut in (0, *cuts, count)})
        with (
            searching(way),
            mock.patch("lexvla_indexer.embedded.segment.BYTES_FROM", 1),
            mock.patch(f"{SUM}._FEW", few),
            np.errstate(all="ignore"),
            open_index(folder, create=True) as index,
        ):
            for first, last in pairwise(ends):
                rows = order[first:last]
                new = [Document(names[row], metadata={"even": row % 2 == 0}) for row in rows]
                index.add(new, encoding_of({leg: own[rows] for leg, own in stored.items()}))
                index.commit()
            if not kept.all():
                index.delete([names[row] for row in np.flatnonzero(~kept)])
                index.commit()
            chosen = "even = true" if filtered else None
            if filtered:
                kept = kept & (np.arange(count) % 2 == 0)
            found = index.search_legs(encoding_of(asked), weights, k, depth, chosen)
        right, scores = brute_force(stored, asked, weights, k, depth, kept)
        got = {name: place for place, name in enumerate(found.ids)}
        assert len(got) == len(found.ids)
        for leg, own in scores.items():
            places = [got[names[row]] for row in right]
            assert found.scores[leg][places].tolist() == own

    check()


def test_later_segments_score_rows_that_reach_the_floors_only(tmp_path):
    """The first segment has the best 20 by each leg and by the sum; the others have lower rows."""
    stored, asked = random_case(5, 600, opposed=False)
    for leg in ("lexical", "dense"):
        stored[leg][:60] += 4
    weights = {"lexical": 0.5, "dense": 0.5}
    with open_index(tmp_path / "i.lex", create=True) as index:
        for first, last in ((0, 300), (300, 450), (450, 600)):
            new = [Document(f"d{row:05}") for row in range(first, last)]
            index.add(new, encoding_of({leg: own[first:last] for leg, own in stored.items()}))
            index.commit()
        found = index.search_legs(encoding_of(asked), weights, 5, 20)
        assert max(found.ids) < "d00060"
        assert len(found.ids) == len(brute_force(stored, asked, weights, 5, 20, None)[0])


def random_case(seed: int, count: int, opposed: bool):
    """Return sparse and dense rows; opposed ones have little of one where they have much of all."""
    rng = np.random.default_rng(seed)
    much = rng.random((count, 1))
    stored = {
        "lexical": (rng.random((count, WORDS)) * much + 2**-9).astype(np.float32),
        "codes": (rng.random((count, CODES)) < 0.3).astype(np.float32),
        "dense": (rng.normal(size=(count, WIDTH)) / 8 + 1 - (much if opposed else 0)).astype(
            np.float32
        ),
    }
    stored["codes"][:, 0] += 1
    asked = {leg: rng.random((1, rows.shape[1])).astype(np.float32) for leg, rows in stored.items()}
    return stored, asked


@WAYS
@pytest.mark.parametrize("opposed", [False, True])
@pytest.mark.parametrize(
    "weights", [{"lexical": 0.5, "dense": 0.5}, {"lexical": 1.0, "codes": 0.2}]
)
def test_many_rows_equal_brute_force(tmp_path, way, opposed, weights):
    stored, asked = random_case(3, 3000, opposed)
    segment = segment_of(tmp_path / "segment", stored)
    mask = np.random.default_rng(1).random(3000) < 0.5
    for allowed in (None, mask):
        for few in (100, 4096):
            with searching(way), mock.patch(f"{SUM}._FEW", few):
                found = answer(segment, asked, weights, 5, 9, allowed)
            assert found == brute_force(stored, asked, weights, 5, 9, allowed)


@WAYS
def test_a_row_that_no_leg_found_may_reach_the_floor_just_so(tmp_path, way):
    """No leg finds row 9, because equal rows come before it, but its sum equals that of row 20."""
    words, codes = np.zeros((21, 1), np.float32), np.zeros((21, 1), np.float32)
    words[[0, 1, 9]], codes[[3, 9]], codes[20] = 0.5, 0.5, 1
    stored = {"lexical": words, "codes": codes, "dense": np.ones((21, 1), np.float32)}
    asked = {leg: np.ones((1, 1), np.float32) for leg in ("lexical", "codes")}
    segment = segment_of(tmp_path / "segment", stored)
    with searching(way):
        found = answer(segment, asked, {"lexical": 1.0, "codes": 1.0}, 1, 1, None)
    assert found == ([0, 9, 20], {"lexical": [0.5, 0.5, 0], "codes": [0, 0.5, 1]})


@WAYS
def test_the_best_row_may_be_two_errors_below_the_best_near_sum(tmp_path, way):
    """A step is 1: words of row 0 are rounded up, and those of row 1, the best, down."""
    words, codes = np.zeros((8, 33), np.float32), np.zeros((8, 1), np.float32)
    words[0, :30], words[1, :30], words[1, 30] = 1.501, 1.499, 1
    words[2:4, 31] = 46  # the best of the leg
    words[4, 32] = 255
    codes[:2], codes[5:7] = 0.5, 1
    stored = {"lexical": words, "codes": codes, "dense": np.ones((8, 1), np.float32)}
    asked = {"lexical": np.ones((1, 33), np.float32), "codes": np.ones((1, 1), np.float32)}
    asked["lexical"][0, 32] = 0
    segment = segment_of(tmp_path / "segment", stored)
    with searching(way):
        found = answer(segment, asked, {"lexical": 1.0, "codes": 1.0}, 1, 1, None)
    assert found == brute_force(stored, asked, {"lexical": 1.0, "codes": 1.0}, 1, 1, None)
    assert found[0] == [1, 2, 5]


@WAYS
def test_a_row_whose_bytes_are_too_low_by_half_a_step_may_be_the_best(tmp_path, way):
    """Row 5 is found by no leg; its byte says 10, and row 0, whose sum is the floor, has 10.25."""
    words = np.array([[1], [1], [0], [0], [0], [1]], np.float32)
    vectors = np.array([[10.25], [-5], [127], [126], [-127], [10.5]], np.float32)
    stored = {"lexical": words, "codes": words, "dense": vectors}
    asked = {leg: np.ones((1, 1), np.float32) for leg in stored}
    segment = segment_of(tmp_path / "segment", stored)
    with searching(way):
        rows, scores = answer(segment, asked, {"lexical": 1000.0, "dense": 1.0}, 1, 1, None)
    assert rows == [0, 2, 5]
    assert scores["dense"] == [10.25, 127, 10.5]


@WAYS
def test_a_row_of_dropped_words_alone_may_be_the_best(tmp_path, way):
    """Row 2 is the third of both legs; its integers are 0, as are those of the rows before it."""
    words, codes = np.zeros((6, 2), np.float32), np.zeros((6, 2), np.float32)
    words[:2, 0], codes[3:5, 0] = 0.003, 0.003
    words[2, 0], codes[2, 0] = 0.002, 0.002
    words[5, 1], codes[5, 1] = 10, 10
    stored = {"lexical": words, "codes": codes, "dense": np.ones((6, 1), np.float32)}
    asked = {leg: np.array([[1, 0]], np.float32) for leg in ("lexical", "codes")}
    dropping = partial(ImpactQuantizer.fit, drop_zero=True)
    with mock.patch.object(ImpactQuantizer, "fit", dropping):
        segment = segment_of(tmp_path / "segment", stored)
    weights = {"lexical": 1.0, "codes": 1.0}
    with searching(way):
        found = answer(segment, asked, weights, 1, 1, None)
    assert found == brute_force(stored, asked, weights, 1, 1, None)
    assert found[0] == [0, 2, 3]


def test_rows_that_cannot_reach_the_floor_are_not_scored(tmp_path):
    stored, asked = random_case(4, 3000, opposed=False)
    stored["lexical"][7], stored["dense"][7] = 1, 2  # best by both
    segment = segment_of(tmp_path / "segment", stored)
    scored: list[int] = []
    real = Segment.scores

    def counted(own, leg, query, rows):
        scored.append(len(rows))
        return real(own, leg, query, rows)

    with mock.patch.object(Segment, "scores", counted):
        rows, _ = best_by_sum(
            segment, queries_of(asked), {"lexical": 0.5, "dense": 0.5}, 1, 5, None
        )
    assert 7 in rows.tolist()
    assert sum(scored) <= 10
