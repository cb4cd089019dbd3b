"""What tests of the Elasticsearch engine need: a server, and what it makes of weights."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lexvla_indexer import ElasticIndex
from lexvla_indexer.elastic.elasticsearch_product import ELASTICSEARCH
from server_fakes import SharedServer, free_port

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))

import elasticsearch_server

_SERVER = SharedServer(ELASTICSEARCH, "elasticsearch", elasticsearch_server)
URL = _SERVER.variable
missing, url, stop = _SERVER.missing, _SERVER.url, _SERVER.stop
address, cleaned = _SERVER.address, _SERVER.cleaned


@contextmanager
def newest() -> Iterator[None]:
    """Let tests use a server of the newest major version, started for them; skip without one."""
    version = elasticsearch_server.NEWEST
    if reason := _SERVER.missing_version(version):
        pytest.skip(reason)
    port = free_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(URL, elasticsearch_server.start(version, port, fresh=True))
        try:
            yield
        finally:
            elasticsearch_server.stop(port)
            elasticsearch_server.forget(port)


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
