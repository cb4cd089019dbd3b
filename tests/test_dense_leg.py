from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from dense_fakes import OF, as_asked, brute_force, clustered, listed, one_code, pairs
from lexvla.errors import OptionalDependencyError
from lexvla_indexer.embedded.dense import DenseLeg
from lexvla_indexer.embedded.dense_lists import DenseLists, wants_lists, write_lists

eighths = st.integers(-8, 8).map(lambda n: n / 8)
floats = st.floats(width=32, allow_nan=False, allow_infinity=False)


@st.composite
def searches(draw, elements):
    rows = draw(st.integers(0, 12)), draw(st.integers(1, 9))
    stored = draw(arrays(np.float32, rows, elements=elements))
    vectors = draw(arrays(np.float32, (draw(st.integers(1, 3)), rows[1]), elements=elements))
    allowed = draw(st.none() | arrays(np.bool_, rows[0]))
    return stored, vectors, draw(st.integers(1, 14)), allowed


@pytest.mark.parametrize("elements", [eighths, floats], ids=["ties", "any floats"])
def test_a_scan_equals_brute_force(elements):
    @given(searches(elements))
    def check(case):
        stored, vectors, k, allowed = case
        expected = [brute_force(stored, vector, k, allowed) for vector in vectors]
        with mock.patch("lexvla_indexer.embedded.dense._CHUNK", 5), np.errstate(all="ignore"):
            answers = DenseLeg(stored).top_batch(vectors, k, allowed)
        assert [pairs(answer) for answer in answers] == expected

    check()


def test_scores_depend_on_nothing_but_row_and_query():
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((3000, 301)).astype(np.float32)
    vector = rng.standard_normal(301).astype(np.float32)
    expected = brute_force(rows, vector, 3000)
    assert pairs(DenseLeg(rows).top(vector, 3000)) == expected
    assert pairs(DenseLeg(np.asfortranarray(rows)).top(vector, 3000)) == expected
    best = expected[0][1]
    assert pairs(DenseLeg(rows[best : best + 1]).top(vector, 1)) == [(expected[0][0], 0)]


def test_rows_that_float32_cannot_tell_apart_come_in_the_right_order():
    rows = np.zeros((4, 3), np.float32)
    rows[:, 0] = 1
    rows[:, 1] = np.array([0, 2, 1, 3], np.float32) * 2**-30
    vector = np.ones(3, np.float32)
    assert len(set((rows @ vector).tolist())) == 1
    assert DenseLeg(rows).top(vector, 2)[1].tolist() == [3, 1]


def test_rows_whose_products_float32_orders_wrongly_come_in_the_right_order():
    rng = np.random.default_rng(1)
    rows = np.tile(rng.standard_normal(200).astype(np.float32), (500, 1))
    rows *= 1 + 1e-7 * rng.standard_normal(rows.shape).astype(np.float32)
    for vector in rng.standard_normal((5, 200)).astype(np.float32):
        vector *= np.sign(rows[0] @ vector)
        assert pairs(DenseLeg(rows).top(vector, 3)) == brute_force(rows, vector, 3)


def test_scores_just_above_0_are_found_where_float32_puts_them_below():
    rng = np.random.default_rng(2)
    vector = rng.standard_normal(200)
    rows = rng.standard_normal((300, 200))
    rows -= np.outer(rows @ vector / (vector @ vector), vector)  # orthogonal, but for rounding
    rows, vector = rows.astype(np.float32), vector.astype(np.float32)
    expected = brute_force(rows, vector, 300)
    assert 0 < len(expected) < 300
    assert (rows[[row for _, row in expected]] @ vector < 0).any()
    assert pairs(DenseLeg(rows).top(vector, 300)) == expected


@pytest.mark.parametrize(
    ("rows", "size"),
    [
        ([[9e-24, 0, 0], [6e-24, 6e-24, 0]], 1e-22),  # the second's products are 0 in float32
        ([[-2e19, 1.5e19, 1.5e19], [0, 0, 1e18]], 2e19),  # the first one is infinite on its way
    ],
)
def test_numbers_beyond_float32_are_no_matter(rows, size):
    rows, vector = np.array(rows, np.float32), np.full(3, size, np.float32)
    with np.errstate(all="ignore"):
        for k in (1, 2):
            assert pairs(DenseLeg(rows).top(vector, k)) == brute_force(rows, vector, k)


def test_many_queries_answer_as_one_by_one():
    rows, _ = clustered(0, 200)
    vectors = np.concatenate([rows, -rows[:100]])  # more than are asked at once
    leg = DenseLeg(rows)
    assert len(vectors) > 256
    for vector, answer in zip(vectors, leg.top_batch(vectors, 4), strict=True):
        assert pairs(answer) == pairs(leg.top(vector, 4)) == brute_force(rows, vector, 4)


def test_zero_queries_and_negative_scores_find_nothing():
    rows = np.array([[1, 0], [0, 1], [0, 0]], np.float32)
    leg = DenseLeg(rows)
    assert pairs(leg.top(np.zeros(2, np.float32), 5)) == []
    assert pairs(leg.top(np.array([-1, -1], np.float32), 5)) == []
    assert pairs(leg.top(np.array([-1, 2], np.float32), 5)) == [(2.0, 1)]
    assert leg.top_batch(np.empty((0, 2), np.float32), 5) == []


@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        ({"k": 0}, "k must be at least 1"),
        ({"nprobe": 0}, "nprobe must be at least 1"),
        ({"vector": np.ones(2, np.float32)}, "must have 3 columns"),
        ({"allowed": np.ones(3, np.bool_)}, "must be 4 booleans"),
        ({"allowed": np.ones(4, np.uint8)}, "must be 4 booleans"),
    ],
)
def test_what_breaks_a_rule_is_refused(arguments, rule):
    defaults = {"vector": np.ones(3, np.float32), "k": 1}
    with pytest.raises(ValueError, match=rule):
        DenseLeg(np.ones((4, 3), np.float32)).top(**(defaults | arguments))


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.integers(1, 320), st.sampled_from([None, 0.0, 0.1, 0.9]))
def test_all_lists_find_what_a_scan_finds(seed, k, share):
    rows, codes = clustered(seed)
    allowed = None if share is None else np.random.default_rng(seed).random(len(rows)) < share
    with TemporaryDirectory() as folder, as_asked():
        leg = DenseLeg(rows, listed(Path(folder), rows, codes))
        answers = leg.top_batch(rows[:3], k, allowed, nprobe=12)
    expected = [brute_force(rows, vector, k, allowed) for vector in rows[:3]]
    assert [pairs(answer) for answer in answers] == expected


@settings(max_examples=40)
@given(
    st.integers(0, 10**6),
    st.integers(1, 6),
    st.integers(1, 40),
    st.sampled_from([1, 32]),
    st.sampled_from([None, 0.4, 0.9]),
)
def test_lists_find_exactly_the_best_of_the_rows_that_they_hold(seed, nprobe, k, per_hit, share):
    rows, codes = clustered(seed)
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((3, 5)).astype(np.float32)
    with TemporaryDirectory() as folder:
        lists = listed(Path(folder), rows, codes)
        of = np.load(Path(folder) / OF)
        allowed = None
        if share is not None:
            allowed = (rng.random(len(rows)) < share) & (of % 4 != 1)
        with mock.patch("lexvla_indexer.embedded.dense._ROWS_PER_HIT", per_hit):
            answers = DenseLeg(rows, lists).top_batch(vectors, k, allowed, nprobe=nprobe)
    held = np.ones(len(rows), np.bool_) if allowed is None else allowed
    members = [rows[of == number] for number in range(lists.lists)]
    means = np.array([part.mean(axis=0, dtype=float) for part in members])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    for vector, answer in zip(vectors, answers, strict=True):
        # Lists with allowed rows, nearest first, until there are enough lists and rows.
        read, turns = np.zeros(len(rows), np.bool_), 0
        wanted = max(nprobe * len(rows) / lists.lists, per_hit * k)
        for number in np.argsort(-(means @ vector), kind="stable"):
            if turns >= nprobe and read.sum() >= wanted:
                break
            own = (of == number) & held
            read, turns = read | own, turns + bool(own.any())
        expected = brute_force(rows, vector, k, read)
        if len(expected) < k:
            expected = brute_force(rows, vector, k, held)
        assert pairs(answer) == expected


def test_more_equal_rows_than_faiss_is_asked_for_come_by_their_numbers(tmp_path):
    """Of many equal rows, those with low numbers lie in the list that is read last."""
    rows = np.tile(np.array([[1, 0]], np.float32), (900, 1))
    rows[250:300] = [0, 1]
    rows[600:] = [-1, 0]
    own = np.arange(900) // 300
    leg = DenseLeg(rows, listed(tmp_path, rows, one_code(own)))
    vector = np.array([1, 0], np.float32)
    with mock.patch.object(leg, "_scan", side_effect=AssertionError("scanned")):
        assert pairs(leg.top(vector, 4, nprobe=2)) == [(1.0, 0), (1.0, 1), (1.0, 2), (1.0, 3)]
        assert leg.top(vector, 4, nprobe=1)[1].tolist() == [300, 301, 302, 303]


def test_a_filter_that_only_far_lists_pass_loses_nothing(tmp_path):
    """Ten lists at even angles; only the rows of the farthest one are allowed."""
    angles = np.repeat(np.linspace(0, 1.5, 10), 100) + np.tile(np.linspace(0, 0.01, 100), 10)
    rows = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    leg = DenseLeg(rows, listed(tmp_path, rows, one_code(np.arange(1000) // 100)))
    vector = np.array([1, 0], np.float32)
    allowed = np.arange(1000) >= 900
    with as_asked(), mock.patch.object(leg, "_scan", side_effect=AssertionError("scanned")):
        assert leg.top(vector, 5, nprobe=1)[1].tolist() == [0, 1, 2, 3, 4]
        few = allowed | (np.arange(1000) % 100 < 5)  # and five of each list
        found = leg.top(vector, 8, few, nprobe=1)
    assert pairs(found) == brute_force(rows, vector, 8, few)
    assert pairs(leg.top(vector, 5, allowed, nprobe=1)) == brute_force(rows, vector, 5, allowed)
    assert pairs(leg.top(vector, 5, ~allowed & allowed, nprobe=1)) == []


def test_lists_that_give_fewer_than_k_are_followed_by_a_scan(tmp_path):
    """The nearest list has one row above 0 for the query; the other, farther one has two."""
    rows = np.array([[9, 1], [9, -2], [9, -2], [-4, 3], [-4, 3], [-40, 0]], np.float32)
    leg = DenseLeg(rows, listed(tmp_path, rows, one_code([0, 0, 0, 1, 1, 1])))
    vector = np.array([0.1, 1], np.float32)
    with as_asked():
        assert leg.top(vector, 1, nprobe=1)[1].tolist() == [3]
        assert leg.top(vector, 3, nprobe=1)[1].tolist() == [3, 4, 0]
        assert leg.top(vector, 2, np.arange(6) != 4, nprobe=1)[1].tolist() == [3, 0]


def test_recall_is_the_share_of_the_best_rows_that_lists_find(tmp_path):
    """Of six directions in two lists, each middle one's nearest lies in the other list."""
    angles = np.radians([0, 10, 40, 50, 85, 95])
    rows = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    leg = DenseLeg(rows, listed(tmp_path, rows, one_code([0, 0, 0, 1, 1, 1])))
    with as_asked():
        assert leg.recall(1, nprobe=1) == 4 / 6
        assert leg.recall(1, sample=2, nprobe=1) == 1  # the first and the last
        assert leg.recall(1, nprobe=2) == leg.recall(1) == 1
    assert DenseLeg(rows).recall() == 1
    assert DenseLeg(rows[:0]).recall() == 1
    with pytest.raises(ValueError, match="k and sample must be at least 1"):
        leg.recall(0)


def test_recall_counts_ties_as_missed(tmp_path):
    rows = np.tile(np.array([[1, 0]], np.float32), (4, 1))
    leg = DenseLeg(rows, listed(tmp_path, rows, one_code([1, 1, 0, 0])))
    with as_asked():  # rows 2 and 3 are found, and the scan finds 0 and 1
        assert leg.recall(1, nprobe=1) == 0


def test_threads_search_side_by_side(tmp_path):
    rows, codes = clustered(5)
    leg = DenseLeg(rows, listed(tmp_path, rows, codes))
    with as_asked(), ThreadPoolExecutor(4) as pool:
        search = partial(leg.top, k=3, nprobe=2)
        expected = [pairs(search(row)) for row in rows]
        assert [pairs(answer) for answer in pool.map(search, rows)] == expected


def test_without_faiss_a_scan_still_answers(tmp_path):
    rows, codes = clustered(7)
    listed(tmp_path, rows, codes)
    with mock.patch("lexvla_indexer.embedded.dense_lists._import_faiss", lambda: None):
        assert not wants_lists(10**6, codes)
        leg = DenseLeg(rows, DenseLists.open(tmp_path, *rows.shape))
        with pytest.raises(OptionalDependencyError, match=r"faiss-cpu .*lexvla\[fast\]"):
            leg.top(rows[0], 2)
        assert pairs(leg.top(rows[0], 2, exact=True)) == brute_force(rows, rows[0], 2)
        with pytest.raises(OptionalDependencyError, match="faiss-cpu"):
            write_lists(tmp_path, rows, codes)


def test_importing_the_leg_does_not_import_faiss():
    code = "import lexvla_indexer.embedded.dense, sys; print('faiss' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"
