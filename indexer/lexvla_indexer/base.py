"""The protocol that every engine follows, and the skeleton that engines fill in."""

from __future__ import annotations

import json
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self, TypeVar

import numpy as np

from lexvla.encoding import Encoder, Encoding
from lexvla.errors import (
    IndexCorruptError,
    UnknownDocumentError,
    UnsupportedError,
    VocabularyMismatchError,
)
from lexvla.vocabulary import Vocabulary
from lexvla_indexer.document import Document
from lexvla_indexer.legs import Leg, check_added, no_rows
from lexvla_indexer.staging import Staging

__all__ = ["Fetched", "Index", "Reader", "Results", "check_match"]

T = TypeVar("T")

_REMEDY = "search with that model, or index the items anew"


class Results(NamedTuple):
    """Answer one query: ids and scores, best first, equal scores by id ascending."""

    ids: list[str]
    scores: np.ndarray


class Fetched(NamedTuple):
    """Documents and their stored vectors, in the order of the ids that were asked for."""

    documents: list[Document]
    encoding: Encoding


class Reader(Protocol):
    """Answer from one commit of an index; its methods mean what those of `Index` do."""

    def search(
        self,
        queries: Encoding,
        k: int,
        leg: Leg,
        filter: str | None,  # noqa: A002 - the public word for it
    ) -> list[Results]:
        """See `Index.search`."""
        ...

    def fetch(self, ids: Sequence[str]) -> Fetched:
        """See `Index.fetch`; at least one id."""
        ...

    def vectors(self, ids: Sequence[str]) -> Encoding:
        """See `Index.vectors`; at least one id."""
        ...

    def count(self) -> int:
        """See `Index.count`."""
        ...

    def info(self) -> dict[str, Any]:
        """Return what `Index.info` says besides vocabulary and model."""
        ...


class Index(ABC):
    """Keep documents with their encodings, and find them by dot product.

    `add` and `delete` take effect for searches at `commit`. An engine that cannot do something
    raises `UnsupportedError`; it ignores nothing. Threads may share an object.

    An engine implements the abstract methods, and a `Reader` for `_ask`.

    Args:
        place: Where the index lies, for messages; a `Path` if it is a directory.

    Attributes:
        vocabulary: The terms of the lexical columns; empty until the first vectors come if the
            index was made without one.
        model: The name of the model whose vectors these are, if it was given.
        directory: Where files about the index may lie; ``None`` if the index is on a server.
    """

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

        Vectors without patches may share an index with vectors that have them: their words are
        stored with patch -1.

        Raises:
            IndexLockedError: Another writer has the index.
            InputError: An id occurs twice in this call, or the engine cannot store a weight.
            UnsupportedError: The legs are not those of the index, or the engine cannot store the
                vocabulary or the vectors.
            ValueError: The number of documents is not the number of vectors.
            VocabularyMismatchError: A leg has another width than in the index.
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
        """Stage deletions. Return how many of the ids were there.

        Raises:
            IndexLockedError: Another writer has the index.
        """
        with self._writing:
            self._own_writer()
            return self._staging.delete(ids, self._fingerprints(ids))

    @abstractmethod
    def commit(self) -> None:
        """Make all that is staged durable and visible, or nothing of it."""

    @abstractmethod
    def compact(self) -> None:
        """Commit, then merge what is stored in parts, and free the space of what was deleted."""

    @abstractmethod
    def verify(self) -> list[str]:
        """Read all that is stored. Return a line for each damaged part, which names it."""

    def publish(self) -> None:
        """Commit, and let readers see the index that was rebuilt instead of the old one.

        Raises:
            UnsupportedError: The index was not opened to be rebuilt.
        """
        raise UnsupportedError(f"{self._place}: was not opened to be rebuilt")

    def search(
        self,
        queries: Encoding,
        k: int = 10,
        leg: Leg = "lexical",
        filter: str | None = None,  # noqa: A002 - the public word for it
    ) -> list[Results]:
        """Return the k best documents with a score above 0 for each query.

        Args:
            queries: One query a row.
            k: The most documents to return for each.
            leg: What to score by.
            filter: Which documents may be found; see `lexvla_indexer.filters`.

        Raises:
            FilterSyntaxError: The filter cannot be read.
            InputError: No document has a field of the filter.
            UnsupportedError: The index or the queries lack the leg, or the engine cannot answer.
            ValueError: k is below 1, or there is no leg of that name.
            VocabularyMismatchError: The leg has another width in the index.
        """
        return self._ask(lambda reader: reader.search(queries, k, leg, filter))

    def requests(
        self,
        query: Encoding,
        k: int = 10,
        legs: Sequence[Leg] | None = None,
        filter: str | None = None,  # noqa: A002 - the public word for it
    ) -> dict[Leg, dict[str, Any]]:
        """Return the JSON of the request that `search` sends for each leg of one query.

        By default for all legs that the query and the index both have. A leg that can match
        nothing is left out.

        Raises:
            UnsupportedError: The engine sends no requests; also as `search`.
        """
        raise UnsupportedError(f"{self} is not on a server, and is sent no requests")

    def show(self, requests: Mapping[Leg, dict[str, Any]]) -> str:
        """Return requests as text for the server's own console."""
        raise UnsupportedError(f"{self} is not on a server, and is sent no requests")

    def fetch(self, ids: Sequence[str]) -> Fetched:
        """Return documents with their stored vectors, in the order of the ids.

        Raises:
            UnknownDocumentError: The index has no such id.
        """
        return self._look_up(lambda reader: reader.fetch(ids)) if ids else Fetched([], self._none())

    def vectors(self, ids: Sequence[str]) -> Encoding:
        """Return documents' stored vectors alone, which takes less time than `fetch`.

        Raises:
            UnknownDocumentError: The index has no such id.
        """
        return self._look_up(lambda reader: reader.vectors(ids)) if ids else self._none()

    def fingerprints(self, ids: Sequence[str]) -> dict[str, str]:
        """Return the fingerprint of each of these ids that the index has, staged ones included."""
        with self._writing:
            self._check_open()
            return self._staging.fingerprints(self._fingerprints(ids), ids)

    def count(self) -> int:
        """Return the number of searchable documents."""
        return self._ask(lambda reader: reader.count())

    def info(self) -> dict[str, Any]:
        """Return counts, sizes, versions, vocabulary, model, and what is approximate."""
        facts = self._ask(lambda reader: reader.info())
        return facts | {
            "vocabulary_size": len(self.vocabulary),
            "vocabulary_sha256": self.vocabulary.sha256,
            "model": self.model,
        }

    def read_note(self, name: str) -> Any:
        """Return the JSON value that `write_note` kept by a name; ``None`` if there is none.

        Raises:
            IndexCorruptError: It cannot be read.
        """
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
        """Keep a small JSON value with the index, such as fitted weights of legs.

        Raises:
            OSError: The file cannot be written.
            UnsupportedError: The index can keep nothing.
        """
        if self.directory is None:
            raise UnsupportedError(f"{self} keeps no notes")
        path = self.directory / f"{name}.json"
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
        """Give up files, connections and locks. What is staged and not committed is dropped."""
        with self._writing:
            if not self._closed:
                self._closed = True
                self._close()

    def __str__(self) -> str:
        """Say where it lies."""
        return str(self._place)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @abstractmethod
    def _ask(self, ask: Callable[[Any], T], newest: bool = True) -> T:
        """Ask a `Reader` of the newest commit, or else of the one last searched.

        Raises:
            ValueError: The index is closed.
        """

    @abstractmethod
    def _fingerprints(self, ids: Sequence[str]) -> dict[str, str]:
        """Return the fingerprint of each of these ids that is committed."""

    @abstractmethod
    def _widths(self) -> Mapping[str, int]:
        """Return the width of each leg of the index; nothing before the first vectors."""

    @abstractmethod
    def _own_writer(self) -> Any:
        """Return the engine's `Writer`, with the lock if the engine has one.

        Raises:
            ValueError: The index is closed.
        """

    def _check_storable(  # noqa: B027 - not every engine has such limits
        self, documents: Sequence[Document], encoding: Encoding, vocabulary: Vocabulary
    ) -> None:
        """Refuse what only this engine cannot store."""

    @abstractmethod
    def _close(self) -> None:
        """Give up all that is open, which may be part of it only."""

    def _look_up(self, ask: Callable[[Reader], T]) -> T:
        """Ask the commit last searched, so that hits and documents agree; else the newest."""
        try:
            return self._ask(ask, newest=False)
        except UnknownDocumentError:
            return self._ask(ask)

    def _none(self) -> Encoding:
        return no_rows(dict(self._widths()) or {"lexical": len(self.vocabulary)})

    def _agree(self, vocabulary: Vocabulary | None) -> None:
        """Take a vocabulary where the index has none; refuse another than it has."""
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
