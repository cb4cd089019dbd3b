"""The writer: sends what is staged to the server until it is accepted."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache, partial
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast

import numpy as np
from scipy import sparse

from lexvla.encoding import Encoding
from lexvla.errors import (
    EngineUnavailableError,
    InputError,
    UnsupportedError,
    VocabularyMismatchError,
)
from lexvla.vocabulary import Vocabulary
from lexvla_indexer.document import Document
from lexvla_indexer.elastic.connection import (
    elastic_errors,
    found_documents,
    whole,
)
from lexvla_indexer.elastic.layout import (
    FIELD_OF,
    FILTER,
    FLAT,
    FLAT_DOCUMENTS,
    ID,
    PATCHES,
    STRONGEST,
    WORDS,
    Store,
)
from lexvla_indexer.elastic.product import Product
from lexvla_indexer.elastic.refusals import PassingError
from lexvla_indexer.elastic.stored_vectors import incomplete
from lexvla_indexer.elastic.typed_fields import typed_metadata
from lexvla_indexer.filter_terms import terms_of
from lexvla_indexer.legs import VectorLeg, widths_of
from lexvla_indexer.staging import Staging
from lexvla_indexer.strongest import strongest
from lexvla_indexer.text_words import text_words

if TYPE_CHECKING:
    from elasticsearch import Elasticsearch

__all__ = ["PAUSES", "Writer", "check_rows", "patiently", "reason_of", "row_values", "sources"]

T = TypeVar("T")

MAX_ID_BYTES = 512
UNAVAILABLE = 503  # HTTP: no shard takes it
LEAST_WEIGHT = float(np.finfo(np.float32).smallest_normal)  # the server refuses smaller ones

PIECE = 1000  # documents that are sent again together if the connection breaks
BULK = 500  # documents of a request
BULK_BYTES = 10 * 1024 * 1024
TRIES = 8  # of documents that the server is too busy for
SHARD_WAIT = "10s"  # for shards that are starting up, within a request
PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0)  # seconds between tries to reach the server
LOOKED_UP = 1000  # ids of a request
MERGE_SECONDS = 24 * 3600

NUMBER = "%.9g"

_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode

Action = tuple[dict[str, Any], str | None]  # what to do, and the document as JSON


class Refused(NamedTuple):
    """A document that the server did not take, with the HTTP status and the server's reason."""

    id: str
    status: int
    reason: str

    @property
    def may_pass(self) -> bool:
        """Whether it may be taken at the next try."""
        # A document with a new metadata field waits for the mapping to have it.
        return self.status == UNAVAILABLE or "dynamic mapping update" in self.reason


class Writer:
    """Change the index that a store has found. For one thread at a time.

    ``rebuilds`` says whether that index is being built, to be published when it is complete.
    """

    def __init__(self, store: Store, rebuilds: bool) -> None:
        self._store = store
        self._client = store.client
        self._address = store.address
        self._built: set[str] | None = set() if rebuilds else None

    def fingerprints(self, ids: Sequence[str]) -> dict[str, str]:
        """Return the fingerprint of each id that is there, shown or not.

        It is empty if the document was shown without all of its vectors.
        """
        found: dict[str, str] = {}
        for start in range(0, len(ids), LOOKED_UP):
            names = list(ids[start : start + LOOKED_UP])
            for each in patiently(partial(self._look_up, names)):
                if each.get("found"):
                    found[each["_id"]] = each["_source"].get("fingerprint") or ""
            if found.keys() & names:
                found |= dict.fromkeys(patiently(partial(self._lost, names)), "")
        return found

    def _lost(self, names: list[str]) -> list[str]:
        chosen = [{"ids": {"values": names}}, incomplete(self._store.state, self._store.product)]
        with elastic_errors(self._address):
            answer = self._client.search(
                index=self._store.index,
                query={"bool": {"filter": chosen}},
                size=len(names),
                source=False,
                allow_partial_search_results=False,
            )
        return [hit["_id"] for hit in answer["hits"]["hits"]]

    def _look_up(self, names: list[str]) -> list[Mapping[str, Any]]:
        with elastic_errors(self._address):
            answer = self._client.mget(
                index=self._store.index, ids=names, source_includes=["fingerprint"]
            )
        return found_documents(self._address, answer.body)

    def commit(self, staging: Staging, vocabulary: Vocabulary) -> None:
        """Send everything staged, and show it. The staging is empty afterwards."""
        store = self._store
        if staging:
            patiently(store.check)
            rows = staging.rows() if staging.documents else None
            if rows is not None:
                made = rows
                patiently(lambda: self._describe(*made, vocabulary))
            deleted = staging.deleted - staging.documents.keys()
            self._load(deleted, rows, vocabulary.terms)
            if self._built is not None:
                self._built = (self._built - deleted) | staging.documents.keys()
        # Even if nothing is staged: a commit that was cut short may have sent something.
        patiently(self._refresh)
        has_grown = bool(staging.documents)
        staging.clear()
        is_flat = "dense" in store.state.widths and store.state.dense == FLAT
        graph = store.product.graph
        if has_grown and is_flat and graph and self._count() > FLAT_DOCUMENTS:
            store.describe(dense=graph)

    def publish(self, keep_old: int) -> None:
        """Compare the count, and give the alias to the new index."""
        if self._built is None:
            raise UnsupportedError(f"{self._address}: was not opened to be rebuilt")
        count = self._count()
        if count != len(self._built):
            rule = f"the server has {count:,} of {len(self._built):,} documents that were sent"
            raise EngineUnavailableError(f"{self._address}: {rule}; the old index stays")
        self._store.publish(keep_old)
        self._built = None

    def compact(self) -> None:
        """Merge each shard to one segment."""
        with elastic_errors(self._address):
            patient = self._client.options(request_timeout=MERGE_SECONDS)
            patient.indices.forcemerge(index=self._store.index, max_num_segments=1)
            self._client.indices.refresh(index=self._store.index)

    def _refresh(self) -> None:
        with elastic_errors(self._address):
            whole(self._address, self._client.indices.refresh(index=self._store.index).body)

    def _describe(
        self, documents: Sequence[Document], encoding: Encoding, vocabulary: Vocabulary
    ) -> None:
        """Record what is needed to read the new rows, before they come."""
        state, widths = self._store.state, widths_of(encoding)
        if state.vocabulary_sha256 not in ("", vocabulary.sha256) or (
            state.widths and dict(state.widths) != widths
        ):
            rule = "another program has recreated it for other vectors than those staged"
            raise VocabularyMismatchError(f"{self._address}: {rule}")
        if not state.vocabulary_sha256:
            self._store.save_vocabulary(vocabulary)
        has_text = state.has_text or any(text_words(document.text) for document in documents)
        if not state.widths or has_text != state.has_text:
            self._store.describe(widths=widths, has_text=has_text)

    def _load(
        self,
        deleted: Iterable[str],
        rows: tuple[Sequence[Document], Encoding] | None,
        terms: Sequence[str],
    ) -> None:
        """Send deletions and documents, each under its own id, so that repeats change nothing.

        What the server is too busy for is sent again, and so is what was on its way when the
        connection broke. InputError if it refuses a document; all others are stored.
        """
        index = self._store.target
        actions: Iterator[Action] = (
            ({"delete": {"_index": index, "_id": name}}, None) for name in deleted
        )
        if rows is not None:
            made = zip(rows[0], sources(*rows, terms, self._store.product), strict=True)
            stored = (({"index": {"_index": index, "_id": d.id}}, source) for d, source in made)
            actions = chain(actions, stored)
        refused: list[Refused] = []
        while piece := list(islice(actions, PIECE)):
            refused += self._send(piece)
        if not refused:
            return
        first = refused[0]
        names = ", ".join(repr(each.id) for each in refused[1:6])
        more = f" (and {len(refused) - 1:,} more: {names})" if names else ""
        if first.status == 400:
            raise InputError(
                first.id, f"{self._store.product.name} refuses it: {first.reason}{more}"
            )
        rule = f"{first.id!r} was not taken: {first.reason}{more}"
        raise EngineUnavailableError(f"{self._address}: {rule}")

    def _send(self, piece: list[Action]) -> list[Refused]:
        """Send some actions until the server has answered for all of them."""

        def send() -> list[Refused]:
            with elastic_errors(self._address):
                return _send_once(self._store.product, self._client, piece)

        for pause in PAUSES:
            refused = patiently(send)
            if not any(each.may_pass for each in refused):
                return refused
            # The shards of a server that just started come up later than the server.
            time.sleep(pause)
        return patiently(send)

    def _count(self) -> int:
        with elastic_errors(self._address):
            answer = self._client.count(index=self._store.index, query={"exists": {"field": ID}})
        return int(whole(self._address, answer.body)["count"])


def check_rows(documents: Sequence[Document], encoding: Encoding, product: Product) -> None:
    """Refuse rows that the server would refuse but `Encoding` allows.

    A weight that is not a normal float32 number, or an id of more than 512 bytes, raises InputError
    with the document's id.
    """
    for document in documents:
        if (size := len(document.id.encode())) > MAX_ID_BYTES:
            rule = f"{product.name} takes ids of at most {MAX_ID_BYTES} bytes, not {size:,}"
            raise InputError(document.id, rule)
    for matrix in (encoding.lexical, encoding.codes):
        if matrix is not None and matrix.nnz and matrix.data.min() < LEAST_WEIGHT:
            at = int(np.argmin(matrix.data))
            row = int(np.searchsorted(matrix.indptr, at, side="right")) - 1
            least = f"{LEAST_WEIGHT:.3g}, not {matrix.data[at]}"
            rule = f"{product.name} takes weights of at least {least}"
            raise InputError(documents[row].id, rule)
    if encoding.dense is not None and encoding.dense.shape[1] > product.most_dimensions:
        most = f"{product.most_dimensions:,} numbers"
        rule = f"{product.name} takes dense vectors of at most {most}"
        raise UnsupportedError(f"{rule}, not {encoding.dense.shape[1]:,}")


def patiently(ask: Callable[[], T]) -> T:
    """Ask until the server answers, for up to a minute while it restarts."""
    for pause in PAUSES:
        try:
            return ask()
        except PassingError:
            time.sleep(pause)
    return ask()


def _send_once(product: Product, client: Elasticsearch, piece: list[Action]) -> list[Refused]:
    answers = product.bulk(
        client,
        piece,
        expand_action_callback=cast(Any, tuple),  # they are expanded already
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
            refused.append(Refused(told["_id"], told["status"], reason_of(told.get("error"))))
    return refused


def reason_of(error: Any) -> str:
    """Return what an action's error in the answer to a bulk request says."""
    if not isinstance(error, Mapping):
        return str(error)
    cause = error.get("caused_by") or {}
    parts = (error.get("reason"), cause.get("reason"))
    return ": ".join(" ".join(str(part).split())[:300] for part in parts if part)


def sources(
    documents: Sequence[Document], encoding: Encoding, terms: Sequence[str], product: Product
) -> Iterator[str]:
    """Yield documents as the server takes them: JSON."""
    own_legs = [FIELD_OF[leg] for leg in FIELD_OF if leg in widths_of(encoding)]
    for document, row in zip(documents, row_values(encoding, terms, product), strict=True):
        made: dict[str, Any] = {
            ID: document.id,
            FILTER: list(terms_of(document)),
            STRONGEST: row.strongest,
            "text": document.text,
            "uri": document.uri,
            **typed_metadata(document.metadata, product),
            "metadata": json.dumps(dict(document.metadata)),
            "fingerprint": document.fingerprint,
            **product.own_fields(own_legs, document.metadata),
        }
        if row.patches is not None:
            made[PATCHES] = row.patches
        if words := text_words(document.text):
            made[WORDS] = " ".join(words)
        legs = (f'"{FIELD_OF[leg]}":{value}' for leg, value in row.vectors.items())
        yield f"{{{','.join([_json(made)[1:-1], *legs])}}}"


class RowValues(NamedTuple):
    """What is stored of one row.

    Attributes:
        vectors: JSON by leg: weights by term, weights by code, numbers.
        strongest: The terms of the strongest words, strongest first.
        patches: The patch of each word, packed; ``None`` if all are -1.
    """

    vectors: dict[VectorLeg, str]
    strongest: list[str]
    patches: str | None


def row_values(encoding: Encoding, terms: Sequence[str], product: Product) -> Iterator[RowValues]:
    """Yield what is stored of each row."""
    # One format writes all numbers of a row. 9 digits distinguish all float32 numbers; the json
    # module would write the 17 of a float64, which takes it and the server longer.
    of_word = cache(
        lambda column: _json(product.part(terms[column])).replace("%", "%%") + f":{NUMBER}"
    )
    legs: list[tuple[VectorLeg, sparse.csr_array, Callable[[int], str]]]
    legs = [("lexical", encoding.lexical, of_word)]
    if encoding.codes is not None:
        legs.append(("codes", encoding.codes, f'"{{}}":{NUMBER}'.format))
    lexical, patches = encoding.lexical, encoding.patches
    for row in range(len(encoding)):
        vectors: dict[VectorLeg, str] = {}
        for leg, matrix, of_column in legs:
            span = slice(*matrix.indptr[row : row + 2].tolist())
            form = ",".join(map(of_column, matrix.indices[span].tolist()))
            vectors[leg] = f"{{{form % tuple(matrix.data[span].tolist())}}}"
        if encoding.dense is not None:
            form = ",".join([NUMBER] * encoding.dense.shape[1])
            vectors["dense"] = f"[{form % tuple(encoding.dense[row].tolist())}]"
        span = slice(*lexical.indptr[row : row + 2].tolist())
        shown = strongest(lexical.indices[span], lexical.data[span]).tolist()
        packed = None
        if patches is not None and (patches[span] >= 0).any():
            packed = base64.b64encode(patches[span].astype("<i2").tobytes()).decode()
        yield RowValues(vectors, [terms[column] for column in shown], packed)
