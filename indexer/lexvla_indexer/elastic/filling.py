"""Fill our fields of a user's documents from what these point at, and take them out again."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from threading import Event
from typing import TYPE_CHECKING, Any, NamedTuple

from lexvla.encoder import Encoder
from lexvla.encoding import Encoding
from lexvla.errors import InputError, UnsupportedError
from lexvla_indexer.document import Document
from lexvla_indexer.elastic.attached_document import joined_text, values_at
from lexvla_indexer.elastic.attaching import check_writable
from lexvla_indexer.elastic.attachment import (
    Attachment,
    describe,
    read_attachment,
    remove_attachment,
    write_attachment,
)
from lexvla_indexer.elastic.connection import Address, elastic_errors
from lexvla_indexer.elastic.guarded import Change, UserIndex
from lexvla_indexer.elastic.layout import FLAT, FLAT_DOCUMENTS
from lexvla_indexer.elastic.product import Json
from lexvla_indexer.elastic.writer import check_rows, patiently, row_values
from lexvla_indexer.fingerprint import content_of, hash_of
from lexvla_indexer.item_source import ItemSource, ListedItem, UnlistedItem
from lexvla_indexer.pipeline import Ingest
from lexvla_indexer.pointed_images import PointedImages
from lexvla_indexer.reading import Reading
from lexvla_indexer.report import Reject, RejectLog, Report
from lexvla_indexer.roots import SourcePlace

if TYPE_CHECKING:
    from elasticsearch import Elasticsearch

__all__ = ["detach", "fill", "tally"]

PIECE = 256  # documents that are marked as rejected, or emptied, together
LONGEST_RULE = 1000  # characters
_KEY = "attached"  # in place of a source's key in fingerprints of an ingest


def fill(
    client: Elasticsearch,
    address: Address,
    attachment: Attachment,
    encoder: Encoder,
    images: PointedImages,
    *,
    retry_rejected: bool = False,
    recheck: bool = False,
    batch_size: int = 64,
    reading: Reading | None = None,
    show_progress_bar: bool | None = None,
    stop: Event | None = None,
) -> Report:
    """Fill new and changed documents of an attached index, and return what became of them.

    A document with an image is encoded by it, one without by its text. What cannot be encoded is
    reported, and marked in the document with the rule, so that it is tried again only if asked for
    or if the field's value has changed. A document that another client changes meanwhile is read
    again; nobody's changes are lost. A run that was cut short goes on where it stopped.

    The next run reads only documents that were changed after this one began; with ``since_field``,
    only those whose date is not older than the newest that this one saw.

    Args:
        client: A client of the server; it is changed as `UserIndex` says.
        address: The index, or an alias of it.
        attachment: As `attach` returned it.
        encoder: Makes the vectors.
        images: Which images may be read.
        retry_rejected: Try documents again that were rejected before.
        recheck: Read all documents and images again, and encode those whose bytes have changed.
        batch_size: The most items to encode at once.
        reading: How to read images.
        show_progress_bar: Show progress on stderr; by default if that is a terminal.
        stop: Set it to stop; what is encoded by then is stored.

    Raises:
        EngineUnavailableError: The server went away, or was too busy for minutes.
        IndexMissingError: The index went away.
    """
    target, report = UserIndex(client, address, attachment), Report()
    reading, stop = replace(reading or Reading(), exif=False), stop or Event()
    # The second time finds what was changed during the first, and what that wrote.
    for is_first in (True, False):
        documents = _Documents(
            target,
            attachment,
            encoder.name,
            images,
            retries=is_first and (retry_rejected or recheck),
            rechecks=is_first and recheck,
        )
        sink = _Sink(target, attachment, encoder, documents, report)
        shows = show_progress_bar if is_first else False
        ingest = Ingest(
            documents, encoder, sink, report, batch_size, shows, stop=stop, reading=reading
        )
        with _Rejects(sink, report) as rejects:
            ingest.run(rejects)
        if is_first:
            report.skipped += documents.unchanged
        if report.interrupted:
            return report
        if documents.cursor != attachment.cursor:
            attachment = replace(attachment, cursor=documents.cursor)
            patiently(partial(write_attachment, client, address, attachment))
        if not sink.has_stored:
            break
    report.rejected = list({each.item: each for each in report.rejected}.values())
    if attachment.dense_field is not None and attachment.dense == FLAT:
        exists = {"exists": {"field": attachment.dense_field}}
        if sum(target.count(shard, exists) for shard in documents.tops) > FLAT_DOCUMENTS:
            write_attachment(client, address, replace(attachment, dense=address.product.graph))
    target.extent()  # shows what was stored last
    return report


def detach(client: Elasticsearch, address: Address) -> int:
    """Take our fields out of all documents, and what ``_meta`` says; return how many had them.

    The mapping keeps the fields: the server cannot remove them. A run that was cut short goes on
    where it stopped.

    Raises:
        EngineUnavailableError: The index is read-only, the server went away, or it was too busy.
        IndexMissingError: There is no such index.
        UnsupportedError: It is not attached, or its documents cannot be changed.
    """
    attachment = read_attachment(client, address)
    if attachment is None:
        raise UnsupportedError(f"{address}: is not attached")
    name, mapping, _ = describe(client, address)
    check_writable(client, address, name, mapping, rewritten=True)
    target = UserIndex(client, address, attachment)
    fields = *attachment.own_fields[:-1], f"{attachment.state_field}.fingerprint"
    filled: Json = {"bool": {"should": [{"exists": {"field": field}} for field in fields]}}
    emptied = -1
    total = 0
    while emptied:
        emptied = 0
        for shard, top in target.extent().last.items():
            hits = target.listed(shard, top, filled, [])
            while piece := list(islice(hits, PIECE)):
                changes = [Change(hit["_id"], hit.get("_routing"), lambda _: {}) for hit in piece]
                for hit, outcome in zip(piece, target.change(changes), strict=True):
                    if outcome.refused:
                        raise InputError(hit["_id"], outcome.refused)
                    emptied += outcome.is_stored
        total += emptied
    remove_attachment(client, address)
    return total


def tally(client: Elasticsearch, address: Address, attachment: Attachment) -> tuple[int, int]:
    """Return how many documents are filled, and how many are marked as rejected."""
    state = attachment.state_field
    with elastic_errors(address):
        marked, rejected = (
            client.count(index=address.name, query={"exists": {"field": f"{state}.{each}"}})
            for each in ("fingerprint", "rejected")
        )
    return marked["count"] - rejected["count"], rejected["count"]


class _Pointed(NamedTuple):
    """What a document says is to be encoded.

    Attributes:
        hash: Of that, with the model's name.
        fault: Why it says nothing that can be encoded; empty if it does.
    """

    image: str
    text: str
    hash: str
    fault: str


class _Pending(NamedTuple):
    id: str
    routing: str | None
    hash: str
    before: str  # its fingerprint


class _Documents(ItemSource):
    """The documents of an attached index that may need to be filled.

    Attributes:
        tops: The last sequence number of each shard that is read.
        cursor: What the next run starts from, if this one is complete.
        pending: What was listed and not stored yet, by id, and routing if there is one: documents
            of several shards may have the same id.
        unchanged: Documents that were listed and need nothing.
    """

    def __init__(
        self,
        target: UserIndex,
        attachment: Attachment,
        model: str,
        images: PointedImages,
        retries: bool,
        rechecks: bool,
    ) -> None:
        super().__init__(SourcePlace(str(target.address), ""))
        self.key = _KEY
        self.pending: dict[str, _Pending] = {}
        self.unchanged = 0
        self.rechecks = rechecks
        self._retries = retries
        self._target = target
        self._attachment = attachment
        self._model = model
        self._images = images
        uuid, self.tops, seen = target.extent()
        before = attachment.cursor if attachment.cursor.get("uuid") == uuid else {}
        self.cursor: Json = {"uuid": uuid, "shards": seen}
        if attachment.since_field is not None:
            self.cursor["since"] = target.newest(attachment.since_field)
        self._state = attachment.state_field
        self._chosen = {shard: self._choose(before, shard) for shard in self.tops}

    def count(self) -> int:
        """Return how many documents are read."""
        return sum(self._target.count(shard, query) for shard, query in self._chosen.items())

    def entries(self) -> Iterator[ListedItem | UnlistedItem]:
        """Yield the documents of each shard, in the order of their last changes."""
        made = self._attachment
        names = (made.image_field, *made.text_fields)
        state = (f"{self._state}.{each}" for each in ("fingerprint", "rejected", "strongest"))
        includes = [*filter(None, names), *state]
        for shard, top in self.tops.items():
            for hit in self._target.listed(shard, top, self._chosen[shard], includes):
                if (entry := self._entry(hit)) is not None:
                    yield entry

    def pointed(self, source: Mapping[str, Any]) -> _Pointed:
        """Return what a document says is to be encoded."""
        made = self._attachment
        image, text, fault = "", "", ""
        try:
            if made.image_field is not None:
                image = next(iter(_strings(source, made.image_field)), "")
            if not image:
                text = joined_text(_strings(source, each) for each in made.text_fields)
            if not (image or text):
                fields = ", ".join(filter(None, (made.image_field, *made.text_fields)))
                fault = f"has neither an image nor a text (in {fields})"
        except _NotTextError as error:
            fault = str(error)
        return _Pointed(image, text, hash_of([self._model, image, text, fault]), fault)

    def _choose(self, before: Mapping[str, Any], shard: str) -> Json:
        """Return a query for the documents to read: not filled yet, or changed since."""
        filled = {"exists": {"field": f"{self._state}.fingerprint"}}
        wanted: list[Json] = [{"bool": {"must_not": [filled]}}]
        since = self._attachment.since_field
        if self.rechecks or not before or (since and "since" not in before):
            wanted = [{"match_all": {}}]
        elif since:
            span = {"gte": before["since"], "format": "epoch_millis"}
            wanted.append({"range": {since: span}})
        else:
            wanted.append({"range": {"_seq_no": {"gt": before["shards"].get(shard, -1)}}})
        if self._retries:
            wanted.append({"exists": {"field": f"{self._state}.rejected"}})
        # These say of each hit whether its vectors are there.
        named = [
            {"exists": {"field": field, "_name": field}} for field in self._attachment.own_fields
        ]
        return {"bool": {"filter": [{"bool": {"should": wanted}}], "should": named}}

    def _entry(self, hit: Mapping[str, Any]) -> ListedItem | UnlistedItem | None:
        source, routing = hit.get("_source", {}), hit.get("_routing")
        name = hit["_id"] if routing is None else f"{hit['_id']} (routing {routing})"
        where = f"{self._target.address}/{hit['_id']}"
        state = source.get(self._state) or {}
        before = state.get("fingerprint") or ""
        pointed = self.pointed(source)
        is_same = before.partition(":")[0] == pointed.hash
        is_retried = self._retries if "rejected" in state else self.rechecks
        if is_same and not is_retried and self._is_whole(hit, state):
            self.unchanged += 1
            return None
        known = before if is_same and self._is_whole(hit, state) else ""
        self.pending[name] = _Pending(hit["_id"], routing, pointed.hash, known)
        try:
            if pointed.fault:
                raise InputError(name, pointed.fault)
            document = Document(name, text=pointed.text)
            image = self._images.open(pointed.image, name) if pointed.image else None
        except InputError as error:
            return UnlistedItem(Reject(name, error.rule, where), name)
        if callable(image):
            return ListedItem(document, None, where, image)
        return ListedItem(document, image, where)

    def _is_whole(self, hit: Mapping[str, Any], state: Mapping[str, Any]) -> bool:
        """Tell whether a filled document still has its vectors."""
        if "rejected" in state:
            return True
        there = hit.get("matched_queries", ())
        has_dense = self._attachment.dense_field in (None, *there)
        return has_dense and (not state.get("strongest") or self._attachment.lexical_field in there)


class _NotTextError(Exception):
    """A value that should be a string is not."""


class _Sink:
    """Store vectors in the documents that they were made of."""

    def __init__(
        self,
        target: UserIndex,
        attachment: Attachment,
        encoder: Encoder,
        documents: _Documents,
        report: Report,
    ) -> None:
        self.has_stored = False
        self._target = target
        self._attachment = attachment
        self._terms = encoder.vocabulary.terms
        self._documents = documents
        self._report = report
        self._marks: list[Change] = []

    def known(self, ids: Sequence[str]) -> dict[str, str]:
        """Return fingerprints as an ingest knows them, of documents that are only rechecked."""
        pending = self._documents.pending
        known = {
            name: content_of(f"{_KEY}:{pending[name].before.partition(':')[2]}:") for name in ids
        }
        return {name: f"{_KEY}:{content}:" for name, content in known.items() if content}

    def keep(self, document: Document, known: str) -> None:
        """Leave a document as it is."""
        self._documents.pending.pop(document.id)
        self._report.skipped += 1

    def reuse(self, document: Document, twin: str) -> None:
        """Leave a document as it is: its image has the same bytes as before."""
        self.keep(document, twin)

    def store(self, documents: Sequence[Document], encoding: Encoding) -> None:
        """Fill documents; InputError for a row that the server cannot take."""
        product = self._target.address.product
        pending = self._documents.pending
        own_ids = [Document(pending[each.id].id) for each in documents]
        check_rows(own_ids, encoding, product)
        changes = []
        rows = row_values(encoding, self._terms, product)
        for document, row in zip(documents, rows, strict=True):
            pointed = pending[document.id].hash
            state: Json = {
                "fingerprint": f"{pointed}:{content_of(document.fingerprint)}",
                "strongest": row.strongest,
            }
            if row.patches is not None:
                state["patches"] = row.patches
            fields = {self._attachment.lexical_field: row.vectors["lexical"]}
            if self._attachment.dense_field is not None:
                fields[self._attachment.dense_field] = row.vectors["dense"]
            fields[self._attachment.state_field] = json.dumps(state, ensure_ascii=False)
            changes.append(self._change(document.id, fields))
        wordless = (encoding.lexical.indptr[1:] == encoding.lexical.indptr[:-1]).tolist()
        outcomes = self._target.change(changes)
        for document, outcome, is_wordless in zip(documents, outcomes, wordless, strict=True):
            own = pending.pop(document.id)
            self._report.added += outcome.is_stored
            self._report.empty += outcome.is_stored and is_wordless
            self.has_stored |= outcome.is_stored
            if outcome.refused:
                where = f"{self._target.address}/{own.id}"
                self._report.rejected.append(Reject(document.id, outcome.refused, where))

    def mark(self, name: str, rule: str) -> None:
        """Say in a document why it was rejected."""
        if name not in self._documents.pending:
            return
        hash_ = self._documents.pending[name].hash
        state = {"fingerprint": f"{hash_}:", "rejected": rule[:LONGEST_RULE]}
        fields = {self._attachment.state_field: json.dumps(state, ensure_ascii=False)}
        self._marks.append(self._change(name, fields))
        del self._documents.pending[name]
        if len(self._marks) == PIECE:
            self.finish()

    def finish(self) -> None:
        """Mark what was rejected."""
        marks, self._marks = self._marks, []
        outcomes = self._target.change(marks)
        self.has_stored |= any(outcome.is_stored for outcome in outcomes)

    def _change(self, name: str, fields: Mapping[str, str]) -> Change:
        pending = self._documents.pending[name]

        def members(source: Mapping[str, Any]) -> Mapping[str, str] | None:
            """Give the fields, unless another client has changed what they were made of."""
            state = source.get(self._attachment.state_field)
            is_ours = isinstance(state, Mapping) and "fingerprint" in state
            taken = next((own for own in self._attachment.own_fields if own in source), None)
            if taken is not None and not is_ours:
                rule = f"has {taken!r} already, which lexvla attach did not put there"
                raise InputError(name, rule)
            return fields if self._documents.pointed(source).hash == pending.hash else None

        return Change(pending.id, pending.routing, members)


class _Rejects(RejectLog):
    """Keep rejects in a report, and mark their documents."""

    def __init__(self, sink: _Sink, report: Report) -> None:
        super().__init__(None, report)
        self._sink = sink

    def add(self, reject: Reject) -> None:
        """Record a reject."""
        super().add(reject)
        self._sink.mark(reject.item, reject.rule)


def _strings(source: Any, path: str) -> Iterator[str]:
    """Yield the strings at a dotted path that are not blank, of a list all; numbers as text."""
    for value in values_at(source, path):
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            kind = type(value).__name__
            raise _NotTextError(f"{path} must be a string or a list of strings, not {kind}")
        if text := str(value).strip():
            yield text
