"""The copy of dense rows in bytes: how near its products are, and that answers stay exact."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from dense_fakes import brute_force, clustered, pairs
from lexvla.errors import IndexCorruptError
from lexvla_indexer.embedded.dense import DenseLeg
from lexvla_indexer.embedded.dense_bytes import DenseBytes, write_bytes
from postings_fakes import searching

floats = st.floats(width=32, allow_nan=False, allow_infinity=False)
ordinary = st.floats(-2, 2, width=32)


@pytest.fixture(autouse=True)
def compiled():
    pytest.importorskip("numba", reason="needs numba: pip install 'lexvla[fast]'")
    with searching("numba"):
        yield


def copied(rows: np.ndarray) -> DenseBytes:
    with TemporaryDirectory() as folder:
        assert len(write_bytes(Path(folder), rows)) == 2
        return DenseBytes.open(Path(folder), *rows.shape)


def test_bytes_worked_out_by_hand(tmp_path):
    rows = np.array([[0, 5], [127, 5], [254, 5], [1.25, 5]], np.float32)
    write_bytes(tmp_path, rows)
    assert np.load(tmp_path / "dense.byte.npy").tolist() == [[-127, 0], [0, 0], [127, 0], [-126, 0]]
    assert np.load(tmp_path / "dense.byte.scale.npy").tolist() == [127, 5, 1, 0, 0.25]
    copy = DenseBytes.open(tmp_path, 4, 2)
    asked = copy.ask(np.array([2, 1], np.float32))
    assert asked is not None
    assert copy.products(asked, 1, 4).tolist() == pytest.approx([259, 513, 7], abs=1e-4)
    assert np.sqrt(5) / 4 <= asked.error < 0.6


@settings(max_examples=200)
@given(
    st.sampled_from([ordinary, floats]).flatmap(
        lambda values: st.integers(1, 9).flatmap(
            lambda width: st.tuples(
                st.integers(1, 12).flatmap(
                    lambda count: arrays(np.float32, (count, width), elements=values)
                ),
                arrays(np.float32, width, elements=values),
            )
        )
    )
)
def test_products_are_within_the_error(case):
    rows, vector = case
    copy = copied(rows)
    with np.errstate(all="ignore"):
        asked = copy.ask(vector)
    if asked is None:
        assert float(np.abs(vector).max()) * float(np.abs(rows).max()) > 1e36
        return
    exact = np.multiply(rows, vector, dtype=np.float64).sum(axis=1)
    near = copy.products(asked, 0, len(rows)).astype(np.float64)
    assert (np.abs(near - exact) <= asked.error).all()


@settings(max_examples=30)
@given(st.integers(0, 10**6), st.integers(1, 40), st.sampled_from([None, 0.1, 0.9]))
def test_a_scan_of_bytes_equals_brute_force(seed, k, share):
    rows, _ = clustered(seed)
    allowed = None if share is None else np.random.default_rng(seed).random(len(rows)) < share
    leg = DenseLeg(rows, None, copied(rows))
    for vector in rows[:3]:
        expected = brute_force(rows, vector, k, allowed)
        assert pairs(leg.top(vector, k, allowed)) == expected
        scan = leg.scan(vector, k, allowed)
        assert pairs(scan.found) == expected
        chosen = np.ones(len(rows), np.bool_) if allowed is None else allowed
        assert (scan.products[~chosen] == -np.inf).all()
        exact = np.multiply(rows, vector, dtype=np.float64).sum(axis=1)
        assert (np.abs(scan.products - exact)[chosen] <= scan.error).all()


def test_a_scan_reads_the_bytes():
    rows = np.random.default_rng(0).standard_normal((50, 4)).astype(np.float32)
    copy = copied(rows)
    scan = DenseLeg(rows, None, copy).scan(rows[0], 3)
    assert scan.products.tolist() == copy.products(copy.ask(rows[0]), 0, 50).tolist()
    with searching("numpy"):
        assert copy.ask(rows[0]) is None
        assert DenseLeg(rows, None, copy).scan(rows[0], 3).error < scan.error


def test_numbers_that_have_no_bytes(tmp_path):
    rows = np.array([[1, 2], [np.inf, 3]], np.float32)
    assert write_bytes(tmp_path, rows) == []
    assert write_bytes(tmp_path, np.array([[np.nan, 2]], np.float32)) == []


@pytest.mark.parametrize(
    ("scale", "rule"),
    [
        ([0, 0, 1, 1], "must be float64 of shape"),
        ([0, 0, 1, -1, 0], "steps not below 0"),
        ([0, 0, 1, np.nan, 0], "finite numbers"),
    ],
)
def test_damaged_files_are_told(tmp_path, scale, rule):
    write_bytes(tmp_path, np.ones((3, 2), np.float32))
    np.save(tmp_path / "dense.byte.scale.npy", np.array(scale, np.float64))
    with pytest.raises(IndexCorruptError, match=rule):
        DenseBytes.open(tmp_path, 3, 2)
    with pytest.raises(IndexCorruptError, match="must be int8 of shape"):
        write_bytes(tmp_path, np.ones((3, 2), np.float32))
        DenseBytes.open(tmp_path, 4, 2)
