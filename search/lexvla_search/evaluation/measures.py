"""Measure runs against judgements with ir-measures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lexvla.errors import GatheredInputError, InputError, OptionalDependencyError
from lexvla_search.evaluation.retrieval import recall_curve_of

__all__ = ["MEASURES", "Measured", "deepest", "measure", "parse_measures", "recall_curve"]

MEASURES = ("R@1", "R@5", "R@10", "nDCG@10", "RR@10")


@dataclass(frozen=True)
class Measured:
    """A run's values by measure: the mean over all judged queries, and each query's."""

    mean: dict[str, float]
    per_query: dict[str, dict[str, float]]


def parse_measures(names: str | Iterable[str]) -> list[str]:
    """Return measures as ir-measures writes them, without repeats.

    `GatheredInputError` lists the names, in texts such as ``"R@1 nDCG@10"``, that are not measures
    or that no installed package computes.
    """
    texts = [names] if isinstance(names, str) else list(names)
    parsed: dict[str, None] = {}
    errors: list[InputError] = []
    for name in (name for text in texts for name in text.split()):
        try:
            parsed[str(_measure(name))] = None
        except InputError as error:
            errors.append(error)
    if errors:
        raise GatheredInputError(errors)
    if not parsed:
        raise InputError(" ".join(texts), "names no measure")
    return list(parsed)


def deepest(measures: Iterable[str]) -> int:
    """Return the greatest cutoff of the measures; 0 if they have none."""
    return max((_measure(name).params.get("cutoff", 0) for name in measures), default=0)


def measure(
    run: Mapping[str, Mapping[str, float]],
    qrels: Mapping[str, Mapping[str, int]],
    measures: Sequence[str] = MEASURES,
) -> Measured:
    """Measure a run of scores as trec_eval does with ``-c``.

    The mean is over the judged queries: one that the run does not answer counts 0. Queries without
    judgements are ignored. Documents are ordered by float32 score, equal scores by id descending:
    trec_eval's rule. Runs of this project have no equal scores; see
    `lexvla_search.evaluation.trec.falling`.
    """
    if not qrels:
        raise InputError("the judgements", "are empty")
    places = {
        query: {name: float(place) for name, place in _places(query, run.get(query, {})).items()}
        for query in qrels
    }
    known = {str(one): one for one in map(_measure, parse_measures(measures))}
    values = {name: dict.fromkeys(qrels, 0.0) for name in known}
    plain = {query: dict(judged) for query, judged in qrels.items()}
    for found in _ir_measures().iter_calc(list(known.values()), plain, places):
        values[str(found.measure)][found.query_id] = float(found.value)
    return Measured(
        {name: float(np.mean(list(rows.values()))) for name, rows in values.items()}, values
    )


def recall_curve(
    run: Mapping[str, Mapping[str, float]], qrels: Mapping[str, Mapping[str, int]], depth: int
) -> list[float]:
    """Return mean R@k of a run for k from 1 to the depth; see `measure` for order and mean.

    A query without a relevant document counts 0.
    """
    if not qrels:
        raise InputError("the judgements", "are empty")
    total = np.zeros(depth)
    for query, judged in qrels.items():
        ordered = [*reversed(_places(query, run.get(query, {})))][:depth]
        gains = np.zeros(depth)
        gains[: len(ordered)] = [judged.get(name, 0) for name in ordered]
        relevant = sum(relevance > 0 for relevance in judged.values())
        total += recall_curve_of(gains, relevant) if relevant else 0
    return [float(value) for value in total / len(qrels)]


def _places(query: str, scores: Mapping[str, float]) -> dict[str, int]:
    """Return scores n, n-1, ..., 1 in trec_eval's order, so that every provider agrees on it."""
    values = {name: np.float32(score) for name, score in scores.items()}
    for name, value in values.items():
        if not np.isfinite(value):
            raise InputError(query, f"the score of {name!r} is {scores[name]}, which is not finite")
    order = sorted(values, key=lambda name: (values[name], name))
    return {name: place for place, name in enumerate(order, start=1)}


def _measure(name: str) -> Any:
    library = _ir_measures()
    try:
        parsed = library.parse_measure(name)
    except (NameError, ValueError, SyntaxError) as error:
        raise InputError(
            name, "is not a measure; measures are such as R@1, nDCG@10, RR, AP, P@5"
        ) from error
    cutoff = parsed.params.get("cutoff", 1)
    if not isinstance(cutoff, int) or cutoff < 1:
        raise InputError(name, "its cutoff must be a whole number of at least 1")
    providers = library.providers.registry.values()
    if not any(one.is_available() and one.supports(parsed) for one in providers):
        raise InputError(name, "no installed package computes this measure")
    return parsed


def _ir_measures() -> Any:
    try:
        import ir_measures
    except ImportError as error:
        raise OptionalDependencyError("ir-measures", "evaluation") from error
    return ir_measures
