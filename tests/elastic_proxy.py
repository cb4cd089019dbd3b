"""A server on the loopback address that stands before another and spoils what passes."""

from __future__ import annotations

import http.client
import json
import shutil
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

PRODUCT = {"X-Elastic-Product": "Elasticsearch"}
JSON = {"Content-Type": "application/json"}


@dataclass(frozen=True)
class Request:
    """What a client asks: ``GET``, ``/_search?x=1``, and the body."""

    method: str
    target: str
    body: bytes

    def asks(self, part: str) -> bool:
        return part in self.target


@dataclass(frozen=True)
class Answer:
    """Answer in the server's stead."""

    status: int
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=lambda: PRODUCT | JSON)


@dataclass(frozen=True)
class Cut:
    """Hand on a part of the request, of the answer give a part, and close the connection."""

    request: float = 0.0
    answer: float = 0.0


@dataclass(frozen=True)
class Noise:
    """Answer bytes that are no HTTP, and close the connection."""

    data: bytes


Fault = Answer | Cut | Noise | None
Spoil = Callable[[Request], Fault]


class Proxy:
    """Spoil requests.

    Args:
        upstream: The address of the server behind; ``None`` if there is none.
        spoil: Says what happens to a request; ``None`` lets it pass. May wait.
        certificate: A file with a certificate and its key, to speak TLS.

    Attributes:
        url: Where it listens.
        requests: All that came.
    """

    def __init__(
        self, upstream: str | None, spoil: Spoil | None = None, certificate: Path | None = None
    ) -> None:
        self.spoil = spoil or (lambda _: None)
        self.requests: list[Request] = []
        self._upstream = None if upstream is None else urlsplit(upstream)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.proxy = self
        self._server.handle_error = lambda *_: None
        scheme = "http"
        if certificate is not None:
            scheme, context = "https", ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self._server.socket = context.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        self.url = f"{scheme}://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    def address(self, name: str) -> str:
        """Return the address of an index through here."""
        return f"elasticsearch+{self.url}/{name}"

    def count(self, part: str) -> int:
        """Return how many requests came whose target holds this."""
        return sum(request.asks(part) for request in list(self.requests))

    def __enter__(self) -> Proxy:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def send(self, request: Request, headers: Mapping[str, str], part: float) -> Any:
        """Hand a part of a request on. Return the answer if it was the whole."""
        if self._upstream is None:
            raise ConnectionError("there is no server behind")
        behind = http.client.HTTPConnection(
            self._upstream.hostname, self._upstream.port, timeout=60
        )
        try:
            behind.putrequest(request.method, request.target, skip_host=True)
            for name, value in headers.items():
                behind.putheader(name, value)
            behind.endheaders()
            behind.send(request.body[: int(len(request.body) * part)])
            if part < 1:
                return None
            answer = behind.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()
        finally:
            behind.close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = 60

    def log_message(self, *_: object) -> None:
        """Say nothing: what is wrong here is meant."""

    def _handle(self) -> None:
        proxy: Proxy = self.server.proxy
        length = int(self.headers.get("Content-Length", 0))
        request = Request(self.command, self.path, self.rfile.read(length))
        proxy.requests.append(request)
        fault = proxy.spoil(request)
        if isinstance(fault, Noise):
            self.wfile.write(fault.data)
            self.close_connection = True
            return
        if isinstance(fault, Answer):
            body = b"" if fault.body is None else fault.body
            body = body if isinstance(body, bytes) else json.dumps(body).encode()
            self._answer(fault.status, fault.headers, body, 1)
            return
        share = fault.request if isinstance(fault, Cut) else 1
        try:
            found = proxy.send(request, dict(self.headers.items()), share) if share else None
        except (OSError, http.client.HTTPException):
            found = None
        if found is None or (isinstance(fault, Cut) and not fault.answer):
            self.close_connection = True
            return
        status, headers, body = found
        self._answer(status, headers, body, fault.answer if isinstance(fault, Cut) else 1)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _handle  # noqa: N815 - the base's names

    def _answer(self, status: int, headers: Mapping[str, str], body: bytes, part: float) -> None:
        self.send_response_only(status)
        length = str(len(body))
        for name, value in headers.items():
            if name.lower() == "content-length" and self.command == "HEAD":
                length = value
            elif name.lower() not in ("content-length", "transfer-encoding", "connection"):
                self.send_header(name, value)
        self.send_header("Content-Length", length)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: int(len(body) * part)])
        self.close_connection = part < 1


def error(status: int, kind: str, reason: str) -> Answer:
    """Return an answer that tells of an error as Elasticsearch does."""
    told = {"type": kind, "reason": reason}
    return Answer(status, {"error": {"root_cause": [told], **told}, "status": status})


BUSY = error(429, "es_rejected_execution_exception", "the queue is full")


@contextmanager
def down() -> Iterator[str]:
    """Give an address at which nothing listens, and nothing will meanwhile."""
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


def self_signed(folder: Path) -> Path:
    """Return a file with a new certificate for the loopback address, and its key."""
    program = shutil.which("openssl")
    if program is None:
        pytest.skip("needs openssl, to make a certificate")
    key, certificate, both = folder / "key.pem", folder / "cert.pem", folder / "both.pem"
    command = [program, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    command += ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    command += ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    both.write_bytes(key.read_bytes() + certificate.read_bytes())
    return both
