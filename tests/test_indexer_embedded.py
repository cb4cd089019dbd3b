from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from indexer_fakes import LEGS, VOCABULARY, WORDS, brute_force, documents, encode, random_rows
from scipy import sparse

import indexer
from indexer import Document, EmbeddedIndex, Index, open_index
from lexvla.encoding import Encoding
from lexvla.errors import (
    IndexCorruptError,
    IndexLockedError,
    InputError,
    UnsupportedError,
    VocabularyMismatchError,
)
from lexvla.vocabulary import Vocabulary

QUERY = encode([{0: 1.0, 4: 0.5, 9: 0.25}], patches=False)


@pytest.fixture
def index(tmp_path: Path) -> Iterator[EmbeddedIndex]:
    with EmbeddedIndex(tmp_path / "i.lex", create=True, vocabulary=VOCABULARY) as made:
        yield made


def fill(index: EmbeddedIndex, *ids: str) -> None:
    index.add(documents(ids), encode([{0: 1.0, 3: 0.5}] * len(ids)))
    index.commit()


def found(index: Index, query: Encoding = QUERY, k: int = 100, leg: str = "lexical") -> list:
    (results,) = index.search(query, k, leg)
    assert results.scores.dtype == np.float64
    return list(zip(results.ids, results.scores.tolist(), strict=True))


def contents(folder: Path) -> dict[str, bytes]:
    return {f.name: f.read_bytes() for f in folder.rglob("*.npy")}


# Scores and order


@pytest.mark.parametrize("leg", LEGS)
@pytest.mark.parametrize("k", [1, 7, 1000])
def test_search_equals_brute_force(index, leg, k):
    rng = np.random.default_rng(3)
    stored = encode(random_rows(rng, 300))
    ids = [f"d{i:03}" for i in rng.permutation(300)]
    for start, stop in ((0, 1), (1, 120), (120, 300)):
        index.add(documents(ids[start:stop]), stored[start:stop])
        index.commit()
    gone = set(ids[::7])
    index.delete(sorted(gone))
    index.commit()
    kept = [i for i, name in enumerate(ids) if name not in gone]
    queries = encode(random_rows(rng, 5), patches=False)
    for query, results in zip(queries, index.search(queries, k, leg), strict=True):
        expected = brute_force(leg, [ids[i] for i in kept], stored[kept], query, k)
        assert results.ids == [name for name, _ in expected]
        assert results.scores.tolist() == [score for _, score in expected]


def test_real_weights_equal_scipy_to_the_last_bit(index):
    rng = np.random.default_rng(5)
    random = sparse.random(400, WORDS, 0.6, "csr", random_state=rng, dtype=np.float32)
    lexical = sparse.csr_array(random)
    index.add(documents([f"{i:03}" for i in range(400)]), Encoding(lexical))
    index.commit()
    query = Encoding(sparse.csr_array(rng.random((1, WORDS), dtype=np.float32)))
    expected = (lexical.astype(float) @ query.lexical.astype(float).T).toarray()[:, 0]
    assert all(score == expected[int(name)] for name, score in found(index, query, 400))
    assert len(found(index, query, 400)) == (expected > 0).sum()


def test_dense_scores_do_not_depend_on_the_segment(tmp_path):
    rng = np.random.default_rng(6)
    dense = rng.standard_normal((200, 33)).astype(np.float32)
    dense[50:150] = dense[50]  # one vector many times: equal scores, in the order of ids
    none = sparse.csr_array((200, 4), dtype=np.float32)
    ids = [f"{i:03}" for i in range(200)]
    query = Encoding(none[:1], dense=dense[50:51])
    answers = []
    for name, step in (("one", 200), ("many", 13)):
        with open_index(tmp_path / name, create=True) as index:
            for i in range(0, 200, step):
                index.add(documents(ids[i : i + step]), Encoding(none, dense=dense)[i : i + step])
                index.commit()
            answers.append(found(index, query, 60, "dense"))
    assert answers[0] == answers[1]
    assert [name for name, _ in answers[0]] == ids[50:110]


def test_equal_scores_come_by_id_across_segments(index):
    fill(index, "b", "é", "z")
    fill(index, "a", "c", "Z")
    assert [name for name, _ in found(index, k=4)] == ["Z", "a", "b", "c"]
    assert [name for name, _ in found(index, k=99)] == ["Z", "a", "b", "c", "z", "é"]


def test_rows_without_a_shared_word_are_no_hits(index):
    index.add(documents(["a", "b"]), encode([{1: 1.0}, {}]))
    index.commit()
    assert index.count() == 2
    assert found(index) == []


def test_negative_dense_scores_are_no_hits(index):
    index.add(documents(["a", "b"]), encode([{0: 1.0}, {3: 1.0}]))
    index.commit()
    assert [name for name, _ in found(index, encode([{0: 1.0}]), leg="dense")] == ["a"]


operations = st.lists(
    st.one_of(
        st.tuples(
            st.just("add"),
            st.dictionaries(
                st.sampled_from("abcdefgh"),
                st.dictionaries(st.integers(0, WORDS - 1), st.sampled_from([0.25, 0.5, 1.0])),
                max_size=4,
            ),
        ),
        st.tuples(st.just("delete"), st.lists(st.sampled_from("abcdefgh"), max_size=3)),
        st.tuples(st.sampled_from(["commit", "compact", "reopen"]), st.none()),
    ),
    max_size=14,
)


@settings(max_examples=60)
@given(operations, st.integers(1, 9))
def test_any_history_equals_brute_force(tmp_path_factory, history, k):
    path = tmp_path_factory.mktemp("index") / "i.lex"
    index = EmbeddedIndex(path, create=True, vocabulary=VOCABULARY)
    staged: dict[str, dict[int, float]] = {}
    committed = dict(staged)
    for name, value in history:
        if name == "add":
            index.add(documents(list(value)), encode(list(value.values())))
            staged |= value
        elif name == "delete":
            assert index.delete(value) == len(staged.keys() & set(value))
            staged = {key: row for key, row in staged.items() if key not in value}
        elif name == "reopen":
            index.close()
            index = EmbeddedIndex(path, create=True, vocabulary=VOCABULARY)
            staged = dict(committed)
        else:
            getattr(index, name)()
            committed = dict(staged)
        assert index.count() == len(committed)
        assert index.fingerprints("abcdefgh").keys() == staged.keys()
        if committed:
            stored = encode(list(committed.values()))
            for leg in LEGS:
                expected = brute_force(leg, list(committed), stored, QUERY, k)
                assert found(index, k=k, leg=leg) == expected
            back = index.fetch(list(committed)).encoding
            assert (back.lexical != stored.lexical).nnz == 0
    index.close()


# Adding, deleting, fetching


def test_staged_work_shows_at_commit(index):
    index.add(documents(["a"]), encode([{0: 1.0}]))
    assert (index.count(), found(index)) == (0, [])
    index.commit()
    assert (index.count(), found(index)) == (1, [("a", 1.0)])
    assert index.delete(["a", "a", "zzz"]) == 1
    assert index.delete(["a"]) == 0
    assert index.count() == 1
    index.commit()
    assert (index.count(), found(index)) == (0, [])


def test_a_known_id_replaces(index):
    fill(index, "a", "b")
    index.add([Document("a", text="new")], encode([{4: 1.0}]))
    index.add([Document("a", text="newest")], encode([{4: 0.5}]))
    index.commit()
    assert found(index) == [("b", 1.0), ("a", 0.25)]
    assert index.fetch(["a"]).documents[0].text == "newest"
    assert index.info()["deleted_rows"] == 1


def test_one_id_twice_in_a_batch_is_refused(index):
    with pytest.raises(InputError, match="twice"):
        index.add(documents(["a", "b", "a"]), encode([{0: 1.0}] * 3))
    index.commit()
    assert index.count() == 0


def test_documents_and_vectors_must_be_as_many(index):
    with pytest.raises(ValueError, match="2 documents with 1 vectors"):
        index.add(documents(["a", "b"]), encode([{0: 1.0}]))


def test_fetch_keeps_the_order_asked_for(index):
    index.add(documents(["a", "b"]), encode([{0: 1.0}, {1: 1.0, 2: 0.5}]))
    index.commit()
    index.add(documents(["c"]), encode([{}]))
    index.commit()
    fetched = index.fetch(["b", "c", "a", "b"])
    assert fetched.documents == documents(["b", "c", "a", "b"])
    expected = encode([{1: 1.0, 2: 0.5}, {}, {0: 1.0}, {1: 1.0, 2: 0.5}])
    assert np.array_equal(fetched.encoding.lexical.toarray(), expected.lexical.toarray())
    assert np.array_equal(fetched.encoding.codes.toarray(), expected.codes.toarray())
    assert np.array_equal(fetched.encoding.dense, expected.dense)
    assert fetched.encoding.patches.tolist() == [1, 2, 0, 1, 2]
    with pytest.raises(KeyError, match="nowhere"):
        index.fetch(["a", "nowhere"])


def test_fetch_of_nothing_has_the_legs_of_the_index(index):
    assert len(index.fetch([]).encoding) == 0
    fill(index, "a")
    assert index.fetch([]).encoding.dense.shape == (0, 3)


def test_text_and_images_share_an_index(index):
    index.add(documents(["image"]), encode([{0: 1.0, 5: 0.5}]))
    index.add(documents(["text"]), encode([{0: 1.0, 5: 0.5}], patches=False))
    index.commit()
    index.add(documents(["later"]), encode([{0: 1.0}], patches=False))
    index.commit()
    assert index.fetch(["text", "image", "later"]).encoding.patches.tolist() == [-1, -1, 0, 5, -1]
    assert index.fetch(["later"]).encoding.patches is None


def test_all_of_a_document_comes_back(index):
    document = Document(
        "ä/b c.png",
        "/x/ä b.png",
        "two\nlines \0 \U0001f600",
        {"year": 2020, "score": 0.5, "ok": True, "tags": ["a", "b"], "s": "é"},
        "fp",
    )
    index.add([document], encode([{0: 1.0}]))
    assert index.fingerprints([document.id, "x"]) == {document.id: "fp"}
    index.commit()
    assert index.fetch([document.id]).documents == [document]
    assert index.fingerprints([document.id, "x"]) == {document.id: "fp"}


@pytest.mark.parametrize(
    ("fields", "rule"),
    [
        ({"text": "\ud800"}, "Unicode"),
        ({"metadata": {"x": float("nan")}}, "finite"),
        ({"metadata": {"x": None}}, "'x'"),
    ],
)
def test_documents_that_cannot_be_stored_are_refused(fields, rule):
    with pytest.raises(InputError, match=rule):
        Document("a", **fields)


# Compaction


def test_compact_equals_a_rebuild_to_the_bit(index, tmp_path):
    rng = np.random.default_rng(9)
    rows = random_rows(rng, 60)
    ids = [f"d{i}" for i in range(60)]
    index.add(documents(ids[:40]), encode(rows[:40][::-1]))
    index.commit()
    index.add(documents(ids[20:]), encode(rows[20:], patches=False))
    index.add(documents(ids[:20]), encode(rows[:20]))
    index.commit()
    index.delete(ids[::5])
    index.compact()
    live = [i for i in range(60) if i % 5]
    with open_index(tmp_path / "new.lex", create=True, vocabulary=VOCABULARY) as rebuilt:
        for i in live:
            rebuilt.add(documents([ids[i]]), encode([rows[i]], patches=i < 20))
        rebuilt.commit()
    assert contents(index.directory) == contents(rebuilt.directory)
    assert index.info()["segments"] == 1
    assert index.info()["deleted_rows"] == 0
    assert index.fetch([ids[3]]).documents == documents([ids[3]])


def test_compact_gives_space_back(index):
    for name in "abcdef":
        fill(index, name)
    before = sum(map(len, contents(index.directory).values()))
    index.delete("abcde")
    index.compact()
    assert len(list((index.directory / "segments").iterdir())) == 1
    assert sum(map(len, contents(index.directory).values())) < before / 5
    index.delete("f")
    index.compact()
    assert list((index.directory / "segments").iterdir()) == []
    assert found(index) == []
    fill(index, "g")
    assert found(index) == [("g", 1.0)]


# Readers and writers


def test_a_reader_moves_on_at_its_next_search(index):
    fill(index, "a")
    reader = open_index(index.directory)
    assert found(reader) == [("a", 1.0)]
    index.delete(["a"])
    fill(index, "b")
    index.compact()
    assert reader.fetch(["a"]).documents == documents(["a"])  # the commit of the last search
    assert found(reader) == [("b", 1.0)]
    with pytest.raises(KeyError):
        reader.fetch(["a"])
    fill(index, "c")
    assert reader.fetch(["c"]).documents == documents(["c"])  # looked for in the newest commit
    reader.close()


def test_a_reader_that_is_overtaken_by_compaction_looks_again(index, monkeypatch):
    fill(index, "a")
    reader = EmbeddedIndex(index.directory)
    fill(index, "b")
    load = EmbeddedIndex._load

    def compact_first(self, state):
        monkeypatch.setattr(EmbeddedIndex, "_load", load)
        index.compact()
        return load(self, state)

    monkeypatch.setattr(EmbeddedIndex, "_load", compact_first)
    assert found(reader) == [("a", 1.0), ("b", 1.0)]
    reader.close()


def test_there_is_one_writer(index):
    with pytest.raises(IndexLockedError, match="another writer"):
        open_index(index.directory, create=True)
    with open_index(index.directory) as reader:
        with pytest.raises(IndexLockedError):
            reader.delete(["a"])
        with pytest.raises(IndexLockedError):
            reader.add(documents(["a"]), encode([{0: 1.0}]))
        assert reader.count() == 0
        index.close()
        reader.add(documents(["a"]), encode([{0: 1.0}]))  # a reader becomes the writer
        reader.commit()
        assert reader.count() == 1


def test_close_drops_what_is_staged_and_frees_the_lock(index):
    index.add(documents(["a"]), encode([{0: 1.0}]))
    index.close()
    index.close()
    with pytest.raises(ValueError, match="closed"):
        index.count()
    with open_index(index.directory, create=True) as again:
        assert again.count() == 0


def test_threads_may_search_while_commits_come(index):
    fill(index, "a")
    reader = open_index(index.directory)
    wrong: list[object] = []

    def work() -> None:
        for _ in range(60):
            ids = [name for name, _ in found(reader)]
            if ids != sorted(ids) or "a" not in ids:
                wrong.append(ids)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for name in "bcdef":
        fill(index, name)
    index.compact()
    for thread in threads:
        thread.join()
    reader.close()
    assert wrong == []


def test_a_directory_that_cannot_be_written_is_read(index, monkeypatch):
    fill(index, "a")
    index.close()
    monkeypatch.setattr(os, "access", lambda *_: False)
    with open_index(index.directory) as reader:
        assert found(reader) == [("a", 1.0)]
        assert not list(index.directory.glob("manifest.sqlite-*"))


# What is refused


def test_searches_that_make_no_sense_are_refused(index):
    fill(index, "a")
    with pytest.raises(ValueError, match="k must be"):
        index.search(QUERY, 0)
    with pytest.raises(ValueError, match="no leg"):
        index.search(QUERY, leg="sparse")
    with pytest.raises(UnsupportedError, match="filters"):
        index.search(QUERY, filter="year>2000")
    with pytest.raises(UnsupportedError, match="queries have no dense"):
        index.search(Encoding(QUERY.lexical), leg="dense")
    with pytest.raises(VocabularyMismatchError, match="12 columns"):
        index.search(Encoding(sparse.csr_array(np.ones((1, 5), np.float32))))


def test_a_leg_that_the_index_lacks_is_refused(index):
    assert found(index, leg="codes") == []  # nothing was added yet
    index.add(documents(["a"]), Encoding(QUERY.lexical))
    index.commit()
    for leg in ("codes", "dense"):
        with pytest.raises(UnsupportedError, match=f"no {leg} leg"):
            index.search(QUERY, leg=leg)
    with pytest.raises(UnsupportedError, match="keeps lexical; the new vectors have lexical, co"):
        index.add(documents(["b"]), QUERY)


def test_vectors_of_another_width_are_refused(index):
    with pytest.raises(VocabularyMismatchError, match="lexical has 12 columns in the index, 5"):
        index.add(documents(["a"]), Encoding(sparse.csr_array(np.ones((1, 5), np.float32))))
    fill(index, "a")
    wide = Encoding(QUERY.lexical, None, QUERY.lexical, QUERY.dense)
    with pytest.raises(VocabularyMismatchError, match="codes has 4 columns"):
        index.add(documents(["b"]), wide)


def test_another_vocabulary_is_refused(index):
    index.close()
    other = Vocabulary(f"other{i}" for i in range(WORDS))
    for create in (True, False):
        with pytest.raises(VocabularyMismatchError):
            open_index(index.directory, create=create, vocabulary=other)
    with open_index(index.directory, create=True, vocabulary=VOCABULARY) as again:
        assert again.vocabulary == VOCABULARY


def test_without_a_vocabulary_terms_are_column_numbers(tmp_path):
    with open_index(tmp_path / "i", create=True, model="m") as index:
        reader = open_index(tmp_path / "i")
        assert len(reader.vocabulary) == 0
        index.add(documents(["a"]), encode([{0: 1.0}]))
        index.commit()
        assert found(reader) == [("a", 1.0)]
        assert reader.vocabulary.terms == tuple(map(str, range(WORDS)))
        assert (index.model, reader.model) == ("m", "m")
        reader.close()
    with open_index(tmp_path / "i") as index:
        assert index.vocabulary.terms == tuple(map(str, range(WORDS)))


def test_info(index):
    fill(index, "a", "b")
    fill(index, "b", "c")
    info = index.info()
    files = [f for f in index.directory.rglob("*") if f.is_file()]
    assert info["bytes"] == sum(f.stat().st_size for f in files)
    del info["bytes"], info["writer_version"]
    assert info == {
        "engine": "embedded",
        "documents": 3,
        "segments": 2,
        "deleted_rows": 1,
        "mean_active_words": 2.0,
        "legs": {"lexical": 12, "codes": 4, "dense": 3},
        "vocabulary_size": 12,
        "vocabulary_sha256": VOCABULARY.sha256,
        "model": None,
        "commit": 2,
        "format_version": 1,
    }


def test_addresses(tmp_path):
    for address in ("lucene:x", "elasticsearch+http://localhost:9200/x", "s3://bucket/x"):
        with pytest.raises(UnsupportedError, match="no engine"):
            open_index(address)
    with pytest.raises(IndexCorruptError, match="make one with: lexvla index"):
        open_index(tmp_path / "none")
    with open_index(str(tmp_path / "a" / "b:c"), create=True) as index:
        assert isinstance(index, Index)


def test_a_directory_of_other_things_is_no_place_for_an_index(tmp_path):
    (tmp_path / "photo.png").touch()
    with pytest.raises(IndexCorruptError, match=r"photo\.png"):
        open_index(tmp_path, create=True)
    with pytest.raises(IndexCorruptError, match="no directory"):
        open_index(tmp_path / "photo.png", create=True)
    assert [f.name for f in tmp_path.iterdir()] == ["photo.png"]


def test_import_is_cheap():
    code = "import indexer, sys; print([m for m in ('numpy', 'torch') if m in sys.modules])"
    root = Path(indexer.__file__).parents[1]
    out = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=root
    )
    assert out.stdout == "[]\n"
    assert all(getattr(indexer, name) for name in indexer.__all__)
    with pytest.raises(AttributeError):
        indexer.nothing  # noqa: B018
