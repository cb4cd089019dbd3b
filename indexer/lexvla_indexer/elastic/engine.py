"""The Elasticsearch engine: an index behind an alias of a server, found by the server."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np

from lexvla.encoding import Encoding
from lexvla.errors import LexVLAError, UnsupportedError, VocabularyMismatchError
from lexvla.version import program_version
from lexvla.vocabulary import Vocabulary
from lexvla_indexer.base import Fetched, Results
from lexvla_indexer.document import Document
from lexvla_indexer.elastic.answers import ElasticExplanation
from lexvla_indexer.elastic.changes import Changes
from lexvla_indexer.elastic.connection import Place, connect
from lexvla_indexer.elastic.following import following
from lexvla_indexer.elastic.layout import Meta
from lexvla_indexer.elastic.reader import Reader
from lexvla_indexer.elastic.requests import WINDOW, console_text, search_body
from lexvla_indexer.elastic.store import Store
from lexvla_indexer.legs import Leg, check_added

__all__ = ["ElasticIndex"]

T = TypeVar("T")


class ElasticIndex:
    """Keep an index on a server of Elasticsearch, behind an alias.

    The server keeps weights with 9 significant bits, cut off, so that scores are up to 0.4% below
    the dot products; `bound` says how far. The exact rows are kept beside them and come back from
    `fetch`. The dense leg is searched exactly up to 100,000 documents, then by a graph of 8-bit
    vectors, approximately.

    What a commit can promise here: documents that were sent stay, even if the commit fails in the
    middle; nothing is shown before the whole of it was sent, unless the server itself starts again
    meanwhile; each shard shows its part in one step, so that an index of one shard shows all at
    once. A commit that failed can be tried again, by this object or by a later run: each document
    is stored under its own id, so that repeats change nothing. There is no lock: of two writers of
    one document the later wins. For changes that readers see whole or not at all, on any number
    of shards, use ``rebuild``.

    Credentials come from the environment; see `lexvla_indexer.elastic.connection.connect`.

    Args:
        address: ``elasticsearch+http(s)://host:9200/name``.
        create: Make the index if there is none.
        vocabulary: The terms of the lexical columns. Without one, a new index names its terms by
            their column numbers.
        model: The name of the model that the vectors come from; kept by a new index.
        rebuild: Fill a new index, which readers see when `publish` gives it the alias; closed
            before that, it is deleted.
        shards: Of a new index; by default 1, or as many as the one that is rebuilt.

    Raises:
        EngineUnavailableError: The server cannot be reached, or refuses the credentials.
        IndexCorruptError: There is no index, or it is none of ours.
        IndexVersionError: A newer program wrote the index.
        InputError: The address cannot be read.
        OptionalDependencyError: The extra ``elasticsearch`` is not installed.
        VocabularyMismatchError: The index has another vocabulary.
    """

    def __init__(
        self,
        address: str,
        create: bool = False,
        vocabulary: Vocabulary | None = None,
        model: str | None = None,
        rebuild: bool = False,
        shards: int | None = None,
    ) -> None:
        self.directory: Path | None = None
        self.vocabulary = Vocabulary(())
        self.model: str | None = None
        self._place = Place.parse(address)
        self._client = connect(self._place)
        self._store = Store(self._client, self._place)
        self._changes = Changes(self._store)
        self._mutex = threading.RLock()
        self._closed = False
        try:
            self._open(create, vocabulary, model, rebuild, shards)
        except BaseException:
            self.close()
            raise

    def _open(
        self,
        create: bool,
        vocabulary: Vocabulary | None,
        model: str | None,
        rebuild: bool,
        shards: int | None,
    ) -> None:
        meta = Meta(model, writer_version=program_version())
        if rebuild:
            self._store.begin_rebuild(meta, shards)
            self._changes.rebuild()
        elif not create:
            self._store.check()
        elif not self._store.find():
            self._store.make(meta, shards or 1)
        self._store.wait()
        self._follow()
        if vocabulary is None or vocabulary == self.vocabulary:
            return
        if len(self.vocabulary):
            raise VocabularyMismatchError(
                f"{self._place} was made with {self.vocabulary}, not with {vocabulary}"
            )
        if create or rebuild:
            self._store.save_vocabulary(vocabulary)
        self.vocabulary = vocabulary

    def add(self, documents: Sequence[Document], encoding: Encoding) -> None:
        """Stage documents; one whose id is known replaces the old one.

        Raises:
            InputError: An id occurs twice in this call, or a weight is below 1.2e-38.
            UnsupportedError: The legs are not those of the index, a term is over 32,766 bytes, or
                dense vectors have over 4,096 numbers.
            ValueError: The number of documents is not the number of vectors.
            VocabularyMismatchError: A leg has another width than in the index.
        """
        if len(documents) != len(encoding):
            raise ValueError(f"{len(documents)} documents with {len(encoding)} vectors")
        with self._mutex:
            self._check_open()
            kept = self._store.meta.widths or self._changes.staging.widths
            check_added(encoding, kept, self.vocabulary, self._place)
            if not documents:
                return
            vocabulary = self.vocabulary
            if not len(vocabulary):
                vocabulary = Vocabulary(map(str, range(encoding.lexical.shape[1])))
            self._changes.add(documents, encoding, vocabulary)
            self.vocabulary = vocabulary

    def delete(self, ids: Sequence[str]) -> int:
        """Stage deletions. Return how many of the ids were there."""
        with self._mutex:
            self._check_open()
            return self._changes.delete(ids)

    def commit(self) -> None:
        """Send all that is staged, and show it. Of what that promises, see the class.

        Raises:
            EngineUnavailableError: The server went away, or was too busy for minutes. All is
                still staged: commit again.
            InputError: The server refuses a document. All others are stored.
        """
        with self._mutex:
            self._check_open()
            self._changes.commit(self.vocabulary)

    def publish(self) -> None:
        """Commit, compare the count, and give the alias to the index that was built, in one step.

        Raises:
            EngineUnavailableError: Documents were lost on the way: the server has fewer.
            UnsupportedError: The index was not opened to be rebuilt.
        """
        with self._mutex:
            self.commit()
            self._changes.publish()

    def compact(self) -> None:
        """Commit, then merge each shard to one segment, without the deleted documents.

        What was deleted in the last half minute stays: the server may need it for copies.
        """
        with self._mutex:
            self.commit()
            self._changes.compact()

    def verify(self) -> list[str]:
        """Raise `UnsupportedError`: the server checks its files itself, when it opens them."""
        rule = "the server checks its files itself, when it opens them"
        raise UnsupportedError(f"{self._place}: {rule}")

    def search(
        self,
        queries: Encoding,
        k: int = 10,
        leg: Leg = "lexical",
        filter: str | None = None,  # noqa: A002 - the public word for it
    ) -> list[Results]:
        """Return the k best documents with a score above 0 for each query.

        Best first by the server's scores, equal ones by id ascending. With a filter, only
        documents that it chooses count; see `lexvla_indexer.filters`.

        Raises:
            EngineUnavailableError: The server cannot be reached.
            FilterSyntaxError: The filter cannot be read.
            UnsupportedError: The index or the queries lack the leg, a query has more words than
                the server takes (at least 1,024, more with more memory), or k is over 10,000 for
                the dense leg of an index with more documents than that.
            ValueError: k is below 1, or there is no leg of that name.
            VocabularyMismatchError: The leg has another width in the index.
        """
        return self.search_legs(queries, k, (leg,), filter)[leg]

    def search_legs(
        self,
        queries: Encoding,
        k: int = 10,
        legs: Sequence[Leg] = ("lexical",),
        filter: str | None = None,  # noqa: A002 - the public word for it
    ) -> dict[Leg, list[Results]]:
        """Return what `search` does for several legs, by one request for all.

        Raises:
            UnsupportedError: As `search`.
            ValueError: As `search`.
            VocabularyMismatchError: As `search`.
        """
        return self._reading(lambda reader: reader.search(queries, k, legs, filter))

    def bound(self, queries: Encoding, leg: Leg = "lexical") -> np.ndarray:
        """Return how far each query's scores can be from the exact dot products, float64.

        Raises:
            UnsupportedError: As `search`.
            ValueError: There is no leg of that name.
            VocabularyMismatchError: The leg has another width in the index.
        """
        return self._reading(lambda reader: reader.bound(queries, leg))

    def explain(self, query: Encoding, id: str, leg: Leg = "lexical") -> ElasticExplanation:  # noqa: A002
        """Return a document's score for one query, taken apart by the server, term by term.

        Raises:
            UnknownDocumentError: The index has no such id.
            UnsupportedError: As `search`; and for the dense leg, which has no terms.
            ValueError: There is no leg of that name, or not one row.
            VocabularyMismatchError: The leg has another width in the index.
        """
        return self._reading(lambda reader: reader.explain(query, id, leg))

    def requests(
        self,
        query: Encoding,
        k: int = 10,
        legs: Sequence[Leg] | None = None,
        filter: str | None = None,  # noqa: A002 - the public word for it
    ) -> dict[Leg, dict[str, Any]]:
        """Return the exact JSON of the request that `search` sends for each leg of one query.

        By default of all legs that the query and the index both have. A leg that can match
        nothing is left out.

        Raises:
            UnsupportedError: As `search`.
            ValueError: As `search`.
            VocabularyMismatchError: As `search`.
        """
        queries = self.queries(query, k, legs, filter)
        return {leg: search_body(made, min(k, WINDOW)) for leg, made in queries.items()}

    def show(self, requests: Mapping[Leg, dict[str, Any]]) -> str:
        """Return requests as text to paste into the console of Kibana."""
        return console_text(self._place.name, requests)

    def queries(
        self,
        query: Encoding,
        k: int = 10,
        legs: Sequence[Leg] | None = None,
        filter: str | None = None,  # noqa: A002 - the public word for it
    ) -> dict[Leg, dict[str, Any]]:
        """Return the query of each leg as JSON, for requests of one's own.

        Args:
            query: One row.
            k: How many hits are wanted.
            legs: Which; by default all that the query and the index both have.
            filter: Which documents may be hits.
        """
        return self._reading(
            lambda r: r.queries(query, k, r.shared_legs(query) if legs is None else legs, filter)
        )

    def send(self, request: Mapping[str, Any]) -> list[tuple[str, float]]:
        """Send a request, such as those of `lexvla_indexer.elastic.fused`. Return ids with scores.

        Raises:
            EngineUnavailableError: The server cannot be reached.
            UnsupportedError: The server's licence does not cover it, or it lacks the module.
        """
        return self._reading(lambda reader: reader.send(request))

    def fetch(self, ids: Sequence[str]) -> Fetched:
        """Return documents with their stored vectors, in the order of the ids.

        Raises:
            UnknownDocumentError: The index has no such id.
        """
        return self._reading(lambda reader: reader.fetch(ids))

    def vectors(self, ids: Sequence[str]) -> Encoding:
        """Return documents' stored vectors alone, in the order of the ids.

        Raises:
            UnknownDocumentError: The index has no such id.
        """
        return self._reading(lambda reader: reader.vectors(ids))

    def fingerprints(self, ids: Sequence[str]) -> dict[str, str]:
        """Return the fingerprint of each of these ids that the index has, staged ones included.

        What a commit that failed has sent counts too.
        """
        with self._mutex:
            self._check_open()
            return self._changes.fingerprints(ids)

    def count(self) -> int:
        """Return the number of searchable documents."""
        return self._reading(lambda reader: reader.count())

    def info(self) -> dict[str, Any]:
        """Describe the index: counts, size in bytes, health, vocabulary, model and accuracy."""
        return self._reading(lambda reader: reader.info())

    def read_meta(self, name: str) -> Any:
        """Return what `write_meta` kept by that name; ``None`` if there is nothing."""
        with self._mutex:
            self._check_open()
            self._store.check()
            return self._store.meta.notes.get(name)

    def write_meta(self, name: str, value: Any) -> None:
        """Keep a small JSON value with the index, such as fitted weights of legs."""
        with self._mutex:
            self._check_open()
            self._store.check()
            self._store.describe(notes={**self._store.meta.notes, name: value})

    def close(self) -> None:
        """Give up the connection. What is staged and not committed is dropped."""
        with self._mutex:
            if self._closed:
                return
            self._closed = True
            with suppress(LexVLAError):
                self._store.abandon()
            self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _reading(self, ask: Callable[[Reader], T]) -> T:
        """Ask the index that the alias means; again, if it was replaced meanwhile."""
        return following(self._reader, ask)

    def _reader(self, newest: bool) -> Reader:
        with self._mutex:
            self._check_open()
            if newest:
                self._store.check()
            else:
                self._store.refresh()
            self._follow()
            return Reader(self._client, self._store, self.vocabulary)

    def _follow(self) -> None:
        """Take the model and the vocabulary of the index that the store has found."""
        if self._store.meta.vocabulary_sha256 not in ("", self.vocabulary.sha256):
            self.vocabulary = self._store.load_vocabulary()
        self.model = self._store.meta.model

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError("the index is closed")
