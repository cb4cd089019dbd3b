"""The protocol of every engine, and the documents that engines keep."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, Self, runtime_checkable

import numpy as np

from lexvla.encoding import Encoder, Encoding
from lexvla.errors import InputError, VocabularyMismatchError
from lexvla.vocabulary import Vocabulary

__all__ = ["Document", "Fetched", "Index", "Leg", "Results", "check_id", "check_match"]

_REMEDY = "search with that model, or index the items anew"

Leg = Literal["lexical", "codes", "dense"]
MetadataValue = str | int | float | bool | list[str]

MAX_ID_BYTES = 512


def check_id(name: object) -> str:
    """Return a document id that is fit for every engine.

    Raises:
        InputError: The id is no string, is empty, holds a control character, or is over 512 bytes
            as UTF-8 (the limit of Elasticsearch).
    """
    if not isinstance(name, str):
        raise InputError(repr(name), "an id must be a string")
    if not name:
        raise InputError(name, "an id must not be empty")
    if any(ord(c) < 32 or ord(c) == 127 for c in name):
        raise InputError(name, "an id must not hold control characters such as a newline")
    try:
        size = len(name.encode())
    except UnicodeEncodeError as error:
        raise InputError(repr(name), "an id must be valid Unicode") from error
    if size > MAX_ID_BYTES:
        raise InputError(name, f"an id must be at most {MAX_ID_BYTES} bytes, not {size}")
    return name


@dataclass(frozen=True)
class Document:
    """Describe one item: what a hit shows beside its score.

    Args:
        id: Names the item in its index; see `check_id`.
        uri: Where the item lies: a path or an address; may be empty.
        text: The item's own text; may be empty.
        metadata: Flat values to filter by and to show: str, number, bool or list of str.
        fingerprint: What the item's source looked like when it was encoded, for an ingest that
            resumes; may be empty.

    Raises:
        InputError: The id, the text or a metadata value breaks its rule.
    """

    id: str
    uri: str = ""
    text: str = ""
    metadata: Mapping[str, MetadataValue] = field(default_factory=dict)
    fingerprint: str = ""

    def __post_init__(self) -> None:
        check_id(self.id)
        for key, value in self.metadata.items():
            is_list = isinstance(value, list) and all(isinstance(v, str) for v in value)
            if not is_list and not isinstance(value, str | int | float | bool):
                rule = f"metadata {key!r} must be a string, number, boolean or list of strings"
                raise InputError(self.id, rule)
        values = [self.uri, self.text, dict(self.metadata)]
        try:
            json.dumps(values, ensure_ascii=False, allow_nan=False).encode()
        except UnicodeEncodeError as error:
            rule = "its address, text and metadata must be valid Unicode"
            raise InputError(self.id, rule) from error
        except ValueError as error:
            raise InputError(self.id, "metadata numbers must be finite") from error


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
            KeyError: The index has no such id.
        """
        ...

    def vectors(self, ids: Sequence[str]) -> Encoding:
        """Return documents' stored vectors alone, which takes less time than `fetch`.

        Raises:
            KeyError: The index has no such id.
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
