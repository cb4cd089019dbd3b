"""The application: routes, errors, the page, and the OpenAPI description."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema
from starlette.responses import FileResponse, Response
from starlette.staticfiles import StaticFiles

from lexvla.encoder import Encoder
from lexvla.version import program_version
from lexvla_search.api import document_routes, index_routes, search_routes
from lexvla_search.api.frame import Frame
from lexvla_search.api.metrics import Metrics
from lexvla_search.api.models import (
    BatchRequest,
    DocumentLine,
    DocumentPatch,
    EncodeRequest,
    ExplainRequest,
    ProblemModel,
    SearchRequest,
)
from lexvla_search.api.problems import MEDIA_TYPE, handle_errors
from lexvla_search.api.service import Service
from lexvla_search.api.settings import Settings

__all__ = ["create_app"]

_BODIES = (
    *(SearchRequest, BatchRequest, ExplainRequest, EncodeRequest),
    *(DocumentLine, DocumentPatch, ProblemModel),
)
_SCHEMAS = "#/components/schemas/"


class _Page(StaticFiles):
    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        """Answer with a file that browsers revalidate: modules of two versions must not mix."""
        response = super().file_response(*args, **kwargs)
        if isinstance(response, FileResponse) and str(response.path).endswith(".gz"):
            response.headers["Content-Encoding"] = "gzip"
        response.headers["Cache-Control"] = "no-cache"
        return response


def create_app(settings: Settings, model: Encoder | None) -> FastAPI:
    """Make the application that serves one index; without a model, only for plain words."""
    metrics = Metrics()
    service = Service(settings, model, metrics)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        service.close()

    app = FastAPI(
        title="LexVLA",
        version=program_version(),
        summary="Explainable search of images by words",
        lifespan=lifespan,
        # These would load scripts from elsewhere; index_routes has a page of its own.
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.service = service
    handle_errors(app)
    for module in (search_routes, document_routes, index_routes):
        app.include_router(module.router)
    app.mount("/static", _Page(directory=index_routes.STATIC), name="static")
    app.add_middleware(
        Frame,
        metrics=metrics,
        hosts=settings.hosts,
        origins=settings.origins,
        paths=service.paths,
        admission=service.admission,
    )
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


def _openapi(app: FastAPI) -> dict[str, Any]:
    if app.openapi_schema is None:
        schema = get_openapi(
            title=app.title, version=app.version, summary=app.summary, routes=app.routes
        )
        modes = [(body, "validation") for body in _BODIES]
        _, made = models_json_schema(modes, ref_template=_SCHEMAS + "{model}")  # type: ignore[arg-type]
        components = schema.setdefault("components", {})
        schemas = components.setdefault("schemas", {})
        schemas.update(made.get("$defs", {}))
        for name in ("HTTPValidationError", "ValidationError"):
            schemas.pop(name, None)
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        problem = {
            "description": "What is wrong (RFC 9457)",
            "content": {MEDIA_TYPE: {"schema": {"$ref": f"{_SCHEMAS}ProblemModel"}}},
        }
        for path, methods in schema["paths"].items():
            for operation in methods.values():
                operation["responses"].pop("422", None)
                operation["responses"]["default"] = problem
                if path not in ("/healthz", "/readyz", "/metrics"):
                    operation["security"] = [{"key": []}, {}]
        app.openapi_schema = schema
    return app.openapi_schema
