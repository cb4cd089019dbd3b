"""A folder of images as a source of items to index."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from pathspec import GitIgnoreSpec

from lexvla.errors import InputError
from lexvla.image_formats import IMAGE_SUFFIXES
from lexvla_indexer.document import Document
from lexvla_indexer.entering import Entered
from lexvla_indexer.item_source import ItemSource, ListedItem, UnlistedItem
from lexvla_indexer.path_ids import id_of_path
from lexvla_indexer.reading import Reading
from lexvla_indexer.report import Reject
from lexvla_indexer.roots import SourcePlace

__all__ = ["FolderSource"]


class FolderSource(ItemSource):
    """Every image file under a folder.

    Links to folders are followed; each folder is read once, under its own path if that is in the
    tree, so that neither a loop nor a second link makes copies.
    """

    has_paths = True

    def __init__(self, path: Path, reading: Reading) -> None:
        self._top = path.resolve()
        super().__init__(SourcePlace(str(self._top), ""))
        self._entered = Entered(self.key, self.place.root)
        self._patterns = reading.patterns
        try:
            self._spec = GitIgnoreSpec.from_lines(self._patterns)
        except ValueError as error:
            raise InputError(", ".join(reading.exclude), f"is not a pattern ({error})") from error

    def enter(self, entered: Entered) -> None:
        """Give ids as an index has them: a folder may be a part of one of its sources."""
        super().enter(entered)
        self.start = entered.prefix + entered.below
        self._entered = entered

    def entries(self) -> Iterator[ListedItem | UnlistedItem]:
        """Yield the images in the order of their names, then what cannot be read.

        Links to folders come after the tree itself.
        """
        self.ignored.clear()
        self.excluded.clear()
        hidden: list[UnlistedItem] = []
        seen: set[tuple[int, int]] = set()
        root = Path(self._entered.root)
        if root != self._top and root.is_dir():
            seen.add(_identity(root))
        waiting = [self._top]
        while waiting:
            links: list[Path] = []
            for top in waiting:
                yield from self._walk(top, seen, links, hidden)
            waiting = links
        yield from hidden

    def _walk(
        self, top: Path, seen: set[tuple[int, int]], links: list[Path], hidden: list[UnlistedItem]
    ) -> Iterator[ListedItem | UnlistedItem]:
        """Yield the images in a tree; collect the links to folders in it, and what is hidden."""

        def unreadable(error: OSError) -> None:
            folder = str(error.filename)
            rule = f"the folder cannot be read ({error.strerror})"
            hidden.append(
                UnlistedItem(Reject(id_of_path(Path(folder)), rule, id_of_path(Path(folder))), None)
            )

        for folder, folders, names in os.walk(top, onerror=unreadable):
            try:
                identity = _identity(Path(folder))
            except OSError as error:
                unreadable(error)
                folders.clear()
                continue
            if identity in seen:
                folders.clear()
                continue
            seen.add(identity)
            kept = [name for name in sorted(folders) if not self._excludes(Path(folder, name), "/")]
            paths = (Path(folder, name) for name in kept)
            links += [path for path in paths if path.is_symlink() and not self._is_elsewhere(path)]
            folders[:] = [name for name in kept if not Path(folder, name).is_symlink()]
            for name in sorted(names):
                path = Path(folder, name)
                if self._excludes(path):
                    continue
                suffix = path.suffix.lower()
                if suffix in IMAGE_SUFFIXES:
                    yield self._entry(path)
                elif path.is_symlink() and not path.exists():
                    # Perhaps a folder on a disk that is not there now.
                    shown = id_of_path(path)
                    rule = "the link leads to nothing"
                    hidden.append(UnlistedItem(Reject(shown, rule, shown), None))
                else:
                    self.ignored[suffix] += 1

    def _excludes(self, path: Path, end: str = "") -> bool:
        """Return whether a pattern excludes a path, and count it if so."""
        found = self._spec.check_file(path.relative_to(self._top).as_posix() + end)
        if found.include and found.index is not None:
            self.excluded[self._patterns[found.index]] += 1
        return bool(found.include)

    def _is_elsewhere(self, link: Path) -> bool:
        """Return whether a link leads to another part of the source, which reads it itself."""
        target = link.resolve()
        return target.is_relative_to(self._entered.root) and not target.is_relative_to(self._top)

    def _entry(self, path: Path) -> ListedItem | UnlistedItem:
        name, where = id_of_path(path.relative_to(self._top)), id_of_path(path)
        try:
            document = self._entered.named(Document(name, uri=name))
            if rule := self._entered.refusal(document.id):
                raise InputError(document.id, rule)
            return ListedItem(document, path, where)
        except InputError as error:
            return UnlistedItem(Reject(error.item, error.rule, where), self.start + name)


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino
