"""What tests of the Elasticsearch engine need: a server, and what it makes of weights."""

from __future__ import annotations

import os
import random
import socket
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lexvla_indexer import ElasticIndex
from lexvla_indexer.elastic.connection import Address, connect

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))

import elasticsearch_server

URL = "LEXVLA_ELASTICSEARCH_URL"
_OURS = f"lexvla-test-{os.getpid()}-"  # several runs may share a server
_started: dict[str, str] = {}


def missing() -> str:
    """Say what the Elasticsearch engine lacks here, and how to get it; empty if nothing."""
    if not find_spec("elasticsearch"):
        return "needs the client of Elasticsearch: pip install 'lexvla[elasticsearch]'"
    if os.environ.get(URL):
        return ""
    version = elasticsearch_server.VERSION
    if not elasticsearch_server.home(version).is_dir():
        return f"needs a server: set {URL}, or run scripts/elasticsearch_server.py get"
    try:
        elasticsearch_server.java_for(version)
    except elasticsearch_server.ServerError as error:
        return str(error)
    return ""


def url() -> str:
    """Return a server's address: the one that is named, or one that is started for this run."""
    if named := os.environ.get(URL):
        return named.rstrip("/")
    if "url" not in _started:
        port = free_port()
        _started["url"] = elasticsearch_server.start(port=port, fresh=True)
        _started["port"] = str(port)
    return _started["url"]


@contextmanager
def newest() -> Iterator[None]:
    """Let tests use a server of the newest major version, started for them; skip without one."""
    version = elasticsearch_server.NEWEST
    if not elasticsearch_server.home(version).is_dir():
        pytest.skip(f"needs a server: scripts/elasticsearch_server.py get --version {version}")
    try:
        elasticsearch_server.java_for(version)
    except elasticsearch_server.ServerError as error:
        pytest.skip(str(error))
    port = free_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(URL, elasticsearch_server.start(version, port, fresh=True))
        try:
            yield
        finally:
            elasticsearch_server.stop(port)
            elasticsearch_server.forget(port)


def free_port() -> int:
    """Return a port of which the one for nodes, 100 above, is free too."""
    while True:
        # Below those that the system gives to connections: one may be taken at any time.
        port = random.SystemRandom().randrange(20_000, 32_000)
        try:
            with (
                socket.create_server(("127.0.0.1", port)),
                socket.create_server(("127.0.0.1", port + 100)),
            ):
                return port
        except OSError:
            continue


def stop() -> None:
    """Stop the server that was started for this run, if one was, and delete its data."""
    if "port" in _started:
        elasticsearch_server.stop(int(_started["port"]))
        elasticsearch_server.forget(int(_started["port"]))
    _started.clear()


def address(name: object) -> str:
    """Return the address of an index of its own for a path or name."""
    short = uuid.uuid5(uuid.NAMESPACE_URL, str(name)).hex[:16]
    return f"elasticsearch+{url()}/{_OURS}{short}"


@contextmanager
def cleaned() -> Iterator[None]:
    """Delete the indices of tests afterwards: each open shard takes the server's memory."""
    try:
        yield
    finally:
        drop(f"{_OURS}*")


def drop(pattern: str) -> None:
    with connect(Address(url(), "any")) as client:
        for name in client.indices.get(index=pattern, allow_no_indices=True).body:
            client.indices.delete(index=name, ignore_unavailable=True)


def stored(weights: np.ndarray) -> np.ndarray:
    """Return float32 weights as the server keeps them: cut to 9 significant bits."""
    bits = np.ascontiguousarray(weights, np.float32).view(np.uint32)
    return ((bits >> 15) << 15).astype(np.uint32).view(np.float32)


def through(index: ElasticIndex, change: Callable[[str, str, Any], Any]) -> None:
    """Let a function answer an index's requests.

    Args:
        index: Its client is changed.
        change: Is given method, path and body. Returns ``None`` to send the request on, an error
            to raise, or a status with the body of the answer.
    """
    real = index._client.transport.perform_request

    def perform(method: str, target: str, *, body: Any = None, **rest: Any) -> Any:
        answer = change(method, target, body)
        if answer is None:
            return real(method, target, body=body, **rest)
        if isinstance(answer, Exception):
            raise answer
        return _response(*answer)

    index._client.transport.perform_request = perform


def answering(
    monkeypatch: pytest.MonkeyPatch, answer: Callable[[str, str], tuple[int, Any]]
) -> list[str]:
    """Let a function answer all requests, by method and path, without a server; return the paths.

    The list grows with each request.
    """
    pytest.importorskip("elasticsearch", reason="needs the client: lexvla[elasticsearch]")
    import elastic_transport as transport

    paths: list[str] = []

    def perform(_: Any, method: str, target: str, **rest: Any) -> Any:
        paths.append(target.partition("?")[0])
        return _response(*answer(method, target))

    monkeypatch.setattr(transport.Transport, "perform_request", perform)
    return paths


def _response(status: int, told: Any) -> Any:
    import elastic_transport as transport

    headers = transport.HttpHeaders(
        {"x-elastic-product": "Elasticsearch", "content-type": "application/json"}
    )
    node = transport.NodeConfig("http", "127.0.0.1", 9200)
    meta = transport.ApiResponseMeta(status, "1.1", headers, 0.0, node)
    return transport.TransportApiResponse(meta, told)


def error(kind: str, reason: str, status: int) -> tuple[int, Mapping[str, Any]]:
    """Return an answer of the server that tells of an error."""
    told = {"type": kind, "reason": reason}
    return status, {"error": {"root_cause": [told], **told}, "status": status}
