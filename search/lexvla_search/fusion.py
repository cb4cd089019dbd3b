"""Fuse several legs' rankings into one list: by weighted scores, or by reciprocal ranks.

A fusion gives each candidate a part for each leg; the parts sum to the score. Candidates are
ordered by score descending, equal scores by id ascending. An absolute fusion's scores depend on the
document and the query only; all others depend on the other candidates too. Settings that break
their rules raise `InputError`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from functools import reduce
from operator import add
from typing import Any, ClassVar, Literal, NamedTuple, Self, cast, get_args

from lexvla.encoder import Encoder
from lexvla.errors import InputError
from lexvla_indexer.legs import Leg
from lexvla_search.finite import is_finite

__all__ = [
    "FUSIONS",
    "GOOD_MATCH",
    "LEGS",
    "MAX_HITS",
    "Fused",
    "Fusion",
    "LegRanking",
    "Normalization",
    "ReciprocalRank",
    "Weighted",
    "default_fusion",
    "fusion_from_dict",
    "named_fusion",
]

FusionKind = Literal["rrf", "weighted"]
FusionName = Literal[FusionKind, "minmax", "zscore", Leg]
Normalization = Literal["raw", "minmax", "zscore"]
Parts = dict[str, dict[Leg, float]]

LEGS: tuple[Leg, ...] = get_args(Leg)
FUSIONS: tuple[FusionName, ...] = get_args(FusionName)
MAX_HITS = 10_000  # limit on depth, and on k + offset
GOOD_MATCH = 0.1  # below this relevance of the best hit, people are told that none is good
DEPTH = 100  # of each leg's list
RANK_CONSTANT = 60.0  # as in the paper on reciprocal rank fusion


@dataclass(frozen=True)
class LegRanking:
    """The candidates as one leg ranks them.

    Attributes:
        ranks: Ranks, from 1, of those that it found.
        scores: Its scores of these; for a fusion that `rescores`, of all candidates.
    """

    ranks: dict[str, int]
    scores: dict[str, float]


class Fused(NamedTuple):
    """A candidate's score, and what each leg adds to it."""

    id: str
    score: float
    parts: dict[Leg, float]


class Fusion(ABC):
    """Make one list of several legs' rankings; immutable.

    Attributes:
        weights: What each leg counts; a leg of weight 0 is not searched. ``None`` gives equal
            weight to all legs that query and index have.
        depth: How many candidates to take from each leg.
        rescores: Whether each leg must score all candidates, not just those that it found.
    """

    rescores: ClassVar[bool]
    weights: Mapping[Leg, float] | None
    depth: int

    @property
    @abstractmethod
    def name(self) -> FusionName:
        """One of `FUSIONS`; a leg's name for the raw scores of that leg alone."""

    @property
    def absolute(self) -> bool:
        """Whether scores depend on the document and the query only."""
        return False

    @property
    def legs(self) -> tuple[Leg, ...] | None:
        """The legs to search; ``None`` for all that query and index have."""
        if self.weights is None:
            return None
        return tuple(leg for leg in LEGS if self.weights.get(leg, 0) > 0)

    def over(self, legs: Iterable[Leg]) -> Self:
        """Return the same fusion restricted to these legs; their weights stay as they are."""
        if self.weights is None:
            return self
        kept = {leg: self.weights[leg] for leg in legs if leg in self.weights}
        return self if kept == self.weights else replace(cast(Any, self), weights=kept)

    def weighed(self, legs: Iterable[Leg]) -> dict[Leg, float]:
        """Return the weights above 0 of these legs, in the order of `LEGS`."""
        there = set(legs)
        weights = {leg: self._weight_of(leg, len(there)) for leg in LEGS if leg in there}
        return {leg: weight for leg, weight in weights.items() if weight > 0}

    def relevance_of(self, score: float) -> float | None:
        """Return how likely a document of this score is to be right; ``None`` if uncalibrated."""
        return None

    @abstractmethod
    def parts(self, rankings: Mapping[Leg, LegRanking]) -> Parts:
        """Return what each leg adds to each candidate's score."""

    def fuse(self, rankings: Mapping[Leg, LegRanking]) -> list[Fused]:
        """Return all candidates, best first; equal scores by id.

        Legs that the fusion does not weigh are ignored.
        """
        fused = [
            # Added one by one, as engines do: sums must agree to the last bit.
            Fused(name, reduce(add, parts.values()), parts)
            for name, parts in self.parts(rankings).items()
        ]
        return sorted(fused, key=lambda one: (-one.score, one.id))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that `fusion_from_dict` reads."""
        own = {each.name: getattr(self, each.name) for each in fields(cast(Any, self))}
        weights = None if self.weights is None else dict(self.weights)
        return {"name": "rrf" if self.name == "rrf" else "weighted", **own, "weights": weights}

    def _weight_of(self, leg: Leg, among: int) -> float:
        return 1.0 / among if self.weights is None else self.weights.get(leg, 0.0)


@dataclass(frozen=True)
class ReciprocalRank(Fusion):
    """Add up weight / (constant + rank) over the legs that found a document.

    Ranks count from 1. A leg that did not find a document within its depth adds nothing. Scores
    do not matter, so legs need no common scale.

    Args:
        constant: The greater it is, the less the first ranks stand out; 60 in the paper.
        weights: By leg; ``None`` gives each leg 1.
        depth: How many candidates to take from each leg, from 1 to 10,000.

    References:
        Cormack, Clarke, Buettcher: Reciprocal Rank Fusion outperforms Condorcet and individual
        Rank Learning Methods. SIGIR 2009.
    """

    constant: float = RANK_CONSTANT
    weights: Mapping[Leg, float] | None = None
    depth: int = DEPTH
    rescores: ClassVar[bool] = False

    def __post_init__(self) -> None:
        constant = _checked("the constant of a fusion", self.constant)
        object.__setattr__(self, "constant", constant)
        _check(self)

    @property
    def name(self) -> FusionName:
        """One of `FUSIONS`."""
        return "rrf"

    def parts(self, rankings: Mapping[Leg, LegRanking]) -> Parts:
        """Return what each leg adds to each candidate's score."""
        parts: Parts = {}
        for leg, weight in self.weighed(rankings).items():
            for name, rank in rankings[leg].ranks.items():
                parts.setdefault(name, {})[leg] = weight / (self.constant + rank)
        return parts

    def _weight_of(self, leg: Leg, among: int) -> float:
        return 1.0 if self.weights is None else self.weights.get(leg, 0.0)

    def __str__(self) -> str:
        return f"rrf (constant {self.constant:g}{_written(self.weights)})"


@dataclass(frozen=True)
class Weighted(Fusion):
    """Add up weight times score over all legs; each leg scores each candidate.

    Args:
        weights: By leg; ``None`` gives each of n legs 1/n.
        normalization: ``raw`` takes a leg's scores as they are, those below 0 as 0: a leg that
            says nothing for a document adds nothing. ``minmax`` maps a leg's scores of the
            candidates to 0 to 1 (equal scores to 1), ``zscore`` subtracts their mean and divides
            by their standard deviation (equal scores give 0).
        depth: How many candidates to take from each leg, from 1 to 10,000.
        calibration: Slope and intercept of the logistic function that turns a raw score into a
            relevance from 0 to 1.
    """

    weights: Mapping[Leg, float] | None = None
    normalization: Normalization = "raw"
    depth: int = DEPTH
    calibration: tuple[float, float] | None = None
    rescores: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.normalization not in get_args(Normalization):
            known = ", ".join(get_args(Normalization))
            raise InputError(str(self.normalization), f"a normalisation must be one of {known}")
        _check(self)
        if self.calibration is not None:
            self._check_calibration(self.calibration)

    def _check_calibration(self, calibration: object) -> None:
        numbers = tuple(calibration) if isinstance(calibration, list | tuple) else ()
        if len(numbers) != 2 or not all(map(is_finite, numbers)) or not numbers[0] > 0:
            rule = "must be two finite numbers, a slope above 0 and an intercept"
            raise InputError("the calibration of a fusion", f"{rule}, not {calibration!r}")
        if not self.absolute or self.weights is None:
            raise InputError("the calibration of a fusion", "needs weights, and raw scores")
        object.__setattr__(self, "calibration", tuple(map(float, numbers)))

    @property
    def absolute(self) -> bool:
        """Whether scores are raw, and so depend on the document and the query only."""
        return self.normalization == "raw"

    @property
    def name(self) -> FusionName:
        """One of `FUSIONS`."""
        if self.normalization != "raw":
            return self.normalization
        legs = self.legs
        return legs[0] if legs is not None and len(legs) == 1 else "weighted"

    def over(self, legs: Iterable[Leg]) -> Self:
        """Return the same fusion restricted to these legs.

        It loses its calibration if one is missing, except ``text``: where no document has text,
        that leg adds nothing anyway.
        """
        kept = set(legs)
        fusion = super().over(kept)
        whole = self.legs is None or kept.issuperset(set(self.legs) - {"text"})
        return fusion if whole else replace(fusion, calibration=None)

    def relevance_of(self, score: float) -> float | None:
        """Return logistic(slope * score + intercept); ``None`` without a calibration."""
        if self.calibration is None:
            return None
        slope, intercept = self.calibration
        # By tanh: exp would overflow for large numbers.
        return 0.5 + 0.5 * math.tanh(0.5 * (slope * score + intercept))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that `fusion_from_dict` reads."""
        settings = super().to_dict()
        calibration = settings.pop("calibration")
        return settings if calibration is None else {**settings, "calibration": list(calibration)}

    def parts(self, rankings: Mapping[Leg, LegRanking]) -> Parts:
        """Return what each leg adds to each candidate's score."""
        parts: Parts = {}
        for leg, weight in self.weighed(rankings).items():
            scores = rankings[leg].scores
            for name, value in _NORMALIZED[self.normalization](scores).items():
                parts.setdefault(name, {})[leg] = weight * value
        return parts

    def __str__(self) -> str:
        if self.name in LEGS and self.weights is not None and self.weights[self.name] == 1:
            return self.name
        scores = "" if self.absolute else f", {self.normalization} scores"
        said = f"{scores}{_written(self.weights)}".removeprefix(", ")
        return f"weighted ({said})" if said else "weighted"


def named_fusion(name: str, weights: Mapping[Leg, float] | None = None) -> Fusion:
    """Return the fusion of a name in `FUSIONS`.

    ``rrf`` has the constant 60; ``weighted`` adds up raw scores, ``minmax`` and ``zscore`` scores
    that are normalised over the candidates; a leg's name means that leg's scores alone, which take
    no weights.
    """
    if name == "rrf":
        return ReciprocalRank(weights=weights)
    if name == "weighted":
        return Weighted(weights)
    if name in ("minmax", "zscore"):
        return Weighted(weights, cast(Normalization, name))
    if name not in LEGS:
        raise InputError(str(name), f"a fusion must be one of {', '.join(FUSIONS)}")
    if weights is not None:
        raise InputError(name, "one leg alone takes no weights")
    return Weighted({name: 1.0})


def default_fusion(model: Encoder) -> Weighted:
    """Return the fusion that ships with a model, by default equal weights of its legs.

    A model may have ``score_weights``, by leg, and ``relevance``, a slope and an intercept; either
    may be missing or ``None``. A fusion that was fitted for an index comes before this one
    (`lexvla_search.fitting.load_fusion`).
    """
    weights = getattr(model, "score_weights", None)
    return Weighted(weights, calibration=getattr(model, "relevance", None))


def fusion_from_dict(settings: Mapping[str, Any]) -> Fusion:
    """Return the fusion that `Fusion.to_dict` describes: a name and any non-default settings."""
    own = dict(settings)
    name = own.pop("name", None)
    if name in LEGS and not own:
        return named_fusion(name)
    kinds: dict[Any, type[ReciprocalRank | Weighted]]
    kinds = {"rrf": ReciprocalRank, "weighted": Weighted}
    if name not in kinds:
        raise InputError(str(name), f"a fusion must be one of {', '.join(FUSIONS)}")
    kind = kinds[name]
    known = [field.name for field in fields(kind)]
    for setting in own:
        if setting not in known:
            rule = f"is not a setting of the fusion {name!r}; it has {', '.join(known)}"
            raise InputError(str(setting), rule)
    return kind(**own)


def _raw(scores: Mapping[str, float]) -> Mapping[str, float]:
    return {name: max(score, 0.0) for name, score in scores.items()}


def _minmax(scores: Mapping[str, float]) -> Mapping[str, float]:
    low, high = min(scores.values(), default=0.0), max(scores.values(), default=0.0)
    if high == low:
        return dict.fromkeys(scores, 1.0)
    return {name: (score - low) / (high - low) for name, score in scores.items()}


def _zscore(scores: Mapping[str, float]) -> Mapping[str, float]:
    # Rounding may give equal scores a deviation slightly above 0.
    if len(set(scores.values())) < 2:
        return dict.fromkeys(scores, 0.0)
    mean = math.fsum(scores.values()) / len(scores)
    deviation = math.sqrt(math.fsum((s - mean) ** 2 for s in scores.values()) / len(scores))
    if deviation == 0:
        return dict.fromkeys(scores, 0.0)
    return {name: (score - mean) / deviation for name, score in scores.items()}


_NORMALIZED = {"raw": _raw, "minmax": _minmax, "zscore": _zscore}


def _written(weights: Mapping[Leg, float] | None) -> str:
    if weights is None:
        return ""
    return "".join(f", {leg} {weights[leg]:g}" for leg in LEGS if leg in weights)


def _check(fusion: Fusion) -> None:
    depth = fusion.depth
    if not isinstance(depth, int) or isinstance(depth, bool) or not 1 <= depth <= MAX_HITS:
        rule = f"the depth of a fusion must be a whole number from 1 to {MAX_HITS:,}"
        raise InputError(repr(depth), rule)
    if fusion.weights is None:
        return
    if not isinstance(fusion.weights, Mapping):
        raise InputError(repr(fusion.weights), "weights of a fusion must be numbers by leg")
    weights: dict[Leg, float] = {}
    for leg, weight in fusion.weights.items():
        if leg not in LEGS:
            raise InputError(str(leg), f"a leg to weigh must be one of {', '.join(LEGS)}")
        weights[leg] = _checked(f"the weight of the leg {leg}", weight)
    if not any(weights.values()):
        raise InputError("weights of a fusion", "one must be above 0")
    object.__setattr__(fusion, "weights", weights)  # its own: the fusion is immutable


def _checked(name: str, value: object) -> float:
    if not is_finite(value) or value < 0:
        raise InputError(name, f"must be a finite number of at least 0, not {value!r}")
    return float(value)
