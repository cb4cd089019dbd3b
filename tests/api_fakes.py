"""A server over small pictures, without a model, and what tests ask of it."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

pytest.importorskip("fastapi", reason="needs the server: pip install 'lexvla[serve]'")

from starlette.testclient import TestClient

from lexvla_search.api import Limits, Settings, create_app
from search_fakes import FakeEncoder, MappingEncoder, build_index

URL = "http://localhost"


def new_index(folder: Path, encoder: FakeEncoder | None = None) -> str:
    """Make an index of four pictures; return its address."""
    address = folder / "pictures.lex"
    build_index(address, folder / "pictures", encoder or FakeEncoder()).close()
    return str(address)


@contextmanager
def served(
    folder: Path, encoder: Any = None, limits: Limits | None = None, **settings: Any
) -> Iterator[TestClient]:
    """Serve such an index in this process."""
    encoder = encoder or MappingEncoder()
    address = folder / "pictures.lex"
    if not address.exists():
        new_index(folder, encoder)
    settings.setdefault("images", (folder / "pictures",))
    made = Settings(str(address), limits=limits or Limits(threads=4), **settings)
    with TestClient(create_app(made, encoder), URL, raise_server_exceptions=False) as client:
        yield client


def png(image: Image.Image) -> bytes:
    data = io.BytesIO()
    image.save(data, "PNG")
    return data.getvalue()


def text_of(data: bytes) -> str:
    """Return bytes as base64."""
    return base64.b64encode(data).decode()


def ids(answer: Any) -> list[str]:
    assert answer.status_code == 200, answer.text
    return [hit["id"] for hit in answer.json()["hits"]]


def as_found(hits: list[dict[str, Any]], folder: Path) -> list[dict[str, Any]]:
    """Return hits as a searcher has them: the server adds addresses and shortens paths."""
    shown = [
        {name: value for name, value in hit.items() if not name.endswith("_url")} for hit in hits
    ]
    for hit in shown:
        uri = hit["document"]["uri"]
        hit["document"]["uri"] = str(folder / uri) if uri else uri
    return shown
