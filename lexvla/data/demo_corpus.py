"""The demo corpus in the package: 1,906 emoji and 11 photographs, with their words."""

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

PHOTOGRAPHS = "photographs"  # the group of all photographs
_ARCHIVE = "demo_corpus.zip"
_ITEMS = "items.jsonl"


@dataclass(frozen=True)
class DemoItem:
    """An emoji or a photograph.

    Attributes:
        id: Code points of an emoji in lower-case hex, such as ``2764``, or a name such as
            ``photo-cat``.
        label: Name, such as ``red heart``.
        tags: Words that people search for.
        group: Key of the group, such as ``smileys-emotion``, or ``photographs``.
        subgroup: Key of the subgroup, such as ``heart``.
        data: The image file: PNG of 64 x 64 pixels for emoji, JPEG of at most 512 pixels a side
            for photographs.
        license: ``CC0-1.0`` or ``public domain``, for photographs.
        source: Author and original file, for photographs.
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
        """The image in RGB, on white where transparent."""
        return open_image(self.data, name=self.id)


def load_demo_corpus(kind: Literal["emoji", "photographs"] | None = None) -> list[DemoItem]:
    """Return the emoji in the order of the Unicode list, then the photographs; or one ``kind``."""
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

    The manifest's lines have "id", "image" (relative to the manifest) and "metadata" (label, tags,
    group, subgroup; for photographs also license and source), but no "text": items are found by
    their pixels. Files that are already right are left alone. The manifest is written last, so
    where it exists, the folder is complete.

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
