"""What people are told where an Elasticsearch server fails, and that nothing is lost by it."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import ssl
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import elastic_fakes
from elastic_proxy import BUSY, PRODUCT, Answer, Cut, Noise, Proxy, down, error, self_signed
from indexer_fakes import (
    QUERY,
    VOCABULARY,
    brute_force,
    documents,
    encode,
    fill,
    found,
    random_rows,
)
from lexvla.errors import EngineUnavailableError, FilterSyntaxError, IndexMissingError, LexVLAError
from lexvla_indexer import ElasticIndex, open_index
from lexvla_indexer.elastic import connection, elasticsearch_product, layout, writer
from lexvla_indexer.elastic.connection import Address, connect
from lexvla_search import cli
from search_fakes import FakeEncoder, save_pictures
from source_tree import PYTHONPATH

pytestmark = pytest.mark.elasticsearch

SECRET = "geheim-4711"
PAGE = b"<html>Bad Gateway</html>"
HTML = {"Content-Type": "text/html"}
OLD = "Content-Type header [application/vnd.elasticsearch+json; compatible-with=8] is not supported"
NEW = (
    "A compatible version is required on both Content-Type and Accept headers if either one has "
    "requested a compatible version. Accept=application/vnd.elasticsearch+json; compatible-with=8"
)
RANGE = "speaks to servers of its own and the next major version, 8 and 9"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Wait less than people do, with a key that nobody may see."""
    monkeypatch.setattr(writer, "PAUSES", (0.01, 0.02))
    monkeypatch.setattr(writer, "TRIES", 1)
    monkeypatch.setattr(writer, "SHARD_WAIT", "100ms")
    monkeypatch.setattr(layout, "_WAIT", "2s")
    monkeypatch.setattr(connection, "_SETTLING", (0.01, 0.02))
    monkeypatch.setenv("ELASTIC_API_KEY", SECRET)
    caplog.set_level(logging.INFO)
    yield
    assert SECRET not in caplog.text


@pytest.fixture(scope="module")
def proxy() -> Iterator[Proxy]:
    with elastic_fakes.cleaned(), Proxy(elastic_fakes.url()) as between:
        yield between


@pytest.fixture
def address(proxy: Proxy, tmp_path: Path) -> Iterator[str]:
    proxy.spoil = lambda _: None
    yield proxy.address(elastic_fakes.address(tmp_path).rpartition("/")[2])
    proxy.spoil = lambda _: None


@pytest.fixture
def index(address: str) -> Iterator[ElasticIndex]:
    with ElasticIndex(address, True, VOCABULARY) as made:
        fill(made, "a", "b")
        yield made


def told(kind: type[LexVLAError], says: str, ask: Callable[[], Any]) -> None:
    """Demand one of our errors, which says this and shows no secret."""
    with pytest.raises(kind, match=re.escape(says)) as caught:
        ask()
    assert SECRET not in "".join(traceback.format_exception(caught.value))


def operations(index: ElasticIndex) -> list[Callable[[], Any]]:
    return [
        index.count,
        index.info,
        lambda: index.search(QUERY),
        lambda: index.search(QUERY, 10_001),
        lambda: index.search(QUERY, filter="n > 0"),
        lambda: index.fetch(["a"]),
        lambda: index.fingerprints(["a"]),
        lambda: index.delete(["b"]),
        index.commit,
        index.compact,
    ]


FAULTS = {
    "closed": (Cut(), "no server answers: ('Connection aborted.'"),
    "closed in the request": (Cut(0.5), "no server answers: ('Connection aborted.'"),
    "no answer": (Cut(1), "no server answers: ('Connection aborted.'"),
    "half an answer": (Cut(1, 0.5), "no server answers: ('Connection broken"),
    "another protocol": (Noise(b"SSH-2.0-OpenSSH_9.6\r\n"), "no server answers"),
    "noise": (Noise(bytes(range(256)) * 9), "no server answers"),
    "half of its JSON": (Answer(200, b'{"hits":'), "no server answers: Unable to deserialize"),
    "a web site": (Answer(200, PAGE, HTML), "not Elasticsearch"),
    "a web site that calls itself so": (Answer(200, PAGE, PRODUCT | HTML), "not Elasticsearch"),
    "a list": (Answer(200, [1]), "not Elasticsearch"),
    "OpenSearch": (Answer(200, {"docs": []}, {"Content-Type": "application/json"}), "OpenSearch"),
    "a gateway": (Answer(502, PAGE, HTML), "cannot do it now: <html>Bad Gateway"),
    "busy": (BUSY, "cannot do it now: es_rejected_execution_exception: the queue is full"),
    "an older server": (error(406, "media_type_header_exception", OLD), RANGE),
    "a newer server": (error(400, "status_exception", NEW), RANGE),
    "who are you": (error(401, "security_exception", "missing credentials"), "ELASTIC_API_KEY"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_every_operation_tells_of_a_fault_and_works_after_it(name, index, proxy, address):
    fault, says = FAULTS[name]
    index.add(documents("cd"), encode([{0: 1.0, 3: 0.5}] * 2))
    proxy.spoil = lambda _: fault
    opening = [lambda: open_index(address), lambda: open_index(address, create=True)]
    for ask in (*opening, *operations(index)):
        told(EngineUnavailableError, says, ask)
    proxy.spoil = lambda _: None
    index.commit()
    assert found(index) == [(each, 1.0) for each in "abcd"]
    assert index.delete(["a"]) == 1


def test_a_server_that_is_down():
    with down() as url:
        for create in (False, True):
            ask = partial(open_index, f"elasticsearch+{url}/i", create=create)
            told(EngineUnavailableError, "Connection refused", ask)


def test_a_server_that_does_not_answer_in_time(address, proxy, monkeypatch):
    with ElasticIndex(address, True, VOCABULARY):
        pass  # that may take longer
    monkeypatch.setattr(elasticsearch_product, "_TIMEOUT", 0.2)
    waiting = threading.Event()
    with ElasticIndex(address) as index:
        proxy.spoil = lambda _: waiting.wait(10) and None
        try:
            told(EngineUnavailableError, "timed out", index.count)
            told(EngineUnavailableError, "timed out", index.commit)
        finally:
            waiting.set()
            proxy.spoil = lambda _: None


# What is asked for, and how often the answer to that is lost: the client tries three times.
LOST = [
    *(("PUT /lexvla", 1), ("PUT /lexvla", 3), ("_mapping", 1), ("_mapping", 3)),
    *(("_bulk", 1), ("_bulk", 3), ("_refresh", 3), ("_settings", 1), ("_settings", 3)),
    *(("_aliases", 1), ("_aliases", 3)),
]


@pytest.mark.parametrize(("asked", "lost"), LOST)
def test_answers_that_are_lost(asked, lost, proxy, address):
    """The server does what it is asked, and nobody hears of it: once, or at each try."""
    left = [0]

    def spoil(request):
        if left[0] and request.method != "GET" and asked in f"{request.method} {request.target}":
            left[0] -= 1
            return Cut(1)
        return None

    def load(names, rebuild):
        with ElasticIndex(address, True, VOCABULARY, rebuild=rebuild) as made:
            made.fingerprints(names)
            made.add(documents(names), encode([{0: 1.0}] * len(names)))
            if rebuild:
                made.publish()
            else:
                made.commit()

    def held():
        with open_index(address) as reader:
            return [name for name, _ in found(reader)]

    proxy.spoil = spoil
    for old, new, rebuild in (([], ["a", "b"], False), (["a", "b"], ["c", "d"], True)):
        left[0] = lost
        try:
            load(new, rebuild)
        except EngineUnavailableError:
            left[0] = 0
            try:
                assert held() in (old, new)
            except IndexMissingError:  # nothing was made yet
                assert old == []
            load(new, rebuild)
        left[0] = 0
        assert held() == new
    with open_index(address) as reader:
        kept = reader._client.indices.get(index=f"{reader._place.name}-*").body
        assert list(kept) == [reader.info()["index"]]


def test_tls(tmp_path, address, monkeypatch, proxy):
    name = address.rpartition("/")[2]
    both = self_signed(tmp_path)
    pem = both.with_name("cert.pem")
    digest = hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem.read_text())).hexdigest()
    broken = tmp_path / "broken.pem"
    broken.write_text("nothing")
    with Proxy(elastic_fakes.url(), certificate=both) as between:
        secure = between.address(name)

        def opened(variable: str = "", value: object = "") -> int:
            with monkeypatch.context() as patch:
                if variable:
                    patch.setenv(variable, str(value))
                with open_index(secure, create=True, vocabulary=VOCABULARY) as made:
                    return made.count()

        told(EngineUnavailableError, "no TLS: [SSL: CERTIFICATE_VERIFY_FAILED]", opened)
        told(EngineUnavailableError, "ELASTIC_CA_CERTS", opened)
        assert opened("ELASTIC_CA_CERTS", pem) == 0
        assert opened("ELASTIC_CERT_FINGERPRINT", digest) == 0
        for variable, value, says in (
            ("ELASTIC_CA_CERTS", tmp_path / "none.pem", "must name a file of certificates"),
            ("ELASTIC_CA_CERTS", broken, "ELASTIC_CA_CERTS"),
            ("ELASTIC_CERT_FINGERPRINT", "0" * 64, "Fingerprints did not match"),
            ("ELASTIC_CERT_FINGERPRINT", "abc", "Fingerprint of invalid length"),
        ):
            told(EngineUnavailableError, says, lambda v=variable, x=value: opened(v, x))
        plain = secure.replace("https:", "http:")
        told(EngineUnavailableError, "no server answers", lambda: open_index(plain))
    there = address.replace("http:", "https:")
    told(EngineUnavailableError, "does the server speak plain http?", lambda: open_index(there))


def test_an_index_that_no_node_may_have(address, monkeypatch):
    name = address.rpartition("/")[2]
    with connect(Address(elastic_fakes.url(), "any")) as client:
        allowed = "index.routing.allocation.require._name"
        template = {"settings": {allowed: "none"}}
        client.indices.put_index_template(name=name, index_patterns=f"{name}-*", template=template)
        says = "its health is red: 1 of its shards are on no server"
        try:
            for create in (True, False):
                told(EngineUnavailableError, says, lambda c=create: open_index(address, c))
        finally:
            client.indices.delete_index_template(name=name)
        with monkeypatch.context() as patch:  # a server that fails after the index was opened
            patch.setattr(layout.Store, "wait", lambda _: None)
            patch.setattr(layout.Store, "save_vocabulary", lambda *_: None)
            index = ElasticIndex(address, True, VOCABULARY)
        for ask in operations(index)[:-2]:
            told(EngineUnavailableError, "cannot do it now: ", ask)
        index.close()
        client.indices.put_settings(index=f"{name}-*", settings={allowed: None})
        client.cluster.health(index=f"{name}-*", wait_for_status="yellow")
    with open_index(address, create=True, vocabulary=VOCABULARY) as made:
        fill(made, "a")
        assert found(made) == [("a", 1.0)]


def test_a_disk_that_is_full(index, address):
    """Past the flood stage a server lets an index be read and deleted, and nothing else."""
    index.add(documents("cd"), encode([{0: 1.0, 3: 0.5}] * 2))
    block = "index.blocks.read_only_allow_delete"
    index._client.indices.put_settings(index=index._store.index, settings={block: True})
    for _ in range(2):
        told(EngineUnavailableError, "was not taken: index [", index.commit)
        told(EngineUnavailableError, "flood-stage watermark", index.compact)
    assert found(index) == [("a", 1.0), ("b", 1.0)]
    index._client.indices.put_settings(index=index._store.index, settings={block: None})
    index.commit()
    assert found(index) == [(each, 1.0) for each in "abcd"]


def test_an_index_that_is_closed_or_gone(index, address):
    name = index._store.index
    index._client.indices.close(index=name)
    for ask in operations(index)[:-2]:
        told(LexVLAError, "closed", ask)
    index._client.indices.open(index=name)
    index._client.indices.delete(index=name)
    for ask in (*operations(index)[:-2], lambda: open_index(address)):
        told(IndexMissingError, f"no index at {address}; make one with", ask)


def test_two_hundred_thousand_ids_in_a_filter_and_one_too_many(index, proxy):
    rng = np.random.default_rng(5)
    names = [f"id-{number:06}" for number in range(0, 300_000, 500)]
    rows = random_rows(rng, len(names))
    index.add(documents(names), encode(rows))
    index.commit()
    asked = [f"id-{number:06}" for number in range(300_000) if number % 1500]
    chosen = f"id in ({json.dumps(asked[:200_000])[1:-1]})"
    listed = set(asked[:200_000])
    kept = [i for i, name in enumerate(names) if name in listed]
    expected = brute_force("lexical", [names[i] for i in kept], encode(rows)[kept], QUERY, 1000)
    (hits,) = index.search(QUERY, 1000, filter=chosen)
    assert list(zip(hits.ids, hits.scores.tolist(), strict=True)) == expected
    assert len(expected) > 100
    sent = proxy.count("_msearch")
    with pytest.raises(FilterSyntaxError, match="at most 200,000 values"):
        index.search(QUERY, filter=f"id in ({json.dumps(asked)[1:-1]})")
    assert proxy.count("_msearch") == sent


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr("lexvla_search.cli.arguments.load_model", lambda *_: FakeEncoder())
    return str(save_pictures(tmp_path / "photos"))


def failed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Demand that a command fails with one line. Return it."""
    assert cli.main(list(arguments)) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch("lexvla: error: [^\n]+\n", err)
    assert SECRET not in err
    return err


def test_commands_say_it_in_one_line_and_can_be_repeated(address, photos, proxy, capsys):
    proxy.spoil = lambda request: Cut(0.5) if request.asks("_bulk") else None
    assert "no server answers" in failed(capsys, "index", photos, "--index", address)
    proxy.spoil = lambda _: None
    for line in ("4 added; 4 in the index\n", "0 added, 4 unchanged; 4 in the index\n"):
        assert cli.main(["index", photos, "--index", address]) == 0
        assert capsys.readouterr().out == line
    for fault, says in map(FAULTS.__getitem__, ("no answer", "a gateway", "an older server")):
        proxy.spoil = lambda _, fault=fault: fault
        for command in (["index", photos], ["search", "red"], ["info"], ["delete", "a"]):
            assert says in failed(capsys, *command, "--index", address)


def test_another_vocabulary(address, photos, monkeypatch, capsys, proxy):
    assert cli.main(["index", photos, "--index", address]) == 0
    capsys.readouterr()
    other = FakeEncoder("other", ("red", "pink"))
    monkeypatch.setattr("lexvla_search.cli.arguments.load_model", lambda *_: other)
    sent = proxy.count("_bulk")
    assert "was made with" in failed(capsys, "index", photos, "--index", address)
    assert "the model 'other' has vocabulary" in failed(capsys, "search", "red", "--index", address)
    assert proxy.count("_bulk") == sent


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_weights_that_are_no_weights_are_not_sent(address, photos, tmp_path, proxy, capsys, weight):
    file = tmp_path / "vectors.npz"
    assert cli.main(["encode", photos, "--out", str(file)]) == 0
    capsys.readouterr()
    with np.load(file) as stored:
        parts = dict(stored)
    (name,) = [each for each in parts if "lexical" in each and "data" in each]
    parts[name] = parts[name].copy()
    parts[name][0] = weight
    np.savez(file, **parts)
    sent = proxy.count("_bulk")
    assert "vectors.npz" in failed(capsys, "index", "--from-encoded", str(file), "--index", address)
    assert proxy.count("_bulk") == sent


def test_no_traceback_in_a_terminal():
    """The client logs what it tries again, with a traceback; in a program of its own, too."""
    with down() as url:
        address = f"elasticsearch+{url}/photos"
        done = subprocess.run(
            [sys.executable, "-m", "lexvla_search", "info", "--index", address],
            env={**os.environ, "PYTHONPATH": PYTHONPATH, "ELASTIC_API_KEY": SECRET},
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    assert re.fullmatch("lexvla: error: [^\n]*no server answers: [^\n]+\n", done.stderr)
    assert (SECRET in done.stderr, done.stdout) == (False, "")
