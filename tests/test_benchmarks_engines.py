"""The benchmark of the engines, at a very small size: its checks, its figures, its page."""

from __future__ import annotations

import importlib
import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import numpy as np
import pytest
from scipy import sparse

from lexvla.encoding import Encoding
from lexvla_indexer import Document, open_index
from lexvla_indexer.embedded.postings import build
from lexvla_indexer.impacts import ImpactQuantizer

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
needs_proc = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="a process's memory is read from Linux's /proc"
)


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Import a module as it is imported where a script of its folder runs."""
    monkeypatch.syspath_prepend(BENCHMARKS)

    def by_name(name: str) -> ModuleType:
        return importlib.import_module(name)

    return by_name


@pytest.fixture
def corpus(load) -> Any:
    return load("engine_data").Corpus(width=300, words=12)


def rows(*documents: dict[int, float], width: int = 6) -> sparse.csr_array:
    dense = np.zeros((len(documents), width), np.float32)
    for i, words in enumerate(documents):
        for column, weight in words.items():
            dense[i, column] = weight
    return sparse.csr_array(dense)


def answer(*pairs: tuple[int, float]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([row for row, _ in pairs], np.int64), np.array([score for _, score in pairs])


def test_documents_are_unit_rows_that_do_not_depend_on_the_range(corpus) -> None:
    whole = corpus.documents(9_950, 10_100)  # over the edge of a block
    assert whole.shape == (150, 300)
    assert whole.dtype == np.float32
    assert whole.has_canonical_format
    np.testing.assert_allclose(np.sqrt(whole.power(2).sum(axis=1)), 1, rtol=1e-5)
    part = corpus.documents(9_990, 10_010)
    assert (part != whole[40:60]).nnz == 0
    assert corpus.documents(0, 2_000).nnz / 2_000 == pytest.approx(12, abs=0.5)


def test_words_are_of_unequal_frequency_and_documents_have_topics(load, monkeypatch) -> None:
    data = load("engine_data")
    monkeypatch.setattr(data, "TOPICS", 20)
    corpus = data.Corpus(width=2_000, words=20)
    stored = corpus.documents(0, 10_000)
    frequencies = np.bincount(stored.indices, minlength=2_000)
    assert frequencies[:10].mean() > 5 * frequencies[500:510].mean()
    # Words of one topic meet far more often than by chance: some pairs of words much more.
    held = sparse.csr_array(stored > 0).astype(np.float64)
    together = (held.T @ held).toarray()
    chance = np.outer(frequencies, frequencies) / 10_000
    pairs = np.triu(chance >= 2, 1)
    assert (together[pairs] > 5 * chance[pairs]).sum() > 1000
    independent = np.random.default_rng(0).poisson(chance[pairs])
    assert (independent > 5 * chance[pairs]).sum() < 10


def test_queries_have_as_many_words_as_asked_for(corpus) -> None:
    queries = corpus.queries(7, 40)
    assert np.diff(queries.indptr).tolist() == [40] * 7
    assert queries.has_canonical_format
    assert (queries != corpus.queries(7, 40)).nnz == 0


def test_a_corpus_refuses_documents_of_nearly_all_words(load) -> None:
    with pytest.raises(ValueError, match="too many"):
        load("engine_data").Corpus(width=20, words=10)


def test_brute_force_is_exact_over_chunks_with_ties_by_number(load, monkeypatch) -> None:
    checks = load("engine_checks")
    monkeypatch.setattr(checks, "_CHUNK", 2)
    brute_force = checks.BruteForce(rows({0: 2, 1: 1}, {5: 1}), k=3)
    brute_force.add(rows({0: 0.25}, {1: 0.5}, {0: 0.5}))
    brute_force.add(rows({2: 1}, {0: 0.25, 1: 0.5}, {1: 0.5}))
    (first, scores), nothing = brute_force.answers
    assert first.tolist() == [2, 4, 0]  # documents 0, 1 and 5 all have 0.5
    assert scores.tolist() == [1.0, 1.0, 0.5]
    assert [part.tolist() for part in nothing] == [[], []]


def test_a_check_counts_ties_against_and_sees_order_and_scores(load) -> None:
    check = load("engine_checks").check
    truth = [answer((3, 2.0), (1, 1.0)), answer((7, 1.0))]
    assert check(truth, truth) == (1.0, True)
    assert check([answer((3, 2.0), (2, 1.0)), answer((7, 1.0))], truth) == (0.75, False)
    assert check([answer((1, 1.0), (3, 2.0)), answer((7, 1.0))], truth) == (1.0, False)
    assert check([answer((3, 2.0), (1, 1.0)), answer((7, 1.001))], truth) == (1.0, False)
    assert check([answer((3, 2.0), (1, 1.0)), answer((7, 1.001))], truth, 0.01) == (1.0, True)
    assert check([answer((3, 2.0)), answer()], truth) == (0.25, False)


def test_rounding_may_change_the_places_of_nearly_equal_documents_only(load) -> None:
    check = load("engine_checks").check
    near = [answer((3, 2.0), (1, 1.999999), (5, 1.0))]
    swapped = answer((1, 2.0), (3, 1.999999), (5, 1.0))
    assert check([swapped], near, 1e-5).equal
    assert not check([swapped], near).equal
    # Another document in the last place may score the same there, and nowhere else.
    assert check([answer((3, 2.0), (1, 1.999999), (9, 1.0))], near, 1e-5).equal
    assert not check([answer((9, 2.0), (1, 1.999999), (5, 1.0))], near, 1e-5).equal
    assert not check([answer((3, 2.0), (3, 1.999999), (5, 1.0))], near, 1e-5).equal


def test_an_exact_engine_with_a_wrong_answer_ends_the_run(load) -> None:
    checks = load("engine_checks")
    truth = {"floats": [answer((0, 1.0), (1, 0.5))]}
    wrong = checks.Contender(
        "x", lambda _: answer((0, 1.0), (1, 0.25)), lambda a: a, "floats", True
    )
    with pytest.raises(checks.WrongAnswerError, match="x: not what brute force finds"):
        checks.race([wrong], truth, seconds=0)
    (row,) = checks.race([wrong._replace(exact=False)], truth, seconds=0)
    assert (row["recall"], row["equal"]) == (1.0, False)


@pytest.mark.parametrize("fault", ["ids", "scores", "order", "missing"])
def test_a_fault_of_the_embedded_engine_is_seen(load, corpus, tmp_path, fault) -> None:
    checks, contenders = load("engine_checks"), load("engine_contenders")
    stored, queries = corpus.documents(0, 200), corpus.queries(3, 8)
    brute_force = checks.BruteForce(queries, contenders.K)
    brute_force.add(stored)
    with open_index(str(tmp_path / "index"), create=True) as index:
        index.add(load("engine_data").described(0, 200), Encoding(stored))
        index.commit()
        sound = contenders.of_index("sound", index, queries)
        assert checks.check_contender(sound, brute_force.answers)["equal"]

        def read(results: Any) -> Any:
            found, scores = sound.read(results)
            if fault == "ids":
                found[-1] += 1000
            if fault == "scores":
                scores = np.nextafter(scores, 2)
            if fault == "order":
                found, scores = found[::-1], scores[::-1]
            return (found[:-1], scores[:-1]) if fault == "missing" else (found, scores)

        with pytest.raises(checks.WrongAnswerError):
            checks.check_contender(sound._replace(read=read), brute_force.answers)


def test_a_fault_of_a_batch_is_seen(load, corpus, tmp_path) -> None:
    checks, contenders = load("engine_checks"), load("engine_contenders")
    stored, queries = corpus.documents(0, 200), corpus.queries(3, 8)
    with open_index(str(tmp_path / "index"), create=True) as index:
        index.add(load("engine_data").described(0, 200), Encoding(stored))
        index.commit()
        times = contenders.batch(index, queries, rounds=1)
        assert times.keys() == {"alone_ms", "together_ms"}
        assert min(times.values()) > 0
        search = index.search

        def swapped(asked: Encoding, k: int) -> Any:
            return search(asked, k)[::-1]

        index.search = swapped
        with pytest.raises(checks.WrongAnswerError, match="of a batch"):
            contenders.batch(index, queries, rounds=1)


def test_engines_take_turns_and_stop_when_their_time_is_over(load) -> None:
    checks = load("engine_checks")
    asked: list[tuple[str, int]] = []
    engines = [
        checks.Contender(name, lambda i, name=name: asked.append((name, i)), None, "floats", False)
        for name in "ab"
    ]
    times = checks.take_turns(engines, count=2, seconds=0)
    rounds = checks.WARM_ROUNDS + 2
    assert asked == [("a", 0), ("a", 1), ("b", 0), ("b", 1)] * rounds
    assert [len(taken) for taken in times] == [4, 4]
    assert [len(t) for t in checks.take_turns(engines, 2, seconds=60, rounds=3)] == [6, 6]


def test_the_exponent_of_known_growth(load) -> None:
    exponent = load("engine_checks").exponent
    sizes = [10, 100, 1000]
    assert exponent(sizes, [3 * n**0.75 for n in sizes]) == pytest.approx(0.75)
    # Least squares: the middle one, off by a factor, tilts nothing.
    assert exponent(sizes, [10, 300, 1000]) == pytest.approx(1.0)


def test_all_engines_of_this_package_and_scipy_are_exact(load, corpus, tmp_path) -> None:
    contenders, checks = load("engine_contenders"), load("engine_checks")
    stored, queries = corpus.documents(0, 500), corpus.queries(5, 10)
    quantizer = ImpactQuantizer.fit(stored)
    impacts = quantizer.quantize(stored)
    with open_index(str(tmp_path / "index"), create=True) as index:
        index.add(load("engine_data").described(0, 500), Encoding(stored))
        index.commit()
        engines = contenders.embedded(index, queries)
        engines += contenders.ByScipy(impacts).contenders(queries)
        truths = contenders.truths(stored, impacts, quantizer, queries)
        found = checks.race(engines, truths, seconds=0)
    assert [(row["equal"], row["recall"]) for row in found] == [(True, 1.0)] * 7
    assert [row["truth"] for row in found] == [
        "floats",
        "large",
        "floats",
        "floats",
        "floats",
        "large",
        "small",
    ]


def test_small_and_large_integers_of_a_query(load) -> None:
    contenders = load("engine_contenders")
    queries = rows({0: 1.0, 3: 0.5, 4: 0.0001}, {2: 0.25})
    assert contenders.small_integers(queries).toarray().tolist() == [
        [255, 0, 0, 128, 1, 0],
        [0, 0, 255, 0, 0, 0],
    ]
    large, scales = contenders.large_integers(queries)
    assert large.toarray().max(axis=1).sum() == pytest.approx(scales[0] + scales[1] / 4, abs=1)
    assert (large.sum(axis=1) * 255 < 2**31).all()


def test_what_queries_read_counts_each_byte_once(load, tmp_path) -> None:
    reading = load("engine_touched")
    others: list[dict[int, float]] = [{2: 1.0}] * 16  # with fewer, all would be scored again
    stored = rows({0: 1.0}, {0: 0.5, 1: 0.5}, {3: 0.5, 4: 0.25, 5: 0.5}, *others)
    with open_index(str(tmp_path / "index"), create=True) as index:
        index.add([Document(f"{i:02d}") for i in range(19)], Encoding(stored))
        index.commit()
        postings = build(ImpactQuantizer.fit(stored).quantize(stored))
        queries = rows({0: 1.0}, {0: 0.5, 5: 0.5})
        read = reading.touched(index, stored, postings, queries)
    with (
        mock.patch("lexvla_indexer.embedded.stored_rows.READ_FROM", 1),
        open_index(index.directory) as i,
    ):
        unmapped = reading.touched(i, stored, postings, queries)
    assert unmapped == read | {"mapped_bytes": 2 * 65_536}  # of the postings alone
    with mock.patch("lexvla_indexer.embedded.bitmaps.FREQUENT", 2):  # of words 0 and 2
        postings = build(ImpactQuantizer.fit(stored).quantize(stored))
        spans = reading._spans(postings, np.arange(5))
        counts = {size: (lasts - firsts).tolist() for firsts, lasts, size in spans}
    marks = {8192: [1, 1], 2048: [1, 1], 4096: [1, 1]}  # bits, begins and peaks
    assert counts == {1: [2, 1, 16, 1, 1], 2: [1, 1, 1], **marks}
    assert read["posting_bytes"] == 3 * (2 + 1)  # words 0 and 5
    assert read["row_bytes"] == 6 * (1 + 2 + 3)  # the first three documents
    assert read["rescored"] == 2.5
    assert read["mapped_bytes"] == 3 * 65_536  # one piece of each file
    spans = np.array([0, 30_000, 90_000, 200_000]), np.array([10, 33_000, 90_000, 200_001])
    assert reading.pieces(*spans, 2) == 3  # the second lies in two, the third is empty


def test_growth_stays_exact_over_commits_and_leaves_no_files(
    load, corpus, tmp_path, monkeypatch
) -> None:
    growth = load("engine_growth")
    monkeypatch.setattr(growth, "CHUNK", 300)
    effort = growth.Effort(queries=4, checked=3, seconds=0)
    steps = list(growth.grow(tmp_path, corpus, (5, 20), (100, 300, 800), effort))
    assert [len(step["rows"]) for step in steps] == [6, 6, 6]  # it is the same list, grown
    rows_found = steps[-1]["rows"]
    assert [row["documents"] for row in rows_found] == [100, 100, 300, 300, 800, 800]
    assert all(row["equal"] and row["checked"] == 3 for row in rows_found)
    assert [row["segments"] for row in rows_found] == [1, 1, 1, 1, 3, 3]
    stored, queries = corpus.documents(0, 800), corpus.queries(4, 20)
    frequencies = np.bincount(stored.indices, minlength=300)
    read = np.median([frequencies[queries[i : i + 1].indices].sum() for i in range(4)])
    last = rows_found[-1]
    assert last["postings"] == read
    assert last["floor_ms"] == pytest.approx(3 * read / (steps[0]["copy_gb_s"] * 1e6))
    assert last["times_floor"] == pytest.approx(last["p50_ms"] / last["floor_ms"])
    assert list(tmp_path.iterdir()) == []


def test_growth_ends_at_a_wrong_answer(load, corpus, tmp_path, monkeypatch) -> None:
    growth, checks = load("engine_growth"), load("engine_checks")
    described = growth.described
    monkeypatch.setattr(growth, "described", lambda a, b: described(a, b)[::-1])
    with pytest.raises(checks.WrongAnswerError):
        list(growth.grow(tmp_path, corpus, (5,), (100,), growth.Effort(2, 2, 0)))


@needs_proc
def test_the_command_keeps_parts_and_reports_them(load, tmp_path, monkeypatch, capsys) -> None:
    pytest.importorskip("matplotlib", reason="draws: pip install 'lexvla[evaluation]'")
    engines = load("engines")
    data = load("engine_data")
    monkeypatch.setitem(data.SHAPES, "million", data.Shape(400, 12, (5, 20)))
    monkeypatch.setattr(load("engine_growth"), "SIZES", (100, 300, 10_000))
    results, page, plot = (tmp_path / name for name in ("r.jsonl", "page.md", "plot.svg"))
    options = ["--documents", "300", "--queries", "3", "--seconds", "0", "--results", str(results)]
    options += ["--without", "lucene", "seismic", "--directory", str(tmp_path)]
    engines.main(["million", "growth", *options])
    printed = capsys.readouterr().out
    assert "| embedded, exact |" in printed
    assert "| 300 | 20 | 1 |" in printed
    assert len(re.findall(r"100 queries together on all threads: \d+\.\d{3} ms", printed)) == 2
    records = [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]
    assert [record["part"] for record in records] == ["million", "growth"]
    assert all(record["whole"] for record in records)
    million = records[0]["figures"]
    assert (million["documents"], million["width"], len(million["races"])) == (300, 400, 2)
    assert million["fresh"]["queries"] == engines.engine_comparison.FRESH_QUERIES

    monkeypatch.setattr(engines, "measure", lambda *_: pytest.fail("measured again"))
    engines.main(["million", *options])
    assert "| embedded, exact |" in capsys.readouterr().out
    engines.main(["report", "--results", str(results), "--page", str(page), "--plot", str(plot)])
    text = page.read_text(encoding="utf-8")
    assert "all equal to brute force by floats" in text
    assert "](plot.svg)" in text
    assert plot.read_text(encoding="utf-8").startswith("<?xml")
    # Other settings are measured anew.
    monkeypatch.setattr(engines, "measure", lambda *_: iter([{**million, "documents": 7}]))
    engines.main(["million", *options, "--queries", "2"])
    assert "7 documents of" in capsys.readouterr().out


def test_aims_are_met_or_missed_by_the_figures(load) -> None:
    table = load("engine_table")

    def engine(name: str, time: float) -> dict[str, Any]:
        return {"engine": name, "p50_ms": time}

    names = ("embedded, exact", "Lucene, engine alone", "Lucene, LuceneImpactSearcher")
    races = [
        {"words": 20.0, "engines": list(map(engine, names, (1.0, 4.0, 11.0)))},
        {"words": 150.0, "engines": list(map(engine, names, (2.0, 17.0, 18.0)))},
    ]
    races[1]["engines"].append(engine("Lucene, engine alone, without skipping", 15.0))
    fresh = {"mapped_bytes": 3e6, "resident_before": 5e7, "open_s": 0.3, "resident": 203e6}
    figures = {"races": races, "fresh": fresh}
    figures["builds"] = {"embedded": {"documents_a_second": 100_000.0}}
    found = table.aims("million", figures)
    assert [aim.met for aim in found] == [True, False, False, True, False, True]
    growth = {
        "rows": [
            {"documents": n, "words": 20, "p50_ms": t, "times_floor": f}
            for n, t, f in ((10_000, 0.1, 9.0), (1_000_000, 1.0, 3.0), (10_000_000, 12.5, 2.0))
        ]
    }
    assert [(aim.found, aim.met) for aim in table.aims("growth", growth)] == [
        (3.0, True),
        (12.5, False),
    ]


def test_disturbed_views_are_unit_rows_with_words_of_their_kind(load) -> None:
    pytest.importorskip("timm", reason="photographs: pip install 'lexvla[evaluation]'")
    real = load("real_vectors")
    views = load("engine_data").Corpus(width=300, words=20).documents(0, 401)
    empty = sparse.csr_array((1, 300), dtype=np.float32)
    views = sparse.csr_array(sparse.vstack([views, empty], format="csr"))
    # Drawings have even words, and photographs odd ones.
    kinds = np.repeat(np.arange(402, dtype=np.int32) % 2, np.diff(views.indptr))
    views.indices = views.indices // 2 * 2 + kinds
    views.sum_duplicates()
    made = real.disturbed(np.random.default_rng(0), views)
    assert made.has_canonical_format
    assert (made.indices % 2 == np.repeat(np.arange(402) % 2, np.diff(made.indptr))).all()
    assert made.nnz / views.nnz == pytest.approx(1, abs=0.05)
    kept = (made[:401] > 0).multiply(views[:401] > 0).nnz / views.nnz
    assert 0.86 < kept < 0.96
    lengths = np.sqrt(made.power(2).sum(axis=1))
    np.testing.assert_allclose(lengths[:401], 1, rtol=1e-5)


def test_likeness_counts_words_and_groups(load) -> None:
    pytest.importorskip("timm", reason="photographs: pip install 'lexvla[evaluation]'")
    stored = rows(*([{0: 0.5}] * 31), {0: 0.5, 1: 1.0})
    found = load("real_vectors").likeness(stored, rows({0: 1.0, 1: 1.0}))
    assert found["words a row"] == 33 / 32
    assert found["words in 6% of the rows or more"] == 1
    assert found["postings of a query, a row"] == 33 / 32
    assert found["groups of 16 rows that may hold one of the ten best, %"] == 100


@pytest.mark.java
def test_lucene_in_all_its_forms_finds_what_brute_force_finds(load, corpus, tmp_path) -> None:
    contenders, checks = load("engine_contenders"), load("engine_checks")
    stored, queries = corpus.documents(0, 400), corpus.queries(4, 10)
    quantizer = ImpactQuantizer.fit(stored)
    impacts = quantizer.quantize(stored)
    with open_index(f"lucene:{tmp_path / 'index'}", create=True) as index:
        index.add(load("engine_data").described(0, 400), Encoding(stored))
        index.commit()
        engines = load("engine_lucene").lucene_engines(index, tmp_path / "index", 300)
        asked = [c for engine in engines for c in engine.contenders(queries)]
        truths = contenders.truths(stored, impacts, quantizer, queries)
        found = checks.race(asked, truths, seconds=0)
    assert len(found) == 4
    assert [(row["recall"], row["equal"]) for row in found[1:]] == [(1.0, True)] * 3
    assert found[0]["recall"] > 0.9


def test_seismic_finds_most(load, corpus) -> None:
    pytest.importorskip("seismic", reason="an engine to compare with: pip install pyseismic-lsr")
    contenders, checks = load("engine_contenders"), load("engine_checks")
    stored, queries = corpus.documents(0, 400), corpus.queries(4, 10)
    brute_force = checks.BruteForce(queries, contenders.K)
    brute_force.add(stored)
    engines = contenders.BySeismic(stored, 100, threads=1).contenders(queries)
    (row,) = checks.race(engines, {"floats": brute_force.answers}, seconds=0)
    assert row["recall"] > 0.5


def test_the_machine_is_named(load, monkeypatch) -> None:
    monkeypatch.delitem(sys.modules, "jnius", raising=False)
    assert re.search(r"\d+ cores?, \d+ GiB of memory; Python 3\.\d+", load("engines").machine())
