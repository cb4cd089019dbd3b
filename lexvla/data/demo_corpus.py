"""The demo corpus that ships with the package: 1,906 emoji and 11 photographs, with their words."""

from __future__ import annotations

import io
import json
import os
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from lexvla.images import open_image

__all__ = ["PHOTOGRAPHS", "DemoItem", "extract_demo_corpus", "load_demo_corpus"]

PHOTOGRAPHS = "photographs"  # the group of all of them
_ARCHIVE = "demo_corpus.zip"
_ITEMS = "items.jsonl"


@dataclass(frozen=True)
class DemoItem:
    """Hold one emoji or photograph.

    Attributes:
        id: The code points of an emoji in lower-case hex, such as ``2764``; of a photograph, a name
            such as ``photo-cat``.
        label: Its name, such as ``red heart``.
        tags: Words that people look for it by.
        group: The key of its group, such as ``smileys-emotion``, or ``photographs``.
        subgroup: The key of its subgroup, such as ``heart``.
        data: The image file: of an emoji a PNG of 64 x 64 pixels, of a photograph a JPEG of at most
            512 pixels a side.
        license: Of a photograph: ``CC0-1.0`` or ``public domain``.
        source: Of a photograph: who made it, and which file it comes from.
    """

    id: str
    label: str
    tags: tuple[str, ...]
    group: str
    subgroup: str
    data: bytes = field(repr=False)
    license: str = ""
    source: str = ""

    @cached_property
    def image(self) -> Image.Image:
        """The image in mode RGB, over white where it is transparent."""
        return open_image(self.data, name=self.id)


def load_demo_corpus(kind: Literal["emoji", "photographs"] | None = None) -> list[DemoItem]:
    """Return the emoji in the order of the Unicode emoji list, then the photographs.

    Args:
        kind: Return these alone. Figures of models are of the emoji alone.
    """
    with _open_archive() as archive:
        return [
            DemoItem(
                **{**record, "tags": tuple(record["tags"])},
                data=archive.read(f"images/{_file_name(record)}"),
            )
            for record in map(json.loads, archive.read(_ITEMS).splitlines())
            if kind is None or kind == _kind(record)
        ]


def extract_demo_corpus(folder: str | Path) -> Path:
    """Write the images, their notices and a manifest that `lexvla index` reads.

    A line of the manifest has "id", "image" (relative to the manifest) and "metadata" (label,
    tags, group, subgroup; of photographs also license and source), but no "text": what is found is
    found by its pixels. Files that are there already and right stay as they are. The manifest comes
    last, so where it is, all is.

    Returns:
        The path of ``manifest.jsonl``.
    """
    folder = Path(folder)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    with _open_archive() as archive:
        for name in archive.namelist():
            if name != _ITEMS:
                _write_atomically(folder / name, archive.read(name))
        records = [json.loads(line) for line in archive.read(_ITEMS).splitlines()]
    lines = []
    for record in records:
        image = f"images/{_file_name(record)}"
        line = {"id": record.pop("id"), "image": image, "metadata": record}
        lines.append(json.dumps(line, ensure_ascii=False) + "\n")
    manifest = folder / "manifest.jsonl"
    _write_atomically(manifest, "".join(lines).encode())
    return manifest


def _kind(record: dict[str, Any]) -> str:
    return PHOTOGRAPHS if record["group"] == PHOTOGRAPHS else "emoji"


def _file_name(record: dict[str, Any]) -> str:
    return f"{record['id']}.{'jpg' if _kind(record) == PHOTOGRAPHS else 'png'}"


@contextmanager
def _open_archive() -> Iterator[zipfile.ZipFile]:
    data = resources.files("lexvla.data").joinpath(_ARCHIVE).read_bytes()
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        yield archive


def _write_atomically(path: Path, data: bytes) -> None:
    if path.is_file() and path.read_bytes() == data:
        return
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        Path(temporary).chmod(0o644)  # mkstemp lets only its owner read
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
