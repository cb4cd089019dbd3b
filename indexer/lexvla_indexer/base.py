"""The protocol that every engine follows, and the skeleton that engines fill in."""

from __future__ import annotations

import json
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol, Self, TypeVar, get_args

import numpy as np

from lexvla.encoder import Encoder
from lexvla.encoding import Encoding
from lexvla.errors import (
    IndexCorruptError,
    UnknownDocumentError,
    UnsupportedError,
    VocabularyMismatchError,
)
from lexvla.vocabulary import Vocabulary
from lexvla_indexer.document import Document
from lexvla_indexer.facets import Facet, FacetCounts
from lexvla_indexer.legs import Leg, VectorLeg, check_added, no_rows
from lexvla_indexer.listing import Listed, Order, Position, orders
from lexvla_indexer.scope import EVERYTHING, Scope
from lexvla_indexer.staging import Staging

__all__ = ["Fetched", "Index", "Reader", "Results", "Scored", "check_match"]

T = TypeVar("T")

_LISTED = 10_000  # documents at a time
_REMEDY = "search with that model, or index the items again"


class Results(NamedTuple):
    """One query's hits: ids and scores, best first, equal scores by id ascending."""

    ids: list[str]
    scores: np.ndarray


class Scored(NamedTuple):
    """Documents with their scores by each leg: (documents) float64."""

    ids: list[str]
    scores: dict[Leg, np.ndarray]


class Fetched(NamedTuple):
    """Documents and their stored vectors, in the order of the requested ids."""

    documents: list[Document]
    encoding: Encoding


class Reader(Protocol):
    """Answer from one commit of an index; its methods mean what those of `Index` do."""

    def search(
        self,
        queries: Encoding,
        k: int,
        leg: VectorLeg,
        filter: str | None,  # noqa: A002
    ) -> list[Results]:
        """See `Index.search`."""

    def search_text(self, text: str, k: int, filter: str | None) -> Results:  # noqa: A002
        """See `Index.search_text`."""

    def text_parts(self, text: str, ids: Sequence[str]) -> list[dict[str, float]]:
        """See `Index.text_parts`; at least one id."""

    def has_text(self) -> bool:
        """Return whether the leg ``text`` may find something."""

    def fetch(self, ids: Sequence[str]) -> Fetched:
        """See `Index.fetch`; at least one id."""

    def documents(self, ids: Sequence[str]) -> list[Document]:
        """See `Index.documents`; at least one id."""

    def vectors(self, ids: Sequence[str]) -> Encoding:
        """See `Index.vectors`; at least one id."""

    def count(self, scope: Scope) -> int:
        """See `Index.count`."""

    def list_documents(
        self, scope: Scope, sort: Sequence[Order], limit: int, after: Position | None
    ) -> Listed:
        """See `Index.list_documents`."""

    def facets(self, facets: Sequence[Facet], scope: Scope) -> dict[str, FacetCounts]:
        """See `Index.facets`; at least one facet."""

    def info(self) -> dict[str, Any]:
        """Return what `Index.info` reports besides vocabulary and model."""


class Index(ABC):
    """Keep documents with their encodings, and find them by dot product.

    Searches see what `add` and `delete` did after `commit`. An engine raises `UnsupportedError` for
    what it cannot do, and never ignores it. Threads may share an object.

    An engine implements the abstract methods, and a `Reader` for `_ask`.

    Args:
        place: Where the index lies, for messages; a `Path` if it is a directory.

    Attributes:
        vocabulary: The terms of the lexical columns; if the index was made without one, empty
            until the first vectors are added.
        model: The name of the model whose vectors these are, if it was given.
        directory: Where files about the index may lie; ``None`` if the index is on a server.
        is_writable: Whether documents can be added and deleted.
        has_rows: Whether `fetch` and `vectors` return what was stored: explanations need it.
        equal_scores_by_id: Whether the requests of `requests` order equal scores by id.
    """

    equal_scores_by_id: ClassVar[bool] = True
    is_writable: bool = True
    has_rows: bool = True

    def __init__(self, place: object) -> None:
        self.vocabulary = Vocabulary(())
        self.model: str | None = None
        self.directory = place if isinstance(place, Path) else None
        self._place = place
        self._staging = Staging()
        self._writing = threading.RLock()
        self._closed = False

    def add(self, documents: Sequence[Document], encoding: Encoding) -> None:
        """Stage documents; one whose id is known replaces the old one.

        Vectors with and without patches may share an index: words without one are stored with
        patch -1.

        Raises:
            IndexLockedError: Another writer has the index.
            InputError: An id occurs twice in this call, or the engine cannot store a weight.
            UnsupportedError: The legs are not those of the index, or the engine cannot store the
                vocabulary or the vectors.
            ValueError: There are more or fewer documents than vectors.
            VocabularyMismatchError: The width of a leg is not that of the index.
        """
        if len(documents) != len(encoding):
            raise ValueError(f"{len(documents)} documents with {len(encoding)} vectors")
        with self._writing:
            self._own_writer()
            widths = self._widths() or self._staging.widths
            check_added(encoding, widths, self.vocabulary, self._place)
            if not documents:
                return
            vocabulary = self.vocabulary
            if not len(vocabulary):
                vocabulary = Vocabulary(map(str, range(encoding.lexical.shape[1])))
            self._check_storable(documents, encoding, vocabulary)
            self._staging.add(documents, encoding)
            self.vocabulary = vocabulary

    def delete(self, ids: Sequence[str]) -> int:
        """Stage deletions, and return how many of the ids existed; errors as for `add`.

        A string instead of a list of ids, or an id that is not a string, raises TypeError.
        """
        _check_ids(ids)
        with self._writing:
            self._own_writer()
            return self._staging.delete(ids, self._fingerprints(ids))

    @abstractmethod
    def commit(self) -> None:
        """Make everything staged durable and visible, or none of it."""

    @abstractmethod
    def compact(self) -> None:
        """Commit, merge what is stored in parts, and free the space of deleted documents."""

    @abstractmethod
    def verify(self) -> list[str]:
        """Read everything stored. Return a line for each damaged part, naming it."""

    def publish(self, keep_old: int = 0) -> None:
        """Commit, and show readers the rebuilt index; UnsupportedError if none is being built.

        Of the indices that it replaces, the newest ``keep_old`` are kept for `rollback`.
        """
        raise UnsupportedError(f"{self._place}: was not opened to be rebuilt")

    def rollback(self, to: str | None = None) -> str:
        """Show readers an index that `publish` kept, by default the one before; return its name.

        UnsupportedError if none is kept.
        """
        rule = "only an index of Elasticsearch or OpenSearch can be rolled back"
        raise UnsupportedError(f"{self._place}: {rule}")

    def search(
        self,
        queries: Encoding,
        k: int = 10,
        leg: VectorLeg = "lexical",
        filter: str | None = None,  # noqa: A002 - the public word for it
    ) -> list[Results]:
        """Return the k best documents with a score above 0 for each query, one query a row.

        ``filter`` says which documents may be found; see `lexvla_indexer.filters`.

        Raises:
            FilterSyntaxError: The filter cannot be read.
            InputError: No document has a field of the filter.
            UnsupportedError: The index or the queries lack the leg, or the engine cannot answer.
            ValueError: k is below 1, or there is no leg of that name.
            VocabularyMismatchError: The width of the leg is not that of the index.
        """
        return self._ask(lambda reader: reader.search(queries, k, leg, filter))

    def search_text(
        self,
        text: str,
        k: int = 10,
        filter: str | None = None,  # noqa: A002 - the public word for it
    ) -> Results:
        """Return the k best documents by the words of their texts, the leg ``text``.

        Scores are those of `lexvla_indexer.bm25`, from 0 to 1. Errors about k and the filter are
        those of `search`.
        """
        if k < 1:
            raise ValueError(f"k must be at least 1, not {k}")
        return self._ask(lambda reader: reader.search_text(text, k, filter))

    def text_parts(self, text: str, ids: Sequence[str]) -> list[dict[str, float]]:
        """Return what each shared word adds to each document's score by `search_text`.

        Words are without case and accents, and ascending for each document. An id that the index
        does not have raises UnknownDocumentError.
        """
        return self._look_up(lambda reader: reader.text_parts(text, ids)) if ids else []

    def search_legs(
        self,
        query: Encoding,
        weights: Mapping[Leg, float],
        k: int,
        depth: int,
        filter: str | None = None,  # noqa: A002 - the public word for it
        text: str = "",
    ) -> Scored | None:
        """Return the best documents of all by the weighted sum of several legs' scores.

        A score below 0 counts 0. They include the k best by the sum and the ``depth`` best by
        each leg, all with a score above 0; of equal scores, those with the first ids. There may
        be more.

        Args:
            query: One row.
            weights: What each leg counts, above 0.
            k: How many to return by the sum.
            depth: How many to return by each leg.
            filter: Which documents may be found; see `lexvla_indexer.filters`.
            text: What the leg ``text`` looks for.

        Returns:
            The documents, in no order; ``None`` if the engine can only search leg by leg.

        Raises:
            FilterSyntaxError: The filter cannot be read.
            UnsupportedError: The index or the query lacks a leg.
            VocabularyMismatchError: A leg has another width in the index.
        """
        return None

    def constrained(self, banned: Iterable[int], required: Iterable[Iterable[int]]) -> Index | None:
        """Return a view of the index that finds only documents with certain strongest words.

        The columns ``banned`` are not among a document's 16 strongest words, and one of each set of
        ``required`` is. ``None`` if the engine cannot tell. The view lives as long as the index.
        """
        return None

    def with_text_fields(self, weights: Mapping[str, float]) -> Index:
        """Return a view of the index whose leg ``text`` searches these fields, with weights.

        Raises:
            InputError: There is no such field, or no words can be looked for in it.
            UnsupportedError: It is not a user's own index: each document has one text.
        """
        raise UnsupportedError(f"{self}: text fields are chosen in an attached index only")

    def rescore(self, query: Encoding, leg: VectorLeg, ids: Sequence[str]) -> list[float] | None:
        """Return what `search` gives some documents for one query, found or not.

        ``None`` if that is the dot product of `vectors`.
        """
        return None

    def legs(self) -> tuple[Leg, ...]:
        """Return the legs that it can be searched by; ``text`` only if a document has text.

        While it is empty, these are all legs of vectors.
        """
        widths = self._widths()
        legs: list[Leg] = [leg for leg in get_args(VectorLeg) if not widths or leg in widths]
        if self._ask(lambda reader: reader.has_text()):
            legs.append("text")
        return tuple(legs)

    def requests(
        self,
        query: Encoding,
        k: int = 10,
        legs: Sequence[Leg] | None = None,
        filter: str | None = None,  # noqa: A002 - the public word for it
        text: str = "",
        offset: int = 0,
        least: Mapping[Leg, float] | None = None,
        named: bool = False,
    ) -> dict[Leg, dict[str, Any]]:
        """Return the JSON of a request for each leg of one query, which gives the hits of `search`.

        A leg that cannot match anything is left out. Engines without a server raise
        UnsupportedError.

        Args:
            query: One row.
            k: How many hits.
            legs: The default is all legs that both the query and the index have.
            filter: Which documents may be found; see `lexvla_indexer.filters`.
            text: What the leg ``text`` looks for.
            offset: How many of the best hits to skip.
            least: The lowest score of a hit, by leg.
            named: Make a clause of each word, named after it.
        """
        raise UnsupportedError(f"{self} is not on a server: there are no requests to show")

    def show(self, requests: Mapping[Leg, dict[str, Any]], named: bool = False) -> str:
        """Return requests as text for the server's own console."""
        raise UnsupportedError(f"{self} is not on a server: there are no requests to show")

    def fetch(self, ids: Sequence[str]) -> Fetched:
        """Return documents with their stored vectors in the order of the ids.

        An id that the index does not have raises UnknownDocumentError.
        """
        _check_ids(ids)
        return self._look_up(lambda reader: reader.fetch(ids)) if ids else Fetched([], self._none())

    def documents(self, ids: Sequence[str]) -> list[Document]:
        """Return only the documents, without vectors; faster than `fetch`, with its errors."""
        _check_ids(ids)
        return self._look_up(lambda reader: reader.documents(ids)) if ids else []

    def vectors(self, ids: Sequence[str]) -> Encoding:
        """Return only the documents' stored vectors; faster than `fetch`, with its errors."""
        _check_ids(ids)
        return self._look_up(lambda reader: reader.vectors(ids)) if ids else self._none()

    def fingerprints(self, ids: Sequence[str]) -> dict[str, str]:
        """Return the fingerprints of those ids that the index has, staged documents included."""
        _check_ids(ids)
        with self._writing:
            self._check_open()
            return self._staging.fingerprints(self._fingerprints(ids), ids)

    def fingerprinted(self, start: str = "") -> Iterator[tuple[str, str]]:
        """Yield the id and fingerprint of each document whose fingerprint begins so, by id.

        Staged changes are ignored.
        """
        after = None
        while (listed := self.list_documents(limit=_LISTED, after=after)).documents:
            for document in listed.documents:
                if document.fingerprint.startswith(start):
                    yield document.id, document.fingerprint
            after = listed.positions[-1]

    def count(self, scope: Scope = EVERYTHING) -> int:
        """Return the number of searchable documents in a scope, by default all documents.

        Errors of the filter are those of `search`.
        """
        return self._ask(lambda reader: reader.count(scope), _newest(scope))

    def list_documents(
        self,
        scope: Scope = EVERYTHING,
        sort: str | Sequence[str] = (),
        limit: int = 10,
        after: Position | None = None,
    ) -> Listed:
        """Return documents in the order of metadata fields, and of ids where these are equal.

        A document with a list counts by its first string, or descending by its last; those that
        have no value of a field come last. `lexvla_indexer.sort_keys` orders values.

        Args:
            scope: Which documents to list.
            sort: Fields to sort by, such as ``year``, or ``-year`` for descending.
            limit: How many documents to return.
            after: A position of an earlier answer, to continue after it.

        Raises:
            InputError: The fields to sort by break a rule, or no document has one of them.
            ValueError: The limit is below 1, or the position is not one of such an order.
        """
        order = orders(sort)
        if limit < 1:
            raise ValueError(f"limit must be at least 1, not {limit}")
        if after is not None and (len(after) != len(order) + 1 or not isinstance(after[-1], str)):
            raise ValueError(f"no position in such an order: {after!r}")
        return self._ask(
            lambda reader: reader.list_documents(scope, order, limit, after), _newest(scope)
        )

    def facets(self, facets: Sequence[Facet], scope: Scope = EVERYTHING) -> dict[str, FacetCounts]:
        """Return how many documents of a scope have each value, by field.

        A field that no document has raises `InputError`.
        """
        if not facets:
            return {}
        return self._ask(lambda reader: reader.facets(facets, scope), _newest(scope))

    def info(self) -> dict[str, Any]:
        """Return counts, sizes, versions, vocabulary, model, and what is approximate.

        ``legs`` are those of vectors that are stored; ``searched_legs`` are those of `legs`.
        """
        facts = self._ask(lambda reader: reader.info())
        return facts | {
            "searched_legs": list(self.legs()) if facts["legs"] else [],
            "vocabulary_size": len(self.vocabulary),
            "vocabulary_sha256": self.vocabulary.sha256,
            "model": self.model,
        }

    def warm_up(self) -> None:  # noqa: B027 - not every engine has something to load
        """Load what speeds up searches, as a server does; for a few searches it does not pay."""

    def read_note(self, name: str) -> Any:
        """Return the JSON value that `write_note` stored under a name, or ``None``."""
        if self.directory is None:
            return None
        path = self.directory / f"{name}.json"
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise IndexCorruptError(f"{path}: no readable {name} ({error})") from error

    def write_note(self, name: str, value: Any) -> None:
        """Keep a small JSON value, such as a fitted fusion; ``None`` removes it.

        Raises `UnsupportedError` if the index can keep nothing.
        """
        if self.directory is None:
            raise UnsupportedError(f"{self} keeps no notes")
        path = self.directory / f"{name}.json"
        if value is None:
            path.unlink(missing_ok=True)
            return
        new = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        try:
            with new.open("w", encoding="utf-8") as file:
                json.dump(value, file, indent=2, allow_nan=False)
                file.flush()
                os.fsync(file.fileno())
            new.replace(path)
        finally:
            new.unlink(missing_ok=True)

    def close(self) -> None:
        """Release files, connections and locks. What is staged and not committed is dropped."""
        with self._writing:
            if not self._closed:
                self._closed = True
                self._close()

    def __str__(self) -> str:
        return str(self._place)

    def __repr__(self) -> str:
        made = f", model {self.model!r}" if self.model else ""
        return f"<{type(self).__name__} {str(self)!r}{made}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @abstractmethod
    def _ask(self, ask: Callable[[Any], T], newest: bool = True) -> T:
        """Ask a `Reader` of the newest commit, or otherwise the one last searched.

        A closed index raises ValueError.
        """

    @abstractmethod
    def _fingerprints(self, ids: Sequence[str]) -> dict[str, str]:
        """Return the fingerprints of those ids that are committed."""

    @abstractmethod
    def _widths(self) -> Mapping[str, int]:
        """Return the width of each leg of the index; empty before the first vectors."""

    @abstractmethod
    def _own_writer(self) -> Any:
        """Return the engine's `Writer`, with its lock if it has one; ValueError if closed."""

    def _check_storable(  # noqa: B027 - not every engine has such limits
        self, documents: Sequence[Document], encoding: Encoding, vocabulary: Vocabulary
    ) -> None:
        """Refuse what only this engine cannot store."""

    @abstractmethod
    def _close(self) -> None:
        """Release everything that is open, perhaps after an incomplete opening."""

    def _look_up(self, ask: Callable[[Reader], T]) -> T:
        """Ask the commit last searched, so that hits and documents agree, or else the newest."""
        try:
            return self._ask(ask, newest=False)
        except UnknownDocumentError:
            return self._ask(ask)

    def _none(self) -> Encoding:
        return no_rows(dict(self._widths()) or {"lexical": len(self.vocabulary)})

    def _agree(self, vocabulary: Vocabulary | None) -> None:
        """Take a vocabulary if the index has none; refuse one that differs."""
        if vocabulary is None or vocabulary == self.vocabulary:
            return
        if len(self.vocabulary):
            made = f"{self._place} was made with {self.vocabulary}, not with {vocabulary}"
            raise VocabularyMismatchError(made)
        self.vocabulary = vocabulary

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError("the index is closed")

    @contextmanager
    def _opening(self) -> Iterator[None]:
        """Close the index again if it cannot be opened."""
        try:
            yield
        except BaseException:
            self.close()
            raise


def _newest(scope: Scope) -> bool:
    """Whether to look at the newest commit: ids come from the one last searched."""
    return scope.only is None


def _check_ids(ids: Sequence[str]) -> None:
    if isinstance(ids, str):  # which would be taken as a list of ids of one letter
        raise TypeError(f"expected a list of ids, not the single id {ids!r}")
    for each in ids:
        if not isinstance(each, str):  # which no document has
            raise TypeError(f"an id is a string, not {each!r}")


def check_match(encoder: Encoder, index: Index) -> None:
    """Raise VocabularyMismatchError unless this encoder can search the index and add to it."""
    recorded = index.model
    made_by = f"the index was made by {f'the model {recorded!r}' if recorded else 'some model'}"
    # An index that was never filled may have no vocabulary yet.
    if len(index.vocabulary) and encoder.vocabulary.sha256 != index.vocabulary.sha256:
        raise VocabularyMismatchError(
            f"{made_by} with vocabulary {index.vocabulary.sha256[:12]}; the model "
            f"{encoder.name!r} has vocabulary {encoder.vocabulary.sha256[:12]}; {_REMEDY}"
        )
    if recorded and recorded != encoder.name:
        raise VocabularyMismatchError(f"{made_by}; this is the model {encoder.name!r}; {_REMEDY}")
