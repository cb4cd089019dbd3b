"""Several legs' rankings as one list: by reciprocal ranks, or by weighted scores.

A fusion sees the candidates: the documents among the ``depth`` best of at least one leg. It gives
each candidate a part for each leg; the parts sum to the score. Candidates are ordered by score
descending, equal scores by id ascending.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, ClassVar, Literal, NamedTuple, Self, cast, get_args

from lexvla.errors import InputError
from lexvla_indexer.legs import Leg

__all__ = [
    "DEFAULT_FUSION",
    "FUSIONS",
    "LEGS",
    "MAX_HITS",
    "Fused",
    "Fusion",
    "LegRanking",
    "Normalization",
    "ReciprocalRank",
    "Weighted",
    "fusion_from_dict",
    "named_fusion",
]

FusionKind = Literal["rrf", "weighted"]
FusionName = Literal[FusionKind, Leg]
Normalization = Literal["raw", "minmax", "zscore"]
Parts = dict[str, dict[Leg, float]]

LEGS: tuple[Leg, ...] = get_args(Leg)
FUSIONS: tuple[FusionName, ...] = get_args(FusionName)
MAX_HITS = 10_000  # how deep a result may reach, by k, offset or depth
DEPTH = 100  # of each leg's list; `Searcher` goes deeper if k and offset do
RANK_CONSTANT = 60.0  # of the paper on reciprocal rank fusion


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
        weights: What each leg counts; a leg of weight 0 is not asked. ``None`` gives equal weight
            to all legs that query and index have.
        depth: How many candidates to take from each leg.
        rescores: Whether each leg must score all candidates, not just those that it found.
    """

    rescores: ClassVar[bool]
    weights: Mapping[Leg, float] | None
    depth: int

    @property
    @abstractmethod
    def name(self) -> FusionName:
        """One of `FUSIONS`; a leg's name if that leg counts alone, as it is."""

    @property
    def legs(self) -> tuple[Leg, ...] | None:
        """The legs to ask; ``None`` for all that query and index have."""
        if self.weights is None:
            return None
        return tuple(leg for leg in LEGS if self.weights.get(leg, 0) > 0)

    def over(self, legs: Iterable[Leg]) -> Self:
        """Return the same fusion of these legs only; their weights stay as they are."""
        if self.weights is None:
            return self
        kept = {leg: self.weights[leg] for leg in legs if leg in self.weights}
        return replace(cast(Any, self), weights=kept)

    @abstractmethod
    def parts(self, rankings: Mapping[Leg, LegRanking]) -> Parts:
        """Return what each leg adds to each candidate's score."""

    def fuse(self, rankings: Mapping[Leg, LegRanking]) -> list[Fused]:
        """Return all candidates, best first; equal scores by id.

        Args:
            rankings: By leg; legs that the fusion does not weigh are ignored.
        """
        fused = [
            Fused(name, math.fsum(parts.values()), parts)
            for name, parts in self.parts(rankings).items()
        ]
        return sorted(fused, key=lambda one: (-one.score, one.id))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that `fusion_from_dict` reads."""
        own = asdict(cast(Any, self))
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
        constant: The greater, the less the first ranks stand out; 60 in the paper.
        weights: By leg; ``None`` counts each leg 1.
        depth: How many candidates to take from each leg, from 1 to 10,000.

    Raises:
        InputError: A value breaks its rule.

    References:
        Cormack, Clarke, Buettcher: Reciprocal Rank Fusion outperforms Condorcet and individual
        Rank Learning Methods. SIGIR 2009.
    """

    constant: float = RANK_CONSTANT
    weights: Mapping[Leg, float] | None = None
    depth: int = DEPTH
    rescores: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _check_number("the constant of a fusion", self.constant)
        _check(self)

    @property
    def name(self) -> FusionName:
        """One of `FUSIONS`."""
        return "rrf"

    def parts(self, rankings: Mapping[Leg, LegRanking]) -> Parts:
        """Return what each leg adds to each candidate's score."""
        parts: Parts = {}
        for leg, weight in _weighed(self, rankings).items():
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
        weights: By leg; ``None`` counts each of n legs 1/n.
        normalization: ``minmax`` maps a leg's scores of the candidates to 0 to 1 (equal scores to
            1), ``zscore`` subtracts their mean and divides by their standard deviation (equal
            scores give 0), ``raw`` takes them as they are.
        depth: How many candidates to take from each leg, from 1 to 10,000.

    Raises:
        InputError: A value breaks its rule.
    """

    weights: Mapping[Leg, float] | None = None
    normalization: Normalization = "minmax"
    depth: int = DEPTH
    rescores: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.normalization not in get_args(Normalization):
            known = ", ".join(get_args(Normalization))
            raise InputError(str(self.normalization), f"a normalisation must be one of {known}")
        _check(self)

    @property
    def name(self) -> FusionName:
        """One of `FUSIONS`."""
        legs = self.legs
        if legs is not None and len(legs) == 1 and self.normalization == "raw":
            return legs[0]
        return "weighted"

    def parts(self, rankings: Mapping[Leg, LegRanking]) -> Parts:
        """Return what each leg adds to each candidate's score."""
        parts: Parts = {}
        for leg, weight in _weighed(self, rankings).items():
            scores = rankings[leg].scores
            for name, value in _NORMALIZED[self.normalization](scores).items():
                parts.setdefault(name, {})[leg] = weight * value
        return parts

    def __str__(self) -> str:
        if self.name in LEGS and self.weights is not None and self.weights[self.name] == 1:
            return self.name
        return f"weighted ({self.normalization} scores{_written(self.weights)})"


def named_fusion(name: str, weights: Mapping[Leg, float] | None = None) -> Fusion:
    """Return the fusion that a name of `FUSIONS` means.

    ``rrf`` has the constant 60; ``weighted`` maps scores to 0 to 1; a leg's name means the raw
    scores of this leg alone.

    Raises:
        InputError: The name is unknown, the weights break their rules, or weights are given for a
            single leg.
    """
    if name == "rrf":
        return ReciprocalRank(weights=weights)
    if name == "weighted":
        return Weighted(weights)
    if name not in LEGS:
        raise InputError(str(name), f"a fusion must be one of {', '.join(FUSIONS)}")
    if weights is not None:
        raise InputError(name, "one leg alone takes no weights")
    return Weighted({name: 1.0}, "raw")


def fusion_from_dict(settings: Mapping[str, Any]) -> Fusion:
    """Return the fusion that `Fusion.to_dict` describes: a name, and what is not the default.

    Raises:
        InputError: A setting is unknown or breaks its rule.
    """
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


def _weighed(fusion: Fusion, rankings: Mapping[Leg, LegRanking]) -> dict[Leg, float]:
    weights = {leg: fusion._weight_of(leg, len(rankings)) for leg in LEGS if leg in rankings}
    return {leg: weight for leg, weight in weights.items() if weight > 0}


def _raw(scores: Mapping[str, float]) -> Mapping[str, float]:
    return scores


def _minmax(scores: Mapping[str, float]) -> Mapping[str, float]:
    low, high = min(scores.values(), default=0.0), max(scores.values(), default=0.0)
    if high == low:
        return dict.fromkeys(scores, 1.0)
    return {name: (score - low) / (high - low) for name, score in scores.items()}


def _zscore(scores: Mapping[str, float]) -> Mapping[str, float]:
    # Of equal scores the computed deviation may be a little above 0.
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
    for leg, weight in fusion.weights.items():
        if leg not in LEGS:
            raise InputError(str(leg), f"a leg to weigh must be one of {', '.join(LEGS)}")
        _check_number(f"the weight of the leg {leg}", weight)
    if not any(weight > 0 for weight in fusion.weights.values()):
        raise InputError("weights of a fusion", "one must be above 0")


def _check_number(name: str, value: object) -> None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (is_number and math.isfinite(cast(float, value)) and cast(float, value) >= 0):
        raise InputError(name, f"must be a finite number of at least 0, not {value!r}")


# Within half a point of the best fusion without fitting on the demo's drawings; docs/search.md.
DEFAULT_FUSION: Fusion = Weighted()
