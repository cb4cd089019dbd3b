"""A server of its own, with passwords: who may do what, and what happens when it is killed."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest

from attached_fakes import made, products
from elastic_fakes import elasticsearch_server
from elastic_proxy import Cut, Proxy
from indexer_fakes import QUERY, VOCABULARY, ColourEncoder, documents, fill, found
from ingest_fakes import contents, new_index, pictures
from lexvla.errors import EngineUnavailableError, LexVLAError
from lexvla_indexer import index_source, open_index, pipeline
from lexvla_indexer.elastic import ElasticIndex, writer
from lexvla_indexer.elastic.connection import Address, connect, elastic_errors
from lexvla_indexer.facets import Facet
from lexvla_search import cli

pytestmark = pytest.mark.elasticsearch

ROLE = Path(__file__).parent.parent / "docker" / "role.json"
PASSWORD, WRONG = "geheim-4711", "falsch-0815"
ENCODER = ColourEncoder()
RED = ENCODER.encode_text(["red green blue"])


class Server:
    """A server with a password, which can be killed."""

    def __init__(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            self.port = 20_000 + taken.getsockname()[1] % 20_000
        role = json.loads(re.sub("INDEX|PATTERN", "photos", ROLE.read_text()))
        reading = {**role["indices"][0], "privileges": ["read", "view_index_metadata"]}
        self.roles = {"keeper": role, "reader": {**role, "indices": [reading]}}
        self.start(fresh=True)

    def start(self, fresh: bool = False) -> None:
        self.url = elasticsearch_server.start(
            port=self.port, fresh=fresh, password=PASSWORD, roles=self.roles
        )

    def kill(self) -> None:
        number = elasticsearch_server.process(self.port)
        assert number is not None
        os.kill(number, signal.SIGKILL)
        deadline = time.monotonic() + 30
        while elasticsearch_server.process(self.port) is not None:
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def address(self, name: str) -> str:
        return f"elasticsearch+{self.url}/{name}"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    if not elasticsearch_server.home(elasticsearch_server.VERSION).is_dir():
        pytest.skip("needs a server to kill: run scripts/elasticsearch_server.py get")
    made = Server()
    yield made
    elasticsearch_server.stop(made.port)
    elasticsearch_server.forget(made.port)


def sign_in(monkeypatch: pytest.MonkeyPatch, user: str, password: str = PASSWORD) -> None:
    monkeypatch.setenv("ELASTIC_USERNAME", user)
    monkeypatch.setenv("ELASTIC_PASSWORD", password)


@pytest.fixture(autouse=True)
def _signed_in(monkeypatch, caplog) -> Iterator[None]:
    monkeypatch.delenv("ELASTIC_API_KEY", raising=False)
    sign_in(monkeypatch, "lexvla")
    caplog.set_level("INFO")
    yield
    assert PASSWORD not in caplog.text
    assert WRONG not in caplog.text


def test_who_may_not_in(server, monkeypatch, capsys):
    address = server.address("closed")
    with open_index(address, create=True, vocabulary=VOCABULARY) as index:
        fill(index, "a")
    for key, user, password in (
        ("", "", ""),
        ("", "lexvla", WRONG),
        ("", "nobody", WRONG),
        (WRONG, "", ""),
    ):
        monkeypatch.setenv("ELASTIC_API_KEY", key)
        sign_in(monkeypatch, user, password)
        for create in (False, True):
            with pytest.raises(EngineUnavailableError, match="set ELASTIC_API_KEY, or") as caught:
                open_index(address, create=create)
            assert WRONG not in "".join(traceback.format_exception(caught.value))
        for command in (["info"], ["delete", "a"], ["compact"]):
            assert cli.main([*command, "--index", address]) == 1
            out, err = capsys.readouterr()
            assert (out, err.count("\n"), WRONG in err) == ("", 1, False)
            assert "not allowed" in err
    monkeypatch.setenv("ELASTIC_API_KEY", "")
    sign_in(monkeypatch, "lexvla")
    with open_index(address) as index:
        assert found(index) == [("a", 1.0)]


def test_the_role_of_the_container_may_do_all_that_is_needed(server, monkeypatch, capsys):
    sign_in(monkeypatch, "keeper")
    address = server.address("photos")
    with ElasticIndex(address, True, VOCABULARY, "colours") as index:
        fill(index, "a", "b", "c")
        assert found(index) == found(index, k=10_001) == [(each, 1.0) for each in "abc"]
        assert index.search(QUERY, filter="n > 0", leg="dense")[0].ids == ["a", "b", "c"]
        assert index.search(QUERY)[0].scores.tolist() == [1.0] * 3
        assert index.delete(["b"]) == 1
        index.compact()
        index.write_note("fusion", {"lexical": 1})
        assert index.fingerprints([*"abc"]).keys() == {"a", "c"}
        assert index.info()["documents"] == 2
    for published in (False, True):
        with ElasticIndex(address, rebuild=True, vocabulary=VOCABULARY) as index:
            fill(index, "d")
            if published:
                index.publish()
    with open_index(address) as index:
        assert found(index) == [("d", 1.0)]
        assert index.fetch(["d"]).documents == documents("d")
    assert cli.main(["delete", "d", "--index", address, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["documents"] == 0


def test_a_role_that_may_only_read(server, monkeypatch):
    address = server.address("photos")
    with open_index(address, create=True, vocabulary=VOCABULARY) as index:
        fill(index, "a")
        sign_in(monkeypatch, "reader")
        with open_index(address) as reader:
            assert found(reader) == found(reader, k=10_001) == [("a", 1.0)]
            assert reader.search(QUERY, filter="n > 0")[0].ids == ["a"]
            assert reader.fetch(["a"]).documents == documents("a")
            assert reader.search(QUERY)[0].scores.tolist() == [1.0]
            assert reader.count() == 1
            assert reader.delete(["a"]) == 1
            with pytest.raises(EngineUnavailableError, match="unauthorized for user"):
                reader.commit()
        index.delete(["a"])
        index.commit()


def test_an_attached_index_needs_no_more_than_reading(server, monkeypatch):
    address = server.address("photos-000500")
    shop = products(3)
    made(address, [{0: 1.0}] * 3, shop)
    sign_in(monkeypatch, "reader")
    names = sorted(each["id"] for each in shop)
    with open_index(address) as index:
        assert [name for name, _ in found(index)] == names
        assert [name for name, _ in found(index, leg="dense")] == names
        assert index.fetch(names).encoding.lexical.nnz == 3
        view = index.with_text_fields({"maker.name": 1, "title": 2})
        assert view.search_text("maker1").ids == [shop[1]["id"]]
        assert index.search(QUERY, filter="price > 0.3")[0].ids == [shop[2]["id"]]
        listed = index.list_documents(sort=["-price"]).documents
        assert [document.id for document in listed] == [each["id"] for each in reversed(shop)]
        assert index.facets([Facet("sale")])["sale"].values == [(True, 2), (False, 1)]
        assert index.count() == 3
    sign_in(monkeypatch, "lexvla")
    place = Address.parse(address)
    with connect(place) as client:
        client.indices.delete(index=place.name)


@pytest.mark.parametrize("name", ["other", "photos2", "photos-private"])
def test_the_role_of_the_container_may_do_nothing_elsewhere(server, monkeypatch, name):
    address = server.address(name)
    with open_index(address, create=True, vocabulary=VOCABULARY) as index:
        fill(index, "a")
        names = [name, index.info()["index"]]
    sign_in(monkeypatch, "keeper")
    for options in ({}, {"create": True}, {"create": True, "rebuild": True}):
        with pytest.raises(LexVLAError, match=r"not allowed|no index at"):
            open_index(address, vocabulary=VOCABULARY, **options)
    place = Address(server.url, "photos")
    with connect(place) as client:
        for each in names:
            for ask in (
                lambda each=each: client.search(index=each),
                lambda each=each: client.index(index=each, id="b", document={"id": "b"}),
                lambda each=each: client.delete(index=each, id="a"),
                lambda each=each: client.indices.get_mapping(index=each),
                lambda each=each: client.indices.put_settings(index=each, settings={"x": 1}),
                lambda each=each: client.indices.put_alias(index=each, name="photos-000009"),
            ):
                with pytest.raises(EngineUnavailableError, match="unauthorized"):  # noqa: SIM117
                    with elastic_errors(place):
                        ask()
        for ask in (
            client.nodes.info,
            client.cluster.get_settings,
            client.security.get_user,
            client.cluster.state,
        ):
            with pytest.raises(EngineUnavailableError, match="unauthorized"):  # noqa: SIM117
                with elastic_errors(place):
                    ask()
    sign_in(monkeypatch, "lexvla")
    with open_index(address) as index:
        assert found(index) == [("a", 1.0)]


@pytest.mark.slow
def test_a_server_that_is_killed_in_a_load(server, monkeypatch, tmp_path):
    """It is killed in a bulk and started again; the load waits for it, and another one resumes."""
    monkeypatch.setattr(pipeline, "_COMMIT_ITEMS", 10)
    monkeypatch.setattr(writer, "BULK", 4)
    photos = pictures(tmp_path / "photos", range(40))
    names = [f"{number:03}.png" for number in range(40)]
    with new_index(tmp_path / "whole.lex", ENCODER) as whole:
        index_source(photos, whole, ColourEncoder(), batch_size=4)
        expected = contents(whole, names)
    killed: list[threading.Thread] = []

    def spoil(request):
        if request.asks("_bulk") and not killed and proxy.count("_bulk") == 5:
            server.kill()
            killed.append(threading.Thread(target=server.start))
            killed[0].start()
            return Cut(0.5)
        return None

    with Proxy(server.url, spoil) as proxy:
        address = proxy.address("killed")

        def opened():
            return open_index(
                address, create=True, vocabulary=ENCODER.vocabulary, model=ENCODER.name
            )

        def load(index):
            return index_source(photos, index, ColourEncoder(), batch_size=4).added

        with opened() as index, opened() as broken:
            monkeypatch.setattr(writer, "PAUSES", (0.01,))
            with pytest.raises(EngineUnavailableError, match="no server answers"):
                load(broken)
            for ask in (opened, index.count, lambda: index.search(RED), lambda: index.fetch(names)):
                with pytest.raises(EngineUnavailableError):
                    ask()
            monkeypatch.setattr(writer, "PAUSES", (0.5,) * 240)
            assert 0 < load(index) <= len(names)
            (hits,) = index.search(RED, 1000)
            assert sorted(hits.ids) == names
            assert contents(index, names) == expected
        killed[0].join()
        with opened() as index:
            assert load(index) == 0
