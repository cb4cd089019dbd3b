"""What a writer has accepted and not committed yet."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby

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
        self._places: dict[str, tuple[int, int]] = {}

    def __bool__(self) -> bool:
        return bool(self.documents or self.deleted)

    def add(self, documents: Sequence[Document], encoding: Encoding) -> None:
        """Stage a batch, in which no id may occur twice (`InputError`)."""
        places = {}
        for row, document in enumerate(documents):
            if document.id in places:
                raise InputError(document.id, "occurs twice in one batch")
            places[document.id] = (len(self._batches), row)
        self._batches.append(encoding)
        self._places |= places
        self.documents |= {document.id: document for document in documents}

    def delete(self, ids: Iterable[str], committed: Iterable[str]) -> int:
        """Drop staged documents and those of the index. Return how many there were.

        ``committed`` names those of the ids that the index has.
        """
        there = set(committed) - self.deleted
        count = 0
        for name in set(ids):
            self._places.pop(name, None)
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
        names: list[str] = []
        parts = []
        places = sorted((place, name) for name, place in self._places.items())
        for number, kept in groupby(places, key=lambda entry: entry[0][0]):
            rows = []
            for (_, row), name in kept:
                rows.append(row)
                names.append(name)
            batch = self._batches[number]
            # A batch may be as large as memory allows: copy it only if something changes.
            parts.append(batch if len(rows) == len(batch) else batch[rows])
        encoding = parts[0] if len(parts) == 1 else stack(parts)
        order = sorted(range(len(names)), key=names.__getitem__)
        if order != list(range(len(names))):
            encoding = encoding[order]
        return [self.documents[names[i]] for i in order], encoding
