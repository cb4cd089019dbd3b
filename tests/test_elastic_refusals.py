"""What the Elasticsearch engine refuses, and how it says that a server cannot do a thing."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator

import numpy as np
import pytest
from scipy import sparse

import elastic_fakes
from indexer_fakes import QUERY, VOCABULARY, documents, encode, fill
from lexvla.encoding import Encoding
from lexvla.errors import (
    EngineUnavailableError,
    IndexCorruptError,
    IndexVersionError,
    InputError,
    LexVLAError,
    OptionalDependencyError,
    UnsupportedError,
    VocabularyMismatchError,
)
from lexvla.vocabulary import Vocabulary
from lexvla_indexer import ElasticIndex, open_index
from lexvla_indexer.elastic import connection, writer
from lexvla_indexer.elastic.connection import Address
from lexvla_indexer.legs import check_terms

CLOSED = "elasticsearch+http://127.0.0.1:9/photos"  # nothing listens there


@pytest.mark.parametrize(
    ("address", "url", "name"),
    [
        ("elasticsearch+http://host:9200/photos", "http://host:9200", "photos"),
        ("elasticsearch+https://host/photos/", "https://host:9200", "photos"),
        ("elasticsearch+https://h:443/some/where/photos-2", "https://h:443/some/where", "photos-2"),
        ("elasticsearch+http://[::1]:9200/é", "http://[::1]:9200", "é"),
        ("elasticsearch+https://a,b:9201/x/é", "https://a:9200,b:9201/x", "é"),
    ],
)
def test_addresses(address, url, name):
    assert Address.parse(address) == Address(url, name)


def test_the_nodes_of_an_address():
    several = Address.parse("elasticsearch+https://a,[::1]:9201/some/where/x")
    assert several.nodes == ["https://a:9200/some/where", "https://[::1]:9201/some/where"]


@pytest.mark.parametrize(
    "rest",
    [
        *("http://host:9200", "http://host:9200/", "ftp://host/photos", "http:///photos"),
        *("http://host:x/photos", "http://host/Photos", "http://host/_all", "http://host/a*b"),
        *(
            "http://host/a,b",
            "http://a,,b/x",
            "http://a:x,b/x",
            "http://host/-a",
            "http://host/photos?x=1",
            "http://host?x=1/photos",
            "http://host/a#b/photos",
            "photos",
            "",
        ),
    ],
)
def test_addresses_that_cannot_be_read(rest):
    with pytest.raises(InputError):
        open_index(f"elasticsearch+{rest}")


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("elasticsearch:photos", "'elasticsearch:': .* starts with elasticsearch.http:// or"),
        ("elasticsearch://me:geheim@h/photos", "'elasticsearch:': .* starts with elastic"),
        ("opensearch:photos", "'opensearch:': .* starts with opensearch.http:// or .https://"),
        ("elasticsearch+http://host:9200", "the address names no index; it has the form elastic"),
        ("elasticsearch+http://host/_photos", "'_photos': no name of an Elasticsearch index begin"),
    ],
)
def test_what_is_wrong_with_an_address_is_told(address, told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=told) as caught:
        open_index(address, create=True)
    assert "geheim" not in str(caught.value)
    assert not list(tmp_path.iterdir())  # nor is it taken for a folder


def test_credentials_in_an_address_are_refused_and_not_repeated():
    for rest in ("http://me:geheim@host/photos", "https://geheim@host/photos"):
        with pytest.raises(InputError, match="do not go into the address") as caught:
            open_index(f"elasticsearch+{rest}")
        assert "geheim" not in str(caught.value)


def test_only_elasticsearch_is_rebuilt(tmp_path):
    for address in (tmp_path / "i", f"lucene:{tmp_path}/l"):
        with pytest.raises(UnsupportedError, match="rebuilt behind its name"):
            open_index(address, create=True, rebuild=True)


def test_without_the_client(monkeypatch):
    monkeypatch.setitem(sys.modules, "elasticsearch", None)
    with pytest.raises(OptionalDependencyError, match=r"pip install 'lexvla\[elasticsearch\]'"):
        open_index(CLOSED)


def test_terms_that_are_too_long():
    with pytest.raises(UnsupportedError, match="at most 32,766 bytes"):
        check_terms(["é" * 16_384], "Elasticsearch")
    check_terms(["é" * 16_383], "Elasticsearch")


def test_no_server():
    pytest.importorskip("elasticsearch", reason="pip install 'lexvla[elasticsearch]'")
    for create in (False, True):
        with pytest.raises(EngineUnavailableError, match="no server answers"):
            open_index(CLOSED, create=create, vocabulary=VOCABULARY)


def test_credentials_are_sent_and_never_logged(monkeypatch, caplog):
    pytest.importorskip("elasticsearch", reason="pip install 'lexvla[elasticsearch]'")
    caplog.set_level(logging.DEBUG)
    for secrets in (
        {"ELASTIC_API_KEY": "geheim"},
        {"ELASTIC_USERNAME": "me", "ELASTIC_PASSWORD": "geheim"},
    ):
        with monkeypatch.context() as patch:
            for name, value in secrets.items():
                patch.setenv(name, value)
            with pytest.raises(EngineUnavailableError) as caught:
                open_index(CLOSED)
        assert "geheim" not in f"{caught.value}{caught.value.__cause__}{caplog.text}"
        assert caplog.text


@pytest.fixture(scope="module")
def address(tmp_path_factory) -> Iterator[str]:
    with elastic_fakes.cleaned():
        yield elastic_fakes.address(tmp_path_factory.mktemp("i"))


@pytest.fixture
def index(address) -> Iterator[ElasticIndex]:
    with ElasticIndex(address, True, VOCABULARY) as made:
        yield made


needs_server = pytest.mark.elasticsearch


@needs_server
@pytest.mark.parametrize(
    ("answer", "error", "says"),
    [
        (
            elastic_fakes.error("security_exception", "unable to authenticate user [me]", 401),
            EngineUnavailableError,
            "ELASTIC_API_KEY",
        ),
        (
            elastic_fakes.error("security_exception", "action [x] is unauthorized", 403),
            EngineUnavailableError,
            "not allowed",
        ),
        (
            elastic_fakes.error("security_exception", "current license is non-compliant", 403),
            UnsupportedError,
            "licence",
        ),
        (
            elastic_fakes.error("cluster_block_exception", "index [x] blocked by: read-only", 403),
            EngineUnavailableError,
            "read-only",
        ),
        (
            elastic_fakes.error("es_rejected_execution_exception", "queue is full", 429),
            EngineUnavailableError,
            "cannot do it now",
        ),
        (
            elastic_fakes.error("media_type_header_exception", "Invalid media-type value", 400),
            EngineUnavailableError,
            "next major version",
        ),
        (
            elastic_fakes.error("illegal_argument_exception", "no such thing", 400),
            LexVLAError,
            "no such thing",
        ),
        ((503, "upstream is away"), EngineUnavailableError, "upstream is away"),
        ((502, None), EngineUnavailableError, "HTTP 502"),
    ],
)
def test_what_a_server_answers(index, answer, error, says, monkeypatch):
    monkeypatch.setattr(writer, "PAUSES", ())
    monkeypatch.setattr(connection, "_SETTLING", ())
    elastic_fakes.through(index, lambda method, target, body: answer)
    for ask in (
        lambda: index.count(),
        lambda: index.search(QUERY),
        lambda: index.fetch(["a"]),
        lambda: index.fingerprints(["a"]),
        lambda: index.info(),
    ):
        with pytest.raises(error, match=says):
            ask()


@needs_server
def test_what_the_licence_does_not_cover(index):
    fill(index, "a")
    reason = "current license is non-compliant for [Sparse Vectors]"
    answer = elastic_fakes.error("security_exception", reason, 403)
    elastic_fakes.through(index, lambda method, target, body: answer)
    with pytest.raises(UnsupportedError, match=r"licence does not cover this: .*Sparse Vectors"):
        index.search(QUERY)


@needs_server
def test_an_error_of_one_search_among_many(index):
    fill(index, "a")
    _, told = elastic_fakes.error("illegal_argument_exception", "one shard is ill", 400)

    def answer(method, target, body):
        return (200, {"responses": [told]}) if "_msearch" in target else None

    elastic_fakes.through(index, answer)
    with pytest.raises(LexVLAError, match="one shard is ill"):
        index.search(QUERY)


@needs_server
def test_another_vocabulary_and_other_legs(index, address):
    fill(index, "a")
    other = Vocabulary(f"other{i}" for i in range(12))
    with pytest.raises(VocabularyMismatchError, match="was made with"):
        open_index(address, vocabulary=other)
    wide = Encoding(sparse.csr_array(np.ones((1, 13), np.float32)))
    with pytest.raises(VocabularyMismatchError, match="13 here"):
        index.search(wide)
    with pytest.raises(UnsupportedError, match="the new vectors have lexical"):
        index.add(documents("b"), Encoding(encode([{0: 1.0}]).lexical))
    with pytest.raises(UnsupportedError, match="queries have no dense leg"):
        index.search(Encoding(QUERY.lexical), leg="dense")
    with pytest.raises(ValueError, match="no leg is called"):
        index.search(QUERY, leg="smell")
    with pytest.raises(ValueError, match="at least 1"):
        index.search(QUERY, 0)
    with pytest.raises(InputError, match="occurs twice"):
        index.add(documents("bb"), encode([{0: 1.0}] * 2))


@needs_server
def test_other_formats_and_indices_of_others(address):
    name = f"{Address.parse(address).name}-other"
    with ElasticIndex(f"{address}-other", True, VOCABULARY) as index:
        client = index._client
        changed = index._store.state.dump()
        changed["lexvla"]["format_version"] = 99
        client.indices.put_mapping(index=name, meta=changed)
        with pytest.raises(IndexVersionError, match="format 99"):
            open_index(f"{address}-other")
        with pytest.raises(IndexVersionError, match="format 99"):
            open_index(f"{address}-other", create=True)
        client.indices.put_mapping(index=name, meta={"lexvla": {"format_version": 2}})
        with pytest.raises(IndexVersionError, match="format 2 is older"):
            open_index(f"{address}-other")
        client.indices.put_mapping(index=name, meta={"lexvla": {"format_version": 3, "x": 2}})
        with pytest.raises(IndexCorruptError, match="_meta is damaged"):
            open_index(f"{address}-other")
        foreign = f"{Address.parse(address).name}-foreign"
        client.indices.create(index=foreign)
        said = f"{address}-foreign: LexVLA did not make this index, and it is not attached; "
        said += f"lexvla attach {address}-foreign --help says how to"
        for mapping in ({}, {"properties": {"title": {"type": "text"}}}, {"_meta": {"by": "shop"}}):
            client.indices.put_mapping(index=foreign, **mapping)
            for how in ({}, {"create": True}, {"rebuild": True, "create": True}):
                with pytest.raises(IndexCorruptError) as caught:
                    open_index(f"{address}-foreign", **how)
                assert str(caught.value) == said
        client.indices.put_alias(index=foreign, name=name)
        with pytest.raises(IndexCorruptError, match="several indices"):
            open_index(f"{address}-other")


@needs_server
def test_an_alias_with_a_filter(address):
    with ElasticIndex(address, create=True, vocabulary=VOCABULARY) as index:
        fill(index, "a", "b")
        aliases, own = index._client.indices, index._store.index
        aliases.put_alias(index=own, name=Address.parse(address).name + "-a")
        with open_index(f"{address}-a") as reader:
            assert reader.count() == 2
        aliases.put_alias(
            index=own, name=Address.parse(address).name + "-a", filter={"term": {"id": "a"}}
        )
        for create in (False, True):
            with pytest.raises(UnsupportedError, match="which LexVLA would not apply; use "):
                open_index(f"{address}-a", create=create)
        assert index.count() == 2


def test_a_lost_vocabulary(address):
    with ElasticIndex(f"{address}-lost", True, VOCABULARY) as index:
        index._client.indices.put_mapping(index=index._store.index, meta=index._store.state.dump())
        with pytest.raises(IndexCorruptError, match="lost the vocabulary"):
            open_index(f"{address}-lost")


@needs_server
def test_weights_that_the_server_refuses_are_not_sent(index):
    before = index.count()
    for bad in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="finite values above zero"):
            Encoding(sparse.csr_array((np.float32([bad]), [0], [0, 1]), shape=(1, 12)))
    tiny = encode([{0: 1.0}, {1: 1.0, 2: 1e-40}])
    with pytest.raises(InputError, match=r"'y'.*weights of at least 1\.18e-38"):
        index.add(documents("xy"), tiny)
    index.commit()
    assert index.count() == before


@needs_server
def test_documents_that_the_server_refuses_are_named_and_the_others_stay(address):
    with ElasticIndex(f"{address}-some", True, VOCABULARY) as index:
        fill(index, "a")

        index.add(documents("bcde"), encode([{0: 1.0}] * 4))
        rows = writer.sources(*index._staging.rows(), VOCABULARY.terms, index.product)
        spoiled = [
            json.dumps({**source, "unknown": 1} if source["id"] in "ce" else source)
            for source in map(json.loads, rows)
        ]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(writer, "sources", lambda *_: iter(spoiled))
            with pytest.raises(InputError, match=r"'c'.*unknown.*1 more: 'e'"):
                index.commit()
        assert index.fingerprints([*"abcde"]).keys() == set("abcde")  # two are still staged
        index.delete([*"ce"])
        index.commit()
        assert index.search(QUERY)[0].ids == ["a", "b", "d"]


@needs_server
def test_a_commit_goes_on_where_a_connection_broke(address, monkeypatch):
    import elastic_transport

    monkeypatch.setattr(writer, "PAUSES", (0.01, 0.01))
    monkeypatch.setattr(writer, "PIECE", 10)
    names = [f"{i:02}" for i in range(40)]
    with ElasticIndex(f"{address}-cut", True, VOCABULARY) as index:
        bulks = []

        def cut(method, target, body):
            if not target.startswith("/_bulk"):
                return None
            bulks.append(target)
            if len(bulks) in (2, 3):  # once, and once again
                return elastic_transport.ConnectionError("cut")
            return elastic_transport.ConnectionError("down") if 4 < len(bulks) < 8 else None

        elastic_fakes.through(index, cut)
        index.add(documents(names), encode([{0: 1.0}] * 40))
        with pytest.raises(EngineUnavailableError, match="no server answers"):
            index.commit()
        assert len(bulks) == 7
        with open_index(f"{address}-cut") as other:
            assert other.count() == 0  # what was sent is not shown
            assert len(other.fingerprints(names)) == 20  # but is there, for a run that resumes
        index.commit()
        assert index.search(QUERY, 100)[0].ids == names


@needs_server
def test_a_server_that_is_too_busy_for_a_while(address, monkeypatch):
    monkeypatch.setattr(writer, "PAUSES", (0.01, 0.01, 0.01))
    with ElasticIndex(f"{address}-busy", True, VOCABULARY) as index:
        busy = elastic_fakes.error("es_rejected_execution_exception", "queue is full", 429)
        left = [busy, busy]
        elastic_fakes.through(
            index, lambda method, target, body: left.pop() if "_bulk" in target and left else None
        )
        fill(index, "a", "b")
        assert not left
        assert index.search(QUERY)[0].ids == ["a", "b"]


@needs_server
def test_a_rebuild_that_lost_documents_is_not_published(address):
    with ElasticIndex(f"{address}-less", True, VOCABULARY) as index:
        fill(index, "a")
    with ElasticIndex(f"{address}-less", True, VOCABULARY, rebuild=True) as index:
        fill(index, "b", "c")
        index._client.delete(index=index._store.index, id="c")
        with pytest.raises(EngineUnavailableError, match="has 1 of 2 documents"):
            index.publish()
    with open_index(f"{address}-less") as reader:
        assert reader.search(QUERY)[0].ids == ["a"]


@needs_server
def test_an_index_whose_shards_are_on_no_server(address):
    with ElasticIndex(f"{address}-red", True, VOCABULARY) as index:
        red = {"status": "red", "timed_out": True, "unassigned_shards": 2}
        elastic_fakes.through(
            index, lambda method, target, body: (408, red) if "_cluster/health" in target else None
        )
        with pytest.raises(EngineUnavailableError, match="health is red: 2 of its shards"):
            index._store.wait()


@needs_server
@pytest.mark.parametrize(
    ("path", "told"),
    [("/_count", {"count": 1}), ("/_stats", {"_all": {"primaries": {}}}), ("/_refresh", {})],
)
def test_what_some_shards_count_is_not_told_of_all(index, monkeypatch, path, told):
    fill(index, "a")
    monkeypatch.setattr(writer, "PAUSES", ())
    monkeypatch.setattr(connection, "_SETTLING", ())
    answer = 200, {"_shards": {"total": 3, "successful": 1, "failed": 2}, **told}
    elastic_fakes.through(index, lambda method, target, body: answer if path in target else None)
    with pytest.raises(EngineUnavailableError, match="2 of 3 shards do not answer"):
        index.commit() if path == "/_refresh" else index.info()
