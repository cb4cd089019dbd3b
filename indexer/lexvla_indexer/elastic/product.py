"""What differs between the servers that this engine speaks to: clients, fields and queries."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

if TYPE_CHECKING:
    from elasticsearch import Elasticsearch

__all__ = ["DENSE_STORED", "Json", "Place", "Product"]

Json = dict[str, Any]

DENSE_STORED = "stored"  # how a dense leg is searched: not at all


class Place(Protocol):
    """Where an index is, as `lexvla_indexer.elastic.connection.Address` says."""

    @property
    def product(self) -> Product:
        """What answers there."""

    @property
    def nodes(self) -> list[str]:
        """The URL of each node."""


class Product(ABC):
    """A kind of server.

    Attributes:
        name: What it is called.
        engine: Its name in addresses and facts.
        secrets: What a message says about credentials.
        settings: Settings of an index that only this product has.
        fields: Fields of the mapping that only this product has.
        most_dimensions: Of a dense vector.
        graph: How large dense legs are searched; empty if they are scanned like others.
        lacks_dense: What a message says where dense vectors cannot be searched.
        asks_neighbours: Whether each shard gives its nearest by a dense vector, at most 10,000.
        attaches: Whether ``lexvla attach`` fills indexes of other programs.
        text_scale: What the server multiplies BM25 by.
    """

    name: ClassVar[str]
    engine: ClassVar[str]
    secrets: ClassVar[str]
    settings: ClassVar[Mapping[str, Any]]
    fields: ClassVar[Mapping[str, Any]]
    most_dimensions: ClassVar[int]
    graph: ClassVar[str]
    lacks_dense: ClassVar[str]
    asks_neighbours: ClassVar[bool]
    attaches: ClassVar[bool]
    text_scale: ClassVar[float]

    @abstractmethod
    def connect(self, place: Place) -> Elasticsearch:
        """Make a client, or what answers the same calls."""

    @abstractmethod
    def errors(self, place: Place) -> AbstractContextManager[None]:
        """Raise the client's errors as ours; see `connection.elastic_errors`."""

    @abstractmethod
    def refused(self) -> type[Exception]:
        """Return the client's error for a bad request, whose ``error`` is the server's word."""

    @abstractmethod
    def failed(self) -> tuple[type[Exception], ...]:
        """Return all of the client's errors."""

    @abstractmethod
    def create_index(self, client: Elasticsearch, name: str, settings: Json, **rest: Any) -> None:
        """Create an index whose ``_source`` keeps vectors exactly."""

    @abstractmethod
    def bulk(self, client: Elasticsearch, actions: Iterable[Any], **rest: Any) -> Iterable[Any]:
        """Send actions by the client's ``streaming_bulk``; yield its answers."""

    @abstractmethod
    def words_field(self) -> Json:
        """Return the mapping of a field of words with weights."""

    @abstractmethod
    def dense_field(self, width: int, how: str) -> Json:
        """Return the mapping of a field of dense vectors."""

    @abstractmethod
    def lacks_dense_field(self, error: Exception) -> bool:
        """Tell whether a mapping was refused as the server has no such field."""

    @abstractmethod
    def object_field(self) -> Json:
        """Return the mapping of an object with a field for each metadata field of a type."""

    @abstractmethod
    def part(self, name: str) -> str:
        """Return a word or the name of a metadata field as part of a field's name."""

    @abstractmethod
    def name_of(self, part: str) -> str:
        """Return what `part` made a part of."""

    @abstractmethod
    def own_fields(self, legs: Iterable[str], metadata: Iterable[str]) -> Json:
        """Return what a document with some fields must say of itself besides.

        `has_leg` and `metadata_fields` ask for it.
        """

    @abstractmethod
    def has_leg(self, field: str) -> Json:
        """Return a query for documents that have a leg's field."""

    @abstractmethod
    def words_query(self, field: str, weights: Mapping[str, float], named: bool) -> Json:
        """Return a query by weighted words; ``named`` makes a clause of each, named after it."""

    @abstractmethod
    def dense_query(
        self,
        field: str,
        vector: Sequence[float],
        k: int,
        is_quantised: bool,
        chosen: Json | None,
    ) -> Json:
        """Return a query by a dense vector, whose k best of each shard are wanted."""

    @abstractmethod
    def metadata_fields(self, client: Elasticsearch, index: str) -> Iterable[str]:
        """Return the names of all metadata fields."""
