"""The retrieval benchmark's own parts: the exact product, overlap, cuts, and its shortcodes."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import sparse

from lexvla.data.demo_corpus import load_demo_corpus
from lexvla.encoding import Encoding
from lexvla_search import Query

pytest.importorskip("rank_bm25", reason="needs rank-bm25: pip install 'lexvla[dev]'")
pytest.importorskip("ir_measures", reason="needs ir-measures: pip install 'lexvla[evaluation]'")

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
if not BENCHMARKS.is_dir():
    pytest.skip("needs a clone: benchmarks are in no distribution", allow_module_level=True)
sys.path.insert(0, str(BENCHMARKS))

import retrieval  # noqa: E402 - needs the path above


def asked(queries: list[list[float]], stored: list[list[float]]) -> retrieval.Asked:
    rows = [np.array(one, np.float32) for one in (queries, stored)]
    names = [f"q{i}" for i in range(len(queries))]
    return retrieval.Asked(
        "made",
        {name: Query(text=name) for name in names},
        {name: {"a": 1} for name in names},
        *(Encoding(sparse.csr_array(one), dense=one) for one in rows),
    )


def test_the_exact_product_is_above_0_and_by_id() -> None:
    made = asked([[1, 0], [0, 2], [0, 0]], [[1, 0], [1, 1], [3, 0]])
    run = retrieval.exact(made, ["c", "b", "a"], "lexical")
    assert {name: list(hits) for name, hits in run.items()} == {
        "q0": ["a", "b", "c"],
        "q1": ["b"],
        "q2": [],
    }
    assert retrieval.exact(made, ["c", "b", "a"], "dense") == run


def test_overlap_is_over_the_queries_that_have_hits() -> None:
    reference = {"p": {"a": 2.0, "b": 1.0}, "q": {"a": 1.0}, "r": {}}
    run = {"p": {"b": 2.0, "c": 1.0}, "q": {"a": 5.0}, "r": {"a": 1.0}}
    assert retrieval.overlap(run, reference) == 0.75


def test_a_cut_keeps_the_heaviest_words_of_both_sides() -> None:
    made = retrieval.cut(asked([[4, 4, 7]], [[7, 4, 4]]), 2)
    scale = (81 / 65) ** 0.5  # back to the length of before
    assert made.encoding.lexical.toarray()[0].tolist() == pytest.approx([4 * scale, 0, 7 * scale])
    assert made.stored.lexical.toarray()[0].tolist() == pytest.approx([7 * scale, 4 * scale, 0])


def test_shortcodes_share_no_word_with_their_labels() -> None:
    content = json.loads((BENCHMARKS / "shortcodes.json").read_text("utf-8"))
    labels = {
        item.id: set(re.findall("[a-z]+", item.label.lower())) for item in load_demo_corpus("emoji")
    }
    phrases = [(name, phrase) for name, many in content["shortcodes"].items() for phrase in many]
    assert len(phrases) == 301
    assert all(labels[name].isdisjoint(phrase.split()) for name, phrase in phrases)
    assert "MIT License" in content["licence"]
