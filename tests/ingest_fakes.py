"""Small sources for the ingest, and what an index holds after it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data_fakes import write_tar
from image_bytes import encoded
from indexer_fakes import ColourEncoder
from lexvla_indexer import EmbeddedIndex, Index


def new_index(path: Path, encoder: ColourEncoder | None = None) -> EmbeddedIndex:
    encoder = encoder or ColourEncoder()
    return EmbeddedIndex(path, True, encoder.vocabulary, encoder.name)


def picture(path: Path, colour: Any = "red", size: tuple[int, int] = (4, 4)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


def pictures(folder: Path, numbers: Sequence[int], shift: int = 0) -> Path:
    """Write pictures, each of its own colour; the shift changes the colours."""
    for number in numbers:
        picture(folder / f"{number:03}.png", (5 * number % 256, 200, 30 + shift))
    return folder


def manifest(folder: Path, *lines: Any) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / "items.jsonl"
    raw = (x if isinstance(x, bytes) else json.dumps(x).encode() for x in lines)
    path.write_bytes(b"\n".join(raw) + b"\n")
    return path


def shard(path: Path, records: dict[str, tuple[str | None, str]]) -> Path:
    """Write a tar of pictures: key -> caption and colour."""
    members = []
    for key, (caption, colour) in records.items():
        members.append((f"{key}.png", encoded(Image.new("RGB", (4, 4), colour), "PNG")))
        if caption is not None:
            members.append((f"{key}.json", json.dumps({"caption": caption, "alt": "x"}).encode()))
    return write_tar(path, members)


def contents(index: Index, ids: Sequence[str]) -> list[tuple[Any, ...]]:
    """Return the documents of these ids with their vectors, and nothing that a run may vary."""
    assert index.count() == len(ids)
    documents, rows = index.fetch(ids)
    return [
        (document, row.lexical.indices.tolist(), row.lexical.data.tolist(), row.patches.tolist())
        for document, row in zip(documents, rows, strict=True)
    ]


def same(left: Any, right: Any) -> bool:
    return all(
        np.array_equal(a, b)
        for a, b in zip(
            (left.lexical.toarray(), left.patches),
            (right.lexical.toarray(), right.patches),
            strict=True,
        )
    )
