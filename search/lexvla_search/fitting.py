"""A fusion learned from judged queries, and kept with its index."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, Protocol

import numpy as np
from tqdm import tqdm

from lexvla.errors import IndexCorruptError, IndexVersionError, InputError, UnsupportedError
from lexvla_indexer.base import Index
from lexvla_indexer.legs import Leg
from lexvla_search.evaluation.retrieval import dcg, recall_curve_of
from lexvla_search.fusion import (
    LEGS,
    Fusion,
    LegRanking,
    ReciprocalRank,
    Weighted,
    fusion_from_dict,
    named_fusion,
)
from lexvla_search.query import Query

__all__ = [
    "FittedFusion",
    "fit_fusion",
    "fit_relevance",
    "load_fusion",
    "save_fusion",
]

NOTE = "fusion"
LEAST_QUERIES = 4  # with a relevant document: two to learn from, two to test on
STEPS = {2: 20, 3: 10, 4: 10}  # steps from 0 to 1 of a weight, by the number of legs
_FORMAT_VERSION = 1

Rankings = Mapping[Leg, LegRanking]
Judged = Mapping[str, float]
Table = tuple[np.ndarray, np.ndarray, Judged]  # (items, legs) scores, (items) gains, judgements
# From (..., k) gains at each rank and the judgements of the query to (...) values.
Measure = Callable[[np.ndarray, Judged], np.ndarray]


@dataclass(frozen=True)
class FittedFusion:
    """The fusion that was best on half of the queries, and its value on the other half.

    Attributes:
        fusion: The best one, with a calibration of its scores.
        learned_on: How many queries it was chosen on.
        tested_on: How many other queries it was measured on.
        value: The mean of the measure on those.
        others: The same for each leg alone, rrf, minmax and the default.
        errors: Queries that could not be asked; they count 0.
    """

    fusion: Fusion
    measure: str
    learned_on: int
    tested_on: int
    value: float
    others: dict[str, float]
    errors: tuple[InputError, ...] = ()

    @property
    def gain(self) -> float:
        """How much better than the default the fusion is on the test queries."""
        return self.value - self.others["default"]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "fusion": self.fusion.to_dict(),
            "measure": self.measure,
            "learned_on": self.learned_on,
            "tested_on": self.tested_on,
            "value": self.value,
            "others": self.others,
            "gain": self.gain,
            "errors": [str(error) for error in self.errors],
        }

    def __str__(self) -> str:
        lines = [
            f"learned on {self.learned_on:,} queries, measured on {self.tested_on:,} others:",
            *(f"  {value:.4f}  {name}" for name, value in self.others.items()),
            f"  {self.value:.4f}  {self.fusion}",
            f"gain over the default: {self.gain:+.4f} {self.measure}",
            *(f"counts 0: {error}" for error in self.errors),
        ]
        return "\n".join(lines)


class RanksByLeg(Protocol):
    """The part of a `lexvla_search.Searcher` that fitting needs."""

    default: Weighted

    def leg_rankings(self, query: Query) -> Rankings:
        """Return how each leg ranks and scores all candidates of a query."""
        ...


def fit_fusion(
    searcher: RanksByLeg,
    queries: Mapping[str, Query | str],
    qrels: Mapping[str, Judged],
    measure: str = "nDCG@10",
    show_progress_bar: bool | None = False,
) -> FittedFusion:
    """Learn how to weigh the legs from queries whose relevant documents are known.

    All weights that sum to 1 are tried, in steps of 0.05 for two legs and of 0.1 for more. The
    best mean of the measure wins; of equal ones, the most even weights. `fit_relevance` calibrates
    the sum of raw scores. Both are learned on one half of the queries, from the documents among the
    100 best of a leg. The halves are drawn by a hash of the queries' ids, so they are always the
    same. Queries without a relevant document are ignored; at least four must remain. The queries'
    own legs and fusions are ignored.

    The measure is ``R@k``, ``nDCG@k`` or ``RR@k``, as trec_eval defines them; relevance above 0 is
    relevant. ``show_progress_bar=None`` shows the bar if stderr is a terminal.
    """
    value_of = _measure(measure)
    judged = [name for name in queries if any(value > 0 for value in qrels.get(name, {}).values())]
    if len(judged) < LEAST_QUERIES:
        rule = f"at least {LEAST_QUERIES} queries must have a relevant document, not {len(judged)}"
        raise InputError("the judgements", rule)
    judged.sort(key=lambda name: hashlib.sha256(name.encode()).digest())
    disable = None if show_progress_bar is None else not show_progress_bar
    rankings: dict[str, Rankings] = {}
    errors: list[InputError] = []
    for name in tqdm(judged, desc="queries", disable=disable):
        query = queries[name]
        query = Query(text=query) if isinstance(query, str) else query
        try:
            rankings[name] = searcher.leg_rankings(replace(query, legs=None, fusion=None))
        except InputError as error:
            errors.append(error)
    legs = _common_legs(rankings.values())
    learn, test = judged[::2], judged[1::2]
    tables = [_table(rankings[name], qrels[name], legs) for name in learn if name in rankings]
    weights = _best(tables, legs, value_of)
    fusion = Weighted(weights, calibration=_calibration(tables, weights))

    def tested(fusion: Fusion) -> float:
        total = 0.0
        for name in test:
            if name in rankings:
                own = {leg: rankings[name][leg] for leg in legs}
                names = [one.id for one in fusion.fuse(own)]
                total += float(value_of(_gains(names, qrels[name]), qrels[name]))
        return total / len(test)

    # The leg's own order, without candidates that it did not find.
    others: dict[str, Fusion] = {leg: ReciprocalRank(weights={leg: 1.0}) for leg in legs}
    default = searcher.default.over(legs)
    if default.weights is None:
        # With other legs, codes are searched only if named.
        default = Weighted(dict.fromkeys([leg for leg in legs if leg != "codes"], 1.0))
    others |= {"rrf": ReciprocalRank(), "minmax": named_fusion("minmax"), "default": default}
    return FittedFusion(
        fusion,
        measure,
        len(learn),
        len(test),
        tested(fusion),
        {name: tested(other) for name, other in others.items()},
        tuple(errors),
    )


def fit_relevance(scores: np.ndarray, right: np.ndarray) -> tuple[float, float]:
    """Learn how likely a score is right: logistic(slope * score + intercept).

    By logistic regression, with Platt's targets: of n right pairs each counts (n + 1) / (n + 2)
    right, and likewise for the wrong ones, so that the slope is finite even if a score separates
    them. Returns slope and intercept.

    `scores` and `right`, both (pairs), are of queries with items. Draw the pairs as searches find
    them: the share of right pairs at each score is what is learned. `InputError` if all pairs are
    right, or none is, or right ones do not score higher.

    References:
        Platt: Probabilistic outputs for support vector machines. Advances in Large Margin
        Classifiers, 1999.
    """
    from scipy import optimize, special  # slow to load, and a search needs neither

    scores, right = np.asarray(scores, np.float64).ravel(), np.asarray(right, bool).ravel()
    count = np.count_nonzero(right)
    if not 0 < count < len(right):
        raise InputError("the judgements", "some pairs must be right, and some wrong")
    mean, spread = float(scores.mean()), float(scores.std()) or 1.0
    places = (scores - mean) / spread
    targets = np.where(right, (count + 1) / (count + 2), 1 / (len(right) - count + 2))

    def loss(line: np.ndarray) -> tuple[float, np.ndarray]:
        logits = line[0] * places + line[1]
        misses = special.expit(logits) - targets
        value = np.mean(np.logaddexp(0, logits) - targets * logits)
        return float(value), np.array([np.mean(misses * places), np.mean(misses)])

    start = np.array([1.0, special.logit(count / len(right))])
    slope, intercept = optimize.minimize(loss, start, jac=True).x.tolist()
    if slope <= 0:
        raise InputError("the judgements", "right pairs do not score higher than wrong ones")
    return slope / spread, intercept - slope * mean / spread


def save_fusion(index: Index, fusion: Fusion | None, facts: dict[str, Any] | None = None) -> None:
    """Store a fusion with an index, for queries that do not name one; ``None`` removes it.

    `facts` are JSON values about how it was found. `UnsupportedError` if the index keeps no notes.
    """
    data = None
    if fusion is not None:
        data = {"format_version": _FORMAT_VERSION, "fusion": fusion.to_dict(), "facts": facts or {}}
    index.write_note(NOTE, data)


def load_fusion(index: Index) -> Fusion | None:
    """Return the fusion stored with an index, or ``None``.

    `IndexCorruptError` if it cannot be read, `IndexVersionError` if a newer program wrote it.
    """
    data = index.read_note(NOTE)
    if data is None:
        return None
    try:
        version, settings = int(data["format_version"]), data["fusion"]
        if version > _FORMAT_VERSION:
            raise IndexVersionError(f"{index}: fusion format {version} is newer than this program")
        return fusion_from_dict(settings)
    except (InputError, KeyError, TypeError, ValueError) as error:
        raise IndexCorruptError(f"{index}: no readable fusion ({error})") from error


def _common_legs(rankings: Iterable[Rankings]) -> tuple[Leg, ...]:
    found = [set(own) for own in rankings]
    common = set.intersection(*found) if found else set()
    if len(common) < 2:
        raise UnsupportedError(
            "there is nothing to weigh: queries and index must have two legs, not "
            + (" and ".join(sorted(common)) or "none")
        )
    return tuple(leg for leg in LEGS if leg in common)


def _table(rankings: Rankings, judged: Judged, legs: Sequence[Leg]) -> Table:
    """Return all candidates' scores, ordered by id."""
    parts = Weighted(dict.fromkeys(legs, 1.0)).parts({leg: rankings[leg] for leg in legs})
    names = sorted(parts)
    scores = np.array([[parts[name][leg] for leg in legs] for name in names])
    return scores.reshape(-1, len(legs)), _gains(names, judged), judged


def _best(tables: Iterable[Table], legs: Sequence[Leg], value_of: Measure) -> dict[Leg, float]:
    grid = _simplex(len(legs))
    totals = np.zeros(len(grid))
    for scores, gains, judged in tables:
        sums = grid @ np.maximum(scores, 0).T
        # Stable, so that equal scores stay ordered by id.
        order = np.argsort(-sums, axis=1, kind="stable")
        totals += value_of(gains[order], judged)
    unevenness = np.abs(grid - 1 / len(legs)).sum(axis=1)
    best = np.lexsort([unevenness.round(9), -totals.round(9)])[0]
    return dict(zip(legs, grid[best].tolist(), strict=True))


def _calibration(
    tables: Sequence[Table], weights: Mapping[Leg, float]
) -> tuple[float, float] | None:
    """Return slope and intercept for all candidates' sums; ``None`` if nothing can be learned."""
    shares = np.array(list(weights.values()))
    try:
        return fit_relevance(
            np.concatenate([scores @ shares for scores, _, _ in tables]),
            np.concatenate([gains > 0 for _, gains, _ in tables]),
        )
    except InputError:
        return None


def _simplex(legs: int) -> np.ndarray:
    """Return all weights of at least 0 that sum to 1, in even steps: (n, legs)."""
    steps = STEPS[legs]
    points = [p for p in product(range(steps + 1), repeat=legs) if sum(p) == steps]
    return np.array(points) / steps


def _gains(names: Sequence[str], judged: Judged) -> np.ndarray:
    return np.array([max(judged.get(name, 0), 0) for name in names], float)


def _measure(name: str) -> Measure:
    form = re.fullmatch(r"(R|nDCG|RR)@([1-9][0-9]{0,4})", name)
    if form is None:
        rule = "is not a measure to fit by; measures are such as R@1, nDCG@10 and RR@10"
        raise InputError(name, rule)
    kind, depth = form[1], int(form[2])

    def value(gains: np.ndarray, judged: Judged) -> np.ndarray:
        gains = gains[..., :depth]
        ideal = np.array(sorted(judged.values(), reverse=True), float)
        ideal = ideal[ideal > 0]
        if not gains.shape[-1]:
            return np.zeros(gains.shape[:-1])
        if kind == "R":
            return recall_curve_of(gains, len(ideal))[..., -1]
        if kind == "nDCG":
            return np.asarray(dcg(gains) / dcg(ideal[:depth]))
        found = gains > 0
        return np.where(found.any(axis=-1), 1 / (found.argmax(axis=-1) + 1), 0.0)

    return value
