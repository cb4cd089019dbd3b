"""What every engine must answer: one suite, held against scipy, for `tests/test_parity.py`.

An engine's scores are exact, or within the bound that it states itself; then order and ties are
those of its own scores, and two documents may change places only within that bound.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from hypothesis import strategies as st

from indexer_fakes import VOCABULARY, WORDS, documents, encode, scores
from lexvla.encoding import Encoding
from lexvla_indexer import Document, Index, open_index
from lexvla_indexer.base import Results


@dataclass(frozen=True)
class Engine:
    """One engine to test.

    Attributes:
        name: Names it in reports.
        address: Makes an index address of a path.
        context: Is entered around a test.
        legs: Those that it searches.
        is_exact: Whether its scores are those of float64.
        keeps_views: Whether `fetch` answers from the commit of the last search.
    """

    name: str
    address: Callable[[Path], str]
    context: Callable[[], AbstractContextManager[object]]
    legs: tuple[str, ...]
    is_exact: bool
    keeps_views: bool = True

    def open(self, path: Path, create: bool = True) -> Index:
        """Open an index of the tests' vocabulary."""
        return open_index(self.address(path), create=create, vocabulary=VOCABULARY)

    def bound(self, index: Index, query: Encoding, leg: str) -> float:
        """Return how far a score may be from the exact one."""
        return 0.0 if self.is_exact else float(index.bound(query, leg)[0]) + 1e-9


Stored = dict[str, tuple[Document, dict[int, float]]]


def put(index: Index, stored: Stored) -> None:
    """Add and commit."""
    made = [document for document, _ in stored.values()]
    index.add(made, encode([row for _, row in stored.values()]))
    index.commit()


def check(
    engine: Engine, index: Index, stored: Stored, query: Encoding, k: int, text: str | None = None
) -> None:
    """Compare all legs with brute force: ids, scores, order, ties, and how many there are."""
    from lexvla_indexer.filters import Filter

    chosen = dict(stored)
    if text is not None:
        parsed = Filter.parse(text)
        chosen = {name: pair for name, pair in stored.items() if parsed.matches(pair[0])}
    rows = encode([row for _, row in chosen.values()])
    for leg in engine.legs:
        (results,) = index.search(query, k, leg, filter=text)
        exact = dict(zip(chosen, scores(leg, rows, query).tolist(), strict=True))
        compare(results, exact, k, engine.bound(index, query, leg), engine.is_exact)


def compare(
    results: Results, exact: dict[str, float], k: int, bound: float, is_exact: bool
) -> None:
    """Compare one answer with the exact scores of all that may be found."""
    assert results.scores.dtype == np.float64
    found = dict(zip(results.ids, results.scores.tolist(), strict=True))
    positive = {name: score for name, score in exact.items() if score > 0}
    order = sorted(positive, key=lambda name: (-positive[name], name))
    assert len(results.ids) == len(found) == min(k, len(positive))
    if is_exact:
        assert results.ids == order[:k]
        assert results.scores.tolist() == [positive[name] for name in order[:k]]
        return
    assert found.keys() <= positive.keys()
    assert all(abs(score - positive[name]) <= bound for name, score in found.items())
    assert results.ids == sorted(found, key=lambda name: (-found[name], name))
    if found:  # none is left out that is better by more than both errors
        worst = min(found.values())
        assert all(positive[name] <= worst + bound for name in positive.keys() - found.keys())


def random_stored(rng: np.random.Generator, ids: list[str]) -> Stored:
    """Return documents with some metadata, and random rows of which some are empty."""
    stored: Stored = {}
    for name in ids:
        count = int(rng.integers(0, 6))
        columns = rng.choice(WORDS, count, replace=False)
        row = {int(c): float(np.float32(rng.uniform(0.01, 1))) for c in columns}
        metadata = {
            "year": int(rng.integers(2000, 2010)),
            "tag": [["cat"], ["dog", "cat"], []][count % 3],
        }
        stored[name] = replace(documents([name])[0], metadata=metadata), row
    return stored


def queries(rng: np.random.Generator, count: int) -> Iterator[Encoding]:
    """Give random queries of one to all words."""
    for _ in range(count):
        columns = rng.choice(WORDS, int(rng.integers(1, WORDS + 1)), replace=False)
        yield encode([{int(c): float(rng.uniform(0.01, 1)) for c in columns}], patches=False)


def ban(ids: list[str]) -> str:
    """Return a filter that leaves out these ids."""
    return f"not id in ({', '.join(map(json.dumps, ids))})"


hostile_ids = st.lists(
    st.text(
        st.characters(exclude_categories=["Cs"], min_codepoint=32, exclude_characters="\x7f"),
        min_size=1,
        max_size=4,
    )
    | st.sampled_from(["\uffff", "\U0001f600", "\ufeffa", "a b", 'a"b', "a\\b", "é", "z" * 512]),
    min_size=1,
    max_size=8,
    unique=True,
)
