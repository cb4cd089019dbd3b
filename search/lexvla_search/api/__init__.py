"""The REST API: `create_app` makes the application that ``lexvla serve`` runs."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from lexvla.errors import OptionalDependencyError

if TYPE_CHECKING:
    from lexvla_search.api.app import create_app
    from lexvla_search.api.settings import Limits, Settings

__all__ = ["Limits", "Settings", "create_app"]

_HOMES = {
    "Limits": "lexvla_search.api.settings",
    "Settings": "lexvla_search.api.settings",
    "create_app": "lexvla_search.api.app",
}
_EXTRA = {"fastapi", "starlette", "uvicorn", "pydantic", "prometheus_client", "httpx2"}


def __getattr__(name: str) -> Any:
    # Loaded on demand: the extra may be missing, and the command line needs no server.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(_HOMES[name]), name)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _EXTRA:
            raise
        raise OptionalDependencyError("fastapi", "serve") from error
