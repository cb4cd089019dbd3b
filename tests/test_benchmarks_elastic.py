"""The benchmark of the Elasticsearch engine, at a very small size, against a real server."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import numpy as np
import pytest
from scipy import sparse

import elastic_fakes
from lexvla_indexer.elastic.connection import Address, connect

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def elastic(monkeypatch: pytest.MonkeyPatch) -> object:
    pytest.importorskip("elasticsearch", reason="pip install 'lexvla[elasticsearch]'")
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("elastic")


@pytest.mark.slow
@pytest.mark.elasticsearch
def test_all_that_is_asked_is_checked_timed_and_told(elastic, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv(elastic.URL, elastic_fakes.url())
    monkeypatch.setattr(elastic, "PIECE", 200)
    monkeypatch.setattr(elastic, "BATCH", 1)
    monkeypatch.setitem(elastic.SHAPES, "million", elastic.SHAPES["million"]._replace(width=2000))
    page = tmp_path / "page.md"
    options = ["--documents", "500", "--queries", "2", "--seconds", "0", "--model-documents", "0"]
    elastic.main([*options, "--out", str(page)])
    printed = capsys.readouterr().out
    assert printed in page.read_text(encoding="utf-8")
    rows = [line for line in printed.splitlines() if re.match(r"\| (20|150) words", line)]
    assert len(rows) == 10  # four kinds of each length, and two filters
    for row in rows:
        ours, bare, ratio = map(float, row.split("|")[2:5])
        assert min(ours, bare, ratio) > 0
    assert "500 documents of 126 words." in printed
    with connect(Address(elastic_fakes.url(), "any")) as client:
        assert not client.indices.get(index="lexvla-bench-*", allow_no_indices=True).body


@pytest.mark.elasticsearch
def test_a_wrong_answer_ends_the_run(elastic, monkeypatch):
    checks = importlib.import_module("engine_checks")
    monkeypatch.setenv(elastic.URL, elastic_fakes.url())
    monkeypatch.setattr(elastic, "truncated", lambda rows: rows)  # as if floats were kept whole
    stored = elastic.Corpus(300, 12).documents(0, 100)
    queries = elastic.Corpus(300, 12).queries(2, 5)
    with pytest.raises(checks.WrongAnswerError, match="ours"):
        elastic.compare(elastic_fakes.url(), stored, [queries], 0)


def test_weights_are_cut_to_9_bits(elastic):
    bare = importlib.import_module("elastic_bare")
    rows = sparse.csr_array(np.array([[1 + 2**-8, 1 + 2**-9, 0.1]], np.float32))
    assert bare.truncated(rows).data.tolist() == [1 + 2**-8, 1.0, 0.099853515625]


def test_everyone_is_asked_every_query_and_first_as_often(elastic):
    asked: list[tuple[str, int]] = []
    asks = [lambda i, name=name: asked.append((name, i)) for name in "ab"]
    assert len(elastic.turns(asks, 2, 0.0)) == 2
    rounds = elastic.WARM_ROUNDS + 2
    assert sorted(asked) == sorted([(name, i) for name in "ab" for i in (0, 1)] * rounds)
    firsts = [name for name, _ in asked[::2]]
    assert firsts.count("a") == firsts.count("b")
