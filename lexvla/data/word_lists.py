"""Word lists that the default model learns from: ImageNet's classes and common nouns."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lexvla.errors import InputError

__all__ = ["ImageClass", "read_classes", "read_nouns"]


@dataclass(frozen=True)
class ImageClass:
    """One class of ImageNet.

    Attributes:
        id: "n" and its WordNet 3.0 offset.
        label: Its first name.
        names: All its names, in lower case.
        above: Broader terms, nearest first.
        gloss: Its definition.
        words: Words and their weights, largest first.
    """

    id: str
    label: str
    names: tuple[str, ...]
    above: tuple[str, ...]
    gloss: str
    words: dict[str, float]


def read_classes(path: str | Path) -> list[ImageClass]:
    """Read classes.jsonl, in the order of a classifier's outputs."""
    return [
        ImageClass(
            id=record.text("id"),
            label=record.text("label"),
            names=record.texts("names"),
            above=record.texts("above"),
            gloss=record.text("gloss"),
            words=record.weights("words"),
        )
        for record in _records(Path(path))
    ]


def read_nouns(path: str | Path) -> list[tuple[str, dict[str, float]]]:
    """Read nouns.jsonl: each noun with its words and their weights."""
    return [(record.text("text"), record.weights("words")) for record in _records(Path(path))]


class _Record:
    """A line whose fields are checked on access."""

    def __init__(self, place: str, line: bytes) -> None:
        self.place = place
        try:
            self.fields: Any = json.loads(line)
        except ValueError:
            raise InputError(place, "damaged: not JSON in UTF-8") from None
        if not isinstance(self.fields, dict):
            raise InputError(place, "damaged: not a JSON object")

    def text(self, name: str) -> str:
        value = self.fields.get(name)
        if not isinstance(value, str):
            raise InputError(self.place, f"damaged: {name} must be a string")
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        value = self.fields.get(name)
        if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
            raise InputError(self.place, f"damaged: {name} must be a list of strings")
        return tuple(value)

    def weights(self, name: str) -> dict[str, float]:
        value = self.fields.get(name)
        if not isinstance(value, dict) or not all(map(_is_weight, value.values())):
            raise InputError(self.place, f"damaged: {name} must hold weights above 0")
        return {word: float(weight) for word, weight in value.items()}


def _is_weight(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and 0 < value < math.inf


def _records(path: Path) -> Iterator[_Record]:
    if not path.is_file():
        raise InputError(str(path), "missing; make it with scripts/build_training_words.py")
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise InputError(str(path), f"cannot be read ({error.strerror})") from error
    for number, line in enumerate(lines, start=1):
        yield _Record(f"{path}:{number}", line)
