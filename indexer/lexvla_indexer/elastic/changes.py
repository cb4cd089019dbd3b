"""Changes to an index: staged in memory, then sent and shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from lexvla.encoding import Encoding
from lexvla.errors import EngineUnavailableError, UnsupportedError, VocabularyMismatchError
from lexvla.vocabulary import Vocabulary
from lexvla_indexer.document import Document
from lexvla_indexer.elastic.connection import elastic_errors, found_documents, whole
from lexvla_indexer.elastic.layout import FLAT, FLAT_DOCUMENTS, GRAPH, ID
from lexvla_indexer.elastic.store import Store
from lexvla_indexer.elastic.writer import check_rows, check_terms, load, patiently
from lexvla_indexer.legs import widths_of
from lexvla_indexer.staging import Staging

__all__ = ["Changes"]

LOOKED_UP = 1000  # ids of a request
MERGE_SECONDS = 24 * 3600


class Changes:
    """Change the index that a store has found. For one thread at a time.

    Args:
        store: Has found an index, or will have.

    Attributes:
        staging: What was taken in and is not committed yet.
    """

    def __init__(self, store: Store) -> None:
        self.staging = Staging()
        self._store = store
        self._client = store.client
        self._place = store.place
        self._built: set[str] | None = None

    def rebuild(self) -> None:
        """Keep count of what is sent, until `publish`."""
        self._built = set()

    def add(
        self, documents: Sequence[Document], encoding: Encoding, vocabulary: Vocabulary
    ) -> None:
        """Stage documents.

        Raises:
            InputError: An id occurs twice, or the server cannot keep a weight.
            UnsupportedError: The server cannot keep a term or so long dense vectors.
        """
        check_terms(vocabulary)
        check_rows(documents, encoding)
        self.staging.add(documents, encoding)

    def delete(self, ids: Sequence[str]) -> int:
        """Stage deletions. Return how many of the ids were there."""
        committed = self._found(ids).keys() - self.staging.deleted
        count = 0
        for name in set(ids):
            count += self.staging.discard(name) or name in committed
        self.staging.deleted |= committed
        return count

    def fingerprints(self, ids: Sequence[str]) -> dict[str, str]:
        """Return the fingerprints of ids as they will be."""
        return self.staging.fingerprints(self._found(ids), ids)

    def _found(self, ids: Sequence[str]) -> dict[str, str]:
        """Return the fingerprint of each id that is there, shown or not."""
        found: dict[str, str] = {}
        for start in range(0, len(ids), LOOKED_UP):
            names = list(ids[start : start + LOOKED_UP])
            for each in patiently(partial(self._look_up, names)):
                if each.get("found"):
                    found[each["_id"]] = each["_source"]["fingerprint"]
        return found

    def _look_up(self, names: list[str]) -> list[Mapping[str, Any]]:
        with elastic_errors(self._place):
            answer = self._client.mget(
                index=self._store.index, ids=names, source_includes=["fingerprint"]
            )
        return found_documents(self._place, answer.body)

    def commit(self, vocabulary: Vocabulary) -> None:
        """Send all that is staged, and show it.

        Args:
            vocabulary: The terms of the lexical columns.
        """
        staging, store = self.staging, self._store
        if staging:
            patiently(store.check)
            rows = staging.rows() if staging.documents else None
            if rows is not None:
                made = rows[1]
                patiently(lambda: self._describe(made, vocabulary))
            deleted = staging.deleted - staging.documents.keys()
            load(self._client, self._place, store.target, deleted, rows, vocabulary.terms)
            if self._built is not None:
                self._built = (self._built - deleted) | staging.documents.keys()
        # Also where nothing is staged: a commit that was cut short may have sent something.
        patiently(self._refresh)
        self.staging = Staging()
        is_flat = "dense" in store.meta.widths and store.meta.dense == FLAT
        if staging.documents and is_flat and self._count() > FLAT_DOCUMENTS:
            store.describe(dense=GRAPH)

    def _refresh(self) -> None:
        with elastic_errors(self._place):
            whole(self._place, self._client.indices.refresh(index=self._store.index).body)

    def _describe(self, encoding: Encoding, vocabulary: Vocabulary) -> None:
        """Write down what the new rows need to be read, before they come."""
        meta, widths = self._store.meta, widths_of(encoding)
        if meta.vocabulary_sha256 not in ("", vocabulary.sha256) or (
            meta.widths and dict(meta.widths) != widths
        ):
            rule = "another program has made it anew, for other vectors than those that are staged"
            raise VocabularyMismatchError(f"{self._place}: {rule}")
        if not meta.vocabulary_sha256:
            self._store.save_vocabulary(vocabulary)
        if not meta.widths:
            self._store.describe(widths=widths)

    def publish(self) -> None:
        """Compare the count, and give the alias to the index that was built.

        Raises:
            EngineUnavailableError: The server has not what was sent.
            UnsupportedError: Nothing is being built.
        """
        if self._built is None:
            raise UnsupportedError(f"{self._place}: was not opened to be rebuilt")
        count = self._count()
        if count != len(self._built):
            rule = f"the server has {count:,} of {len(self._built):,} documents that were sent"
            raise EngineUnavailableError(f"{self._place}: {rule}; the old index stays")
        self._store.publish()
        self._built = None

    def compact(self) -> None:
        """Merge each shard to one segment."""
        with elastic_errors(self._place):
            patient = self._client.options(request_timeout=MERGE_SECONDS)
            patient.indices.forcemerge(index=self._store.index, max_num_segments=1)
            self._client.indices.refresh(index=self._store.index)

    def _count(self) -> int:
        with elastic_errors(self._place):
            answer = self._client.count(index=self._store.index, query={"exists": {"field": ID}})
        return int(whole(self._place, answer.body)["count"])
