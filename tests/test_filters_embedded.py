"""Filters in the embedded engine: the same answers as `Filter.matches` and brute force."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import filter_fakes as fakes
from indexer_fakes import LEGS, QUERY, VOCABULARY, brute_force, encode, random_rows
from lexvla.errors import FilterSyntaxError, IndexCorruptError, UnsupportedError
from lexvla_indexer import Document, EmbeddedIndex, open_index
from lexvla_indexer.embedded import manifest
from lexvla_indexer.filters import And, Comparison, Filter, In, Not, Or


@pytest.fixture
def index(tmp_path: Path) -> Iterator[EmbeddedIndex]:
    with EmbeddedIndex(tmp_path / "i.lex", create=True, vocabulary=VOCABULARY) as made:
        yield made


def found(index: EmbeddedIndex, text: str, k: int = 100, leg: str = "lexical") -> list[str]:
    (results,) = index.search(QUERY, k, leg, filter=text)
    return results.ids


def put(index: EmbeddedIndex, documents: Sequence[Document], rows=None) -> None:
    index.add(documents, encode(rows or [{0: 1.0}] * len(documents)))
    index.commit()


def of(**metadata: object) -> list[Document]:
    """Return documents d0, d1, ... of which each has one of the values."""
    ((key, values),) = metadata.items()
    return [Document(f"d{i}", metadata={key: value}) for i, value in enumerate(values)]


# The same as brute force


@pytest.fixture(scope="module")
def history() -> tuple[list[Document], list[dict[int, float]]]:
    rng = np.random.default_rng(11)
    metadata = [
        {"year": int(y), "tag": [["cat"], ["dog", "cat"], []][y % 3], "price": float(p)}
        for y, p in zip(rng.integers(2000, 2010, 240), rng.random(240), strict=True)
    ]
    documents = [Document(f"d{i:03}", metadata=m) for i, m in enumerate(metadata)]
    return documents, random_rows(rng, 240)


@pytest.mark.parametrize("leg", LEGS)
@pytest.mark.parametrize("k", [1, 7, 1000])
def test_after_deletions_and_replacements_in_many_segments(index, history, leg, k):
    documents, rows = history
    texts = [
        "year >= 2005 and tag = cat",
        "not tag = cat",
        "price < 0.25 or year in (2001, 2002)",
        "id in (d000, d001, d120, d121, d239)",
        "year > 3000",
        "year > 0",
    ]
    for start in range(0, 200, 50):
        put(index, documents[start : start + 50], rows[start : start + 50])
    live = {d.id: (d, row) for d, row in zip(documents[:200], rows[:200], strict=True)}
    for i in range(20, 60):  # other metadata and other vectors under known ids
        changed = replace(documents[i], metadata=documents[i + 180].metadata)
        live[changed.id] = (changed, rows[i + 180])
    put(index, [live[f"d{i:03}"][0] for i in range(20, 60)], rows[200:240])
    gone = [f"d{i:03}" for i in range(0, 200, 7)]
    index.delete(gone)
    index.commit()
    for name in gone:
        del live[name]
    for is_compact in (False, True):
        if is_compact:
            index.compact()
            assert index.info()["segments"] == 1
        for text in texts:
            chosen = [name for name in live if Filter.parse(text).matches(live[name][0])]
            stored = encode([live[name][1] for name in chosen])
            expected = brute_force(leg, chosen, stored, QUERY, k) if chosen else []
            (results,) = index.search(QUERY, k, leg, filter=text)
            pairs = zip(results.ids, results.scores.tolist(), strict=True)
            assert list(pairs) == expected
            assert bool(chosen) == (text != "year > 3000")


@settings(max_examples=30)
@given(fakes.documents, st.lists(fakes.filters, min_size=1, max_size=5), st.data())
def test_any_filter_on_any_documents(tmp_path_factory, documents, filters, data):
    documents = [replace(d, id=f"d{i}") for i, d in enumerate(documents)]
    cut = data.draw(st.integers(0, len(documents)))
    replaced = data.draw(st.sets(st.integers(0, len(documents) - 1)))
    deleted = data.draw(st.sets(st.integers(0, len(documents) - 1)))
    path = tmp_path_factory.mktemp("index") / "i.lex"
    with EmbeddedIndex(path, create=True, vocabulary=VOCABULARY) as index:
        old = [replace(documents[i], metadata={"year": 1, "tag": "old"}) for i in sorted(replaced)]
        for part in (old, documents[:cut], [*documents[cut:], fakes.EVERY]):
            put(index, part)
        index.delete([f"d{i}" for i in deleted])
        index.commit()
        if data.draw(st.booleans()):
            index.compact()
        live = [d for i, d in enumerate(documents) if i not in deleted] + [fakes.EVERY]
        assert index.fetch([d.id for d in live]).documents == live
        for tree in filters:
            expected = [d.id for d in live if tree.matches(d)]
            for leg in LEGS:
                assert found(index, fakes.written(tree), leg=leg) == expected


def test_filters_come_before_the_best_are_taken(index):
    put(index, of(n=range(100)), [{0: 1.0}] * 99 + [{0: 0.125, 9: 0.125}])
    for leg in LEGS:
        assert found(index, "n >= 98", 1, leg) == ["d98"]
        assert found(index, "n = 99", 1, leg) == ["d99"]
        assert found(index, "n > 99", 1, leg) == []


def test_several_queries_share_a_filter(index):
    put(index, of(n=[1, 2, 3]), [{0: 1.0}, {1: 1.0}, {0: 0.5, 1: 0.5}])
    answers = index.search(encode([{0: 1.0}, {1: 1.0}]), filter="n < 3")
    assert [results.ids for results in answers] == [["d0"], ["d1"]]


# What SQLite alone would get wrong


def test_numbers_are_exact(index):
    numbers = sorted(set(fakes.NUMBERS), key=lambda n: (n, str(n)))
    documents = of(n=numbers)
    put(index, documents)
    for value in fakes.NUMBERS:
        for sign in ("=", "!=", "<", "<=", ">", ">="):
            text = f"n {sign} {json.dumps(value)}"
            expected = [d.id for d in documents if Filter.parse(text).matches(d)]
            assert found(index, text) == sorted(expected)
        assert found(index, f"n in (x, {json.dumps(value)})") == found(
            index, f"n = {json.dumps(value)}"
        )


def test_decimals_near_one_another(index):
    rng = np.random.default_rng(2)
    values = [float(x) for x in rng.random(300) * 10.0 ** rng.integers(-300, 300, 300)]
    put(index, of(n=values))
    for i in range(0, 300, 10):
        assert f"d{i}" in found(index, f"n = {values[i]!r}", 300)
        above = float(np.nextafter(values[i], np.inf))
        assert f"d{i}" not in found(index, f"n >= {above!r}", 300)
        assert f"d{i}" in found(index, f"n < {above!r}", 300)


def test_strings_and_fields_that_are_hard_to_quote(index):
    documents = [
        Document(f"d{i}.{j}", metadata={field: text})
        for i, field in enumerate(fakes.FIELDS)
        for j, text in enumerate(fakes.STRINGS)
    ]
    put(index, documents)
    every = len(documents)
    for field in fakes.FIELDS:
        for value in fakes.STRINGS:
            for sign in ("=", "!=", "<="):
                text = f"{json.dumps(field)} {sign} {json.dumps(value, ensure_ascii=False)}"
                expected = sorted(d.id for d in documents if Filter.parse(text).matches(d))
                assert found(index, text, every) == expected


def test_plain_filters_are_left_to_sqlite(index, monkeypatch):
    put(index, of(a=[1, 2, 0.25, "x", ["x"], True]))
    for kind in (Comparison, In, And, Or, Not):
        monkeypatch.setattr(kind, "matches", None)
    assert found(index, "a > 0.5 and a != 2 or not (a in (1, 2, x) or a = true)") == ["d0", "d2"]
    with pytest.raises(TypeError):  # Python is asked of a number so near to another
        found(index, "a = 0.25")


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt, MemoryError, OverflowError, RecursionError, UnsupportedError]
)
def test_what_python_raises_for_a_document_is_raised_as_it_is(index, monkeypatch, error):
    put(index, of(a=[0.25, 1]))

    def fail(*_: object) -> bool:
        raise error("of the filter")

    with monkeypatch.context() as patch:
        patch.setattr(Comparison, "matches", fail)
        with pytest.raises(error, match="of the filter"):
            found(index, "a = 0.25")
    assert found(index, "a = 0.25") == ["d0"]  # and nothing is the matter with the index


def test_a_boolean_is_no_number_and_a_kept_answer_is_not_taken_for_another(index):
    put(index, of(a=[1, True, "1", "true", ["1"], 1.0, 0, False]))
    for _ in range(2):
        assert found(index, "a = 1") == ["d0", "d5"]
        assert found(index, "a = true") == ["d1"]
        assert found(index, 'a = "1"') == ["d2", "d4"]
        assert found(index, "a in (false, 0)") == ["d6", "d7"]
        assert found(index, "a != true") == ["d7"]
        assert found(index, "a >= 0") == ["d0", "d5", "d6"]


# Limits


def test_a_hundred_thousand_banned_ids(index):
    put(index, of(n=range(50)))
    banned = ", ".join(f'"d{i}"' for i in range(3, 100_003))
    for leg in LEGS:
        assert found(index, f"not id in ({banned})", leg=leg) == ["d0", "d1", "d2"]
        assert len(found(index, f"id in ({banned})", leg=leg)) == 47
    numbers = ", ".join(map(str, range(3, 100_003)))
    assert found(index, f"not n in ({numbers}, 0.5)") == ["d0", "d1", "d2"]


def test_the_largest_and_deepest_filters(index):
    put(index, of(n=range(8)))
    assert found(index, " or ".join(f"n = {i}" for i in range(4, 260))) == ["d4", "d5", "d6", "d7"]
    assert len(found(index, " and ".join(f"not n = {i}" for i in range(8, 264)))) == 8
    deep = "n > 6"
    for i in range(16):
        deep = f"n = {i % 3} or not (n = {i % 5} and {deep})"
        assert found(index, deep) == [d.id for d in of(n=range(8)) if Filter.parse(deep).matches(d)]


# Commits


def test_a_search_sees_one_commit(index):
    def version(number: int) -> None:
        documents = [Document(f"d{i}", metadata={"n": number}) for i in range(30)]
        put(index, documents, [{0: (number % 8 + 1) / 8}] * 30)
        if number % 5 == 4:
            index.compact()

    version(0)
    failures: list[object] = []
    done = threading.Event()

    def read(reader: EmbeddedIndex) -> None:
        try:
            while not done.is_set():
                (results,) = reader.search(QUERY, 100, filter="n >= 0")
                assert len(results.ids) == 30
                assert len(set(results.scores.tolist())) == 1
        except (AssertionError, IndexCorruptError, OSError, ValueError) as error:
            failures.append(error)

    with open_index(index.directory) as other:
        threads = [threading.Thread(target=read, args=(one,)) for one in (index, other)]
        for thread in threads:
            thread.start()
        for number in range(1, 13):
            version(number)
        done.set()
        for thread in threads:
            thread.join()
    assert failures == []


def test_what_is_staged_is_not_filtered_in(index):
    put(index, of(n=[1]))
    index.add([Document("d0", metadata={"n": 2})], encode([{0: 1.0}]))
    assert (found(index, "n = 1"), found(index, "n = 2")) == (["d0"], [])
    index.commit()
    assert (found(index, "n = 1"), found(index, "n = 2")) == ([], ["d0"])


def test_an_empty_index(index):
    assert found(index, "n = 1") == []
    assert found(index, "not n = 1") == []


def test_one_selection_serves_all_legs(index, monkeypatch):
    put(index, of(n=[1, 2]))
    asked = []
    select = manifest.Manifest.select

    def counted(self, *args):
        asked.append(args)
        return select(self, *args)

    monkeypatch.setattr(manifest.Manifest, "select", counted)
    for leg in LEGS:
        assert found(index, "n = 1", leg=leg) == ["d0"]
    assert len(asked) == 1
    index.delete(["d0"])
    index.commit()
    assert found(index, "n = 1") == []
    assert len(asked) == 2


def test_bad_filters_are_refused(index):
    with pytest.raises(FilterSyntaxError, match="column 4"):
        index.search(QUERY, filter="n =")


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE documents SET metadata = '{'",
        "UPDATE documents SET metadata = '[\"\\u0000\"]'",
        "UPDATE documents SET segment = 77",
        "UPDATE documents SET row = 77",
    ],
)
def test_a_damaged_manifest_is_named(index, damage):
    put(index, of(n=[1]))
    index.close()
    with sqlite3.connect(index.directory / "manifest.sqlite") as db:
        db.execute(damage)
    db.close()
    with open_index(index.directory) as reader:
        with pytest.raises(IndexCorruptError, match="manifest"):
            reader.search(QUERY, filter="not n = 2")
        with pytest.raises(IndexCorruptError, match="manifest"):
            reader.fetch(["d0"])
