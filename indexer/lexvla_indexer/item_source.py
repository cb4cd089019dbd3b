"""What every source of items to index gives: entries, one by one."""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from lexvla_indexer.document import Document
from lexvla_indexer.report import Reject

__all__ = ["ItemSource", "Listed", "Unlisted"]


@dataclass(frozen=True)
class Listed:
    """Describe one item to encode: by its image if it has one, otherwise by its text.

    Attributes:
        document: What the index will store, without a fingerprint yet.
        image: The path of the image, or its bytes if it lies within another file.
        where: See `Reject`.
    """

    document: Document
    image: Path | bytes | None = field(repr=False)
    where: str


@dataclass(frozen=True)
class Unlisted:
    """Describe something that a source has and cannot give.

    Attributes:
        reject: What it is, and why.
        id: The id if it is one known item; ``None`` if it may hide any number of items.
    """

    reject: Reject
    id: str | None


class ItemSource(ABC):
    """List items one by one, without decoding their images.

    Attributes:
        name: Identifies the source: the same name is the same source.
        ignored: Files that the latest listing skipped because their suffix is not an image's.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.ignored = 0

    @property
    def key(self) -> str:
        """Return a short hash of the name."""
        return hashlib.sha256(os.fsencode(self.name)).hexdigest()[:16]

    @abstractmethod
    def entries(self) -> Iterator[Listed | Unlisted]:
        """Yield everything there is, always in the same order."""

    def count(self) -> int:
        """Return how many entries there are."""
        return sum(1 for _ in self.entries())
