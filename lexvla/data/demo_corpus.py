"""The demo corpus that ships with the package: 1,906 emoji drawings with their words."""

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

from PIL import Image

from lexvla.images import open_image

__all__ = ["DemoItem", "extract_demo_corpus", "load_demo_corpus"]

_ARCHIVE = "demo_corpus.zip"
_ITEMS = "items.jsonl"


@dataclass(frozen=True)
class DemoItem:
    """Hold one emoji.

    Attributes:
        id: The code points in lower-case hex, such as ``2764``.
        label: Its name, such as ``red heart``.
        tags: Words that people look for it by.
        group: The key of its group, such as ``smileys-emotion``.
        subgroup: The key of its subgroup, such as ``heart``.
        png: The drawing, 64 x 64 pixels, as a PNG file.
    """

    id: str
    label: str
    tags: tuple[str, ...]
    group: str
    subgroup: str
    png: bytes = field(repr=False)

    @cached_property
    def image(self) -> Image.Image:
        """The drawing over white, in mode RGB."""
        return open_image(self.png, name=self.id)


def load_demo_corpus() -> list[DemoItem]:
    """Return the items in the order of the Unicode emoji list."""
    with _open_archive() as archive:
        return [
            DemoItem(
                id=record["id"],
                label=record["label"],
                tags=tuple(record["tags"]),
                group=record["group"],
                subgroup=record["subgroup"],
                png=archive.read(f"images/{record['id']}.png"),
            )
            for record in map(json.loads, archive.read(_ITEMS).splitlines())
        ]


def extract_demo_corpus(folder: str | Path) -> Path:
    """Write the drawings, their notices and a manifest that `lexvla index` reads.

    A line of the manifest has "id", "image" (relative to the manifest) and "metadata" (label,
    tags, group, subgroup), but no "text": what is found is found by its pixels. Files that are
    there already and right stay as they are. The manifest comes last, so where it is, all is.

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
        name = record.pop("id")
        line = {"id": name, "image": f"images/{name}.png", "metadata": record}
        lines.append(json.dumps(line, ensure_ascii=False) + "\n")
    manifest = folder / "manifest.jsonl"
    _write_atomically(manifest, "".join(lines).encode())
    return manifest


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
