"""Questions into explained answers: queries, the searcher, explanations and heat maps."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from search.explanation import Explanation, LegPart, TermMatch
    from search.fitting import FittedFusion, fit_fusion, load_fusion, save_fusion
    from search.fusion import Fusion, ReciprocalRank, Weighted
    from search.heatmap import heatmap, patch_map
    from search.query import Query
    from search.searcher import Answer, Hit, LegScore, Searcher

__all__ = [
    "Answer",
    "Explanation",
    "FittedFusion",
    "Fusion",
    "Hit",
    "LegPart",
    "LegScore",
    "Query",
    "ReciprocalRank",
    "Searcher",
    "TermMatch",
    "Weighted",
    "fit_fusion",
    "heatmap",
    "load_fusion",
    "patch_map",
    "save_fusion",
]

_HOMES = {
    "Answer": "search.searcher",
    "Explanation": "search.explanation",
    "FittedFusion": "search.fitting",
    "Fusion": "search.fusion",
    "Hit": "search.searcher",
    "LegPart": "search.explanation",
    "LegScore": "search.searcher",
    "Query": "search.query",
    "ReciprocalRank": "search.fusion",
    "Searcher": "search.searcher",
    "TermMatch": "search.explanation",
    "Weighted": "search.fusion",
    "fit_fusion": "search.fitting",
    "heatmap": "search.heatmap",
    "load_fusion": "search.fitting",
    "patch_map": "search.heatmap",
    "save_fusion": "search.fitting",
}


def __getattr__(name: str) -> Any:
    # Loading on demand: the command line lives in this package, and its --help needs no numpy.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value
