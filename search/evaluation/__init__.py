"""Measures of retrieval, and the figures of the demo corpus."""

from __future__ import annotations

from search.evaluation.noto import NotoFigures, evaluate_noto
from search.evaluation.retrieval import ndcg_at_k, precision_at_k, ranks, recall_at_k

__all__ = [
    "NotoFigures",
    "evaluate_noto",
    "ndcg_at_k",
    "precision_at_k",
    "ranks",
    "recall_at_k",
]
