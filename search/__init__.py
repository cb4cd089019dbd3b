"""Questions into explained answers: queries, the searcher, explanations and heat maps."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from search.explanation import Explanation, TermMatch
    from search.heatmap import heatmap, patch_map
    from search.query import Query
    from search.searcher import Hit, LegScore, Searcher

__all__ = [
    "Explanation",
    "Hit",
    "LegScore",
    "Query",
    "Searcher",
    "TermMatch",
    "heatmap",
    "patch_map",
]

_HOMES = {
    "Explanation": "search.explanation",
    "Hit": "search.searcher",
    "LegScore": "search.searcher",
    "Query": "search.query",
    "Searcher": "search.searcher",
    "TermMatch": "search.explanation",
    "heatmap": "search.heatmap",
    "patch_map": "search.heatmap",
}


def __getattr__(name: str) -> Any:
    # Loading on demand: the command line lives in this package, and its --help needs no numpy.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value
