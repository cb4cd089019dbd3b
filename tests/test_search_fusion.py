"""Fusions against values worked out by their formulas."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lexvla.errors import InputError
from lexvla_search.fusion import (
    FUSIONS,
    LegRanking,
    ReciprocalRank,
    Weighted,
    default_fusion,
    fusion_from_dict,
    named_fusion,
)

# The dense leg did not find b, the lexical leg neither c nor d; all are scored by both.
ANSWERS = {
    "lexical": LegRanking({"a": 1, "b": 2}, {"a": 0.8, "b": 0.4, "c": 0.0, "d": 0.0}),
    "dense": LegRanking({"c": 1, "a": 2, "d": 3}, {"c": 0.9, "a": 0.6, "d": 0.3, "b": -0.3}),
}


def fused(fusion, answers=ANSWERS) -> list[tuple[str, float]]:
    return [(one.id, one.score) for one in fusion.fuse(answers)]


def near(*pairs: tuple[str, float]) -> list:
    return [(name, pytest.approx(score, abs=1e-15)) for name, score in pairs]


def test_reciprocal_ranks() -> None:
    assert fused(ReciprocalRank()) == near(
        ("a", 1 / 61 + 1 / 62), ("c", 1 / 61), ("b", 1 / 62), ("d", 1 / 63)
    )
    assert fused(ReciprocalRank(constant=0)) == near(
        ("a", 1 + 1 / 2), ("c", 1), ("b", 1 / 2), ("d", 1 / 3)
    )


def test_reciprocal_ranks_with_weights() -> None:
    weighted = ReciprocalRank(constant=1, weights={"lexical": 2.0, "dense": 0.5})
    assert fused(weighted) == near(
        ("a", 2 / 2 + 0.5 / 3), ("b", 2 / 3), ("c", 0.5 / 2), ("d", 0.5 / 4)
    )
    # A leg of weight 0 brings no candidates.
    assert fused(ReciprocalRank(weights={"lexical": 1.0, "dense": 0.0})) == near(
        ("a", 1 / 61), ("b", 1 / 62)
    )


def test_raw_scores() -> None:
    fusion = Weighted({"lexical": 0.25, "dense": 0.75}, "raw")
    assert fused(fusion) == near(
        ("c", 0.75 * 0.9),
        ("a", 0.25 * 0.8 + 0.75 * 0.6),
        ("d", 0.75 * 0.3),
        ("b", 0.25 * 0.4),  # a score below 0 takes nothing away
    )


def test_min_max() -> None:
    # Lexical 0 to 0.8: a 1, b 0.5, c 0, d 0. Dense -0.3 to 0.9: c 1, a 0.75, d 0.5, b 0.
    assert fused(Weighted({"lexical": 0.4, "dense": 0.6}, "minmax")) == near(
        ("a", 0.4 + 0.6 * 0.75), ("c", 0.6), ("d", 0.6 * 0.5), ("b", 0.4 * 0.5)
    )


def test_z_scores() -> None:
    # Lexical: mean 0.3, deviations 0.5, 0.1, -0.3, -0.3, so that the variance is 0.44 / 4. Dense:
    # mean 0.375, deviations (a to d) 0.225, -0.675, 0.525, -0.075, the variance 0.7875 / 4.
    lexical, dense = math.sqrt(0.44 / 4), math.sqrt(0.7875 / 4)
    assert fused(Weighted({"lexical": 1.0, "dense": 2.0}, "zscore")) == near(
        ("a", 0.5 / lexical + 2 * 0.225 / dense),
        ("c", -0.3 / lexical + 2 * 0.525 / dense),
        ("d", -0.3 / lexical - 2 * 0.075 / dense),
        ("b", 0.1 / lexical - 2 * 0.675 / dense),
    )


def test_equal_scores_of_a_leg() -> None:
    same = {"lexical": LegRanking({"b": 1, "a": 2}, {"a": 0.1, "b": 0.1})}
    assert fused(Weighted({"lexical": 1.0}, "minmax"), same) == [("a", 1.0), ("b", 1.0)]
    assert fused(Weighted({"lexical": 1.0}, "zscore"), same) == [("a", 0.0), ("b", 0.0)]


def test_one_leg_alone() -> None:
    assert fused(named_fusion("lexical")) == [("a", 0.8), ("b", 0.4), ("c", 0.0), ("d", 0.0)]
    assert named_fusion("dense").legs == ("dense",)


def test_without_weights_legs_count_alike() -> None:
    assert fused(Weighted(normalization="raw")) == fused(
        Weighted({"lexical": 0.5, "dense": 0.5}, "raw")
    )
    assert fused(ReciprocalRank()) == fused(ReciprocalRank(weights={"lexical": 1, "dense": 1}))


def test_equal_scores_stand_by_id() -> None:
    answers = {
        "lexical": LegRanking({"z": 1, "y": 2}, {}),
        "dense": LegRanking({"y": 1, "z": 2}, {}),
    }
    assert [name for name, _ in fused(ReciprocalRank(), answers)] == ["y", "z"]


def test_nothing_found() -> None:
    empty = {"lexical": LegRanking({}, {}), "dense": LegRanking({}, {})}
    for fusion in (ReciprocalRank(), *(Weighted(None, n) for n in ("raw", "minmax", "zscore"))):
        assert fusion.fuse(empty) == []


scores = st.dictionaries(st.sampled_from("abcdef"), st.floats(-1, 1), max_size=6)


@given(scores, scores, st.floats(0, 4), st.floats(0.125, 4), st.sampled_from(FUSIONS[:2]))
def test_parts_sum_and_order_is_total(lexical, dense, one, other, name) -> None:
    names = sorted({*lexical, *dense})
    answers = {}
    for leg, own in (("lexical", lexical), ("dense", dense)):
        found = sorted((n for n in own if own[n] > 0), key=lambda n: (-own[n], n))
        answers[leg] = LegRanking(
            {n: rank for rank, n in enumerate(found, 1)}, {n: own.get(n, 0.0) for n in names}
        )
    found = named_fusion(name, {"lexical": one, "dense": other}).fuse(answers)
    for candidate in found:
        assert candidate.score == math.fsum(candidate.parts.values())
    keys = [(-candidate.score, candidate.id) for candidate in found]
    assert keys == sorted(keys)
    assert len({candidate.id for candidate in found}) == len(found)


class Model:
    score_weights: object = None
    relevance: object = None


def test_the_default_ships_with_the_model() -> None:
    model = Model()
    assert default_fusion(model) == Weighted() == named_fusion("weighted")
    assert default_fusion(object()) == Weighted()
    model.score_weights, model.relevance = {"lexical": 0.6, "dense": 0.4}, [9.0, -3.0]
    fitted = Weighted({"lexical": 0.6, "dense": 0.4}, calibration=(9.0, -3.0))
    assert default_fusion(model) == fitted


def test_relevance_is_a_logistic_function_of_the_score() -> None:
    fusion = Weighted({"lexical": 0.5, "dense": 0.5}, calibration=(10.0, -4.0))
    assert fusion.relevance_of(0.4) == 0.5
    assert fusion.relevance_of(0.6) == pytest.approx(1 / (1 + math.exp(-2)), abs=1e-15)
    assert (fusion.relevance_of(1e6), fusion.relevance_of(-1e6)) == (1.0, 0.0)
    assert Weighted().relevance_of(0.4) is None
    assert ReciprocalRank().relevance_of(0.4) is None


def test_a_calibration_is_of_all_legs() -> None:
    fusion = Weighted({"lexical": 0.5, "dense": 0.5}, calibration=(10.0, -4.0))
    assert fusion.over(["dense", "lexical", "codes"]) == fusion
    assert fusion.over(["dense"]) == Weighted({"dense": 0.5})


@pytest.mark.parametrize(
    "calibration", [(1.0,), (1, 2, 3), 1.0, (0, 1), (-1, 1), (1, math.nan), ("1", 2), (True, 1)]
)
def test_bad_calibrations(calibration: object) -> None:
    with pytest.raises(InputError, match="a slope above 0 and an intercept"):
        Weighted({"lexical": 1.0}, calibration=calibration)


def test_only_weighted_raw_scores_are_calibrated() -> None:
    for fusion in ((None, "raw"), ({"lexical": 1.0}, "minmax")):
        with pytest.raises(InputError, match="needs weights, and raw scores"):
            Weighted(*fusion, calibration=(1.0, 0.0))


def test_only_some_legs() -> None:
    fusion = Weighted({"lexical": 0.3, "dense": 0.7}, "raw")
    assert fusion.over(["dense"]) == Weighted({"dense": 0.7}, "raw")
    assert ReciprocalRank().over(["dense"]) == ReciprocalRank()


@pytest.mark.parametrize("weight", [-0.1, math.nan, math.inf, "1", None, True])
def test_bad_weights(weight: object) -> None:
    for kind in (ReciprocalRank, Weighted):
        with pytest.raises(InputError, match=r"the weight of the leg dense.*at least 0"):
            kind(weights={"lexical": 1.0, "dense": weight})


def test_bad_settings() -> None:
    with pytest.raises(InputError, match="one must be above 0"):
        Weighted({"lexical": 0.0})
    with pytest.raises(InputError, match="one must be above 0"):
        ReciprocalRank(weights={})
    with pytest.raises(InputError, match="'colour': a leg to weigh must be one of lexical"):
        Weighted({"colour": 1.0})
    with pytest.raises(InputError, match="must be numbers by leg"):
        Weighted([0.5, 0.5])
    with pytest.raises(InputError, match="'rank': a normalisation must be one of raw, minmax"):
        Weighted(normalization="rank")
    for constant in (-1, math.nan, math.inf):
        with pytest.raises(InputError, match="the constant of a fusion"):
            ReciprocalRank(constant=constant)
    for depth in (0, -1, 10_001, 2.5, True):
        with pytest.raises(InputError, match="a whole number from 1 to 10,000"):
            Weighted(depth=depth)
    with pytest.raises(InputError, match="'best': a fusion must be one of rrf, weighted"):
        named_fusion("best")
    with pytest.raises(InputError, match="'dense': one leg alone takes no weights"):
        named_fusion("dense", {"dense": 1.0})


@pytest.mark.parametrize(
    "fusion",
    [
        *map(named_fusion, FUSIONS),
        ReciprocalRank(10, {"codes": 2.0}, 7),
        Weighted({"lexical": 0.5, "dense": 1.0}, "zscore", 20),
        Weighted({"lexical": 0.5, "dense": 1.0}, calibration=(9.5, -2.5)),
    ],
    ids=str,
)
def test_round_trip(fusion) -> None:
    assert fusion_from_dict(json.loads(json.dumps(fusion.to_dict()))) == fusion


def test_from_a_few_settings() -> None:
    assert fusion_from_dict({"name": "rrf"}) == ReciprocalRank()
    assert fusion_from_dict({"name": "dense"}) == named_fusion("dense")
    with pytest.raises(InputError, match="'power': is not a setting of the fusion 'rrf'"):
        fusion_from_dict({"name": "rrf", "power": 2})
    with pytest.raises(InputError, match="a fusion must be one of"):
        fusion_from_dict({"weights": {"dense": 1.0}})


def test_names() -> None:
    assert [named_fusion(name).name for name in FUSIONS] == list(FUSIONS)
    assert str(ReciprocalRank(weights={"dense": 2.0})) == "rrf (constant 60, dense 2)"
    assert str(Weighted()) == "weighted"
    assert str(Weighted({"lexical": 0.3, "dense": 0.7})) == "weighted (lexical 0.3, dense 0.7)"
    assert str(named_fusion("minmax", {"lexical": 0.3, "dense": 0.7})) == (
        "weighted (minmax scores, lexical 0.3, dense 0.7)"
    )
    assert str(named_fusion("codes")) == "codes"


def test_a_fusion_keeps_its_own_plain_numbers() -> None:
    weights = {"lexical": np.float32(0.5), "dense": 1}
    for fusion in (Weighted(weights), ReciprocalRank(np.float32(2), weights)):
        data = json.loads(json.dumps(fusion.to_dict()))
        assert data["weights"] == {"lexical": 0.5, "dense": 1.0}
        assert fusion_from_dict(data) == fusion
    fusion = Weighted(weights, calibration=(np.float32(2), 1))
    weights["dense"] = 9
    assert fusion.weights == {"lexical": 0.5, "dense": 1.0}
    assert json.dumps(fusion.to_dict()["calibration"]) == "[2.0, 1.0]"


@pytest.mark.parametrize("weight", [10**400, np.complex64(1), np.nan, np.bool_(True), "1"])
def test_no_finite_number(weight: object) -> None:
    with pytest.raises(InputError, match="must be a finite number of at least 0"):
        Weighted({"lexical": weight})
