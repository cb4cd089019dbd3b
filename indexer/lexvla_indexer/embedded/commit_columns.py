"""The columns of the newest commit that was asked for any, shared by all threads."""

from __future__ import annotations

import threading
from collections.abc import Iterable

from lexvla_indexer.columns import Column
from lexvla_indexer.embedded.manifest import Manifest, State
from lexvla_indexer.sort_keys import keys_of

__all__ = ["CommitColumns", "first_rows"]


def first_rows(state: State) -> dict[int, int]:
    """Return where each segment's rows start, if those of all segments are numbered on."""
    starts, start = {}, 0
    for number, entry in state.segments.items():
        starts[number], start = start, start + entry.rows
    return starts


class CommitColumns:
    """Read the columns of metadata fields, and keep them until another commit is asked about.

    Rows are numbered over all segments. A column takes some 24 bytes for each value and its
    different values; that of the ids takes the ids.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._commit = -1
        self._ids: Column | None = None
        self._columns: dict[str, Column] = {}

    def get(
        self, manifest: Manifest, state: State, fields: Iterable[str]
    ) -> tuple[Column, list[Column]]:
        """Return the column of the ids, whose keys are the ids, and those of these fields."""
        with self._lock:
            if self._commit != state.commit:
                self._commit, self._ids, self._columns = state.commit, None, {}
            wanted = list(fields)
            new = [field for field in dict.fromkeys(wanted) if field not in self._columns]
            if new or self._ids is None:
                self._ids = self._read(manifest, state, new)
            return self._ids, [self._columns[field] for field in wanted]

    def _read(self, manifest: Manifest, state: State, fields: list[str]) -> Column:
        starts = first_rows(state)
        rows = sum(entry.rows for entry in state.segments.values())
        ids: list[tuple[int, list[str]]] = []
        held: dict[str, list[tuple[int, list[str]]]] = {field: [] for field in fields}
        for place, name, metadata in manifest.held():
            row = starts[place.segment] + place.row
            ids.append((row, [name]))
            for field, pairs in held.items():
                if field in metadata:
                    pairs.append((row, keys_of(metadata[field])))
        self._columns |= {field: Column(rows, pairs) for field, pairs in held.items()}
        return self._ids or Column(rows, ids)
