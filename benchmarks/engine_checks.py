"""Answers by brute force, and checks of other answers against them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import numpy as np
from scipy import sparse

_CHUNK = 20_000  # rows that are scored at a time

WARM_ROUNDS = 2  # for Java's JIT

Answer = tuple[np.ndarray, np.ndarray]  # numbers of documents, best first, and their scores


class BruteForce:
    """Score all documents for some queries, chunk by chunk, and keep the best ``k`` of each.

    Scores are float64, in which products of float32 values or small integers are exact; they are
    added in column order. Ties go to the first document.
    """

    def __init__(self, queries: sparse.csr_array, k: int) -> None:
        self._queries = queries.T.toarray().astype(np.float64)
        self._k = k
        self._seen = 0
        nothing = np.empty(0, np.int64), np.empty(0)
        self.answers: list[Answer] = [nothing] * queries.shape[0]

    def add(self, rows: sparse.csr_array) -> None:
        """Score the next documents."""
        for first in range(0, rows.shape[0], _CHUNK):
            chunk = rows[first : first + _CHUNK].astype(np.float64)
            scores = np.ascontiguousarray((chunk @ self._queries).T)
            for number, answer in enumerate(self.answers):
                self.answers[number] = self._merged(answer, scores[number])
            self._seen += chunk.shape[0]

    def _merged(self, answer: Answer, scores: np.ndarray) -> Answer:
        least = answer[1][-1] if len(answer[1]) == self._k else 0.0
        rows = np.flatnonzero(scores > least)  # an equal one comes after those that are kept
        numbers = np.concatenate([answer[0], rows + self._seen])
        found = np.concatenate([answer[1], scores[rows]])
        order = np.lexsort((numbers, -found))[: self._k]
        return numbers[order], found[order]


class Check(NamedTuple):
    """Comparison of answers with those of brute force.

    Attributes:
        recall: Share of the best documents that was found; ties count as misses.
        equal: Whether documents, order and scores are the same.
    """

    recall: float
    equal: bool


def check(answers: Sequence[Answer], truth: Sequence[Answer], tolerance: float = 0.0) -> Check:
    """Compare answers to queries with the true ones.

    Args:
        answers: Answers of an engine.
        truth: Answers by brute force.
        tolerance: Relative difference allowed in scores. Documents whose true scores differ by no
            more may change places.
    """
    recalls, equal = [], True
    for (rows, scores), (best, exact) in zip(answers, truth, strict=True):
        if len(best):
            recalls.append(np.isin(best, rows).mean())
        equal &= _same((rows, scores), (best, exact), tolerance)
    return Check(float(np.mean(recalls)) if recalls else 1.0, equal)


def _same(answer: Answer, truth: Answer, tolerance: float) -> bool:
    (rows, scores), (best, exact) = answer, truth
    if len(rows) != len(best) or not (np.abs(scores - exact) <= tolerance * exact).all():
        return False
    if not tolerance or not len(best):
        return np.array_equal(rows, best)
    # A document below the best may replace the last of them if their scores tie.
    known = dict(zip(best.tolist(), exact.tolist(), strict=True))
    true = np.array([known.get(row, exact[-1]) for row in rows.tolist()])
    return len(set(rows.tolist())) == len(rows) and bool(
        (np.abs(true - exact) <= tolerance * exact).all()
    )


class Contender(NamedTuple):
    """An engine with prepared queries.

    Attributes:
        name: Name in the table.
        ask: Answers the query of a number; only this is timed.
        read: Converts the result of ``ask`` into document numbers and scores.
        truth: Brute force to compare with: ``floats`` or ``integers``.
        exact: Whether the answers must be equal to it.
        tolerance: Relative difference allowed in scores.
        around: Context of each round.
    """

    name: str
    ask: Callable[[int], Any]
    read: Callable[[Any], Answer]
    truth: str
    exact: bool
    tolerance: float = 0.0
    around: Callable[[], AbstractContextManager[Any]] = nullcontext


class WrongAnswerError(Exception):
    """An exact engine gave a wrong answer."""


def race(
    contenders: Sequence[Contender], truths: dict[str, list[Answer]], seconds: float
) -> list[dict[str, Any]]:
    """Check and time engines; return a row of figures for each.

    ``truths`` are the true answers by `Contender.truth`; see `take_turns` for ``seconds``.
    """
    rows = [check_contender(contender, truths[contender.truth]) for contender in contenders]
    count = len(next(iter(truths.values())))
    for row, taken in zip(rows, take_turns(contenders, count, seconds), strict=True):
        row["p50_ms"] = statistics.median(taken) * 1e3
        row["p95_ms"] = float(np.percentile(taken, 95)) * 1e3
        row["timed"] = len(taken)
    return rows


def check_contender(contender: Contender, truth: Sequence[Answer]) -> dict[str, Any]:
    """Check the answers to the first queries against the true ones."""
    with contender.around():
        answers = [contender.read(contender.ask(number)) for number in range(len(truth))]
    recall, equal = check(answers, truth, contender.tolerance)
    if contender.exact and not equal:
        raise WrongAnswerError(f"{contender.name}: not what brute force finds")
    return {"engine": contender.name, "recall": recall, "equal": equal, "truth": contender.truth}


def take_turns(
    contenders: Sequence[Contender], count: int, seconds: float, rounds: int = 5
) -> list[list[float]]:
    """Return the seconds of each engine's answers. A round is all queries in sequence.

    Args:
        contenders: The engines.
        count: Number of queries.
        seconds: Time limit of an engine, after warm-up and two rounds.
        rounds: Maximum number of timed rounds.
    """
    times: list[list[float]] = [[] for _ in contenders]
    for number in range(-WARM_ROUNDS, rounds):
        for contender, taken in zip(contenders, times, strict=True):
            if number < 0:
                _round(contender, count)
            elif number < 2 or sum(taken) < seconds:
                taken += _round(contender, count)
    return times


def _round(contender: Contender, count: int) -> list[float]:
    taken = []
    with contender.around():
        for number in range(count):
            started = time.perf_counter()
            contender.ask(number)
            taken.append(time.perf_counter() - started)
    return taken


def copy_speed(size: int = 1 << 28, repeats: int = 7) -> float:
    """Return the best memory copy speed of a thread, in bytes a second."""
    source, target = np.ones(size, np.uint8), np.zeros(size, np.uint8)
    taken = []
    for _ in range(repeats):
        started = time.perf_counter()
        np.copyto(target, source)
        taken.append(time.perf_counter() - started)
    return size / min(taken)


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """Return the exponent of growth with size, by least squares in logarithms."""
    slope, _ = np.polyfit(np.log(sizes), np.log(values), 1)
    return float(slope)
