"""Routes that search, explain and encode."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from fastapi import APIRouter
from PIL import Image
from starlette.requests import Request
from starlette.responses import JSONResponse

from lexvla.errors import LexVLAError, UnknownDocumentError
from lexvla.images import open_image
from lexvla_search import schema
from lexvla_search.api.access import READ, Serving
from lexvla_search.api.bodies import body_schema, decode
from lexvla_search.api.decoding import count_pixels
from lexvla_search.api.models import (
    BatchRequest,
    EncodeRequest,
    ExplainRequest,
    FusionSettings,
    SearchRequest,
)
from lexvla_search.api.problems import Problem, problem_of
from lexvla_search.api.service import Service
from lexvla_search.fusion import fusion_from_dict
from lexvla_search.query import Query
from lexvla_search.searcher import Searcher

__all__ = ["router"]

router = APIRouter(prefix="/v1", dependencies=[READ])

_SHOWN_WORDS = 32  # of a query
_QUERY_IMAGE = "the query's image"
_FILE = {"type": "string", "format": "binary"}
_ONE = _FILE
_MANY = {"type": "array", "items": _FILE, "minItems": 1}
_BATCH = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/BatchRequest"}}},
    }
}


@router.post(
    "/search", response_model=schema.SearchAnswer, openapi_extra=body_schema("SearchRequest", _ONE)
)
async def search(request: Request, service: Serving) -> JSONResponse:
    """Find documents."""
    started = time.perf_counter()
    async with service.intake.receive(request, SearchRequest) as (asked, files):
        image = await _image(request, service, asked, files)
        _note(request, service, asked)
        name = request.scope["lexvla.request_id"]
        answer = await service.run_on(
            request, _named(image), lambda: _search(service, asked, image, name, started)
        )
    return JSONResponse(answer)


@router.post("/search/batch", response_model=schema.BatchAnswer, openapi_extra=_BATCH)
async def search_batch(request: Request, service: Serving) -> JSONResponse:
    """Answer several queries, each as by itself. The first error names its query's position."""
    started = time.perf_counter()
    async with service.intake.receive(request, BatchRequest) as (asked, files):
        queries, most = asked.queries, service.limits.queries
        if files:
            raise Problem("invalid", "images of a batch are the field image of its queries")
        if len(queries) > most:
            rule = f"must be at most {most} queries"
            raise Problem("invalid", f"queries: {rule}", [{"field": "queries", "detail": rule}])
        images, pixels = [], []
        for position, each in enumerate(queries):
            with _position(position):
                image = await _image(request, service, each, [])
                images.append(image)
                if image is not None:
                    pixels.append(await _pixels(service, image))
            _note(request, service, each)
        name = request.scope["lexvla.request_id"]

        def answers() -> schema.BatchAnswer:
            found = []
            service.look_for_fusion()
            searcher = service.searcher.prepared([each.text for each in queries if each.text])
            for position, (each, image) in enumerate(zip(queries, images, strict=True)):
                with _position(position):
                    found.append(_search(service, each, image, name, started, searcher))
            return {"answers": found}

        return JSONResponse(await service.run_in_turn(request, pixels, answers))


@contextmanager
def _position(number: int) -> Iterator[None]:
    """Make an error of one query name its position."""
    try:
        yield
    except (LexVLAError, Problem) as error:
        problem = problem_of(error) if isinstance(error, LexVLAError) else error
        if problem is None:
            raise
        where = f"queries.{number}"
        errors = [{**each, "field": f"{where}.{each['field']}"} for each in problem.errors]
        whole = [{"field": where, "detail": problem.detail}]
        detail = f"{where}: {problem.detail}"
        raise Problem(problem.kind, detail, errors or whole, problem.headers) from error


@router.post(
    "/explain", response_model=schema.Explained, openapi_extra=body_schema("ExplainRequest", _ONE)
)
async def explain(request: Request, service: Serving) -> JSONResponse:
    """Take the score of one document apart, found or not."""
    async with service.intake.receive(request, ExplainRequest) as (asked, files):
        image = await _image(request, service, asked, files)
        _note(request, service, asked)
        answer = await service.run_on(
            request, _named(image), lambda: _explain(service, asked, image)
        )
    return JSONResponse(answer)


@router.post(
    "/encode", response_model=schema.Encoded, openapi_extra=body_schema("EncodeRequest", _MANY)
)
async def encode(request: Request, service: Serving) -> JSONResponse:
    """Turn texts or images into weighted words."""
    async with service.intake.receive(request, EncodeRequest) as (asked, files):
        given = [decode(image, f"images.{i}") for i, image in enumerate(asked.images or ())]
        images = given + files
        texts = asked.texts or []
        if bool(images) == bool(texts):
            raise Problem("invalid", "give either texts or images")
        if len(images or texts) > service.limits.items:
            raise Problem("invalid", f"at most {service.limits.items} items at a time")
        named = {f"image {i}": image for i, image in enumerate(images)}
        answer = await service.run_on(request, named, lambda: _encode(service, asked, texts, named))
    return JSONResponse(answer)


def _named(image: bytes | None) -> dict[str, bytes]:
    return {} if image is None else {_QUERY_IMAGE: image}


async def _image(
    request: Request, service: Service, asked: SearchRequest, files: list[bytes]
) -> bytes | None:
    _check(service, asked)
    given = len(files) + (asked.image is not None) + (asked.image_url is not None)
    if given > 1:
        raise Problem("invalid", "give one image: a part, image or image_url")
    if asked.image is not None:
        return decode(asked.image, "image")
    if asked.image_url is not None:
        return await service.fetcher.fetch(asked.image_url, partial(service.intake.hold, request))
    return files[0] if files else None


async def _pixels(service: Service, image: bytes) -> int:
    most = service.limits.pixels
    return await service.run(lambda: count_pixels(image, _QUERY_IMAGE, most))


def _check(service: Service, asked: SearchRequest) -> None:
    limits = service.limits
    for name, most in (("k", limits.k), ("offset", limits.offset)):
        if getattr(asked, name) > most:
            rule = f"must be at most {most:,}"
            raise Problem("invalid", f"{name}: {rule}", [{"field": name, "detail": rule}])
    if isinstance(asked.fusion, FusionSettings) and (asked.fusion.depth or 0) > limits.k:
        rule = f"must be at most {limits.k:,}"
        raise Problem(
            "invalid", f"fusion.depth: {rule}", [{"field": "fusion.depth", "detail": rule}]
        )
    for name in ("terms", "boost", "ban", "require"):
        if len(getattr(asked, name) or ()) > limits.words:
            rule = f"must be at most {limits.words:,} words"
            raise Problem("invalid", f"{name}: {rule}", [{"field": name, "detail": rule}])


def _note(request: Request, service: Service, asked: SearchRequest) -> None:
    if service.settings.log_queries:
        request.scope["lexvla.log"]["query"] = asked.model_dump(
            exclude={"image"}, exclude_defaults=True
        )


def _query(service: Service, asked: SearchRequest, image: bytes | None) -> Query:
    given = asked.model_dump(
        exclude={"image", "image_url", "explain", "id"}, exclude_none=True, exclude_defaults=True
    )
    for name in ("region", "legs", "ban", "require"):
        if name in given:
            given[name] = tuple(given[name])
    if isinstance(given.get("fusion"), dict):
        given["fusion"] = fusion_from_dict(given["fusion"])
    if "similar" in given:
        given["similar"] = _similar(given["similar"])
    if image is not None:
        given["image"] = open_image(image, _QUERY_IMAGE, service.limits.pixels)
    return Query(**given)


def _similar(given: list[Any]) -> dict[str, float]:
    pairs = [(i, 1.0) if isinstance(i, str) else (i["id"], i.get("weight", 1.0)) for i in given]
    weights = dict(pairs)
    if len(weights) < len(pairs):
        rule = "must be different ids"
        raise Problem("invalid", f"similar: {rule}", [{"field": "similar", "detail": rule}])
    return weights


def _search(
    service: Service,
    asked: SearchRequest,
    image: bytes | None,
    request_id: str,
    started: float,
    prepared: Searcher | None = None,
) -> schema.SearchAnswer:
    query = _query(service, asked, image)
    if prepared is None:
        service.look_for_fusion()
    with _deletions(query):
        answer = (prepared or service.searcher).answer(query, explain=asked.explain)
    service.metrics.stages.labels("encode").observe(answer.encode_seconds)
    service.metrics.stages.labels("search").observe(answer.search_seconds)
    words = answer.words[:_SHOWN_WORDS]
    return {
        "query": {
            "description": query.describe(),
            "words": [{"word": word, "weight": weight} for word, weight in words],
            "unknown": [word.to_dict() for word in answer.unknown],
            "unread": answer.unread,
            "legs": list(answer.legs),
            "fusion": None if answer.fusion is None else str(answer.fusion),
        },
        "hits": [service.pictures.hit(hit) for hit in answer.hits],
        "total": answer.total,
        "total_exact": answer.total_exact,
        "facets": answer.facets_to_dict(),
        "next": answer.next,
        "good_match": answer.good_match,
        "took_ms": {
            "encode": _milliseconds(answer.encode_seconds),
            "search": _milliseconds(answer.search_seconds),
            "total": _milliseconds(time.perf_counter() - started),
        },
        "request_id": request_id,
    }


def _explain(service: Service, asked: ExplainRequest, image: bytes | None) -> schema.Explained:
    query = _query(service, asked, image)
    service.look_for_fusion()
    service.fetch(asked.id)
    with _deletions(query):
        return {"hit": service.pictures.hit(service.searcher.explain(query, asked.id))}


@contextmanager
def _deletions(query: Query) -> Iterator[None]:
    """Answer 503 if a writer keeps deleting what is being read."""
    try:
        yield
    except UnknownDocumentError as error:
        if error.item in query.similar_weights:
            raise
        raise Problem("unavailable", "documents are being deleted; try again") from error


def _encode(
    service: Service, asked: EncodeRequest, texts: list[str], images: Mapping[str, bytes]
) -> schema.Encoded:
    model = service.encoder()
    if texts:
        rows = list(model.encode_text(texts))
    else:
        rows = [row for group in _opened(service, images) for row in model.encode_image(group)]
    items: list[schema.EncodedItem] = []
    for row in rows:
        item: schema.EncodedItem = {"words": service.words(row, asked.top_k)}
        if asked.dense and row.dense is not None:
            item["dense"] = [float(value) for value in row.dense[0]]
        items.append(item)
    return {"items": items}


def _opened(service: Service, images: Mapping[str, bytes]) -> Iterator[list[Image.Image]]:
    """Open images in groups of no more pixels than there is room for."""
    most = service.limits.pixels
    group: list[Image.Image] = []
    left = service.decoding.most
    for name, data in images.items():
        pixels = count_pixels(data, name, most)
        if pixels > left:
            yield group
            group, left = [], service.decoding.most
        group.append(open_image(data, name, most))
        left -= pixels
    if group:
        yield group


def _milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 3)
