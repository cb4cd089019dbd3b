"""Bodies of JSON, or of several parts: the JSON and image files."""

from __future__ import annotations

import base64
import binascii
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.datastructures import UploadFile
from starlette.requests import Request

from lexvla_search.api.problems import Problem, invalid
from lexvla_search.api.service import Service

__all__ = ["body_schema", "decode", "receive"]

Model = TypeVar("Model", bound=BaseModel)

_JSON, _PARTS = "application/json", "multipart/form-data"
_QUERY, _IMAGE = "query", "image"  # the parts


def body_schema(name: str, image: dict[str, Any]) -> dict[str, Any]:
    """Describe such a body for OpenAPI.

    Args:
        name: Of the model of its JSON.
        image: The schema of the parts ``image``.
    """
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


@asynccontextmanager
async def receive(
    request: Request, model: type[Model], service: Service
) -> AsyncIterator[tuple[Model, list[bytes]]]:
    """Give the JSON of a body and the files of its parts.

    Raises:
        Problem: The body is neither, or breaks the rules of the model.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in (_JSON, _PARTS):
        raise Problem(
            "unsupported-media-type", f"send {_JSON} or {_PARTS}, not {kind or 'nothing'}"
        )
    async with service.intake.body(request) as body:
        if kind == _JSON:
            yield _parse(model, body), []
            return
        async with _form(request, body, service.limits.items) as (query, files):
            yield _parse(model, query), files


def decode(text: str, field: str) -> bytes:
    """Return the bytes that base64 stands for.

    Raises:
        Problem: It is no valid base64.
    """
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        rule = "is no valid base64"
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
    request._body = body  # what Starlette's parser of forms reads again
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
        yield query, files
