"""Opening an index of Elasticsearch, the user's own or ours, and what comes of its values."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest

import elastic_fakes
from attached_fakes import ATTACHMENT, PROPERTIES
from indexer_fakes import VOCABULARY
from lexvla.errors import InputError, UnsupportedError
from lexvla_indexer import ElasticIndex, open_index
from lexvla_indexer.elastic import AttachedError, AttachedIndex
from lexvla_indexer.elastic.elasticsearch_product import ELASTICSEARCH
from lexvla_indexer.elastic.layout import VOCABULARY as VOCABULARY_KEY
from lexvla_indexer.elastic.layout import State, packed
from lexvla_indexer.scope import Scope
from lexvla_search import cli

ADDRESS = "elasticsearch+http://127.0.0.1:9/shop"  # nothing listens there
OWN = {
    "_meta": {**ATTACHMENT.dump(), VOCABULARY_KEY: packed(VOCABULARY)},
    "properties": PROPERTIES,
}


def attached(method: str, target: str, reason: str = "") -> tuple[int, Any]:
    """Answer as the server of an attached index, which refuses all but its mapping."""
    if "/_mapping" in target:
        return 200, {"shop-1": {"mappings": OWN}}
    if "/_alias/" in target:
        return 200, {}
    return elastic_fakes.error("parse_exception", reason, 400)


def test_an_index_of_ours_is_looked_up_once_by_one_client(monkeypatch):
    def ours(method: str, target: str) -> tuple[int, Any]:
        if "/_mapping" in target:
            return 200, {"shop-000001": {"mappings": {"_meta": State("rows").dump()}}}
        if "/_alias/" in target:
            return 404, {}
        health = {"status": "green", "timed_out": False, "active_primary_shards": 1}
        return 200, {**health, "indices": {"shop-000001": {"number_of_shards": 1}}}

    paths = elastic_fakes.answering(monkeypatch, ours)
    connect, clients = type(ELASTICSEARCH).connect, []
    monkeypatch.setattr(
        type(ELASTICSEARCH), "connect", lambda *_: clients.append(connect(*_)) or clients[-1]
    )
    with open_index(ADDRESS) as index:
        assert isinstance(index, ElasticIndex)
        assert index.model == "rows"
    assert paths == ["/shop/_mapping", "/_alias/shop", "/_cluster/health/shop"]
    assert len(clients) == 1


def test_an_attached_index_is_told_from_ours(monkeypatch):
    elastic_fakes.answering(monkeypatch, attached)
    with open_index(ADDRESS) as index:
        assert isinstance(index, AttachedIndex)
        assert index.vocabulary == VOCABULARY
    with pytest.raises(AttachedError, match="is an index of your own, which is attached"):
        ElasticIndex(ADDRESS)


def test_an_attached_index_is_not_searched_by_an_alias_with_a_filter(monkeypatch):
    def filtered(method: str, target: str) -> tuple[int, Any]:
        if "/_alias/shop" in target:
            return 200, {"shop-1": {"aliases": {"shop": {"filter": {"term": {"shop": 1}}}}}}
        return attached(method, target)

    elastic_fakes.answering(monkeypatch, filtered)
    with pytest.raises(UnsupportedError, match=r"an alias with a filter, .* use shop-1"):
        open_index(ADDRESS)


@pytest.mark.parametrize(
    ("text", "reason", "named"),
    [
        ('brand = "soon" and released < "soon"', "failed to parse date field [soon]", "released"),
        ('brand = "soon" or ip = "somewhere"', "'somewhere' is not an IP string literal.", "ip"),
    ],
)
def test_a_value_that_the_server_cannot_read_is_told_with_its_field(
    monkeypatch, text, reason, named
):
    monkeypatch.setitem(PROPERTIES, "ip", {"type": "ip"})
    elastic_fakes.answering(monkeypatch, partial(attached, reason=reason))
    with open_index(ADDRESS) as index, pytest.raises(InputError) as caught:
        index.count(Scope(text))
    assert str(caught.value) == f"{named!r}: the server cannot read a value: {reason}"


def test_fit_fusion_is_refused_before_anything_is_searched(monkeypatch, capsys, tmp_path: Path):
    monkeypatch.setattr("lexvla_search.cli.arguments.load_model", lambda *_: pytest.fail("loaded"))
    (tmp_path / "q.tsv").write_text("q1\tred\n", encoding="utf-8")
    (tmp_path / "qrels").write_text("q1 0 p01 1\n", encoding="utf-8")
    paths = elastic_fakes.answering(monkeypatch, attached)
    given = ["--queries", str(tmp_path / "q.tsv"), "--qrels", str(tmp_path / "qrels")]
    assert cli.main(["fit-fusion", "--index", ADDRESS, *given]) == 1
    told = "a fusion cannot be kept with an index that LexVLA only searches; --dry-run only shows"
    assert told in capsys.readouterr().err
    assert set(paths) == {"/shop/_mapping", "/_alias/shop", "/shop-1/_mapping"}
