from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from lexvla_indexer.impacts import ImpactQuantizer


def matrix(rows: list[list[float]]) -> sparse.csr_array:
    return sparse.csr_array(np.array(rows, np.float32))


def rounded(quantizer: ImpactQuantizer, stored: sparse.csr_array) -> sparse.csr_array:
    """Return the float32 weights that the integers of vectors stand for."""
    impacts = quantizer.quantize(stored)
    weights = (impacts.data * quantizer.step).astype(np.float32)
    return sparse.csr_array((weights, impacts.indices, impacts.indptr), shape=stored.shape)


# Weights of many sizes: a quantiser meets clipped, lifted and dropped ones.
WEIGHTS = st.one_of(
    st.just(0.0),
    st.floats(2**-14, 1, width=32),
    st.floats(2**-126, 2**100, width=32),
)
ROWS = st.integers(1, 6).flatmap(
    lambda width: st.lists(st.lists(WEIGHTS, min_size=width, max_size=width), max_size=8).map(
        lambda rows: sparse.csr_array(np.array(rows, np.float32).reshape(-1, width))
    )
)
SETTINGS = st.fixed_dictionaries(
    {
        "bits": st.integers(1, 8),
        "percentile": st.sampled_from([1, 50, 99.5, 100]),
        "drop_zero": st.booleans(),
    }
)


def test_weights_round_to_the_nearest_step():
    stored = matrix([[3.0, 0.0, 1.4], [0.6, 2.5, 0.0]])
    quantizer = ImpactQuantizer.fit(stored, bits=2)
    assert (quantizer.top, quantizer.lowest, quantizer.highest) == (3, np.float32(0.6), 3)
    assert (quantizer.levels, quantizer.step) == (3, 1.0)
    impacts = quantizer.quantize(stored)
    assert impacts.dtype == np.uint8
    assert impacts.toarray().tolist() == [[3, 0, 1], [1, 2, 0]]


def test_eight_bits_span_1_to_255():
    stored = matrix([[0.5, 1.0, 0.25, 1e-6]])
    assert ImpactQuantizer.fit(stored).quantize(stored).data.tolist() == [128, 255, 64, 1]


def test_a_percentile_clips_what_is_above_it():
    stored = matrix([[1.0, 2.0, 3.0, 4.0, 100.0]])
    quantizer = ImpactQuantizer.fit(stored, bits=2, percentile=50)
    assert (quantizer.top, quantizer.highest) == (3, 100)
    assert quantizer.quantize(stored).data.tolist() == [1, 2, 3, 3, 3]
    assert quantizer.error(stored) == {"mean": 98 / 5, "max": 97}


@pytest.mark.parametrize(("drop_zero", "impacts"), [(False, [1, 1, 3]), (True, [1, 3])])
def test_what_rounds_to_zero_is_dropped_or_kept_as_1(drop_zero, impacts):
    stored = matrix([[0.25, 0, 1], [0, 0, 0], [0, 3, 0]])
    quantizer = ImpactQuantizer.fit(stored, bits=2, drop_zero=drop_zero)
    found = quantizer.quantize(stored)
    assert found.data.tolist() == impacts
    assert found.shape == stored.shape
    assert found.indptr[1:].tolist() == [len(impacts) - 1, len(impacts) - 1, len(impacts)]
    assert found.has_canonical_format
    largest = 0.25 if drop_zero else 0.75
    assert quantizer.error(stored) == {"mean": largest / 3, "max": largest}


def test_the_bound_is_half_a_step_a_unit_of_query_weight():
    quantizer = ImpactQuantizer(top=255.0, lowest=0.5, highest=255.0)
    query = matrix([[2.0, 0.5, 0.0]])
    assert quantizer.bound(query) == pytest.approx(2.5 * 0.5, rel=1e-3)
    clipping = ImpactQuantizer(top=255.0, lowest=0.5, highest=300.0)
    assert clipping.bound(query) == pytest.approx(2.5 * 45, rel=1e-3)
    lifting = ImpactQuantizer(top=255.0, lowest=0.1, highest=255.0)
    assert lifting.bound(query) == pytest.approx(2.5 * 0.9, rel=1e-3)
    dropping = ImpactQuantizer(top=255.0, lowest=0.1, highest=255.0, drop_zero=True)
    assert dropping.bound(query) == pytest.approx(2.5 * 0.5, rel=1e-3)
    assert quantizer.bound(matrix([[0.0]])) == 0


@settings(max_examples=150)
@given(ROWS, st.data(), SETTINGS)
def test_no_score_moves_by_more_than_the_bound(stored, data, options):
    quantizer = ImpactQuantizer.fit(stored, **options)
    width = stored.shape[1]
    query = matrix([data.draw(st.lists(WEIGHTS, min_size=width, max_size=width))])
    dense = query.toarray()[0].astype(np.float64)
    restored = rounded(quantizer, stored)
    exact, found = stored.astype(np.float64) @ dense, restored.astype(np.float64) @ dense
    assert (np.abs(exact - found) <= quantizer.bound(query)).all()


@settings(max_examples=100)
@given(ROWS, SETTINGS)
def test_the_stated_error_is_the_largest_difference(stored, options):
    quantizer = ImpactQuantizer.fit(stored, **options)
    restored = rounded(quantizer, stored)
    errors = np.abs(stored.astype(np.float64) - restored.astype(np.float64)).toarray()
    stated = quantizer.error(stored)
    assert stated["max"] == (errors.max() if errors.size else 0)
    assert stated["mean"] == pytest.approx(errors.sum() / max(stored.nnz, 1))


def test_many_weights_are_quantised_as_few_are(monkeypatch):
    stored = matrix(np.random.default_rng(1).random((20, 9)).tolist())
    quantizer = ImpactQuantizer.fit(stored)
    whole, error = quantizer.quantize(stored), quantizer.error(stored)
    monkeypatch.setattr("lexvla_indexer.impacts._CHUNK", 7)
    assert (quantizer.quantize(stored) != whole).nnz == 0
    assert quantizer.error(stored) == pytest.approx(error)


def test_settings_survive_json():
    stored = matrix([[0.1, 0.7]])
    quantizer = ImpactQuantizer.fit(stored, bits=5, percentile=60, drop_zero=True)
    saved = json.loads(json.dumps(quantizer.to_dict()))
    assert ImpactQuantizer.from_dict(saved) == quantizer
    assert list(saved) == ["top", "lowest", "highest", "bits", "percentile", "drop_zero"]


def test_no_vectors_give_a_scale_all_the_same():
    empty = sparse.csr_array((3, 4), dtype=np.float32)
    quantizer = ImpactQuantizer.fit(empty)
    assert quantizer.quantize(empty).shape == (3, 4)
    assert quantizer.error(empty) == {"mean": 0, "max": 0}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("bits", 0),
        ("bits", 9),
        ("bits", 2.0),
        ("bits", True),
        ("percentile", 0),
        ("percentile", 101),
        ("percentile", float("nan")),
        ("percentile", "99"),
        ("drop_zero", 1),
        ("top", 0.0),
        ("top", float("inf")),
        ("top", 1e-60),
        ("highest", None),
        ("lowest", 2.0),
    ],
)
def test_bad_settings_are_refused(name, value):
    good = {"top": 1.0, "lowest": 0.5, "highest": 1.0}
    with pytest.raises(ValueError, match=name):
        ImpactQuantizer(**good | {name: value})
    if name in ("bits", "percentile", "drop_zero"):
        with pytest.raises(ValueError, match=name):
            ImpactQuantizer.fit(matrix([[1.0]]), **{name: value})


@pytest.mark.parametrize("saved", [{}, {"top": 1, "lowest": 1, "highest": 1, "colour": "red"}])
def test_settings_of_something_else_are_refused(saved):
    with pytest.raises(ValueError, match="settings of a quantiser"):
        ImpactQuantizer.from_dict(saved)


@pytest.mark.parametrize("bad", [-1.0, np.nan, np.inf])
@pytest.mark.parametrize("method", ["quantize", "error", "bound"])
def test_bad_weights_are_refused(bad, method):
    quantizer = ImpactQuantizer.fit(matrix([[1.0]]))
    with pytest.raises(ValueError, match="weights must be"):
        getattr(quantizer, method)(matrix([[0.5, bad]]))
    with pytest.raises(ValueError, match="weights must be"):
        ImpactQuantizer.fit(matrix([[0.5, bad]]))
