"""What became of the items of a source."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TextIO

from lexvla_indexer.durable import naming

__all__ = ["Loss", "Reject", "RejectLog", "Report"]


@dataclass(frozen=True)
class Reject:
    """Say why an item was left out.

    Attributes:
        item: The item's id, or whatever else names it.
        rule: The rule that it breaks.
        where: The file, or the manifest's path and line number.
    """

    item: str
    rule: str
    where: str


@dataclass(frozen=True)
class Loss:
    """Say what was lost of an item that was read.

    Attributes:
        item: The item's id.
        lost: What was lost, as a phrase.
    """

    item: str
    lost: str


@dataclass
class Report:
    """Count what became of the items of a source.

    Attributes:
        added: Items encoded and stored, new ones and changed ones.
        replaced: Items, counted elsewhere too, that replaced a document of another source.
        skipped: Items that the index already had, unchanged.
        updated: Items whose image is unchanged, but not their text, metadata or address; their
            vectors were kept.
        moved: Files of a folder that were in another place of it before; their vectors were kept.
        absorbed: Folders inside this one that were sources of their own, and are parts of it now.
        moved_from: Where the folder lay until now, if the index knew it in a place that is gone.
        empty: Items among the added whose lexical vector is empty; no words find them.
        cut: Items among the added that were encoded by a text whose end the model does not read.
        ignored: Files of a folder that are not images, by suffix.
        excluded: Files and folders that were left out, by the pattern that excludes them.
        pruned: Documents deleted because their source no longer lists them.
        prune_refused: Why nothing was pruned although it was asked for; otherwise empty.
        interrupted: How far the run came if it was stopped, such as "12 of 40 items"; otherwise
            empty.
        losses: What was lost of items that were read.
        rejected: Items left out, each with the rule that it breaks.
        rejects_path: The file that lists them; ``None`` if the index has no directory.
    """

    added: int = 0
    replaced: int = 0
    skipped: int = 0
    updated: int = 0
    moved: int = 0
    absorbed: list[str] = field(default_factory=list)
    moved_from: str = ""
    empty: int = 0
    cut: int = 0
    ignored: dict[str, int] = field(default_factory=dict)
    excluded: dict[str, int] = field(default_factory=dict)
    pruned: int = 0
    prune_refused: str = ""
    interrupted: str = ""
    losses: list[Loss] = field(default_factory=list)
    rejected: list[Reject] = field(default_factory=list)
    rejects_path: Path | None = None

    @property
    def stored(self) -> int:
        """Items of the source that the index has now."""
        return self.added + self.skipped + self.updated + self.moved


class RejectLog:
    """Keep rejects in a report, and in a file that stays readable after a crash.

    The file has one JSON object a line; its name ends in ``.part`` until the run is complete.
    """

    def __init__(self, path: Path | None, report: Report) -> None:
        self._report = report
        self._path = path
        report.rejects_path = path
        self._file: TextIO | None = None

    def __enter__(self) -> RejectLog:
        if self._path is not None:
            self._file = self._path.with_name(f"{self._path.name}.part").open("w", encoding="utf-8")
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if self._file is None or self._path is None:
            return
        with naming(Path(self._file.name)):  # closing writes what could not be written before
            os.fsync(self._file.fileno())
            self._file.close()
        if kind is None:
            Path(self._file.name).replace(self._path)

    def add(self, reject: Reject) -> None:
        """Record a reject."""
        self._report.rejected.append(reject)
        if self._file is not None:
            with naming(Path(self._file.name)):
                self._file.write(json.dumps(asdict(reject)) + "\n")
                self._file.flush()
