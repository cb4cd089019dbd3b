"""Follow the changes of a folder of images."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event

from lexvla.encoder import Encoder
from lexvla.errors import IndexLockedError, InputError, OptionalDependencyError
from lexvla_indexer.base import Index
from lexvla_indexer.item_source import ListedItem
from lexvla_indexer.pipeline import index_source
from lexvla_indexer.reading import Reading
from lexvla_indexer.report import Report

__all__ = ["MOST_SECONDS", "watch_folder"]

MOST_SECONDS = 60.0  # that changes wait while others keep coming
_TURN_SECONDS = 0.5  # between tries to become the index's writer


def watch_folder(
    folder: str | Path,
    opened: Callable[[], Index],
    encoder: Encoder,
    stop: Event,
    *,
    quiet_seconds: float = 2.0,
    batch_size: int = 64,
    prune_anyway: bool = False,
    reading: Reading | None = None,
) -> Iterator[Report]:
    """Index a folder, then what changes in it, until ``stop`` is set; yield a report of each run.

    Changes are indexed, pruned and committed once none has come for ``quiet_seconds``, or after a
    minute. Each run lists the folder, and reads the files that changed or are not in the index.
    The other arguments, and when a prune is refused, are those of `index_source`.

    ``opened`` opens the index for each run, and between them another process may write to it; a
    run waits until it does not.

    Raises:
        InputError: The folder is missing, perhaps since a change, or another is in its place.
        OptionalDependencyError: The package watchfiles is missing.
    """
    try:
        from watchfiles import watch
    except ModuleNotFoundError as error:
        raise OptionalDependencyError("watchfiles", "watch") from error
    root = Path(folder).resolve()
    if not root.is_dir():
        raise InputError(str(folder), "is not a folder")
    touched: set[Path] | None = None  # until all was indexed once
    own: Path | None = None  # where the index is
    followed = root.stat()  # changes are those of this folder, wherever it is moved to
    step = max(1, round(1000 * quiet_seconds))

    def wanted(item: ListedItem, known: bool) -> bool:
        if touched is None or not known or not isinstance(item.image, Path):
            return True
        return not touched.isdisjoint((item.image, *item.image.parents))

    # The first comes as soon as changes are noticed, so that none is lost.
    for changes in watch(
        root,
        watch_filter=None,
        step=step,
        debounce=round(1000 * MOST_SECONDS),
        rust_timeout=step,
        yield_on_timeout=True,
        stop_event=stop,
        raise_interrupt=False,
    ):
        if touched is not None:
            # A change of the folder itself, such as of its rights, is none of its files. The index
            # may be in the folder, and each run writes to it.
            paths = {Path(path) for _, path in changes}
            if root in paths and not _is_still(root, followed):
                raise InputError(str(root), "the folder was moved or deleted")
            touched = {path for path in paths - {root} if own not in (path, *path.parents)}
            if not touched:
                continue
        while not stop.is_set():
            try:
                with opened() as index:
                    own = None if index.directory is None else index.directory.resolve()
                    report = index_source(
                        root,
                        index,
                        encoder,
                        batch_size,
                        prune=True,
                        prune_anyway=prune_anyway,
                        stop=stop,
                        wanted=wanted,
                        reading=reading,
                    )
            except IndexLockedError:
                time.sleep(_TURN_SECONDS)
            else:
                yield report
                break
        touched = set()


def _is_still(folder: Path, known: os.stat_result) -> bool:
    try:
        return os.path.samestat(folder.stat(), known)
    except OSError:
        return False
