"""What other programs do to an Elasticsearch index: no vector is lost unseen."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

import elastic_fakes
from indexer_fakes import LEGS, QUERY, VOCABULARY, encode, found
from lexvla.errors import IndexCorruptError, UnknownDocumentError
from lexvla_indexer import Document, ElasticIndex, open_index
from lexvla_indexer.elastic.elasticsearch_product import ELASTICSEARCH
from lexvla_indexer.elastic.typed_fields import typed_metadata

SEEN = Document("a", "u/a.png", "a red car", {"tag": ["cat"], "n": 2020, "on": True}, "s:1")
OTHER = Document("b", "u/b.png", "", {"tag": "dog", "n": 0.5, "taken": "2020-05-06"}, "s:2")
ROWS = encode([{0: 1.0, 3: 0.3}, {0: 0.7, 9: 0.123456789}])


@pytest.fixture
def index(tmp_path) -> Iterator[ElasticIndex]:
    place = elastic_fakes.address(tmp_path)
    with elastic_fakes.cleaned(), ElasticIndex(place, True, VOCABULARY) as made:
        made.add([SEEN, OTHER], ROWS)
        made.commit()
        yield made


def answers(index: ElasticIndex) -> list[Any]:
    """Return what an index says by each leg, by filters, by text, and of its rows."""
    hits = [found(index, QUERY, 10, leg) for leg in LEGS]
    chosen = [index.search(QUERY, filter=text)[0].ids for text in ("tag = cat", "n < 1")]
    rows = index.fetch(["a", "b"]).encoding
    exact = [rows.lexical.toarray(), rows.codes.toarray(), rows.dense, rows.patches]
    # Not the scores by text: until a merge, BM25 counts the words of old versions too.
    return [hits, chosen, index.search_text("red").ids, [part.tolist() for part in exact]]


@pytest.mark.elasticsearch
def test_a_partial_update_loses_nothing(index):
    before, client = answers(index), index._client
    assert before[-1] == [
        part.tolist()
        for part in (ROWS.lexical.toarray(), ROWS.codes.toarray(), ROWS.dense, ROWS.patches)
    ]
    changes: list[Any] = [{"uri": "x"}, {"keyword": {"shelf": "7"}}, {"double": {"n": 3}}]
    for change in changes:
        for name in "ab":
            client.update(index=index._place.name, id=name, doc=change, refresh=True)
    assert answers(index) == before
    assert index.fetch(["a"]).documents[0].uri == "x"
    assert index.verify() == []
    assert index.fingerprints(["a", "b"]) == {"a": "s:1", "b": "s:2"}


@pytest.mark.elasticsearch
def test_a_copy_made_of_source_is_whole(index):
    """What ``_reindex`` does, which the test server lacks."""
    client, name = index._client, index._store.index
    described = client.indices.get(index=name).body[name]
    kept = ("mapping", "refresh_interval")
    settings = {each: described["settings"]["index"][each] for each in kept}
    copy = f"{index._place.name}-copy"
    client.indices.create(index=copy, settings=settings, mappings=described["mappings"])
    for hit in client.search(index=name)["hits"]["hits"]:
        client.index(index=copy, id=hit["_id"], document=hit["_source"], refresh=True)
    with open_index(f"{index._place}-copy") as made:
        assert answers(made) == answers(index)
        assert made.vocabulary == VOCABULARY
        assert made.verify() == []


@pytest.mark.elasticsearch
def test_a_source_that_is_stored_again_is_whole(index):
    """What ``_update_by_query`` does, which the test server lacks."""
    before, client, name = answers(index), index._client, index._store.index
    for hit in client.search(index=name)["hits"]["hits"]:
        client.index(index=name, id=hit["_id"], document=hit["_source"], refresh=True)
        assert client.get(index=name, id=hit["_id"])["_version"] == 2
    assert answers(index) == before
    assert index.verify() == []


@pytest.mark.elasticsearch
@pytest.mark.parametrize("field", ["lex", "codes", "dense", "filter", "id"])
def test_a_document_that_lost_a_field_is_told_and_encoded_again(index, field):
    client, name = index._client, index._place.name
    source = dict(client.get(index=name, id="a")["_source"])
    del source[field]
    client.index(index=name, id="a", document=source, refresh=True)
    assert index.verify() == ["document 'a' has lost vectors or its id; index its source again"]
    assert index.fingerprints(["a", "b"]) == {"a": "", "b": "s:2"}
    if field != "id":
        row = index.fetch(["a"]).encoding
        assert (field == "lex") == (row.lexical.nnz == 0)
    index.add([SEEN], ROWS[0])
    index.commit()
    assert index.verify() == []
    assert index.fingerprints(["a", "b"]) == {"a": "s:1", "b": "s:2"}


@pytest.mark.elasticsearch
def test_a_document_of_another_program_is_no_item(index):
    client, name = index._client, index._place.name
    client.index(index=name, id="x", document={"text": "red"}, refresh=True)
    assert index.count() == 2
    assert index.verify() == ["document 'x' has lost vectors or its id; index its source again"]
    with pytest.raises(UnknownDocumentError, match="x"):
        index.fetch(["x"])
    client.update(index=name, id="a", doc={"lex": {"strange": 1.0}}, refresh=True)
    with pytest.raises(IndexCorruptError, match=r"'a' has the term 'strange'"):
        index.fetch(["a"])


@pytest.mark.elasticsearch
def test_others_see_documents_only_and_metadata_by_type(index):
    client, name = index._client, index._place.name
    assert client.count(index=name)["count"] == 2
    asked = {
        "tags": {"terms": {"field": "keyword.tag"}},
        "n": {"stats": {"field": "double.n"}},
        "years": {"date_range": {"field": "date.taken", "ranges": [{"from": "2020-05"}]}},
        "on": {"terms": {"field": "boolean.on"}},
        "words": {"terms": {"field": "strongest"}},
    }
    told = client.search(index=name, size=0, aggregations=asked)["aggregations"]

    def counts(kind: str) -> dict[str, int]:
        return {str(each["key"]): each["doc_count"] for each in told[kind]["buckets"]}

    assert counts("tags") == {"cat": 1, "dog": 1}
    assert (told["n"]["min"], told["n"]["max"]) == (0.5, 2020)
    assert list(counts("years").values()) == [1]
    assert counts("on") == {"1": 1}
    assert counts("words") == {"word0": 2, "word3": 1, "word9": 1}
    hits = client.search(index=name, query={"match": {"text": "cars RED"}})["hits"]["hits"]
    assert [hit["_id"] for hit in hits] == ["a"]
    order = client.search(index=name, sort=[{"double.n": "asc"}])["hits"]["hits"]
    assert [hit["_id"] for hit in order] == ["b", "a"]


@pytest.mark.elasticsearch
def test_many_and_strange_names_do_not_stop_a_document(index):
    metadata = {f"k{i}": i for i in range(1200)} | {"": "x", " ": 1, ".": "y", "a..b": 10**400}
    index.add([Document("c", metadata=metadata)], ROWS[0])
    index.commit()
    assert index.fetch(["c"]).documents[0].metadata == metadata
    assert index.search(QUERY, filter="k1199 = 1199")[0].ids == ["c"]
    mapped = json.dumps(index._client.indices.get_mapping(index=index._place.name).body)
    assert 900 < mapped.count('"double"') < 1000


def test_metadata_by_type():
    assert typed_metadata(
        {"a": "x", "b": ["y", ""], "c": 1, "d": 1.5, "e": False}, ELASTICSEARCH
    ) == {
        "keyword": {"a": "x", "b": ["y", ""]},
        "double": {"c": 1.0, "d": 1.5},
        "boolean": {"e": False},
    }
    assert typed_metadata({"": "x", " \n": "y", "big": -(10**400)}, ELASTICSEARCH) == {}
    dates = {
        "2020-05-06": "2020-05-06",
        "2020-05-06 10:00": "2020-05-06T10:00",
        "2020-05-06T10:00:00.5+02:00": "2020-05-06T10:00:00.5+02:00",
        "2020-05-06T10:00:00Z": "2020-05-06T10:00:00Z",
    }
    for value, date in dates.items():
        assert typed_metadata({"t": value}, ELASTICSEARCH) == {
            "keyword": {"t": value},
            "date": {"t": date},
        }
    for value in ("2020", "20200506", "2020-05-06T", "on 2020-05-06", "2020-W01-1"):
        assert typed_metadata({"t": value}, ELASTICSEARCH) == {"keyword": {"t": value}}
