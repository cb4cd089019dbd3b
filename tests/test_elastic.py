"""The Elasticsearch engine: the server's sums, foretold from the vectors, and taken apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import sparse

import elastic_fakes
from indexer_fakes import QUERY, VOCABULARY, documents, encode, fill
from lexvla.encoding import Encoding
from lexvla.errors import (
    IndexMissingError,
    UnsupportedError,
)
from lexvla.vocabulary import Vocabulary
from lexvla_indexer import Document, ElasticIndex, open_index
from lexvla_indexer.elastic import reader as elastic_reader
from lexvla_indexer.elastic import requests, writer
from lexvla_indexer.strongest import strongest

pytestmark = pytest.mark.elasticsearch

HOSTILE = (
    *("a.b", ".", "..", "a..b", " ", "a b", '"', 'say "x"', "##ing", "\u2581dog", "\u65e5\u672c"),
    *("\x01", "\n", "\uffff", "\U0001f600", "*", "_id", "lex", "x" * 32_766, "\\", "{}", "null"),
)
TERMS = Vocabulary([*HOSTILE, *(f"t{i}" for i in range(1500 - len(HOSTILE)))])


@pytest.fixture(autouse=True, scope="module")
def _cleaned() -> Iterator[None]:
    with elastic_fakes.cleaned():
        yield


@pytest.fixture
def index(tmp_path) -> Iterator[ElasticIndex]:
    with ElasticIndex(elastic_fakes.address(tmp_path), True, VOCABULARY, "colours") as made:
        yield made


def rows(rng: np.random.Generator, count: int) -> sparse.csr_array:
    """Return rows of 0 to 1,000 words, with weights of all sizes."""
    made = sparse.lil_array((count, len(TERMS)), dtype=np.float32)
    for row in range(count):
        columns = rng.choice(len(TERMS), int(rng.integers(0, 1000)), replace=False)
        made[row, columns] = 10.0 ** rng.uniform(-6, 6, len(columns))
    made[0] = 0
    made[1, : len(HOSTILE)] = 0.3
    return sparse.csr_array(made)


@pytest.fixture(scope="module")
def random_index(
    tmp_path_factory,
) -> Iterator[tuple[ElasticIndex, dict[str, int], sparse.csr_array]]:
    """Return an index of three shards after updates and deletions, and what is in it."""
    rng = np.random.default_rng(8)
    vectors = rows(rng, 130)
    address = elastic_fakes.address(tmp_path_factory.mktemp("i"))
    with ElasticIndex(address, True, TERMS, shards=3) as made:
        place = {f"d{i % 100:02}": i for i in range(130)}  # the later of two stays
        for part in (range(60), range(60, 130)):
            known = documents([f"d{i % 100:02}" for i in part])
            made.add(known, Encoding(sparse.csr_array(vectors[list(part)])))
            made.commit()
        assert made.delete(["d05", "d50", "nothing"]) == 2
        made.commit()
        del place["d05"], place["d50"]
        yield made, place, vectors


weights = st.floats(-6, 6).map(lambda x: float(np.float32(10.0**x)))


@st.composite
def asked(draw) -> Encoding:
    """Return a query of 1 to 1,000 terms."""
    few = st.dictionaries(st.integers(0, len(TERMS) - 1), weights, min_size=1, max_size=8)
    row = draw(few)
    if draw(st.booleans()):
        rng = np.random.default_rng(draw(st.integers(0, 99)))
        for column in rng.choice(len(TERMS), draw(st.integers(1, 992)), replace=False):
            row[int(column)] = float(rng.uniform(0.01, 1))
    matrix = sparse.lil_array((1, len(TERMS)), dtype=np.float32)
    for column, weight in row.items():
        matrix[0, column] = weight
    return Encoding(sparse.csr_array(matrix))


def foretold(vectors: sparse.csr_array, query: Encoding) -> np.ndarray:
    """Return scores by weights of 9 significant bits, in float64."""
    cut = vectors.astype(np.float64)
    cut.data = elastic_fakes.stored(vectors.data).astype(np.float64)
    return (cut @ query.lexical.astype(np.float64).T).toarray()[:, 0]


@settings(max_examples=25)
@given(query=asked())
def test_scores_are_those_of_9_significant_bits(random_index, query):
    index, place, vectors = random_index
    sums = foretold(vectors, query)
    expected = {name: sums[row] for name, row in place.items() if sums[row] > 0}
    (results,) = index.search(query, 1000)
    assert sorted(results.ids) == sorted(expected)
    found = [expected[name] for name in results.ids]
    assert results.scores == pytest.approx(found, rel=1e-5)
    order = sorted(expected, key=lambda name: (-expected[name], name))
    for at, name in enumerate(results.ids):  # where two are no closer than float32 can tell
        if name != order[at]:
            assert expected[name] == pytest.approx(expected[order[at]], rel=1e-5)
    exact = (vectors.astype(float) @ query.lexical.astype(float).T).toarray()[:, 0]
    off = [abs(exact[place[name]] - score) for name, score in zip(*results, strict=True)]
    assert max(off, default=0.0) <= index.bound(query)[0]


@settings(max_examples=10)
@given(query=asked())
def test_the_server_s_own_explanation_is_of_the_same_score(random_index, query):
    index, _, _ = random_index
    body = index.requests(query)["lexical"]["query"]
    for name, score in zip(*index.search(query, 3)[0], strict=True):
        told = index._client.explain(index=index._store.index, id=name, query=body)["explanation"]
        assert told["value"] == pytest.approx(score, rel=1e-5)


def test_a_query_of_more_words_than_the_server_takes(random_index):
    index, _, _ = random_index
    words = Vocabulary(f"w{i}" for i in range(70_000))
    # The server counts before it looks whether a word is there.
    body = requests.leg_query(
        Encoding(sparse.csr_array(np.ones((1, 70_000), np.float32))),
        "lexical",
        words.terms,
        index._store.state,
        index.product,
        10,
    )
    with pytest.raises(UnsupportedError, match="too many words"):
        index._ask(lambda reader: reader._many([body], 10))


def test_pages_beyond_the_window(index, monkeypatch):
    names = [f"{i:03}" for i in range(90)]
    index.add(documents(names[::-1]), encode([{0: 0.5 + i % 3} for i in range(90)]))
    index.commit()
    expected = index.search(QUERY, 90)
    for window in (7, 45, 89):
        monkeypatch.setattr(elastic_reader, "RESULT_WINDOW", window)
        monkeypatch.setattr(requests, "RESULT_WINDOW", window)
        for k in (88, 90, 1000):
            results = index.search(QUERY, k)
            assert results[0].ids == expected[0].ids[:k]
            assert results[0].scores.tolist() == expected[0].scores.tolist()[:k]
        (chosen,) = index.search(QUERY, 1000, filter='id < "05"')
        assert chosen.ids == [name for name in expected[0].ids if name < "05"]


def test_many_hits_of_many_queries_come_by_several_requests(index, monkeypatch):
    fill(index, "a", "b", "c")
    queries = encode([{0: 1.0, 3: i / 8} for i in range(10)], patches=False)
    expected = index.search(queries, 2)
    monkeypatch.setattr(elastic_reader, "REQUEST_HITS", 7)
    sent = []
    elastic_fakes.through(index, lambda method, target, body: sent.append(len(body)))
    for found, whole in zip(index.search(queries, 2), expected, strict=True):
        assert (found.ids, found.scores.tolist()) == (whole.ids, whole.scores.tolist())
    assert sent == [6, 6, 6, 2]  # a header and a body for each
    sent.clear()
    assert len(index.search(queries, 100)) == 10
    assert sent == [2] * 10


def test_a_large_dense_leg_gets_a_graph(index, monkeypatch):
    monkeypatch.setattr(writer, "FLAT_DOCUMENTS", 50)
    rng = np.random.default_rng(1)
    vectors = [{c: float(rng.uniform(0.1, 1)) for c in range(6)} for _ in range(200)]
    stored = encode(vectors)
    for part in (slice(0, 40), slice(40, 200)):
        index.add(documents([f"d{i:03}" for i in range(200)][part]), stored[part])
        index.commit()
    index.compact()
    assert "int8_hnsw" in index.info()["dense_search"]
    exact = stored.dense @ stored.dense[0]
    (results,) = index.search(stored[0], 10, "dense")
    best = sorted(range(200), key=lambda i: -exact[i])[:10]
    assert len({f"d{i:03}" for i in best} & set(results.ids)) >= 9
    assert results.scores == pytest.approx([exact[int(n[1:])] for n in results.ids], abs=1e-5)
    (few,) = index.search(stored[0], 3, "dense", filter="id in (d007, d199)")
    assert set(few.ids) <= {"d007", "d199"}


def test_equal_dense_scores_beyond_those_asked_for(index, monkeypatch):
    names = [f"{i:02}" for i in range(40)]
    index.add(documents(names[::-1]), encode([{0: 1.0 + i // 10} for i in range(40)]))
    index.commit()
    sent = []
    elastic_fakes.through(index, lambda method, target, body: sent.append(str(body)))
    for k in (1, 7, 39, 40, 50):
        sent.clear()
        (results,) = index.search(QUERY, k, "dense")
        assert results.ids == names[:k]
        asked = ["10000" in body for body in sent if "knn" in body]
        assert asked == ([False] if k >= 40 else [False, True])


@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32 - 1))
def test_the_k_best_by_dense_vectors_are_exact(index, seed):
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 60))
    dense = rng.integers(-2, 3, (count, 3)).astype(np.float32)
    names = [f"{i:02}" for i in rng.permutation(count)]
    index.delete([f"{i:02}" for i in range(60)])
    lexical = sparse.csr_array(np.ones((count, 12), np.float32))
    codes = sparse.csr_array(np.ones((count, 4), np.float32))
    index.add(documents(names), Encoding(lexical, None, codes, dense))
    index.commit()
    query = Encoding(lexical[[0]], None, None, rng.integers(-2, 3, (1, 3)).astype(np.float32))
    scores = dict(zip(names, (dense @ query.dense[0]).tolist(), strict=True))
    best = sorted((n for n in names if scores[n] > 0), key=lambda name: (-scores[name], name))
    k = int(rng.integers(1, count + 2))
    (results,) = index.search(query, k, "dense")
    assert results.ids == best[:k]
    assert results.scores == pytest.approx([scores[name] for name in best[:k]], rel=1e-6)
    given_all = index.rescore(query, "dense", names)  # those below 0 as well
    assert given_all == pytest.approx([scores[name] for name in names], rel=1e-6, abs=1e-6)


def test_scores_of_named_documents_are_those_of_a_search(random_index):
    index, place, vectors = random_index
    query = Encoding(vectors[[7]])
    (results,) = index.search(query, 1000)
    scores = dict(zip(results.ids, results.scores.tolist(), strict=True))
    names = sorted(place)
    given_all = index.rescore(query, "lexical", names)
    assert given_all == pytest.approx([scores.get(name, 0.0) for name in names], rel=1e-6)
    assert index.rescore(query, "lexical", []) == []


def test_bans_and_requirements_are_the_server_s(random_index):
    index, place, vectors = random_index
    query = Encoding(vectors[[7]])
    every = index.search(query, 1000)[0]
    shown = {}
    for name, row in place.items():
        span = slice(vectors.indptr[row], vectors.indptr[row + 1])
        shown[name] = set(strongest(vectors.indices[span], vectors.data[span]).tolist())
    common = [
        column for column, _ in Counter(c for own in shown.values() for c in own).most_common()
    ]
    for banned, required in (
        (common[:9], ()),
        ((), (common[:40],)),
        (common[:4], (common[4:60], common[60:200])),
    ):
        view = index.constrained(banned, required)
        expected = [
            name
            for name in every.ids
            if shown[name].isdisjoint(banned)
            and all(not shown[name].isdisjoint(some) for some in required)
        ]
        assert 0 < len(expected) < len(every.ids)
        assert view.search(query, 1000)[0].ids == expected
    assert index.search(query, 1000)[0].ids == every.ids


def test_tiny_and_opposite_dense_vectors(index):
    dense = np.array([[1e-9, 1, 0], [-1, 0, 0], [0, 1, 0], [3, 0, 0]], np.float32)
    lexical = sparse.csr_array(np.ones((4, 12), np.float32))
    index.add(documents("abcd"), Encoding(lexical, None, None, dense))
    index.commit()
    query = Encoding(lexical[[0]], None, None, np.array([[1, 0, 0]], np.float32))
    (results,) = index.search(query, 9, "dense")
    assert results.ids == ["d", "a"]
    assert results.scores == pytest.approx([3.0, 1e-9], rel=1e-6)
    nothing = Encoding(lexical[[0]], None, None, np.zeros((1, 3), np.float32))
    assert index.search(nothing, 9, "dense")[0].ids == []


def test_facts_and_notes(index, tmp_path):
    fill(index, "a", "b")
    facts = index.info()
    assert (facts["engine"], facts["documents"], facts["model"]) == ("elasticsearch", 2, "colours")
    assert facts["vocabulary_sha256"] == VOCABULARY.sha256
    assert facts["legs"] == {"lexical": 12, "codes": 4, "dense": 3}
    assert "9 significant bits" in facts["weights"]
    index.write_note("fusion", {"weights": {"lexical": 0.7}})
    index.write_note("other", [1])
    fill(index, "c")
    with open_index(elastic_fakes.address(tmp_path)) as reader:
        assert reader.read_note("fusion") == {"weights": {"lexical": 0.7}}
        assert reader.read_note("nothing") is None
        assert (reader.model, reader.vocabulary) == ("colours", VOCABULARY)
        assert reader.count() == 3
    assert index.verify() == []


def test_an_index_without_a_vocabulary_takes_column_numbers(tmp_path):
    with open_index(elastic_fakes.address(tmp_path), create=True) as index:
        assert len(index.vocabulary) == 0
        fill(index, "a")
        assert index.vocabulary.terms == tuple(map(str, range(12)))
    with open_index(elastic_fakes.address(tmp_path)) as index:
        assert index.vocabulary.terms == tuple(map(str, range(12)))
        assert index.search(QUERY)[0].ids == ["a"]


def test_a_document_that_is_gone_after_a_search(index):
    fill(index, "a")
    with pytest.raises(KeyError, match="b"):
        index.fetch(["a", "b"])
    index.close()
    with pytest.raises(ValueError, match="closed"):
        index.count()


def test_no_index(tmp_path):
    with pytest.raises(IndexMissingError, match="make one with: lexvla index"):
        open_index(elastic_fakes.address(tmp_path))


def test_the_text_of_requests(index):
    fill(index, "a")
    text = index.show(index.requests(QUERY, 3, filter="n = 1"))
    assert text.startswith(f"# lexical\nGET {index._place.name}/_search\n{{")
    assert text.count('"prune": false') == 2
    assert '"knn"' in text
    body = index.requests(QUERY, 3)["lexical"]
    answer = index._client.search(index=index._place.name, body=body)
    assert [hit["_id"] for hit in answer["hits"]["hits"]] == ["a"]
    assert index.requests(encode([{}])) == {}


def test_metadata_comes_back_as_it_was(index):
    metadata = {"": 1, ".": 2.5, "a..b": True, "n": 10**400, "t": ["x", ""], "\0": "\x01", "f": 1.0}
    index.add([Document("a", "u", "t\0", metadata, "p")], encode([{0: 1.0}]))
    index.commit()
    (document,) = index.fetch(["a"]).documents
    assert document == Document("a", "u", "t\0", metadata, "p")
    assert isinstance(document.metadata["f"], float)


def test_a_new_index_can_be_asked_at_once(tmp_path):
    for number in range(5):
        address = elastic_fakes.address(tmp_path / str(number))
        with ElasticIndex(address, True, VOCABULARY, shards=2) as made:
            assert made.count() == 0
            assert made.search(QUERY)[0].ids == []
