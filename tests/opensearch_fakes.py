"""What tests of the OpenSearch engine need: a server."""

from __future__ import annotations

import os
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from elastic_fakes import free_port
from lexvla_indexer.elastic.connection import Address, connect
from lexvla_indexer.opensearch.product import OPENSEARCH

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))

import opensearch_server

URL = "LEXVLA_OPENSEARCH_URL"
_OURS = f"lexvla-test-{os.getpid()}-"  # several runs may share a server
_started: dict[str, str] = {}


def missing() -> str:
    """Say what the OpenSearch engine lacks here, and how to get it; empty if nothing."""
    if not find_spec("opensearchpy"):
        return "needs the client of OpenSearch: pip install 'lexvla[opensearch]'"
    if os.environ.get(URL):
        return ""
    if not opensearch_server.home().is_dir():
        return f"needs a server: set {URL}, or run scripts/opensearch_server.py get"
    try:
        opensearch_server.oldest_java(21, "OpenSearch")
    except opensearch_server.ServerError as error:
        return str(error)
    return ""


def url() -> str:
    """Return a server's address: the one that is named, or one that is started for this run."""
    if named := os.environ.get(URL):
        return named.rstrip("/")
    if "url" not in _started:
        port = free_port()
        _started["url"] = opensearch_server.start(port=port, fresh=True)
        _started["port"] = str(port)
    return _started["url"]


def stop() -> None:
    """Stop the server that was started for this run, if one was, and delete its data."""
    if "port" in _started:
        opensearch_server.stop(int(_started["port"]))
        opensearch_server.forget(int(_started["port"]))
    _started.clear()


def address(name: object) -> str:
    """Return the address of an index of its own for a path or name."""
    short = uuid.uuid5(uuid.NAMESPACE_URL, str(name)).hex[:16]
    return f"opensearch+{url()}/{_OURS}{short}"


@contextmanager
def cleaned() -> Iterator[None]:
    """Delete the indices of tests afterwards: each open shard takes the server's memory."""
    try:
        yield
    finally:
        with connect(Address(url(), "any", OPENSEARCH)) as client:
            for name in client.indices.get(index=f"{_OURS}*", allow_no_indices=True).body:
                client.indices.delete(index=name, ignore_unavailable=True)
