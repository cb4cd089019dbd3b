"""What surrounds every request: its id, log line and metrics, and the response to a failure."""

from __future__ import annotations

import logging
import re
import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import unquote_to_bytes

from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lexvla_search.api.admission import Admission
from lexvla_search.api.metrics import Metrics
from lexvla_search.api.problems import Problem, problem_response

__all__ = ["Frame"]

logger = logging.getLogger("lexvla_search.api.access")

_SANE_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_DOCUMENTS = b"/v1/documents/"
_GONE = 499  # status in logs and metrics of a client that left
_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
_HEADERS = {
    b"content-security-policy": (
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
        b"connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
    b"cross-origin-resource-policy": b"same-origin",
}


class Frame:
    """Wrap an application.

    A request's ``X-Request-ID`` is kept if it is up to 64 letters, digits, dots, dashes and
    underscores; otherwise one is made. Answers carry it. A document's id is one part of the path:
    a slash in it must be sent as ``%2F``, and stays so until the route has been found.

    `hosts` lists the ``Host`` headers to accept; ``None`` accepts any. Pages of `origins` may read
    the answers, failures included. Of `paths`, problems tell only the last part. When `admission`
    is full, requests that only read are turned away before their bodies are read.
    """

    def __init__(
        self,
        app: ASGIApp,
        metrics: Metrics,
        hosts: tuple[str, ...] | None,
        origins: tuple[str, ...],
        paths: tuple[Path, ...],
        admission: Admission,
    ) -> None:
        self._app = app
        self._admission = admission
        self._metrics = metrics
        self._hosts = hosts
        self._paths = paths
        self._inside: ASGIApp = self._answer
        if origins:
            self._inside = CORSMiddleware(
                self._answer,
                origins,
                _METHODS,
                allow_headers=("Authorization", "Content-Type", "X-Request-ID"),
                expose_headers=("Retry-After", "X-Request-ID"),
            )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), _GONE
        scope["lexvla.request_id"] = _request_id(scope)
        scope["lexvla.log"] = {}
        scope["lexvla.paths"] = self._paths
        # Every GET route answers HEAD. A copy, because servers look at their own scope.
        inner = {**scope, "method": "GET"} if scope["method"] == "HEAD" else scope

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                extra = _HEADERS | {b"x-request-id": scope["lexvla.request_id"].encode()}
                there = {name.lower() for name, _ in message["headers"]}
                more = [pair for pair in extra.items() if pair[0] not in there]
                message["headers"] = [*message["headers"], *more]
            if message["type"] == "http.response.body" and inner is not scope:
                message = {**message, "body": b""}
            await send(message)

        self._metrics.inside.inc()
        try:
            self._check_host(scope)
            await self._inside(inner, receive, answer)
        except Problem as problem:
            await problem_response(scope, problem)(scope, receive, answer)
        except ClientDisconnect:
            status = _GONE
        except _Broken:
            status = 500
        finally:
            self._metrics.inside.dec()
            self._note({**inner, "method": scope["method"]}, status, time.perf_counter() - started)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with what the application makes of a request, or with its failure."""
        begun = False

        async def answer(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            if scope["path"].startswith("/v1/") and scope["method"] in ("GET", "POST"):
                self._admission.check()
            _mark_slashes(scope)
            await self._app(scope, receive, answer)
        except Problem as problem:
            await problem_response(scope, problem)(scope, receive, answer)
        except ClientDisconnect:
            raise
        except Exception as error:
            fields = {"request_id": scope["lexvla.request_id"]}
            logger.exception("a request failed", extra={"fields": fields})
            if begun:
                raise _Broken from error
            failure = Problem("internal", "the server's log tells more, under the request's id")
            await problem_response(scope, failure)(scope, receive, answer)

    def _check_host(self, scope: Scope) -> None:
        if self._hosts is None:
            return
        host = dict(scope["headers"]).get(b"host", b"").decode("latin-1").lower()
        if re.sub(r":[0-9]*\Z", "", host) not in self._hosts:
            raise Problem("wrong-host", f"without keys, this is only {' or '.join(self._hosts)}")

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        # The route, not the path: paths hold ids and words, so there is no limit to them.
        route = getattr(scope.get("route"), "path", "") or "(none)"
        method = scope["method"] if scope["method"].isalpha() else "(other)"
        if route == "(none)" and method not in (*_METHODS, "HEAD", "OPTIONS"):
            method = "(other)"
        self._metrics.requests.labels(method, route, str(status)).inc()
        self._metrics.seconds.labels(route).observe(seconds)
        fields: Mapping[str, object] = {
            "request_id": scope["lexvla.request_id"],
            "method": method,
            "route": route,
            "status": status,
            "ms": round(seconds * 1000, 2),
            **scope["lexvla.log"],
        }
        logger.info("request", extra={"fields": fields})


class _Broken(Exception):  # noqa: N818 - what became of the answer
    """The application failed after its answer had begun."""


def _request_id(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"x-request-id":
            given: str = value.decode("latin-1")
            if _SANE_ID.fullmatch(given):
                return given
    return secrets.token_hex(8)


def _mark_slashes(scope: Scope) -> None:
    raw = scope.get("raw_path") or b""
    if not raw.startswith(_DOCUMENTS):
        return
    parts = []
    for part in raw.split(b"?")[0].split(b"/"):
        try:
            text = unquote_to_bytes(part).decode()
        except UnicodeDecodeError as error:
            raise Problem("bad-request", "the path is not valid UTF-8") from error
        parts.append(text.replace("%", "%25").replace("/", "%2F"))
    scope["path"] = "/".join(parts)
