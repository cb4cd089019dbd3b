"""Errors as the API answers them: RFC 9457 problem details.

OpenAPI describes the members by `models.ProblemModel`; `lexvla_search.client` and
``static/api.js`` read them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from lexvla.errors import (
    EngineUnavailableError,
    FilterSyntaxError,
    IndexLockedError,
    IndexMissingError,
    InputError,
    LexVLAError,
    UnknownDocumentError,
    UnsupportedError,
    VocabularyMismatchError,
)
from lexvla_search.api.models import TAGS

__all__ = ["MEDIA_TYPE", "Problem", "handle_errors", "invalid", "problem_of", "problem_response"]

MEDIA_TYPE = "application/problem+json"
_NAME = "[key]"  # the end of the place of a broken rule, if it is about a name
_LONGEST_NAME = 200  # of a field, in characters: a body may name it as it likes
_URN = "urn:problem-type:lexvla:"

# Status and title of each kind of problem.
_KINDS = {
    "bad-request": (400, "The request cannot be read"),
    "unauthorized": (401, "A key is needed"),
    "forbidden": (403, "The key may not do this"),
    "not-found": (404, "There is no such thing"),
    "method-not-allowed": (405, "The address does not take this method"),
    "timeout": (408, "The body came too slowly"),
    "index-mismatch": (409, "The index is not of this model"),
    "too-large": (413, "The body is too large"),
    "unsupported-media-type": (415, "The body is of a type that is not read"),
    "wrong-host": (421, "The server has no such name"),
    "invalid": (422, "The request breaks a rule"),
    "invalid-filter": (422, "The filter cannot be read"),
    "unsupported": (422, "The index or the model cannot do this"),
    "busy": (429, "The server is busy"),
    "internal": (500, "The server failed"),
    "writer-busy": (503, "Another process writes to the index"),
    "unavailable": (503, "A part of the server does not answer"),
    "not-stored": (507, "The index cannot be written"),
}
_OF_ERRORS: tuple[tuple[type[LexVLAError], str], ...] = (
    (UnknownDocumentError, "not-found"),
    (InputError, "invalid"),
    (FilterSyntaxError, "invalid-filter"),
    (UnsupportedError, "unsupported"),
    (IndexLockedError, "writer-busy"),
    (EngineUnavailableError, "unavailable"),
    (IndexMissingError, "unavailable"),
    (VocabularyMismatchError, "index-mismatch"),
)
_OF_STATUS = {404: "not-found", 405: "method-not-allowed", 415: "unsupported-media-type"}


class Problem(Exception):  # noqa: N818 - the RFC's word
    """Answer a request with a problem.

    `kind` is one of those listed in docs/api.md, such as ``not-found``. Each of `errors` has a
    ``field`` and a ``detail``; `extra` adds members to the answer.
    """

    def __init__(
        self,
        kind: str,
        detail: str,
        errors: Sequence[Mapping[str, str]] = (),
        headers: Mapping[str, str] | None = None,
        **extra: Any,
    ) -> None:
        super().__init__(detail)
        self.kind = kind
        self.status, self.title = _KINDS[kind]
        self.detail = detail
        self.errors = list(errors)
        self.headers = dict(headers or {})
        self.extra = extra
        if self.status in (429, 503):
            self.headers.setdefault("Retry-After", "1")

    def body(self, scope: Mapping[str, Any]) -> bytes:
        """Return the JSON object that describes it, without paths of this machine."""
        detail = self.detail
        for path in scope.get("lexvla.paths", ()):
            detail = detail.replace(str(path), path.name)
        members: dict[str, Any] = {
            "type": _URN + self.kind,
            "title": self.title,
            "status": self.status,
            "detail": detail,
            "instance": scope.get("raw_path", b"/").decode("ascii", "replace"),
            "request_id": scope.get("lexvla.request_id", ""),
            **({"errors": self.errors} if self.errors else {}),
            **self.extra,
        }
        # ASCII, as a request may hold half a character (a lone surrogate).
        return json.dumps(members).encode()


def problem_response(scope: Mapping[str, Any], problem: Problem) -> Response:
    """Return the answer that describes a problem."""
    body = problem.body(scope)
    return Response(body, problem.status, problem.headers, media_type=MEDIA_TYPE)


def problem_of(error: LexVLAError) -> Problem | None:
    """Return an error as a problem of the request; ``None`` if the server is at fault."""
    kinds = (kind for of, kind in _OF_ERRORS if isinstance(error, of))
    kind = next(kinds, None)
    return None if kind is None else Problem(kind, str(error))


def invalid(error: ValidationError, where: str = "body") -> Problem:
    """Return the problem of a body that breaks the rules of its model."""
    faults = error.errors(include_url=False, include_context=False)
    broken = [fault for fault in faults if fault["type"] == "json_invalid"]
    if broken:
        return Problem("bad-request", f"the {where} is not valid JSON: {broken[0]['msg']}")
    errors = [_error(fault, where) for fault in faults[:20]]
    first = "; ".join(f"{each['field']}: {each['detail']}" for each in errors[:3])
    return Problem("invalid", first, errors)


def _error(fault: Mapping[str, Any], where: str) -> dict[str, str]:
    # Without the type that was meant, of a value that may have several: see models.TAGS.
    place = [_short(str(part)) for part in fault["loc"] if part not in TAGS]
    rule = str(fault["msg"]).removeprefix("Value error, ").replace(" after validation", "")
    if fault["type"] == "extra_forbidden":
        rule = "there is no such field"
    elif fault["loc"][1:] and fault["loc"][-2:] == (fault["input"], _NAME):
        *place, name, _ = place  # it is the name that is wrong, not what it stands for
        rule = f"the name {name!r} {rule.partition(' ')[2]}"
    return {"field": ".".join(place) or where, "detail": rule}


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 3] + "..."


def handle_errors(app: FastAPI) -> None:
    """Make the application answer errors with problems."""

    async def of_problem(request: Request, error: Exception) -> Response:
        if not isinstance(error, Problem):
            raise error
        return problem_response(request.scope, error)

    async def of_lexvla(request: Request, error: Exception) -> Response:
        problem = problem_of(error) if isinstance(error, LexVLAError) else None
        if problem is None:
            raise error
        return problem_response(request.scope, problem)

    async def of_parameters(request: Request, error: Exception) -> Response:
        if not isinstance(error, RequestValidationError):
            raise error
        errors = [
            {"field": ".".join(map(str, fault["loc"][1:])), "detail": str(fault["msg"])}
            for fault in error.errors()
        ]
        detail = "; ".join(f"{each['field']}: {each['detail']}" for each in errors)
        return problem_response(request.scope, Problem("invalid", detail, errors))

    async def of_http(request: Request, error: Exception) -> Response:
        if not isinstance(error, HTTPException):
            raise error
        kind = _OF_STATUS.get(error.status_code, "bad-request")
        phrase = HTTPStatus(error.status_code).phrase
        detail = error.detail if error.detail != phrase else f"{request.method} {request.url.path}"
        problem = Problem(kind, detail, headers=error.headers)
        return problem_response(request.scope, problem)

    app.add_exception_handler(Problem, of_problem)
    app.add_exception_handler(LexVLAError, of_lexvla)
    app.add_exception_handler(RequestValidationError, of_parameters)
    app.add_exception_handler(HTTPException, of_http)
