"""The records that a run left out: their number, the first of them, and a file of all."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lexvla.data.pairs import Skipped

__all__ = ["SkipList"]

MAX_LISTED = 1000


class SkipList:
    """Count what was left out.

    Attributes:
        count: How many records there were.
        first: The first thousand.

    Args:
        path: A JSONL file for all of them. A new run overwrites it, a resumed one goes on.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.count = 0
        self.first: list[Skipped] = []
        self._path = path
        self._waiting: list[Skipped] = []

    def add(self, skips: Iterable[Skipped]) -> None:
        """Take some in; `write` puts them into the file."""
        for skip in skips:
            self.count += 1
            if len(self.first) < MAX_LISTED:
                self.first.append(skip)
            if self._path is not None:
                self._waiting.append(skip)

    def write(self) -> None:
        """Write what the file lacks."""
        if self._path is None or not self._waiting:
            return
        new = len(self._waiting) == self.count
        with self._path.open("w" if new else "a", encoding="utf-8") as file:
            file.writelines(json.dumps(skip._asdict()) + "\n" for skip in self._waiting)
        self._waiting.clear()

    def state_dict(self) -> dict[str, Any]:
        """Return the count and the list."""
        return {"count": self.count, "first": [list(skip) for skip in self.first]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to a state; lines that were written after it are cut off."""
        self.count = state["count"]
        self.first = [Skipped(*skip) for skip in state["first"]]
        self._waiting = []
        if self._path is not None and self._path.exists():
            with self._path.open("rb") as file:
                end = sum(len(line) for line, _ in zip(file, range(self.count), strict=False))
            os.truncate(self._path, end)
