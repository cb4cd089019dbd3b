"""Answers by brute force, and what other answers are worth beside them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import numpy as np
from scipy import sparse

_CHUNK = 20_000  # rows that are scored at a time

WARM_ROUNDS = 2  # Java compiles while it runs

Answer = tuple[np.ndarray, np.ndarray]  # numbers of documents, best first, and their scores


class BruteForce:
    """Score every document for some queries, chunk by chunk, and keep the best of each.

    Scores are float64. Products of float32 values, or of small integers, are exact in it; they are
    added in column order. Of equal scores the first document counts.

    Args:
        queries: Rows of floats or whole numbers.
        k: How many documents to keep for each.
    """

    def __init__(self, queries: sparse.csr_array, k: int) -> None:
        self._queries = queries.T.toarray().astype(np.float64)
        self._k = k
        self._seen = 0
        nothing = np.empty(0, np.int64), np.empty(0)
        self.answers: list[Answer] = [nothing] * queries.shape[0]

    def add(self, rows: sparse.csr_array) -> None:
        """Take in the next documents."""
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
    """Compare answers with those of brute force.

    Attributes:
        recall: The share of the best documents that was found; ties count against.
        equal: Whether all have the same documents in the same order, and the same scores.
    """

    recall: float
    equal: bool


def check(answers: Sequence[Answer], truth: Sequence[Answer], tolerance: float = 0.0) -> Check:
    """Compare answers to queries with the true ones.

    Args:
        answers: What an engine says.
        truth: What brute force says.
        tolerance: By what share of itself a score may differ. Documents whose true scores differ
            by no more may change places.
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
    # What is not among the best may stand for the last of them, if that is where it stands.
    known = dict(zip(best.tolist(), exact.tolist(), strict=True))
    true = np.array([known.get(row, exact[-1]) for row in rows.tolist()])
    return len(set(rows.tolist())) == len(rows) and bool(
        (np.abs(true - exact) <= tolerance * exact).all()
    )


class Contender(NamedTuple):
    """Ask one engine some queries.

    Attributes:
        name: What the table calls it.
        ask: Answers the query of a number; only this is timed.
        read: Turns what ``ask`` returns into document numbers and scores.
        truth: Which brute force it is held against: that of ``floats`` or of ``integers``.
        exact: Whether its answers must equal that.
        tolerance: By what share of itself a score may differ.
        around: Surrounds each round of questions.
    """

    name: str
    ask: Callable[[int], Any]
    read: Callable[[Any], Answer]
    truth: str
    exact: bool
    tolerance: float = 0.0
    around: Callable[[], AbstractContextManager[Any]] = nullcontext


class WrongAnswerError(Exception):
    """An engine that must be exact is not."""


def race(
    contenders: Sequence[Contender], truths: dict[str, list[Answer]], seconds: float
) -> list[dict[str, Any]]:
    """Check and time engines. Return a row of figures for each.

    Args:
        contenders: The engines.
        truths: The true answers to the same queries, by `Contender.truth`.
        seconds: How long to go on with each; see `take_turns`.

    Raises:
        WrongAnswerError: An engine's answers are not those of brute force, and must be.
    """
    rows = [check_contender(contender, truths[contender.truth]) for contender in contenders]
    count = len(next(iter(truths.values())))
    for row, taken in zip(rows, take_turns(contenders, count, seconds), strict=True):
        row["p50_ms"] = statistics.median(taken) * 1e3
        row["p95_ms"] = float(np.percentile(taken, 95)) * 1e3
        row["timed"] = len(taken)
    return rows


def check_contender(contender: Contender, truth: Sequence[Answer]) -> dict[str, Any]:
    """Hold the answers to the first queries against the true ones.

    Raises:
        WrongAnswerError: They must be equal, and are not.
    """
    with contender.around():
        answers = [contender.read(contender.ask(number)) for number in range(len(truth))]
    recall, equal = check(answers, truth, contender.tolerance)
    if contender.exact and not equal:
        raise WrongAnswerError(f"{contender.name}: not what brute force finds")
    return {"engine": contender.name, "recall": recall, "equal": equal, "truth": contender.truth}


def take_turns(
    contenders: Sequence[Contender], count: int, seconds: float, rounds: int = 5
) -> list[list[float]]:
    """Return the seconds of each engine's answers. A round is all queries, one after the other.

    Args:
        contenders: The engines.
        count: How many queries there are.
        seconds: An engine that took so long has no further round. Each has some to warm up, and two
            that count, at least.
        rounds: The most rounds that count.
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
    """Return how many bytes a second one thread copies from memory to memory, at best."""
    source, target = np.ones(size, np.uint8), np.zeros(size, np.uint8)
    taken = []
    for _ in range(repeats):
        started = time.perf_counter()
        np.copyto(target, source)
        taken.append(time.perf_counter() - started)
    return size / min(taken)


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """Return the power of the size that values grow by: a line of least squares in logarithms."""
    slope, _ = np.polyfit(np.log(sizes), np.log(values), 1)
    return float(slope)
