"""Dependencies of routes: the service, and a key that allows the request."""

from __future__ import annotations

from typing import Annotated, cast

from fastapi import Depends
from starlette.requests import Request

from lexvla.errors import LexVLAError
from lexvla_search.api.keys import Scope
from lexvla_search.api.problems import Problem
from lexvla_search.api.service import Service

__all__ = ["READ", "WRITE", "Serving"]


# All of these are coroutines: FastAPI runs plain functions in threads.
async def _service(request: Request) -> Service:
    return cast(Service, request.app.state.service)


Serving = Annotated[Service, Depends(_service)]


def _check(request: Request, scope: Scope) -> None:
    service: Service = request.app.state.service
    if service.keys is None:
        return
    scheme, _, secret = request.headers.get("authorization", "").partition(" ")
    challenge = {"WWW-Authenticate": 'Bearer realm="lexvla"'}
    if scheme.lower() != "bearer" or not secret:
        raise Problem("unauthorized", "send Authorization: Bearer KEY", headers=challenge)
    try:
        key = service.keys.find(secret.strip())
    except LexVLAError as error:
        raise Problem("unavailable", "the file of keys cannot be read; nobody is let in") from error
    if key is None:
        raise Problem("unauthorized", "there is no such key", headers=challenge)
    request.scope["lexvla.log"]["key"] = key.name
    if not key.may(scope):
        raise Problem("forbidden", f"the key {key.name!r} may {key.scope}, not {scope}")


async def _read(request: Request) -> None:
    _check(request, "read")


async def _write(request: Request) -> None:
    _check(request, "write")


READ, WRITE = Depends(_read), Depends(_write)
