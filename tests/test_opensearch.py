"""The OpenSearch engine where it differs from Elasticsearch's; `test_parity` has the rest."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

pytest.importorskip("opensearchpy", reason="needs the client: pip install 'lexvla[opensearch]'")

import opensearch_fakes
from elastic_fakes import stored
from elastic_proxy import BUSY, JSON, Answer, Cut, Proxy, Request, down, error
from indexer_fakes import QUERY, VOCABULARY, documents, encode, fill
from lexvla.encoding import Encoding
from lexvla.errors import (
    EngineUnavailableError,
    IndexCorruptError,
    IndexMissingError,
    InputError,
    OptionalDependencyError,
    UnsupportedError,
)
from lexvla.vocabulary import Vocabulary
from lexvla_indexer import Document, OpenSearchIndex, open_index
from lexvla_indexer.elastic import writer
from lexvla_indexer.elastic.connection import Address, connect
from lexvla_indexer.facets import Facet
from lexvla_indexer.opensearch.product import OPENSEARCH

HOSTILE = (
    *("a.b", ".", "..", "a..b", "~", "~1", "a~0b", " ", "a b", '"', "##ing", "\u2581dog", "*"),
    *("\u65e5\u672c", "\x01", "\n", "\uffff", "\U0001f600", "_id", "lex", "\\", "{}", "null"),
)
TERMS = Vocabulary([*HOSTILE, *(f"t{i}" for i in range(300 - len(HOSTILE)))])


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with opensearch_fakes.cleaned():
        yield opensearch_fakes.url()


@pytest.fixture
def index(server, tmp_path) -> Iterator[OpenSearchIndex]:
    with OpenSearchIndex(opensearch_fakes.address(tmp_path), True, VOCABULARY, "colours") as made:
        yield made


@given(st.text())
def test_a_name_as_part_of_a_field_s_name_comes_back_and_has_no_dots(name):
    part = OPENSEARCH.part(name)
    assert "." not in part
    assert OPENSEARCH.name_of(part) == name


@pytest.fixture(scope="module")
def random_index(server, tmp_path_factory) -> Iterator[tuple[OpenSearchIndex, sparse.csr_array]]:
    """Return an index of two shards, and its rows; the first has all hostile terms."""
    rng = np.random.default_rng(8)
    rows = sparse.lil_array((60, len(TERMS)), dtype=np.float32)
    for row in range(1, 60):
        columns = rng.choice(len(TERMS), int(rng.integers(0, 200)), replace=False)
        rows[row, columns] = 10.0 ** rng.uniform(-6, 6, len(columns))
    rows[0, : len(HOSTILE)] = 0.3
    vectors = sparse.csr_array(rows)
    address = opensearch_fakes.address(tmp_path_factory.mktemp("i"))
    with OpenSearchIndex(address, True, TERMS, shards=2) as made:
        made.add(documents([f"d{i:02}" for i in range(60)]), Encoding(vectors))
        made.commit()
        yield made, vectors


@st.composite
def asked(draw) -> Encoding:
    weights = st.floats(-6, 6).map(lambda x: float(np.float32(10.0**x)))
    row = draw(st.dictionaries(st.integers(0, len(TERMS) - 1), weights, min_size=1, max_size=8))
    matrix = sparse.lil_array((1, len(TERMS)), dtype=np.float32)
    for column, weight in row.items():
        matrix[0, column] = weight
    return Encoding(sparse.csr_array(matrix))


@pytest.mark.opensearch
@settings(max_examples=25)
@given(query=asked())
def test_scores_are_those_of_9_significant_bits(random_index, query):
    index, vectors = random_index
    cut = vectors.astype(np.float64)
    cut.data = stored(vectors.data).astype(np.float64)
    sums = (cut @ query.lexical.astype(np.float64).T).toarray()[:, 0]
    (results,) = index.search(query, 100)
    assert sorted(results.ids) == [f"d{row:02}" for row in range(60) if sums[row] > 0]
    assert results.scores == pytest.approx([sums[int(name[1:])] for name in results.ids], rel=1e-5)
    exact = (vectors.astype(float) @ query.lexical.astype(float).T).toarray()[:, 0]
    off = [abs(exact[int(name[1:])] - score) for name, score in zip(*results, strict=True)]
    assert max(off, default=0.0) <= index.bound(query)[0]


@pytest.mark.opensearch
def test_every_hostile_term_is_found_and_comes_back(random_index):
    index, vectors = random_index
    found = index.fetch(["d00"]).encoding.lexical
    assert (found != vectors[[0]]).nnz == 0
    for column in range(len(HOSTILE)):
        one = sparse.csr_array(([1.0], [column], [0, 1]), (1, len(TERMS)), dtype=np.float32)
        assert "d00" in index.search(Encoding(one), 100)[0].ids


@pytest.mark.opensearch
def test_a_query_of_more_words_than_the_server_takes(index):
    words = Vocabulary(f"w{i}" for i in range(1100))
    with OpenSearchIndex(opensearch_fakes.address("many"), True, words) as many:
        rows = Encoding(sparse.csr_array(np.full((1, 1100), 0.5, np.float32)))
        many.add(documents("a"), rows)
        many.commit()
        with pytest.raises(UnsupportedError, match="too many words for the server"):
            many.search(rows)


@pytest.mark.opensearch
def test_a_document_that_another_program_replaced_has_lost_its_vectors(index):
    fill(index, "a", "b")
    assert index.verify() == []
    client, place = index._client, index._store.index
    kept = client.mget(index=place, ids=["a"])["docs"][0]["_source"]
    partial = {"doc": {"price": 3}}
    with pytest.raises(Exception, match="strict_dynamic_mapping_exception"):
        client.transport.perform_request("POST", f"/{place}/_update/a", body=partial)
    partial = {"doc": {"text": "another"}}
    client.transport.perform_request("POST", f"/{place}/_update/a", body=partial)
    index.commit()
    assert index.verify() == []
    assert index.search(QUERY)[0].ids == ["a", "b"]
    bare = {name: kept[name] for name in ("id", "filter", "text", "uri", "metadata")}
    client.transport.perform_request("PUT", f"/{place}/_doc/a", body=bare)
    index.commit()
    assert index.verify() == ["document 'a' has lost vectors or its id; index its source again"]
    assert index.fingerprints(["a", "b"]) == {"a": "", "b": ""}
    assert index.search(QUERY)[0].ids == ["b"]


@pytest.mark.opensearch
def test_names_with_dots_are_fields_of_their_own(index):
    kept = [{"a": 1, "a.b": "x"}, {"a.b": 2, "a": "y"}, {"a~1b": True, "a.b.c": ["z"]}]
    made = [Document(f"d{i}", metadata=metadata) for i, metadata in enumerate(kept)]
    index.add(made, encode([{0: 1.0}] * 3))
    index.commit()
    assert [d.metadata for d in index.fetch(["d0", "d1", "d2"]).documents] == kept
    assert [d.id for d in index.list_documents(sort=["a.b"]).documents] == ["d1", "d0", "d2"]
    facet = index.facets([Facet("a.b")])["a.b"]
    assert (facet.values, facet.missing) == ([(2, 1), ("x", 1)], 1)
    with pytest.raises(InputError, match=r"there are a, a\.b, a\.b\.c, a~1b"):
        index.list_documents(sort=["c"])


@pytest.mark.opensearch
def test_more_fields_than_the_server_takes_are_refused_by_name(index):
    names = {f"field{i}": i for i in range(1000)}
    index.add([Document("many", metadata=names), Document("few")], encode([{0: 1.0}] * 2))
    with pytest.raises(InputError, match=r"OpenSearch refuses it: .*total fields") as caught:
        index.commit()
    assert caught.value.item == "many"
    index._client.indices.refresh(index=index._store.index)
    assert index.search(QUERY)[0].ids == ["few"]


@pytest.mark.opensearch
def test_the_printed_request_of_each_leg_gives_its_hits(index):
    fill(index, "a", "b", "c")
    made = index.requests(QUERY, 2, text="a")
    assert made.keys() == {"lexical", "codes", "dense", "text"}
    for leg in ("lexical", "codes", "dense"):
        answer = index._client.search(index=index._store.index, body=made[leg])
        found = [hit["_id"] for hit in answer["hits"]["hits"]]
        assert found == index.search(QUERY, 2, leg)[0].ids


@pytest.mark.opensearch
def test_a_rebuild_shows_at_publish_only_and_is_rolled_back(index, tmp_path):
    address = opensearch_fakes.address(tmp_path)
    fill(index, "a")
    with OpenSearchIndex(address, True, VOCABULARY, rebuild=True) as fresh:
        fill(fresh, "b")
        assert index.search(QUERY)[0].ids == ["a"]
        fresh.publish(keep_old=1)
    with open_index(address) as reader:
        assert reader.search(QUERY)[0].ids == ["b"]
        assert reader.rollback().endswith("-000001")
        assert reader.search(QUERY)[0].ids == ["a"]


@pytest.mark.opensearch
def test_an_index_that_is_not_there_and_a_wrong_engine(server):
    with pytest.raises(IndexMissingError, match="no index at opensearch"):
        open_index(f"opensearch+{server}/nothing")
    with pytest.raises(EngineUnavailableError, match="starts with opensearch"):
        pytest.importorskip("elasticsearch", reason="pip install 'lexvla[elasticsearch]'")
        open_index(f"elasticsearch+{server}/nothing")


@pytest.mark.opensearch
def test_without_the_plugin_dense_vectors_are_stored_and_not_searched(server, tmp_path):
    def spoil(request: Request) -> Answer | None:
        """Answer as a server without the plugin did, of version 3.5.0."""
        if request.method != "PUT" or b"knn_vector" not in request.body:
            return None
        reason = "No handler for type [knn_vector] declared on field [dense]"
        return error(400, "mapper_parsing_exception", reason)

    with Proxy(server, spoil) as between:
        name = opensearch_fakes.address(tmp_path).rpartition("/")[2]
        with OpenSearchIndex(f"opensearch+{between.url}/{name}", True, VOCABULARY) as index:
            fill(index, "a", "b")
            assert index.legs() == ("lexical", "codes", "text")
            info = index.info()
            assert info["searched_legs"] == ["lexical", "codes", "text"]
            assert info["dense_search"].startswith("none: that takes its plugin opensearch-knn")
            assert index.search(QUERY)[0].ids == ["a", "b"]
            assert index.fetch(["a"]).encoding.dense.any()
            assert index.verify() == []
            with pytest.raises(UnsupportedError, match="plugin opensearch-knn"):
                index.search(QUERY, leg="dense")


@pytest.mark.opensearch
def test_what_breaks_on_its_way_is_sent_again(server, tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "PAUSES", (0.01,) * 7)
    faults = [Cut(0.5), Cut(1, 0), Cut(1, 0.5), BUSY, Answer(503, b"upstream is away", {})]
    left: dict[str, list[object]] = {}

    def spoil(request: Request) -> object:
        """Let each kind of request that a commit makes fail in every way first."""
        kind = next((k for k in ("_bulk", "_refresh", "_mget") if request.asks(k)), None)
        waiting = left.setdefault(kind, list(faults)) if kind else []
        return waiting.pop() if waiting else None

    with Proxy(server, spoil) as between:
        name = opensearch_fakes.address(tmp_path).rpartition("/")[2]
        with OpenSearchIndex(f"opensearch+{between.url}/{name}", True, VOCABULARY) as index:
            assert index.fingerprints(["a"]) == {}
            fill(index, "a", "b")
            assert left == {"_mget": [], "_bulk": [], "_refresh": []}
            assert (index.count(), index.search(QUERY)[0].ids) == (2, ["a", "b"])


@pytest.mark.parametrize(
    "told",
    [
        Answer(200, {"version": {"number": "8.19.0"}, "tagline": "You Know, for Search"}, JSON),
        Answer(200, b"<html>a gateway</html>", {"Content-Type": "text/html"}),
        Answer(200, ["a", "list"], JSON),
    ],
)
def test_what_is_not_opensearch_is_refused(told):
    with Proxy(None, lambda _: told) as other:
        address = f"opensearch+{other.url}/photos"
        with pytest.raises(EngineUnavailableError, match="what answers there is not OpenSearch"):
            open_index(address)


def test_a_server_that_is_too_old_is_refused():
    told = Answer(200, {"version": {"number": "2.19.1", "distribution": "opensearch"}}, JSON)
    with Proxy(None, lambda _: told) as old:
        address = f"opensearch+{old.url}/photos"
        with pytest.raises(EngineUnavailableError, match=r"OpenSearch 2\.19\.1, and this takes 3"):
            open_index(address)


def test_credentials_come_from_the_environment_and_are_never_told(monkeypatch):
    monkeypatch.setenv("OPENSEARCH_USERNAME", "me")
    monkeypatch.setenv("OPENSEARCH_PASSWORD", "geheim")
    with Proxy(None, lambda _: Answer(401, b"Unauthorized", {})) as other:
        address = f"opensearch+{other.url}/photos"
        with pytest.raises(EngineUnavailableError, match="set OPENSEARCH_USERNAME and") as caught:
            open_index(address)
    assert "geheim" not in str(caught.value)
    with pytest.raises(InputError, match="set OPENSEARCH_USERNAME") as caught:
        open_index("opensearch+http://user:geheim@localhost/photos")
    assert "geheim" not in str(caught.value)


def test_a_file_of_certificates_that_is_not_there_is_said(monkeypatch, tmp_path):
    monkeypatch.setenv("OPENSEARCH_CA_CERTS", str(tmp_path / "none.pem"))
    with (
        socket.create_server(("127.0.0.1", 0)) as listening,
        pytest.raises(EngineUnavailableError, match="OPENSEARCH_CA_CERTS must name a file"),
    ):
        open_index(f"opensearch+https://127.0.0.1:{listening.getsockname()[1]}/photos")


def test_no_server_is_said_at_once():
    with down() as url, pytest.raises(EngineUnavailableError, match="no server answers"):
        open_index(f"opensearch+{url}/photos")


def test_without_the_client(monkeypatch):
    monkeypatch.setitem(sys.modules, "opensearchpy", None)
    with pytest.raises(OptionalDependencyError, match=r"pip install 'lexvla\[opensearch\]'"):
        open_index("opensearch+http://127.0.0.1:1/photos")


@pytest.mark.opensearch
def test_an_index_of_another_program(tmp_path):
    place = Address.parse(opensearch_fakes.address(tmp_path), OPENSEARCH)
    client = connect(place)
    fields = {"properties": {"title": {"type": "text"}}}
    OPENSEARCH.create_index(client, place.name, {}, mappings=fields)
    for how in ({}, {"create": True}, {"create": True, "rebuild": True}):
        with pytest.raises(IndexCorruptError) as caught:
            open_index(str(place), **how)
        assert str(caught.value) == f"{place}: LexVLA did not make this index"
