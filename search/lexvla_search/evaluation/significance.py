"""Whether one system beats another by more than chance: paired tests on the same queries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np

__all__ = [
    "SEED",
    "TESTS",
    "Comparison",
    "Test",
    "compare",
    "holm",
    "paired_randomisation",
    "paired_t",
]

Test = Literal["randomisation", "t"]
TESTS: tuple[Test, ...] = get_args(Test)

SEED = 0
ROUNDS = 100_000
_EXACT = 16  # differences whose signs are all tried: 65,536 ways


class Comparison(NamedTuple):
    """One system against the baseline: the difference of means, and its two-sided p.

    `corrected` is p after Holm's correction over all systems.
    """

    difference: float
    p: float
    corrected: float


def paired_randomisation(
    first: Sequence[float], second: Sequence[float], rounds: int = ROUNDS, seed: int = SEED
) -> float:
    """Return the two-sided p of Fisher's paired randomisation test on the difference of means.

    If neither system is better, each query's two values may as well be swapped: p is the share of
    the ways to swap whose difference is at least as great. With up to 16 queries that differ, all
    ways are tried; with more, `rounds` random ones, and the one observed counts too.

    References:
        Smucker, Allan, Carterette: A Comparison of Statistical Significance Tests for Information
        Retrieval Evaluation. CIKM 2007.
    """
    differences = _differences(first, second)
    observed = abs(differences.sum())
    least = observed - 1e-9 * max(1.0, np.abs(differences).sum())  # allow for rounding
    sizes, counts = np.unique(np.abs(differences[differences != 0]), return_counts=True)
    if counts.sum() <= _EXACT:
        sums = np.zeros(1)
        for size in np.repeat(sizes, counts):
            sums = np.concatenate([sums - size, sums + size])
        return float(np.mean(np.abs(sums) >= least))
    # The number of positive signs among n equal sizes is binomial: no need to draw each.
    random = np.random.default_rng(seed)
    sums = np.zeros(rounds)
    for size, count in zip(sizes, counts, strict=True):
        sums += size * (2.0 * random.binomial(count, 0.5, rounds) - count)
    return float((np.sum(np.abs(sums) >= least) + 1) / (rounds + 1))


def paired_t(first: Sequence[float], second: Sequence[float]) -> float:
    """Return the two-sided p of Student's paired t-test.

    It is 1 for systems that are equal on every query, 0 for a difference that is always the same.
    """
    from scipy import stats  # slow to load: most of a second

    differences = _differences(first, second)
    if len(differences) < 2:
        raise ValueError("a t-test needs two queries at least")
    spread = np.ptp(differences)
    if spread <= 1e-12:
        return 1.0 if abs(differences[0]) <= 1e-12 else 0.0
    return float(stats.ttest_1samp(differences, 0.0).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct the p values of several comparisons, in order, by Holm's step-down method.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    corrected = [0.0] * len(p_values)
    highest = 0.0
    for done, place in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        highest = max(highest, min(1.0, (len(p_values) - done) * p_values[place]))
        corrected[place] = highest
    return corrected


def compare(
    systems: Mapping[str, Mapping[str, float]],
    baseline: Mapping[str, float],
    test: Test = "randomisation",
) -> dict[str, Comparison]:
    """Test each system against one baseline, by values of one measure for the same queries."""
    found: list[tuple[float, float]] = []
    for name, values in systems.items():
        if values.keys() != baseline.keys():
            raise ValueError(f"{name} and the baseline were measured on different queries")
        first, second = list(values.values()), [baseline[query] for query in values]
        p = paired_t(first, second) if test == "t" else paired_randomisation(first, second)
        found.append((float(np.mean(first) - np.mean(second)), p))
    corrected = holm([p for _, p in found])
    return {
        name: Comparison(difference, p, after)
        for name, (difference, p), after in zip(systems, found, corrected, strict=True)
    }


def _differences(first: Sequence[float], second: Sequence[float]) -> np.ndarray:
    if len(first) != len(second) or not len(first):
        raise ValueError(f"{len(first)} and {len(second)} values make no pairs")
    return np.asarray(first, float) - np.asarray(second, float)
