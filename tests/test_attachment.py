"""How a user's own Elasticsearch index says that it is attached."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

import elastic_fakes
from indexer_fakes import VOCABULARY
from lexvla.errors import (
    IndexCorruptError,
    IndexMissingError,
    IndexVersionError,
    LexVLAError,
    UnsupportedError,
)
from lexvla_indexer import ElasticIndex
from lexvla_indexer.elastic.attachment import (
    Attachment,
    describe,
    read_attached_vocabulary,
    read_attachment,
    remove_attachment,
    write_attachment,
)
from lexvla_indexer.elastic.connection import Address, connect
from lexvla_indexer.elastic.layout import ATTACHMENT

MADE = Attachment(
    image_field="photo.url",
    text_fields=("title", "maker.name"),
    lexical_field="lex",
    dense_field="vec",
    model="colours",
    vocabulary_sha256=VOCABULARY.sha256,
    widths={"lexical": len(VOCABULARY), "dense": 3},
    cursor={"n": 1},
)


def test_what_is_dumped_is_loaded():
    assert Attachment.load("x", MADE.dump()) == MADE
    assert MADE.own_fields == ("lex", "vec", "lexvla")
    assert replace(MADE, dense_field=None).own_fields == ("lex", "lexvla")


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"format_version": 2}, IndexVersionError, "x: its attachment's format 2 is newer"),
        ({"format_version": 0}, IndexVersionError, "x: its attachment's format 0 is older"),
        ({"format_version": "?"}, IndexCorruptError, "x: its attachment in _meta is damaged"),
        ({"text_fields": None}, IndexCorruptError, "x: its attachment in _meta is damaged"),
        ({"more": 1}, IndexCorruptError, "x: its attachment in _meta is damaged"),
    ],
)
def test_an_attachment_that_cannot_be_read(change, error, said):
    stored = {ATTACHMENT: MADE.dump()[ATTACHMENT] | change}
    with pytest.raises(error, match=said):
        Attachment.load("x", stored)


@pytest.fixture
def place(tmp_path) -> Iterator[Address]:
    with elastic_fakes.cleaned():
        yield Address.parse(elastic_fakes.address(tmp_path))


@pytest.mark.elasticsearch
def test_an_index_is_attached_and_detached(place):
    with connect(place) as client:
        with pytest.raises(IndexMissingError, match="no index at"):
            read_attachment(client, place)
        properties = {"title": {"type": "text"}}
        client.indices.create(
            index=place.name, mappings={"_meta": {"team": "shop"}, "properties": properties}
        )
        assert read_attachment(client, place) is None
        write_attachment(client, place, MADE, VOCABULARY)
        assert read_attachment(client, place) == MADE
        assert read_attached_vocabulary(client, place, MADE) == VOCABULARY
        _, mapping, meta = describe(client, place)
        assert mapping["properties"].keys() == {"title", "lex", "vec", "lexvla"}
        assert mapping["properties"]["title"] == {"type": "text"}
        assert meta["team"] == "shop"
        later = replace(MADE, cursor={"n": 2})
        write_attachment(client, place, later)
        assert read_attachment(client, place) == later
        assert read_attached_vocabulary(client, place, later) == VOCABULARY
        with pytest.raises(IndexCorruptError, match="has lost the vocabulary"):
            read_attached_vocabulary(client, place, replace(MADE, vocabulary_sha256="0"))
        remove_attachment(client, place)
        assert read_attachment(client, place) is None
        assert describe(client, place).meta == {"team": "shop"}


@pytest.mark.elasticsearch
def test_indexes_that_cannot_be_attached(place):
    with connect(place) as client:
        client.indices.create(
            index=place.name, mappings={"properties": {"vec": {"type": "keyword"}}}
        )
        with pytest.raises(LexVLAError, match="vec"):
            write_attachment(client, place, MADE, VOCABULARY)
        assert read_attachment(client, place) is None
        both = place._replace(name=f"{place.name}-both")
        client.indices.create(index=f"{place.name}-b")
        for name in (place.name, f"{place.name}-b"):
            client.indices.put_alias(index=name, name=both.name)
        with pytest.raises(IndexCorruptError, match="the alias means several indices"):
            read_attachment(client, both)
    with ElasticIndex(f"{place}-own", True, VOCABULARY):
        own = place._replace(name=f"{place.name}-own")
        with connect(own) as client:
            assert read_attachment(client, own) is None
            with pytest.raises(UnsupportedError, match="lexvla index made it"):
                write_attachment(client, own, MADE, VOCABULARY)
