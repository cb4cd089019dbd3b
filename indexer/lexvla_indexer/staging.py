"""What a writer has accepted and not committed yet."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from lexvla.encoding import Encoding
from lexvla.errors import InputError
from lexvla_indexer.document import Document
from lexvla_indexer.legs import stack, widths_of

__all__ = ["Staging"]


class Staging:
    """Collect documents and deletions; of two documents with one id the later stays.

    Attributes:
        documents: The documents to add, by id.
        deleted: Ids of the index that were deleted, even if a new document has the id.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forget everything, once it is committed."""
        self.documents: dict[str, Document] = {}
        self.deleted: set[str] = set()
        self._batches: list[Encoding] = []
        self._ends = [0]  # of the batches, if their rows are numbered on
        self._rows: dict[str, int] = {}

    def __bool__(self) -> bool:
        return bool(self.documents or self.deleted)

    def add(self, documents: Sequence[Document], encoding: Encoding) -> None:
        """Stage a batch, in which no id may occur twice (`InputError`)."""
        own = {document.id: document for document in documents}
        if len(own) < len(documents):
            often = Counter(document.id for document in documents)
            raise InputError(often.most_common(1)[0][0], "occurs twice in one batch")
        self._batches.append(encoding)
        self._rows.update(zip(own, range(self._ends[-1], self._ends[-1] + len(own)), strict=True))
        self._ends.append(self._ends[-1] + len(own))
        self.documents.update(own)

    def delete(self, ids: Iterable[str], committed: Iterable[str]) -> int:
        """Drop staged documents and those of the index. Return how many there were.

        ``committed`` names those of the ids that the index has.
        """
        there = set(committed) - self.deleted
        count = 0
        for name in set(ids):
            self._rows.pop(name, None)
            count += self.documents.pop(name, None) is not None or name in there
        self.deleted |= there
        return count

    @property
    def removed(self) -> set[str]:
        """The ids whose rows in the index are deleted or replaced."""
        return self.deleted | self.documents.keys()

    def fingerprints(self, committed: Mapping[str, str], ids: Sequence[str]) -> dict[str, str]:
        """Return the fingerprints that ids will have, given those that are committed."""
        kept = {name: value for name, value in committed.items() if name not in self.deleted}
        staged = self.documents
        return kept | {name: staged[name].fingerprint for name in ids if name in staged}

    @property
    def widths(self) -> dict[str, int]:
        """The width of each staged leg; empty before the first batch."""
        return widths_of(self._batches[0]) if self._batches else {}

    def rows(self) -> tuple[list[Document], Encoding]:
        """Return the documents by ascending id, with their vectors. There must be at least one."""
        names = sorted(self._rows)
        rows = np.array([self._rows[name] for name in names], np.int64)
        kept = np.sort(rows)
        cuts = np.searchsorted(kept, self._ends)
        parts = []
        for number in np.flatnonzero(np.diff(cuts)).tolist():
            batch, own = self._batches[number], kept[cuts[number] : cuts[number + 1]]
            # A batch may be as large as memory allows: copy it only if something changes.
            parts.append(batch if len(own) == len(batch) else batch[own - self._ends[number]])
        encoding = parts[0] if len(parts) == 1 else stack(parts)
        if not np.array_equal(rows, kept):
            encoding = encoding[np.searchsorted(kept, rows)]
        return [self.documents[name] for name in names], encoding
