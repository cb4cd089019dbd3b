"""Changes on their way to the server: in bulks, again and again until it took them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast

import numpy as np

from lexvla.encoding import Encoding
from lexvla.errors import EngineUnavailableError, InputError, UnsupportedError
from lexvla.vocabulary import Vocabulary
from lexvla_indexer.document import Document
from lexvla_indexer.elastic.connection import Place, elastic_errors, may_pass
from lexvla_indexer.elastic.layout import sources

if TYPE_CHECKING:
    from elasticsearch import Elasticsearch

__all__ = ["PAUSES", "check_rows", "check_terms", "load", "patiently"]

T = TypeVar("T")

MAX_TERM_BYTES = 32_766  # of Lucene
MAX_DIMENSIONS = 4096  # of dense_vector
UNAVAILABLE = 503  # of HTTP: no shard takes it
LEAST_WEIGHT = float(np.finfo(np.float32).smallest_normal)  # the server refuses smaller ones

PIECE = 1000  # documents that are sent again as one if the connection is cut
BULK = 500  # documents of a request
BULK_BYTES = 10 * 1024 * 1024
TRIES = 8  # of documents that the server is too busy for
SHARD_WAIT = "10s"  # for shards that are just coming up, within a request
PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0)  # seconds between tries to reach the server

Action = tuple[dict[str, Any], str | None]  # what to do with which document, and it as JSON


class Refused(NamedTuple):
    """A document that the server did not take.

    Attributes:
        id: Names it.
        status: Of HTTP.
        reason: What the server says.
    """

    id: str
    status: int
    reason: str


def check_terms(vocabulary: Vocabulary) -> None:
    """Refuse a vocabulary with a term that the server cannot keep.

    Raises:
        UnsupportedError: A term is too long.
    """
    for term in vocabulary.terms:
        if len(term) * 4 > MAX_TERM_BYTES and len(term.encode()) > MAX_TERM_BYTES:
            rule = f"Elasticsearch takes terms of at most {MAX_TERM_BYTES:,} bytes"
            raise UnsupportedError(f"{rule}; the vocabulary has {term[:40]!r}...")


def check_rows(documents: Sequence[Document], encoding: Encoding) -> None:
    """Refuse rows that the server would refuse. `Encoding` has seen to all but these.

    Raises:
        InputError: A weight is so small that it is no normal float32 number.
        UnsupportedError: Dense vectors have too many numbers.
    """
    for matrix in (encoding.lexical, encoding.codes):
        if matrix is not None and matrix.nnz and matrix.data.min() < LEAST_WEIGHT:
            at = int(np.argmin(matrix.data))
            row = int(np.searchsorted(matrix.indptr, at, side="right")) - 1
            rule = f"Elasticsearch takes weights from {LEAST_WEIGHT:.3g} on, not {matrix.data[at]}"
            raise InputError(documents[row].id, rule)
    if encoding.dense is not None and encoding.dense.shape[1] > MAX_DIMENSIONS:
        rule = f"Elasticsearch takes dense vectors of at most {MAX_DIMENSIONS:,} numbers"
        raise UnsupportedError(f"{rule}, not {encoding.dense.shape[1]:,}")


def load(
    client: Elasticsearch,
    place: Place,
    index: str,
    deleted: Iterable[str],
    rows: tuple[Sequence[Document], Encoding] | None,
    terms: Sequence[str],
) -> None:
    """Send deletions and documents, each under its own id, so that repeats change nothing.

    What the server is too busy for is sent again, and so is what was on its way when the
    connection broke.

    Args:
        client: Of the server.
        place: The address.
        index: The alias to write by.
        deleted: Ids.
        rows: Documents with their vectors.
        terms: Those of the lexical columns.

    Raises:
        EngineUnavailableError: The server went away, or stayed too busy.
        InputError: It refuses a document; all others are taken.
    """
    refused: list[Refused] = []
    actions = _actions(index, deleted, rows, terms)
    while piece := list(islice(actions, PIECE)):
        refused += _send(client, place, piece)
    if not refused:
        return
    first = refused[0]
    names = ", ".join(repr(each.id) for each in refused[1:6])
    more = f" (and {len(refused) - 1:,} more: {names})" if names else ""
    if first.status == 400:
        raise InputError(first.id, f"Elasticsearch refuses it: {first.reason}{more}")
    raise EngineUnavailableError(f"{place}: {first.id!r} was not taken: {first.reason}{more}")


def _actions(
    index: str,
    deleted: Iterable[str],
    rows: tuple[Sequence[Document], Encoding] | None,
    terms: Sequence[str],
) -> Iterator[Action]:
    for name in deleted:
        yield {"delete": {"_index": index, "_id": name}}, None
    if rows is not None:
        documents, encoding = rows
        for document, source in zip(documents, sources(documents, encoding, terms), strict=True):
            yield {"index": {"_index": index, "_id": document.id}}, source


def patiently(ask: Callable[[], T]) -> T:
    """Ask until the server answers; of a server that starts again, for a minute.

    Raises:
        EngineUnavailableError: It does not, or what it says will not pass.
    """
    for pause in PAUSES:
        try:
            return ask()
        except EngineUnavailableError as error:
            if not may_pass(error):
                raise
        time.sleep(pause)
    return ask()


def _send(client: Elasticsearch, place: Place, piece: list[Action]) -> list[Refused]:
    """Send some actions until the server answered for all of them."""

    def send() -> list[Refused]:
        with elastic_errors(place):
            return _send_once(client, piece)

    for pause in PAUSES:
        refused = patiently(send)
        # Of a server that just started, shards come up later than the server.
        if not any(each.status == UNAVAILABLE for each in refused):
            return refused
        time.sleep(pause)
    return patiently(send)


def _send_once(client: Elasticsearch, piece: list[Action]) -> list[Refused]:
    from elasticsearch.helpers import streaming_bulk

    answers = streaming_bulk(
        client,
        cast(Any, piece),
        expand_action_callback=cast(Any, tuple),  # they are what it would make of them
        require_alias=True,
        chunk_size=BULK,
        max_chunk_bytes=BULK_BYTES,
        raise_on_error=False,
        max_retries=TRIES,
        initial_backoff=PAUSES[0],
        max_backoff=PAUSES[-1],
        timeout=SHARD_WAIT,
    )
    refused = []
    for is_taken, answer in answers:
        ((kind, told),) = answer.items()
        if not is_taken and not (kind == "delete" and told["status"] == 404):
            refused.append(Refused(told["_id"], told["status"], _reason(told.get("error"))))
    return refused


def _reason(error: Any) -> str:
    if not isinstance(error, Mapping):
        return str(error)
    cause = error.get("caused_by") or {}
    parts = (error.get("reason"), cause.get("reason"))
    return ": ".join(" ".join(str(part).split())[:300] for part in parts if part)
