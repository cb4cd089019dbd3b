"""Request bodies, within limits: JSON, multipart (JSON and image files), or lines."""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.datastructures import UploadFile
from starlette.requests import Request

from lexvla_search.api.problems import Problem, invalid
from lexvla_search.api.settings import Limits

__all__ = ["Intake", "body_schema", "content_type", "decode"]

Model = TypeVar("Model", bound=BaseModel)

_JSON, _PARTS = "application/json", "multipart/form-data"
_QUERY, _IMAGE = "query", "image"  # the parts
_HELD = "lexvla.held"  # of a request's scope: its bytes in memory


def body_schema(name: str, image: dict[str, Any]) -> dict[str, Any]:
    """Describe a JSON or multipart body for OpenAPI; `image` is the schema of the image parts."""
    json = {"$ref": f"#/components/schemas/{name}"}
    parts = {
        "type": "object",
        "properties": {_QUERY: json, _IMAGE: image},
        "required": [_IMAGE],
        "additionalProperties": False,
    }
    encoding = {_QUERY: {"contentType": _JSON}}
    content = {_JSON: {"schema": json}, _PARTS: {"schema": parts, "encoding": encoding}}
    return {"requestBody": {"required": True, "content": content}}


class Intake:
    """Read bodies within the limits; for one event loop."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.held = 0  # bytes in memory, of bodies and of images fetched for them

    @asynccontextmanager
    async def receive(
        self, request: Request, model: type[Model]
    ) -> AsyncIterator[tuple[Model, list[bytes]]]:
        """Yield the parsed JSON of a body and the files of its image parts."""
        kind = content_type(request, _JSON, _PARTS)
        async with self.body(request) as body:
            if kind == _JSON:
                yield _parse(model, body), []
                return
            async with _form(request, body, self._limits.items) as (query, files):
                yield _parse(model, query), files

    @asynccontextmanager
    async def json(self, request: Request, model: type[Model], *kinds: str) -> AsyncIterator[Model]:
        """Yield the parsed JSON of a body of one of these content types."""
        content_type(request, *kinds)
        async with self.body(request) as body:
            yield _parse(model, body)

    @asynccontextmanager
    async def body(self, request: Request) -> AsyncIterator[bytes]:
        """Yield a whole body. Its bytes count as held until the context ends."""
        most = self._limits.body_bytes
        _check_coding(request)
        self._check_length(request, most)
        body = bytearray()
        try:
            try:
                async with asyncio.timeout(self._limits.body_seconds):
                    async for chunk in request.stream():
                        if len(body) + len(chunk) > most:
                            raise _too_large(most)
                        self.hold(request, len(chunk))
                        body += chunk
            except TimeoutError as error:
                raise self._too_slow() from error
            yield bytes(body)
        finally:
            self.held -= request.scope.pop(_HELD, 0)

    def hold(self, request: Request, size: int) -> None:
        """Count further bytes as held until the body's context ends; a `Problem` if too many."""
        if self.held + size > self._limits.received_bytes:
            raise Problem("busy", "too many bytes are being received; try again")
        self.held += size
        request.scope[_HELD] = request.scope.get(_HELD, 0) + size

    async def lines(self, request: Request) -> AsyncIterator[tuple[int, bytes]]:
        """Yield each line that is not blank with its number, from 1, as it arrives."""
        limits = self._limits
        _check_coding(request)
        self._check_length(request, limits.upsert_bytes)
        stream = aiter(request.stream())
        rest, total, number = bytearray(), 0, 0
        while True:
            try:
                chunk = await asyncio.wait_for(anext(stream), limits.body_seconds)
            except StopAsyncIteration:
                break
            except TimeoutError as error:
                raise self._too_slow() from error
            total += len(chunk)
            if total > limits.upsert_bytes:
                raise _too_large(limits.upsert_bytes)
            rest += chunk
            if b"\n" in chunk:
                *whole, last = bytes(rest).split(b"\n")
                rest = bytearray(last)
                for line in whole:
                    number += 1
                    if line.strip():
                        yield number, line
            if len(rest) > limits.body_bytes:
                detail = f"line {number + 1} is larger than {limits.body_bytes:,} bytes"
                raise Problem("too-large", detail)
        if rest.strip():
            yield number + 1, bytes(rest)

    def _check_length(self, request: Request, most: int) -> None:
        length = request.headers.get("content-length", "")
        if length.isascii() and length.isdecimal() and int(length) > most:
            raise _too_large(most)

    def _too_slow(self) -> Problem:
        seconds = f"{self._limits.body_seconds:g} seconds"
        headers = {"Connection": "close"}
        return Problem("timeout", f"the body did not come within {seconds}", headers=headers)


def content_type(request: Request, *kinds: str) -> str:
    """Return the content type of a body, one of these; a `Problem` if it is another."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in kinds:
        sent = f"send {' or '.join(kinds)}, not {kind or 'nothing'}"
        raise Problem("unsupported-media-type", sent)
    return kind


def _check_coding(request: Request) -> None:
    # Images are compressed already, and a small compressed body may expand to a large one.
    coding = request.headers.get("content-encoding", "").strip().lower()
    if coding not in ("", "identity"):
        rule = f"send the body as it is, not as {coding}"
        raise Problem("unsupported-media-type", rule, headers={"Accept-Encoding": "identity"})


def decode(text: str, field: str) -> bytes:
    """Decode base64; a `Problem` names the field."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        rule = "is not valid base64"
        raise Problem("invalid", f"{field}: {rule}", [{"field": field, "detail": rule}]) from error


def _parse(model: type[Model], body: bytes) -> Model:
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise invalid(error) from error


@asynccontextmanager
async def _form(
    request: Request, body: bytes, most: int
) -> AsyncIterator[tuple[bytes, list[bytes]]]:
    request._body = body  # Starlette's form parser reads it again
    async with request.form(max_files=most, max_fields=1, max_part_size=len(body) + 1) as form:
        query, files = b"{}", []
        for name, value in form.multi_items():
            if name == _QUERY:
                query = await value.read() if isinstance(value, UploadFile) else value.encode()
            elif name == _IMAGE and isinstance(value, UploadFile):
                files.append(await value.read())
            else:
                rule = "must be a file" if name == _IMAGE else "there is no such part"
                raise Problem("invalid", f"{name}: {rule}", [{"field": name, "detail": rule}])
        if not files:
            raise Problem("invalid", "a multipart body must have an image: the part image")
        yield query, files


def _too_large(most: int) -> Problem:
    return Problem("too-large", f"the body is larger than {most:,} bytes")
