"""Answers from a user's own index: what differs from `lexvla_indexer.elastic.reader`."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import partial
from itertools import groupby
from typing import Any

from lexvla.encoding import Encoding
from lexvla.errors import InputError, UnknownDocumentError
from lexvla.vocabulary import Vocabulary
from lexvla_indexer.document import Document
from lexvla_indexer.elastic.attached_document import attached_document, own_source
from lexvla_indexer.elastic.attached_filters import (
    PARSED,
    comparison_of_ids,
    native_comparison,
    values_of,
)
from lexvla_indexer.elastic.attached_store import AttachedStore
from lexvla_indexer.elastic.attached_text import AskedFields
from lexvla_indexer.elastic.connection import elastic_errors
from lexvla_indexer.elastic.mapped_fields import MappedField
from lexvla_indexer.elastic.product import Json
from lexvla_indexer.elastic.reader import FETCHED, LISTED, Hits, Reader, TextLeg
from lexvla_indexer.elastic.refusals import UnreadValueError
from lexvla_indexer.elastic.requests import RESULT_WINDOW
from lexvla_indexer.elastic.selection import combined
from lexvla_indexer.elastic.stored_vectors import STORED, rows_of
from lexvla_indexer.facets import Range
from lexvla_indexer.filters import Comparison, Filter, In
from lexvla_indexer.listing import Listed, Order, Position
from lexvla_indexer.scope import Scope

__all__ = ["AttachedReader"]

_DEEPER = 10  # times the depth, until the last hit's equals are all known


class AttachedReader(Reader):
    """Answer from a user's own index.

    The server cannot order by ``_id``. So hits of equal score are put in order here, and asked for
    until all of the last one's equals are known. Documents that are only listed come in the order
    of the fields asked for, then in that in which they were last changed (``_seq_no``).
    """

    def __init__(
        self,
        store: AttachedStore,
        vocabulary: Vocabulary,
        banned: Iterable[int] = (),
        required: Iterable[Iterable[int]] = (),
        text_fields: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__(store, vocabulary, banned, required)
        self._state = store.state
        self._store = store
        self._attachment = store.state.attachment
        self._mapped = store.state.mapped
        encoded = filter(self._mapped.has_words, self._attachment.text_fields)
        weights = text_fields or dict.fromkeys(encoded, 1.0)
        self._text = AskedFields(weights, self._mapped)
        self._weights = weights
        self._parsed: list[tuple[str, str]] = []  # fields whose values the server parses, and these

    @contextmanager
    def naming_fields(self) -> Iterator[None]:
        """Name the field in the error for a value that the server cannot read, such as a date."""
        self._parsed = []
        try:
            yield
        except UnreadValueError as error:
            for field, value in self._parsed:
                if f"[{value}]" in error.rule or f"'{value}'" in error.rule:
                    raise InputError(field, error.rule) from error
            raise

    def has_text(self) -> bool:
        """Return whether there are fields to look for words in."""
        return bool(self._weights)

    def lost(self) -> list[str]:
        """Return the ids of filled documents that lack a leg's vectors."""
        state = self._attachment.state_field
        filled = [{"exists": {"field": f"{state}.fingerprint"}}]
        there = [{"exists": {"field": field}} for field in self._state.fields.legs.values()]
        excused = [{"exists": {"field": f"{state}.rejected"}}, {"bool": {"filter": there}}]
        with closing(self._pages({"bool": {"filter": filled, "must_not": excused}})) as pages:
            return sorted(name for name, _ in pages)

    def list_documents(
        self, scope: Scope, sort: Sequence[Order], limit: int, after: Position | None
    ) -> Listed:
        """Return documents in order; see the class."""
        found = Listed([], [])
        with closing(self._in_order(scope, sort, min(limit + 2, LISTED), after)) as hits:
            for hit in hits:
                found.documents.append(self._document(hit["_id"], hit["_source"]))
                *fields, changed = hit["sort"][: len(sort) + 1]
                last = json.dumps([changed, hit["_id"]])
                found.positions.append((*map(json.dumps, fields), last))
                if len(found.documents) == limit:
                    break
        return found

    def _in_order(
        self, scope: Scope, sort: Sequence[Order], size: int, after: Position | None
    ) -> Generator[Json]:
        """Yield hits after a position; equal ones, which are of different shards, by id."""
        ordered = [self._ordered(field, "sort by") for field, _ in sort]
        by: list[Json] = [
            {field.name: {"order": "desc" if order.descending else "asc", "missing": "_last"}}
            for field, order in zip(ordered, sort, strict=True)
        ]
        body = {
            "query": self._scoped(scope),
            "size": size,
            "sort": [*by, {"_seq_no": "asc"}, {"_shard_doc": "asc"}],
            "_source": {"excludes": self._unread()},
            "track_total_hits": False,
        }
        passed = None
        if after is not None:
            *keys, passed = (json.loads(each or "null") for each in after)
            # A shard's documents are numbered from 0.
            body["search_after"] = [*keys, passed[0], -1]
        with closing(self._hits(body)) as hits:
            for _, group in groupby(hits, key=lambda hit: hit["sort"][:-1]):
                for hit in sorted(group, key=lambda hit: str(hit["_id"])):
                    if passed is None or [hit["sort"][-2], hit["_id"]] > passed:
                        yield hit
                        continue
                passed = None

    def _unread(self) -> list[str]:
        """Return the fields that a `Document` does not show."""
        attachment = self._attachment
        legs = [*self._state.fields.legs.values(), *self._mapped.vectors()]
        return sorted({*legs, self._state.fields.patches, f"{attachment.state_field}.strongest"})

    def _ordered(self, field: str, purpose: str) -> MappedField:
        if field == "id" and field not in self._mapped:
            raise InputError(field, f"the server cannot {purpose} _id")
        return self._mapped.ordered(field, purpose, self._attachment.own_fields)

    def _counted(self, field: str) -> tuple[dict[str, str], Json]:
        found = self._ordered(field, "count by")
        kind = "float" if found.type in ("float", "half_float") else found.kind
        return {kind: found.name}, {"exists": {"field": found.name}}

    def _range(self, field: str, limits: Range) -> Json:
        pairs = {">=": limits.low, "<": limits.high}
        parts = [
            self._compared(Comparison(field, sign, at))  # type: ignore[arg-type]
            for sign, at in pairs.items()
            if at is not None
        ]
        return {"bool": {"filter": parts}}

    def _check_typed(self, fields: Sequence[str], purpose: str) -> None:
        for field in fields:
            self._ordered(field, purpose)

    def _scoped(self, scope: Scope) -> Json:
        query = self._chosen(scope.filter)
        chosen = [] if query is None else [query]
        if scope.only is not None:
            chosen.append({"ids": {"values": sorted(scope.only)}})
        without = [{"ids": {"values": sorted(scope.but)}}] if scope.but else []
        return {"bool": {"filter": chosen, "must_not": without}}

    def _selected(self, filter: Filter) -> Json:  # noqa: A002 - the public word for it
        return combined(filter, self._compared)

    def _compared(self, part: Comparison | In) -> Json:
        if part.field == "id" and part.field not in self._mapped:
            return comparison_of_ids(part)
        hidden = self._attachment.own_fields
        found = self._mapped.comparable(part.field, "filter by", hidden)
        if found.type in PARSED:
            self._parsed += [(part.field, str(value)) for value in values_of(part)]
        return native_comparison(part, found)

    def _text_leg(self, text: str) -> TextLeg | None:
        if not self._weights or not text.strip():
            return None
        with elastic_errors(self._address):
            cut = self._client.termvectors(index=self.index, **self._text.cut_request(text))
        words = self._text.words(text, cut.body)
        if not words:
            return None
        there, most = self._text.leg(words, self._counts(self._text.count_queries(words)))
        return TextLeg(partial(self._text.query, there), most) if there else None

    def _many(self, queries: Sequence[Json], k: int, **options: Any) -> list[Hits]:
        found: list[Hits] = []
        answers = super()._many(queries, k + 1 if k < RESULT_WINDOW else k, **options)
        for query, first in zip(queries, answers, strict=True):
            hits, depth = first, k + 1
            while len(hits) >= depth and hits[k - 1][1] == hits[-1][1]:
                depth *= _DEEPER
                (hits,) = super()._many([query], depth, **options)
            found.append(sorted(hits, key=lambda hit: (-hit[1], hit[0]))[:k])
        return found

    def _document(self, name: str, source: Json) -> Document:
        return attached_document(name, source, self._attachment, self._mapped.vectors())

    def _sources(self, ids: Sequence[str], fields: list[str]) -> dict[str, Json]:
        wanted: Json | bool = bool(fields)
        if fields:
            legs = self._state.fields.legs.values()
            only_vectors = [*legs, self._state.fields.patches] if fields == [*STORED] else ["*"]
            wanted = {"includes": only_vectors, **self._store.whole_source}
        found: dict[str, Json] = {}
        names = list(dict.fromkeys(ids))
        for start in range(0, len(names), FETCHED):
            some = names[start : start + FETCHED]
            body = {"query": {"ids": {"values": some}}, "size": len(some), "_source": wanted}
            with elastic_errors(self._address):
                answer = self._client.search(
                    index=self.index, body=body, allow_partial_search_results=False
                )
            found |= {hit["_id"]: hit.get("_source", {}) for hit in answer["hits"]["hits"]}
        for name in names:
            if name not in found:
                raise UnknownDocumentError(name)
        return found

    def _rows(self, ids: Sequence[str], sources: Mapping[str, Json]) -> Encoding:
        rows = [own_source(name, sources[name], self._attachment) for name in ids]
        return rows_of(rows, self._vocabulary, self._state.widths, self._product)

    def _own_facts(self) -> Json:
        state = self._attachment.state_field
        filled = {"exists": {"field": f"{state}.fingerprint"}}
        rejected = {"exists": {"field": f"{state}.rejected"}}
        seen, without = self._counts([filled, rejected])
        return {
            "attached": True,
            "documents_filled": seen - without,
            "documents_rejected": without,
            "image_field": self._attachment.image_field,
            "text_fields": list(self._attachment.text_fields),
            "searched_text_fields": list(self._weights),
            "lexical_field": self._attachment.lexical_field,
            "dense_field": self._attachment.dense_field,
        }
