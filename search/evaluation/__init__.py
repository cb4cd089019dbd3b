"""Measures of retrieval and of patches, and the figures that models reach by them."""

from __future__ import annotations

from search.evaluation.coco import read_coco
from search.evaluation.noto import NotoFigures, evaluate_noto
from search.evaluation.patchdis import PatchDisFigures, evaluate_patchdis
from search.evaluation.retrieval import ndcg_at_k, precision_at_k, ranks, recall_at_k
from search.evaluation.scenes import DemoScenes
from search.evaluation.sparsity import SparsityFigures, evaluate_sparsity, plot_sparsity

__all__ = [
    "DemoScenes",
    "NotoFigures",
    "PatchDisFigures",
    "SparsityFigures",
    "evaluate_noto",
    "evaluate_patchdis",
    "evaluate_sparsity",
    "ndcg_at_k",
    "plot_sparsity",
    "precision_at_k",
    "ranks",
    "read_coco",
    "recall_at_k",
]
