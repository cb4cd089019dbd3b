"""Two writers at once, newer formats, any Unicode, nothing at all, and far too much."""

from __future__ import annotations

import multiprocessing
import os
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import sparse

from indexer_fakes import (
    LEGS,
    QUERY,
    VOCABULARY,
    WORDS,
    brute_force,
    documents,
    encode,
    fill,
    found,
    random_rows,
)
from lexvla.encoding import Encoding
from lexvla.errors import IndexLockedError, IndexVersionError, InputError, VocabularyMismatchError
from lexvla.vocabulary import Vocabulary
from lexvla_indexer import Document, EmbeddedIndex, open_index
from lexvla_indexer.document import MAX_ID_BYTES
from lexvla_indexer.embedded.manifest import FORMAT_VERSION
from postings_fakes import WAYS, searching

FORK = multiprocessing.get_context("fork")


@pytest.fixture
def index(tmp_path: Path) -> Iterator[EmbeddedIndex]:
    with EmbeddedIndex(tmp_path / "i.lex", create=True, vocabulary=VOCABULARY) as made:
        yield made


@pytest.fixture(autouse=True)
def _without_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)  # saves time


# Who may write


def test_writers_of_many_processes_take_turns(tmp_path):
    path, commits = tmp_path / "i.lex", 5
    refused, inside = FORK.Value("i", 0), FORK.Value("i", 0)

    def write(name: str) -> None:
        done = 0
        while done < commits:
            try:
                index = EmbeddedIndex(path, create=True, vocabulary=VOCABULARY)
            except IndexLockedError:
                with refused.get_lock():
                    refused.value += 1
                time.sleep(0.002)
                continue
            with index:
                inside.value += 1  # nobody else may: without the lock of this value, on purpose
                assert inside.value == 1
                fill(index, f"{name}{done}")
                inside.value -= 1
            done += 1

    processes = [FORK.Process(target=write, args=[name]) for name in "abc"]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert refused.value > 0
    with open_index(path) as index:
        expected = [f"{name}{number}" for name in "abc" for number in range(commits)]
        assert sorted(name for name, _ in found(index)) == expected
        assert index.verify() == []


def make_of_format(path: Path, version: int) -> None:
    db = sqlite3.connect(path / "manifest.sqlite")
    with db:
        db.execute(f"UPDATE meta SET value = {version} WHERE key = 'format_version'")
        db.execute("UPDATE meta SET value = '\"7.1\"' WHERE key = 'writer_version'")
        db.execute("UPDATE meta SET value = value + 1 WHERE key = 'commit'")
    db.close()


@pytest.mark.parametrize(
    ("version", "age"), [(FORMAT_VERSION - 1, "older"), (FORMAT_VERSION + 1, "newer")]
)
def test_a_format_that_changes_is_refused_by_open_readers_and_writers(index, version, age):
    fill(index, "a")
    with open_index(index.directory) as reader:
        assert reader.count() == 1
        make_of_format(index.directory, version)
        other = rf"format {version}, written by lexvla 7\.1, is {age}"
        for work in (reader.count, lambda: found(reader), lambda: fill(index, "b"), index.compact):
            with pytest.raises(IndexVersionError, match=other):
                work()
        index.close()
        for create in (True, False):
            with pytest.raises(IndexVersionError, match=other):
                EmbeddedIndex(index.directory, create=create)
        make_of_format(index.directory, FORMAT_VERSION)
        assert found(reader) == [("a", 1.0)]


def test_column_numbers_are_another_vocabulary_than_words(tmp_path):
    with open_index(tmp_path / "i", create=True) as numbered:
        fill(numbered, "a")
    with pytest.raises(VocabularyMismatchError):
        EmbeddedIndex(tmp_path / "i", create=True, vocabulary=VOCABULARY)
    with pytest.raises(VocabularyMismatchError):
        EmbeddedIndex(tmp_path / "i", vocabulary=Vocabulary(["x"]))
    with EmbeddedIndex(tmp_path / "i", create=True) as again:
        fill(again, "b")  # a refusal keeps no lock
        assert again.count() == 2


# Ids


def is_fit(name: str) -> bool:
    try:
        Document(name)
    except InputError:
        return False
    return True


names = st.text(
    st.characters(exclude_categories=["Cs"])
    | st.sampled_from("aé\u0301\uffff\U0001f600\u200d '\"\\"),
    min_size=1,
    max_size=40,
).filter(is_fit)


@settings(max_examples=20)
@given(st.lists(names, min_size=2, max_size=8, unique=True), st.integers(0, 7))
@example(["\uffff", "\U00010000", "e\u0301", "é", "\x80", "\u2028", "A", "a"], 3)
@example(["\U0010ffff" * (MAX_ID_BYTES // 4), "é" * (MAX_ID_BYTES // 2), "a" * MAX_ID_BYTES], 0)
def test_ids_of_any_characters_keep_their_order(tmp_path_factory, ids, cut):
    """Equal scores stand in the order of code points, whichever segments they are in."""
    path = tmp_path_factory.mktemp("ids") / "i.lex"
    ordered = sorted(ids, key=lambda name: [ord(c) for c in name])
    with EmbeddedIndex(path, create=True, vocabulary=VOCABULARY) as index:
        for some in (ids[:cut], ids[cut:]):
            fill(index, *some)
        assert [name for name, _ in found(index)] == ordered
        assert [name for name, _ in found(index, k=2)] == ordered[:2]
        assert index.fetch(ids).documents == documents(ids)
        quoted = '"' + ids[0].replace("\\", "\\\\").replace('"', '\\"') + '"'
        assert index.search(QUERY, 9, filter=f"id = {quoted}")[0].ids == ids[:1]
        less = index.search(QUERY, 9, filter=f"id < {quoted}")[0].ids
        assert less == ordered[: ordered.index(ids[0])]
        index.compact()
        assert [name for name, _ in found(index)] == ordered
        assert index.delete([ids[0]]) == 1
        index.commit()
        assert [name for name, _ in found(index)] == [n for n in ordered if n != ids[0]]


# Nothing


def answers_nothing(index: EmbeddedIndex) -> None:
    for leg in LEGS:
        for exact in (None, True, False):
            ((ids, scores),) = index.search(QUERY, 5, leg, exact=exact)
            assert (ids, scores.tolist()) == ([], [])
    assert found(index, k=10**12) == []
    assert index.search(QUERY, filter="not id = x")[0].ids == []
    assert index.search(encode([])) == []
    assert (index.count(), index.fetch([]).documents) == (0, [])
    assert index.info()["documents"] == index.info()["deleted_rows"] == 0
    assert index.verify() == []
    with pytest.raises(KeyError):
        index.fetch(["a"])


def test_an_index_without_documents(index):
    answers_nothing(index)
    index.commit()
    index.compact()
    answers_nothing(index)
    index.add([], encode([]))
    index.commit()
    assert index.delete(["a"]) == 0
    with open_index(index.directory) as reader:
        answers_nothing(reader)
        fill(index, "a")
        assert found(reader) == [("a", 1.0)]


def test_an_index_of_which_all_documents_are_deleted(index):
    fill(index, "a", "b", "c")
    fill(index, "d", "c")
    with open_index(index.directory) as reader:
        assert reader.count() == 4
        assert index.delete([*"abcd"]) == 4
        index.commit()
        answers_nothing(reader)
    answers_nothing(index)
    assert index.info()["segments"] == 0  # of which all is deleted, nothing is kept
    index.compact()
    answers_nothing(index)
    assert list((index.directory / "segments").iterdir()) == []
    fill(index, "c")
    assert found(index) == [("c", 1.0)]


def test_empty_vectors_are_stored_and_never_found(index):
    empty = encode([{}, {}, {}])
    index.add(documents("abc"), empty)
    index.commit()
    fill(index, "d")
    assert index.count() == 4
    for leg in LEGS:
        assert [name for name, _ in found(index, leg=leg)] == ["d"]
        for query in (encode([{}]), encode([{11: 1.0}])):
            assert found(index, query, leg=leg) == []
    index.compact()
    back = index.fetch([*"abc"]).encoding
    assert (back.lexical.nnz, back.codes.nnz, back.dense.any()) == (0, 0, False)


@WAYS
def test_an_index_of_empty_vectors_alone(tmp_path, way):
    with searching(way), EmbeddedIndex(tmp_path / "i", create=True, vocabulary=VOCABULARY) as index:
        index.add(documents("abc"), encode([{}] * 3))
        index.commit()
        for leg in LEGS:
            assert found(index, leg=leg) == []
        assert index.verify() == []
        assert index.info()["mean_active_words"] == 0


# Much


@WAYS
def test_equal_scores_and_any_k(tmp_path, way):
    ids = [f"d{i:04}" for i in range(3000)]
    rows = Encoding(sparse.csr_array(np.full((3000, WORDS), 0.25, np.float32)))
    with searching(way), EmbeddedIndex(tmp_path / "i", create=True, vocabulary=VOCABULARY) as index:
        for part in (slice(1, None, 2), slice(0, None, 2)):
            index.add(documents(ids[part]), rows[part])
            index.commit()
        for k in (1, 2, 255, 256, 257, 2999, 3000, 3001, 10**6, 2**40):
            assert [name for name, _ in found(index, QUERY, k)] == ids[:k]
        for exact in (True, False):
            assert len(index.search(QUERY, 2**40, exact=exact)[0].ids) == 3000
        assert index.search(QUERY, 9, filter="n = 7")[0].ids == []
        assert index.search(QUERY, 9, filter="id in ()")[0].ids == []
        assert index.search(QUERY, 2**40, filter="not id in ()")[0].ids == ids


def test_a_hundred_thousand_banned_ids(index):
    count = 3000
    ids = [f"d{i:06}" for i in range(count)]
    rows = encode(random_rows(np.random.default_rng(7), count))
    index.add(documents(ids), rows)
    index.commit()
    banned = [f"d{i:06}" for i in range(0, 200_000, 2)]
    assert len(banned) == 100_000
    left = list(range(1, count, 2))
    text = f"not id in ({', '.join(banned)})"
    for leg in LEGS:
        results = index.search(QUERY, 40, leg, text)[0]
        expected = brute_force(leg, [ids[i] for i in left], rows[left], QUERY, 40)
        assert list(zip(results.ids, results.scores.tolist(), strict=True)) == expected
