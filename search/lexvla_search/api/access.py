"""Dependencies of routes: the service, and a key that allows the request."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, cast
from urllib.parse import unquote

from fastapi import Depends
from fastapi import Path as PathPart
from fastapi import Query as Parameter
from starlette.requests import Request

from lexvla.errors import LexVLAError
from lexvla_search.api.keys import Scope
from lexvla_search.api.problems import Problem
from lexvla_search.api.service import Service

__all__ = ["READ", "WRITE", "DocumentId", "Serving", "Signed"]

DocumentId = Annotated[
    str, PathPart(description="Of a document; a slash is written %2F.", examples=["2764"])
]


# All of these are coroutines: FastAPI runs plain functions in threads.
async def _service(request: Request) -> Service:
    return cast(Service, request.app.state.service)


Serving = Annotated[Service, Depends(_service)]


@contextmanager
def _readable() -> Iterator[None]:
    try:
        yield
    except LexVLAError as error:
        raise Problem("unavailable", "the file of keys cannot be read; nobody is let in") from error


def _check(request: Request, scope: Scope) -> None:
    service: Service = request.app.state.service
    if service.keys is None:
        return
    scheme, _, secret = request.headers.get("authorization", "").partition(" ")
    challenge = {"WWW-Authenticate": 'Bearer realm="lexvla"'}
    if scheme.lower() != "bearer" or not secret:
        raise Problem("unauthorized", "send Authorization: Bearer KEY", headers=challenge)
    with _readable():
        key = service.keys.find(secret.strip())
    if key is None:
        raise Problem("unauthorized", "there is no such key", headers=challenge)
    request.scope["lexvla.log"]["key"] = key.name
    if not key.may(scope):
        raise Problem("forbidden", f"the key {key.name!r} may {key.scope}, not {scope}")


async def _read(request: Request) -> None:
    _check(request, "read")


async def _write(request: Request) -> None:
    _check(request, "write")


async def _signed(
    request: Request,
    document_id: DocumentId,
    expires: Annotated[int | None, Parameter(description="Unix time.")] = None,
    signature: Annotated[str | None, Parameter(max_length=64)] = None,
) -> bool:
    """Return whether the address is signed; one that is not needs a key."""
    if signature is None:
        _check(request, "read")
        return False
    service: Service = request.app.state.service
    with _readable():
        valid = service.pictures.may_load(unquote(document_id), expires or 0, signature)
    if not valid:
        raise Problem("forbidden", "the address has expired, or was not made by this server")
    return True


Signed = Annotated[bool, Depends(_signed)]
READ, WRITE = Depends(_read), Depends(_write)
