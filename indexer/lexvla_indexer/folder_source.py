"""A folder of images as a source of items to index."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from lexvla.errors import InputError
from lexvla.image_formats import IMAGE_SUFFIXES
from lexvla_indexer.document import Document
from lexvla_indexer.item_source import ItemSource, Listed, Unlisted
from lexvla_indexer.report import Reject
from lexvla_indexer.roots import SourcePlace

__all__ = ["FolderSource"]


class FolderSource(ItemSource):
    """Every image file under a folder."""

    has_paths = True

    def __init__(self, path: Path) -> None:
        self._top = path.resolve()
        super().__init__(SourcePlace(str(self._top), ""))

    def entries(self) -> Iterator[Listed | Unlisted]:
        """Yield the images in the order of their names, then the folders that cannot be read."""
        self.ignored = 0
        hidden: list[Unlisted] = []

        def unreadable(error: OSError) -> None:
            folder = str(error.filename)
            rule = f"the folder cannot be read ({error.strerror})"
            hidden.append(Unlisted(Reject(folder, rule, folder), None))

        for folder, folders, names in os.walk(self._top, onerror=unreadable):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in sorted(names):
                path = Path(folder, name)
                if name.startswith("."):
                    continue
                if path.suffix.lower() in IMAGE_SUFFIXES:
                    yield self._entry(path)
                else:
                    self.ignored += 1
        yield from hidden

    def _entry(self, path: Path) -> Listed | Unlisted:
        name = path.relative_to(self._top).as_posix()
        try:
            return Listed(Document(name, uri=name), path, str(path))
        except InputError as error:
            return Unlisted(Reject(error.item, error.rule, str(path)), name)
