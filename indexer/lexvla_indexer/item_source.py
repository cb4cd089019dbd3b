"""What every source of items to index gives: entries, one by one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from lexvla_indexer.document import Document
from lexvla_indexer.entering import Entered
from lexvla_indexer.report import Reject
from lexvla_indexer.roots import SourcePlace, key_of

__all__ = ["ItemSource", "ListedItem", "UnlistedItem"]


@dataclass(frozen=True)
class ListedItem:
    """Describe one item to encode: by its image if it has one, otherwise by its text.

    Attributes:
        document: What the index will store, without a fingerprint yet.
        image: The path of the image, or its bytes if it lies within another file.
        where: See `Reject`.
        fetch: Gets the bytes of an image that lies elsewhere, in place of ``image``.
    """

    document: Document
    image: Path | bytes | None = field(repr=False)
    where: str
    fetch: Callable[[], bytes] | None = None


@dataclass(frozen=True)
class UnlistedItem:
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
        place: The folder and the name; the same folder and name are the same source.
        key: Names the source in an index.
        start: What all ids start with; the rest is that of the source without an index.
        has_paths: Whether ids are paths, so that an item under another id may be one that moved.
        ignored: Files that the latest listing skipped, by a suffix that is not an image's.
        excluded: Files and folders that it skipped, by the pattern that excludes them.
    """

    has_paths = False

    def __init__(self, place: SourcePlace) -> None:
        self.place = place
        self.key = key_of(place)
        self.start = ""
        self.ignored: Counter[str] = Counter()
        self.excluded: Counter[str] = Counter()

    def enter(self, entered: Entered) -> None:
        """Give ids as an index has them."""
        self.key = entered.key

    @abstractmethod
    def entries(self) -> Iterator[ListedItem | UnlistedItem]:
        """Yield everything there is, always in the same order."""

    def count(self) -> int:
        """Return how many entries there are."""
        return sum(1 for _ in self.entries())
