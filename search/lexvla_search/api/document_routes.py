"""Routes of documents: put, get and delete them, and show where their words were read from."""

from __future__ import annotations

import io
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import unquote

from fastapi import APIRouter
from fastapi import Path as PathPart
from fastapi import Query as Parameter
from PIL import Image
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from lexvla.encoding import Encoding
from lexvla.errors import LexVLAError, UnknownDocumentError
from lexvla.image_formats import MAX_PIXELS
from lexvla.images import open_image
from lexvla_indexer import Document
from lexvla_indexer.listing import MAX_ORDERS
from lexvla_indexer.strongest import SHOWN_WORDS
from lexvla_search import schema
from lexvla_search.api.access import READ, WRITE, DocumentId, Serving, Signed
from lexvla_search.api.bodies import content_type
from lexvla_search.api.decoding import count_pixels
from lexvla_search.api.models import DocumentPatch
from lexvla_search.api.problems import Problem, problem_of
from lexvla_search.api.service import Service
from lexvla_search.api.upsert import Upsert
from lexvla_search.heatmap import heatmap, word_map
from lexvla_search.query import Query

__all__ = ["router"]

_LONGEST_SIDE = 2048  # of a picture that is shown

router = APIRouter(prefix="/v1/documents")

Word = Annotated[str, PathPart(examples=["heart"])]

_LINES = "application/x-ndjson"
_LINE_SCHEMA = {
    "requestBody": {
        "required": True,
        "description": "One JSON object a line, each as DocumentLine.",
        "content": {
            _LINES: {
                "schema": {"$ref": "#/components/schemas/DocumentLine"},
                "example": json.dumps({"id": "note-1", "text": "a red heart"}),
            }
        },
    }
}
_LISTING = {"filter", "sort", "limit", "after"}
_MERGE, _JSON = "application/merge-patch+json", "application/json"
_PATCH_REF = {"schema": {"$ref": "#/components/schemas/DocumentPatch"}}
_PATCH_SCHEMA = {
    "requestBody": {"required": True, "content": {_MERGE: _PATCH_REF, _JSON: _PATCH_REF}}
}
_PNG: dict[int | str, dict[str, Any]] = {
    200: {"content": {"image/png": {"schema": {"type": "string", "format": "binary"}}}}
}
_JPEG: dict[int | str, dict[str, Any]] = {
    200: {"content": {"image/jpeg": {"schema": {"type": "string", "format": "binary"}}}}
}


@router.put(
    "", response_model=schema.UpsertAnswer, dependencies=[WRITE], openapi_extra=_LINE_SCHEMA
)
async def put(request: Request, service: Serving) -> Response:
    """Add or replace documents, one per line. What the answer counts as indexed is committed.

    With ``Accept: application/x-ndjson``, a line of the answer tells of each commit as it is made.
    """
    content_type(request, _LINES, "application/jsonl")
    service.encoder()
    if _LINES in request.headers.get("accept", ""):
        return _Acknowledging(request, service)
    upsert = Upsert(service)
    with service.upserts.place():
        try:
            async for _ in upsert.run(request):
                pass
        except LexVLAError as error:
            problem = problem_of(error)
            if problem is None:
                raise
            problem.extra.update(upsert.report())
            raise problem from error
        except Problem as problem:
            problem.extra.update(upsert.report())
            raise
    return JSONResponse(upsert.report())


class _Acknowledging(Response):
    """Answer with a line for each commit, while the body is still coming."""

    media_type = _LINES

    def __init__(self, request: Request, service: Service) -> None:
        super().__init__(b"")
        del self.headers["content-length"]
        self._request, self._service = request, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._service.upserts.place():
            start = {"status": self.status_code, "headers": self.raw_headers}
            await send({"type": "http.response.start", **start})
            async for line in self._lines():
                data = json.dumps(line).encode() + b"\n"
                await send({"type": "http.response.body", "body": data, "more_body": True})
            await send({"type": "http.response.body", "body": b""})

    async def _lines(self) -> AsyncIterator[dict[str, Any]]:
        upsert, told = Upsert(self._service), 0
        problem: Problem | None = None
        try:
            async for last in upsert.run(self._request):
                new = upsert.errors[told:]
                told += len(new)
                yield {"line": last, "indexed": upsert.indexed, "errors": new}
        except LexVLAError as error:
            problem = problem_of(error)
            if problem is None:
                raise
        except Problem as error:
            problem = error
        if problem is not None:
            yield {"problem": json.loads(problem.body(self._request.scope))}
        yield {"done": problem is None, "indexed": upsert.indexed, "rejected": upsert.rejected}


@router.get("", response_model=schema.DocumentList, dependencies=[READ])
async def list_documents(
    request: Request,
    service: Serving,
    filter: Annotated[  # noqa: A002 - the public word for it
        str | None,
        Parameter(
            description="Such as `year >= 2020`.",
            examples=["group = animals-nature and tags = cat"],
        ),
    ] = None,
    sort: Annotated[
        list[str] | None,
        Parameter(
            description="Metadata fields to order by, then by id; `-year` is descending.",
            examples=[["-subgroup", "label"]],
            max_length=MAX_ORDERS,
        ),
    ] = None,
    limit: Annotated[int, Parameter(ge=1, examples=[100])] = 10,
    after: Annotated[
        str | None, Parameter(description="The `next` of an earlier answer.", examples=[None])
    ] = None,
) -> JSONResponse:
    """List documents, all or those of a filter, in order."""
    for name in request.query_params.keys() - _LISTING:  # a filter misspelt would list all
        rule = "there is no such parameter"
        raise Problem("invalid", f"{name}: {rule}", [{"field": name, "detail": rule}])
    if limit > service.limits.k:
        rule = f"must be at most {service.limits.k:,}"
        raise Problem("invalid", f"limit: {rule}", [{"field": "limit", "detail": rule}])
    query = Query(filter=filter, sort=sort or (), k=limit, after=after)

    def listed() -> schema.DocumentList:
        answer = service.searcher.answer(query)
        found = [service.pictures.document(hit.document) for hit in answer.hits]
        return {"documents": found, "total": answer.total, "next": answer.next}

    return JSONResponse(await service.run(listed))


@router.get("/{document_id}", response_model=schema.ShownDocument, dependencies=[READ])
async def get(document_id: DocumentId, service: Serving) -> JSONResponse:
    """Show what the index keeps of a document. A slash in an id must come as %2F."""

    def shown() -> schema.ShownDocument:
        document, _ = service.fetch(unquote(document_id))
        return service.pictures.document(document)

    return JSONResponse(await service.run(shown))


@router.patch(
    "/{document_id}",
    response_model=schema.Patched,
    dependencies=[WRITE],
    openapi_extra=_PATCH_SCHEMA,
)
async def patch(request: Request, document_id: DocumentId, service: Serving) -> JSONResponse:
    """Change a document's metadata, text or uri without its image; null removes.

    The vectors stay. Only a document that was encoded from its text is encoded again if that
    changes, and the answer says so.
    """
    name = unquote(document_id)

    def change(old: Document) -> Document:
        given = {field: getattr(asked, field) for field in asked.model_fields_set}
        text, uri = (given.get(each, getattr(old, each)) or "" for each in ("text", "uri"))
        changes = given.get("metadata", {})
        merged = {} if changes is None else {**old.metadata, **changes}
        metadata = {key: value for key, value in merged.items() if value is not None}
        return replace(old, text=text, uri=uri, metadata=metadata)

    with service.upserts.place():
        async with service.intake.json(request, DocumentPatch, _MERGE, _JSON) as asked:
            try:
                made = await service.write(lambda: service.writer.change(name, change))
            except UnknownDocumentError as error:
                raise Problem("not-found", f"the index has no document {name!r}") from error
    document, again = made
    return JSONResponse({**service.pictures.document(document), "encoded_again": again})


@router.delete("/{document_id}", response_model=schema.Deleted, dependencies=[WRITE])
async def delete(document_id: DocumentId, service: Serving) -> JSONResponse:
    """Delete a document."""
    name = unquote(document_id)
    with service.upserts.place():
        deleted = await service.write(lambda: service.writer.delete([name]))
        await service.keep_thumbnails([name])
    if not deleted:
        raise Problem("not-found", f"the index has no document {name!r}")
    return JSONResponse({"deleted": deleted})


@router.get("/{document_id}/words", response_model=schema.DocumentWords, dependencies=[READ])
async def words(
    document_id: DocumentId,
    service: Serving,
    top_k: Annotated[int, Parameter(ge=1, le=1000)] = SHOWN_WORDS,
) -> JSONResponse:
    """Show a document's strongest words, and the patches that they were read from."""

    def read() -> schema.DocumentWords:
        document, encoding = service.fetch(unquote(document_id))
        return {"id": document.id, "words": service.words(encoding, top_k)}

    return JSONResponse(await service.run(read))


@router.get("/{document_id}/image", response_class=Response, responses=_JPEG)
async def image(
    request: Request,
    document_id: DocumentId,
    service: Serving,
    signed: Signed,
    size: Annotated[int, Parameter(ge=16, le=_LONGEST_SIDE)] = 512,
) -> Response:
    """Show a document's picture, no side longer than this.

    The ``image_url`` and ``thumbnail_url`` of hits and documents lead here. A signed one needs no
    key, and pages of all origins may show it.
    """

    def draw(picture: Image.Image, encoding: Encoding) -> bytes:
        picture.thumbnail((size, size), Image.Resampling.LANCZOS)
        data = io.BytesIO()
        picture.save(data, "JPEG", quality=88)
        return data.getvalue()

    answer = await _draw(request, service, unquote(document_id), "image/jpeg", draw)
    if signed:
        answer.headers["Cross-Origin-Resource-Policy"] = "cross-origin"
    return answer


@router.get(
    "/{document_id}/heatmap/{word}", response_class=Response, responses=_PNG, dependencies=[READ]
)
async def word_heatmap(
    request: Request,
    document_id: DocumentId,
    word: Word,
    service: Serving,
) -> Response:
    """Show where in a document's picture a word was read from."""

    def draw(picture: Image.Image, encoding: Encoding) -> bytes:
        weights = word_map(service.encoder(), picture, unquote(word), encoding)
        data = io.BytesIO()
        heatmap(picture, weights).save(data, "PNG")
        return data.getvalue()

    return await _draw(request, service, unquote(document_id), "image/png", draw)


async def _draw(
    request: Request,
    service: Service,
    name: str,
    kind: str,
    draw: Callable[[Image.Image, Encoding], bytes],
) -> Response:
    """Answer with what is drawn of a document's picture, if it may be shown."""
    absent = Problem("not-found", f"there is no picture of {name!r} to show")
    most = max(service.limits.pixels, MAX_PIXELS)  # not sent by a client

    def find() -> tuple[Path | bytes, Encoding]:
        document, encoding = service.fetch(name)
        picture = service.pictures.find(document)
        if picture is None:
            raise absent
        count_pixels(picture, name, most)
        return picture, encoding

    def work() -> bytes:
        return draw(open_image(picture, name, most, least_side=_LONGEST_SIDE), encoding)

    if not service.shows_pictures:
        raise Problem("not-found", "this server shows no pictures; start it with --images")
    picture, encoding = await service.run(find)
    data = await service.run_on(request, {name: picture}, work, most)
    return Response(data, media_type=kind, headers={"Cache-Control": "private, max-age=600"})
