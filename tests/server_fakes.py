"""Servers that tests of one product share: named by the environment, or started for the run."""

from __future__ import annotations

import os
import random
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from lexvla_indexer.elastic.connection import Address, connect
from lexvla_indexer.elastic.product import Product

_OURS = f"lexvla-test-{os.getpid()}-"  # several runs may share a server


class SharedServer:
    """Start a server when its address is first asked for.

    Args:
        product: What answers there.
        client: The package of its client.
        script: Gets, starts and stops it, such as ``scripts/elasticsearch_server.py``.
    """

    def __init__(self, product: Product, client: str, script: ModuleType) -> None:
        self.variable = f"LEXVLA_{product.engine.upper()}_URL"
        self._product = product
        self._client = client
        self._script = script
        self._started: tuple[int, str] | None = None

    def missing(self) -> str:
        """Say what the engine lacks here, and how to get it; empty if nothing."""
        name, extra, script = self._product.name, self._product.engine, self._script
        if not find_spec(self._client):
            return f"needs the client of {name}: pip install 'lexvla[{extra}]'"
        return "" if os.environ.get(self.variable) else self.missing_version(script.VERSION)

    def missing_version(self, version: str) -> str:
        """Say what a server of a version lacks here."""
        script = self._script
        if not script.home(version).is_dir():
            get = f"scripts/{Path(str(script.__file__)).name} get --version {version}"
            return f"needs a server: set {self.variable}, or run {get}"
        try:
            script.java_for(version)
        except script.ServerError as error:
            return str(error)
        return ""

    def url(self) -> str:
        """Return a server's address: the one that is named, or one that is started for this run."""
        if named := os.environ.get(self.variable):
            return named.rstrip("/")
        if self._started is None:
            port = free_port()
            self._started = port, self._script.start(port=port, fresh=True)
        return self._started[1]

    def stop(self) -> None:
        """Stop the server that was started for this run, if one was, and delete its data."""
        if self._started is not None:
            self._script.stop(self._started[0])
            self._script.forget(self._started[0])
        self._started = None

    def address(self, name: object) -> str:
        """Return the address of an index of its own for a path or name."""
        short = uuid.uuid5(uuid.NAMESPACE_URL, str(name)).hex[:16]
        return f"{self._product.engine}+{self.url()}/{_OURS}{short}"

    @contextmanager
    def cleaned(self) -> Iterator[None]:
        """Delete the indices of tests afterwards: each open shard takes the server's memory."""
        try:
            yield
        finally:
            with connect(Address(self.url(), "any", self._product)) as client:
                for name in client.indices.get(index=f"{_OURS}*", allow_no_indices=True).body:
                    client.indices.delete(index=name, ignore_unavailable=True)


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
