"""Questions into explained answers: queries, the searcher, explanations and heat maps."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lexvla_search.explanation import Explanation, LegPart, TermMatch
    from lexvla_search.fitting import FittedFusion, fit_fusion, load_fusion, save_fusion
    from lexvla_search.fusion import Fusion, ReciprocalRank, Weighted
    from lexvla_search.heatmap import heatmap, patch_map
    from lexvla_search.query import Query
    from lexvla_search.searcher import Answer, Hit, LegScore, Searcher

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
    "Answer": "lexvla_search.searcher",
    "Explanation": "lexvla_search.explanation",
    "FittedFusion": "lexvla_search.fitting",
    "Fusion": "lexvla_search.fusion",
    "Hit": "lexvla_search.searcher",
    "LegPart": "lexvla_search.explanation",
    "LegScore": "lexvla_search.searcher",
    "Query": "lexvla_search.query",
    "ReciprocalRank": "lexvla_search.fusion",
    "Searcher": "lexvla_search.searcher",
    "TermMatch": "lexvla_search.explanation",
    "Weighted": "lexvla_search.fusion",
    "fit_fusion": "lexvla_search.fitting",
    "heatmap": "lexvla_search.heatmap",
    "load_fusion": "lexvla_search.fitting",
    "patch_map": "lexvla_search.heatmap",
    "save_fusion": "lexvla_search.fitting",
}


def __getattr__(name: str) -> Any:
    # Loading on demand: the command line lives in this package, and its --help needs no numpy.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value
