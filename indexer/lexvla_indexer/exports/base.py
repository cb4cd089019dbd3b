"""What every export is: lines for a document, and a query in the engine's own terms."""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any, ClassVar, Literal, NamedTuple
from uuid import NAMESPACE_URL, uuid5

import numpy as np

from lexvla.encoding import Encoding
from lexvla.errors import InputError, UnsupportedError
from lexvla.vocabulary import Vocabulary
from lexvla_indexer.document import Document
from lexvla_indexer.strongest import strongest

__all__ = [
    "ID",
    "WORD",
    "ExportLeg",
    "Format",
    "Names",
    "Row",
    "check_numbers",
    "to_json",
    "uuid_of",
]

ExportLeg = Literal["lexical", "dense"]

ID = "document_id"  # where an engine's own ids are UUIDs, and `id` may be theirs
WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True)
class Names:
    """What things are called in the engine.

    Attributes:
        index: The index, collection, table or class.
        lexical: The field, vector or column of the words.
        dense: That of the dense vector.
    """

    index: str = "lexvla"
    lexical: str = "lexical"
    dense: str = "dense"

    def of(self, leg: ExportLeg) -> str:
        """Return the name of a leg's field."""
        return self.lexical if leg == "lexical" else self.dense


class Row(NamedTuple):
    """One item's vectors as plain values.

    Attributes:
        columns: Ascending column numbers of the words, from 0; `terms` and `weights` are aligned.
        width: The number of columns.
        strongest: The 16 strongest words as people read them, strongest first.
        dense: ``None`` if the encoder makes no dense vectors.
    """

    columns: list[int]
    terms: list[str]
    weights: list[float]
    width: int
    strongest: list[str]
    dense: list[float] | None

    @classmethod
    def of(cls, encoding: Encoding, vocabulary: Vocabulary) -> Iterator[Row]:
        """Yield the rows of an encoding."""
        for row in range(len(encoding)):
            columns, weights, _ = encoding.words(row)
            dense = None if encoding.dense is None else _decimals(encoding.dense[row])
            numbers = columns.tolist()
            terms = [vocabulary.terms[column] for column in numbers]
            shown = [vocabulary.word(column) for column in strongest(columns, weights).tolist()]
            yield cls(numbers, terms, _decimals(weights), len(vocabulary), shown, dense)

    @property
    def by_term(self) -> dict[str, float]:
        """The weights of the words."""
        return dict(zip(self.terms, self.weights, strict=True))

    @property
    def by_column(self) -> dict[str, float]:
        """The weights of the words by column number, as JSON has it."""
        return dict(zip(map(str, self.columns), self.weights, strict=True))

    @property
    def vector(self) -> list[float]:
        """The dense vector; UnsupportedError if there is none."""
        if self.dense is None:
            raise UnsupportedError("the model makes no dense vectors")
        return self.dense


def _decimals(values: np.ndarray) -> list[float]:
    """Return numbers that print as the shortest decimals that are these float32."""
    return [float(text) for text in values.astype(np.float32).astype(str)]


@dataclass(frozen=True)
class Format(ABC):
    """Write documents and queries as one engine reads them.

    A document that the engine cannot take raises InputError.

    Attributes:
        fields: The names of the other fields of a document.
        field_form: What a field's name must match, as `field_rule` says.
        index_form: What the index's name must match, as `index_rule` says.
        numbered: Whether words are column numbers, which need the vocabulary to be understood.

    Raises:
        InputError: A name is not one that the engine takes, or is used twice.
    """

    names: Names

    fields: ClassVar[tuple[str, ...]] = ("text", "uri", "metadata")
    field_form: ClassVar[re.Pattern[str]] = WORD
    field_rule: ClassVar[str] = "must be letters, digits and _, and not begin with a digit"
    index_form: ClassVar[re.Pattern[str]] = WORD
    index_rule: ClassVar[str] = field_rule
    numbered: ClassVar[bool] = False

    def __post_init__(self) -> None:
        mine = self.names.lexical, self.names.dense
        for name in mine:
            if not self.field_form.fullmatch(name):
                raise InputError(name, f"as the name of a field, {self.field_rule}")
        for one, other in combinations((*self.fields, *mine), 2):
            if f"{other}.".startswith(f"{one}.") or one.startswith(f"{other}."):
                raise InputError(other, f"cannot be a field's name beside {one!r}")
        if not self.index_form.fullmatch(self.names.index):
            raise InputError(self.names.index, f"as the name of an index, {self.index_rule}")

    def head(self, row: Row) -> str:
        """Return what comes before the documents, given the first one's vectors."""
        return ""

    def tail(self) -> str:
        """Return what comes after the documents."""
        return ""

    def values(self, document: Document, words: Any, row: Row, metadata: Any) -> dict[str, Any]:
        """Return a document's fields by name: its vectors, text, address and metadata."""
        dense = {} if row.dense is None else {self.names.dense: row.dense}
        shown = {"text": document.text, "uri": document.uri, "metadata": metadata}
        return {self.names.lexical: words, **dense, **shown}

    @abstractmethod
    def lines(self, document: Document, row: Row) -> str:
        """Return a document's lines."""

    @abstractmethod
    def query(self, row: Row, leg: ExportLeg, k: int) -> str:
        """Return the request for the k documents with the highest dot products by one leg.

        UnsupportedError if the engine or the row lacks the leg.
        """


def to_json(value: Any) -> str:
    """Return one line of JSON."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def uuid_of(document: Document) -> str:
    """Return the UUID, version 5 of its id, that a document has where ids must be UUIDs."""
    return str(uuid5(NAMESPACE_URL, document.id))


def check_numbers(document: Document) -> Mapping[str, Any]:
    """Return a document's metadata; InputError if a whole number has more than 64 bits."""
    for name, value in document.metadata.items():
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            rule = f"metadata {name!r} is {value}: the engine stores whole numbers of 64 bits"
            raise InputError(document.id, rule)
    return document.metadata
