"""Routes about the server itself: the index, its words, health, figures and the page."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter
from fastapi import Query as Parameter
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import FileResponse, JSONResponse, Response

from lexvla.errors import LexVLAError
from lexvla_search import schema
from lexvla_search.api.access import READ, Serving
from lexvla_search.api.problems import Problem
from lexvla_search.api.service import Service
from lexvla_search.fields import fields_of

__all__ = ["STATIC", "router"]

STATIC = Path(__file__).parent / "static"
_MOST_WORDS = 20

router = APIRouter()


@router.get("/v1/index", response_model=schema.Facts, dependencies=[READ])
async def index(service: Serving) -> JSONResponse:
    """Describe what is served."""
    return JSONResponse(await service.run(lambda: _facts(service)))


@router.get("/v1/words", response_model=schema.Completions, dependencies=[READ])
async def words(
    service: Serving,
    prefix: Annotated[str, Parameter(min_length=1, max_length=64, examples=["hea"])],
) -> JSONResponse:
    """Complete a word: up to twenty words of the vocabulary, the shortest first."""
    found = await service.run(lambda: service.complete(prefix, _MOST_WORDS))
    return JSONResponse({"words": found})


@router.get("/healthz", response_model=schema.Health)
async def health() -> JSONResponse:
    """Report that the process runs."""
    return JSONResponse({"status": "ok"})


@router.get("/readyz", response_model=schema.Health)
async def ready(service: Serving) -> JSONResponse:
    """Report whether the index can be read."""
    try:
        await service.work(service.index.count)
    except (LexVLAError, OSError, RuntimeError) as error:
        raise Problem("unavailable", f"the index cannot be read ({error})") from error
    return JSONResponse({"status": "ready"})


@router.get("/metrics", response_class=Response)
async def metrics(service: Serving) -> Response:
    """Return metrics for Prometheus; they hold neither queries nor ids."""
    figures = await service.work(lambda: service.metrics.exposition(service.index.count))
    return Response(figures, media_type=CONTENT_TYPE_LATEST)


@router.get("/", include_in_schema=False)
async def page() -> FileResponse:
    """Return the page."""
    return FileResponse(STATIC / "index.html", headers={"Cache-Control": "no-cache"})


@router.get("/docs", include_in_schema=False)
async def docs() -> FileResponse:
    """Return the page of the API's description, which can send requests."""
    return FileResponse(STATIC / "docs.html", headers={"Cache-Control": "no-cache"})


def _facts(service: Service) -> schema.Facts:
    service.look_for_fusion()
    vocabulary, limits = service.index.vocabulary, service.limits
    folder = service.index.directory
    has_place = folder is None or os.access(folder, os.W_OK)
    return {
        "count": service.index.count(),
        "model": service.index.model,
        "vocabulary": {"size": len(vocabulary), "sha256": vocabulary.sha256},
        "legs": service.legs(),
        "has_text": "text" in service.index.legs(),
        "fusion": service.fusion(),
        "writable": service.model is not None and service.index.is_writable and has_place,
        "images": service.shows_pictures,
        "fields": fields_of(service.index),
        "limits": {
            "k": limits.k,
            "offset": limits.offset,
            "body_bytes": limits.body_bytes,
            "pixels": limits.pixels,
            "words": limits.words,
            "items": limits.items,
        },
    }
