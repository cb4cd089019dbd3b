from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
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
from lexvla.errors import (
    InputError,
)
from lexvla_indexer import Document, EmbeddedIndex, open_index
from lexvla_indexer.embedded import postings


@pytest.fixture
def index(tmp_path: Path) -> Iterator[EmbeddedIndex]:
    with EmbeddedIndex(tmp_path / "i.lex", create=True, vocabulary=VOCABULARY) as made:
        yield made


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


def test_dense_rows_that_float32_cannot_tell_apart_are_ordered_exactly(index):
    rng = np.random.default_rng(8)
    vector = rng.standard_normal(300)
    near = vector / np.linalg.norm(vector) + rng.standard_normal((500, 300)) * 1e-8
    stored = Encoding(sparse.csr_array((500, WORDS), dtype=np.float32), dense=near.astype("f4"))
    ids = [f"{i:03}" for i in range(500)]
    index.add(documents(ids), stored)
    index.commit()
    for k in (1, 10, 100):
        assert found(index, stored[0], k, "dense") == brute_force(
            "dense", ids, stored, stored[0], k
        )


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
        assert index.fingerprints([*"abcdefgh"]).keys() == staged.keys()
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
    assert index.documents(["b", "c", "a", "b"]) == fetched.documents
    for read in (index.fetch, index.documents):
        with pytest.raises(KeyError, match="nowhere"):
            read(["a", "nowhere"])


def test_fetch_of_nothing_has_the_legs_of_the_index(index):
    assert len(index.fetch([]).encoding) == 0
    assert index.documents([]) == []
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
        ({"metadata": {"x": float("nan")}}, "'x' is nan"),
        ({"metadata": {"x": [None]}}, "'x'"),
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
    segments = index.directory / "segments"
    assert len(list(segments.iterdir())) == 6
    index.delete([*"abcde"])
    index.compact()
    assert len(list(segments.iterdir())) == 1
    index.delete(["f"])
    index.compact()
    assert list(segments.iterdir()) == []
    assert found(index) == []
    fill(index, "g")
    assert found(index) == [("g", 1.0)]


def test_warming_up_loads_compiled_loops_for_a_large_index_only(index, monkeypatch):
    fill(index, "a", "b")
    loaded = []
    monkeypatch.setattr(postings, "kernels", lambda *sizes: loaded.append(sizes))
    index.warm_up()
    assert loaded == []
    monkeypatch.setattr(postings, "WARM_FROM", 1)
    index.warm_up()
    assert loaded == [()]
