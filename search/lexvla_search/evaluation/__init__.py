"""Measures of retrieval and of patches, TREC's files, and the figures that models reach."""

from __future__ import annotations

from lexvla_search.evaluation.coco import read_coco
from lexvla_search.evaluation.measures import Measured, measure, parse_measures
from lexvla_search.evaluation.noto import NotoFigures, evaluate_noto
from lexvla_search.evaluation.patchdis import PatchDisFigures, evaluate_patchdis
from lexvla_search.evaluation.retrieval import ndcg_at_k, precision_at_k, ranks, recall_at_k
from lexvla_search.evaluation.scenes import DemoScenes
from lexvla_search.evaluation.significance import compare
from lexvla_search.evaluation.sparsity import SparsityFigures, evaluate_sparsity, plot_sparsity
from lexvla_search.evaluation.trec import read_qrels, read_queries, read_run, write_run

__all__ = [
    "DemoScenes",
    "Measured",
    "NotoFigures",
    "PatchDisFigures",
    "SparsityFigures",
    "compare",
    "evaluate_noto",
    "evaluate_patchdis",
    "evaluate_sparsity",
    "measure",
    "ndcg_at_k",
    "parse_measures",
    "plot_sparsity",
    "precision_at_k",
    "ranks",
    "read_coco",
    "read_qrels",
    "read_queries",
    "read_run",
    "recall_at_k",
    "write_run",
]
