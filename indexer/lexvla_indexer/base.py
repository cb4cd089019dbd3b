"""The protocol of every engine, and the documents that engines keep."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self, runtime_checkable

import numpy as np

from lexvla.encoding import Encoder, Encoding
from lexvla.errors import VocabularyMismatchError
from lexvla.vocabulary import Vocabulary
from lexvla_indexer.document import Document
from lexvla_indexer.legs import Leg

__all__ = ["Fetched", "Index", "Results", "check_match"]

_REMEDY = "search with that model, or index the items anew"


class Results(NamedTuple):
    """Answer one query: ids and scores, best first, equal scores by id ascending."""

    ids: list[str]
    scores: np.ndarray


class Fetched(NamedTuple):
    """Documents and their stored vectors, in the order of the ids that were asked for."""

    documents: list[Document]
    encoding: Encoding


@runtime_checkable
class Index(Protocol):
    """Keep documents with their encodings, and find them by dot product.

    `add` and `delete` take effect for searches at `commit`. An engine that cannot do a thing
    raises `UnsupportedError`; it ignores nothing.

    Attributes:
        vocabulary: The terms of the lexical columns; empty until the first vectors come, if the
            index was made without one.
        model: The name of the model whose vectors these are, if it was given.
        directory: Where files about the index may lie; ``None`` if the index is on a server.
    """

    vocabulary: Vocabulary
    model: str | None
    directory: Path | None

    def add(self, documents: Sequence[Document], encoding: Encoding) -> None:
        """Stage documents; one whose id is known replaces the old one."""
        ...

    def delete(self, ids: Sequence[str]) -> int:
        """Stage deletions. Return how many of the ids were there."""
        ...

    def commit(self) -> None:
        """Make all that is staged durable and visible, or nothing of it."""
        ...

    def compact(self) -> None:
        """Commit, then merge what is stored in parts, and give up the space of what was deleted."""
        ...

    def verify(self) -> list[str]:
        """Read all that is stored. Return a line for each damaged part, which names it."""
        ...

    def search(
        self,
        queries: Encoding,
        k: int = 10,
        leg: Leg = "lexical",
        filter: str | None = None,  # noqa: A002 - the public word for it
    ) -> list[Results]:
        """Return the k best documents with a score above 0 for each query.

        With a filter, of those that it chooses; see `lexvla_indexer.filters`.
        """
        ...

    def fetch(self, ids: Sequence[str]) -> Fetched:
        """Return documents with their stored vectors.

        Raises:
            UnknownDocumentError: The index has no such id.
        """
        ...

    def vectors(self, ids: Sequence[str]) -> Encoding:
        """Return documents' stored vectors alone, which takes less time than `fetch`.

        Raises:
            UnknownDocumentError: The index has no such id.
        """
        ...

    def fingerprints(self, ids: Sequence[str]) -> dict[str, str]:
        """Return the fingerprint of each of these ids that the index has, staged ones included."""
        ...

    def count(self) -> int:
        """Return the number of searchable documents."""
        ...

    def info(self) -> dict[str, Any]:
        """Return counts, sizes, the vocabulary's hash, the model's name and what is approximate."""
        ...

    def close(self) -> None:
        """Give up files and locks. What is staged and not committed is dropped."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *exception: object) -> None: ...


def check_match(encoder: Encoder, index: Index) -> None:
    """Refuse an index that this encoder cannot search or add to.

    Raises:
        VocabularyMismatchError: The index was made with another vocabulary or by another model.
    """
    recorded = index.model
    made_by = f"the index was made by {f'the model {recorded!r}' if recorded else 'some model'}"
    # An index in which nothing was ever put may have no vocabulary yet.
    if len(index.vocabulary) and encoder.vocabulary.sha256 != index.vocabulary.sha256:
        raise VocabularyMismatchError(
            f"{made_by} with vocabulary {index.vocabulary.sha256[:12]}; the model "
            f"{encoder.name!r} has vocabulary {encoder.vocabulary.sha256[:12]}; {_REMEDY}"
        )
    if recorded and recorded != encoder.name:
        raise VocabularyMismatchError(f"{made_by}; this is the model {encoder.name!r}; {_REMEDY}")
