"""Change our own fields of a user's documents, each only if nobody else changed it meanwhile."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote, urlencode

from lexvla.errors import EngineUnavailableError, InputError, LexVLAError
from lexvla_indexer.elastic.attachment import Attachment, describe, excludes_vectors
from lexvla_indexer.elastic.connection import (
    Address,
    elastic_errors,
    found_documents,
    whole,
)
from lexvla_indexer.elastic.product import Json
from lexvla_indexer.elastic.refusals import PassingError
from lexvla_indexer.elastic.source_text import SOURCE_TEXT, keep_source_text, spliced
from lexvla_indexer.elastic.writer import BULK_BYTES, PAUSES, patiently, reason_of

if TYPE_CHECKING:
    from elasticsearch import Elasticsearch

__all__ = ["Change", "Outcome", "UserIndex"]

PIECE = 32  # documents that are read to be changed: some hold their images
PAGE, MOST_IN_PAGE = 64, 1024  # documents that are listed: of the first page, and the most
PAGE_CHARACTERS = 4_000_000  # a page of more is followed by a smaller one
CONFLICT_PAUSES = (0.0, 0.05, 0.1, 0.2, 0.4)  # seconds until a changed document is read again

_CONFLICT, _BUSY = 409, (429, 503)  # HTTP


class Change(NamedTuple):
    """What to do with a document.

    Attributes:
        id: Its ``_id``.
        routing: Its ``_routing``, if it has one.
        members: Gets its ``_source`` and returns our fields as JSON, in place of those that are
            there; ``None`` to leave the document as it is. May raise InputError.
    """

    id: str
    routing: str | None
    members: Callable[[Mapping[str, Any]], Mapping[str, str] | None]


class Outcome(NamedTuple):
    """What became of a change.

    Attributes:
        is_stored: Whether the document has it now.
        refused: Why it cannot have it; empty if it can.
    """

    is_stored: bool
    refused: str = ""


class Extent(NamedTuple):
    """Up to where an index is filled.

    Attributes:
        uuid: Tells it from another of the same name.
        last: The highest sequence number of each shard; some below it may not be seen yet.
        whole: That up to which everything can be seen, on all copies of the shard.
    """

    uuid: str
    last: Mapping[str, int]
    whole: Mapping[str, int]


class UserIndex:
    """One index of a user's own.

    ``client`` is changed: it gives the text of ``_source`` from then on.

    Attributes:
        address: Where it was found: it may be an alias.
        name: Its own name.
    """

    def __init__(self, client: Elasticsearch, address: Address, attachment: Attachment) -> None:
        keep_source_text(client)
        self.name = describe(client, address).name
        self._client = client
        self.address = address
        self._own = attachment.own_fields
        self._vectors = "?_source_exclude_vectors=false"
        if not excludes_vectors(client, address, self.name):
            self._vectors = ""

    def extent(self) -> Extent:
        """Show what was stored, and return up to where searches can see it."""

        def ask() -> Extent:
            with elastic_errors(self.address):
                answer = self._client.indices.stats(index=self.name, level="shards", metric="docs")
                found = answer["indices"][self.name]
                primary = {
                    shard: each["seq_no"]
                    for shard, copies in found["shards"].items()
                    for each in copies
                    if each["routing"]["primary"]
                }
                # After that: what was stored before can be searched now.
                whole(self.address, self._client.indices.refresh(index=self.name).body)
                return Extent(
                    found["uuid"],
                    {shard: each["max_seq_no"] for shard, each in primary.items()},
                    {shard: each["global_checkpoint"] for shard, each in primary.items()},
                )

        return patiently(ask)

    def count(self, shard: str, query: Json) -> int:
        """Count the documents of one shard that match."""

        def ask() -> int:
            with elastic_errors(self.address):
                answer = self._client.count(
                    index=self.address.name, query=query, preference=f"_shards:{shard}"
                )
                return int(whole(self.address, answer.body)["count"])

        return patiently(ask)

    def newest(self, field: str) -> int | None:
        """Return the greatest value of a date field, in milliseconds since 1970."""

        def ask() -> int | None:
            with elastic_errors(self.address):
                answer = self._client.search(
                    index=self.address.name,
                    size=0,
                    aggregations={"newest": {"max": {"field": field}}},
                    allow_partial_search_results=False,
                )
            value = answer["aggregations"]["newest"]["value"]
            return None if value is None else int(value)

        return patiently(ask)

    def listed(
        self, shard: str, top: int, query: Json, includes: Sequence[str]
    ) -> Iterator[Mapping[str, Any]]:
        """Yield the hits of one shard up to a sequence number, in the order of these.

        A document that is changed meanwhile gets a higher number, and is not yielded later.
        """
        last, size = -1, PAGE
        while True:
            hits, length = patiently(partial(self._page, shard, last, top, query, includes, size))
            yield from hits
            if len(hits) < size:
                return
            last = hits[-1]["_seq_no"]
            size = max(size // 2, 1) if length > PAGE_CHARACTERS else min(size * 2, MOST_IN_PAGE)

    def _page(
        self, shard: str, last: int, top: int, query: Json, includes: Sequence[str], size: int
    ) -> tuple[list[Mapping[str, Any]], int]:
        span = {"range": {"_seq_no": {"gt": last, "lte": top}}}
        with elastic_errors(self.address):
            answer = self._client.search(
                index=self.address.name,
                query={"bool": {"filter": [span], "must": [query]}},
                sort=[{"_seq_no": "asc"}],
                size=size,
                seq_no_primary_term=True,
                source={"includes": list(includes)} if includes else False,
                preference=f"_shards:{shard}",
                track_total_hits=False,
                allow_partial_search_results=False,
            )
        hits = answer["hits"]["hits"]
        return hits, sum(len(str(hit.get("_source", ""))) for hit in hits)

    def change(self, changes: Sequence[Change]) -> list[Outcome]:
        """Change documents, and return what became of each.

        One that another client changes at that moment is read again, a few times. One that is gone,
        that is left as it is, or that changes all the time, is not stored.

        EngineUnavailableError if the server was too busy for too long.
        """
        outcomes = [Outcome(False)] * len(changes)
        for start in range(0, len(changes), PIECE):
            waiting = list(range(start, min(start + PIECE, len(changes))))
            conflicts, busy = iter(CONFLICT_PAUSES), iter(PAUSES)
            while waiting:
                waiting, is_busy = self._try(changes, waiting, outcomes)
                pause = next(busy if is_busy else conflicts, None)
                if waiting and pause is None and is_busy:
                    raise EngineUnavailableError(f"{self.address}: the server is too busy")
                if pause is None:
                    break
                if waiting:
                    time.sleep(pause)
        return outcomes

    def _try(
        self, changes: Sequence[Change], rows: Sequence[int], outcomes: list[Outcome]
    ) -> tuple[list[int], bool]:
        """Change documents once; return those to try again, and whether the server was busy."""
        stored = patiently(partial(self._read, [changes[row] for row in rows]))
        actions: dict[int, tuple[Json, str]] = {}
        for row, told in zip(rows, stored, strict=True):
            if not told["found"]:
                continue
            try:
                made = changes[row].members(told["_source"])
            except InputError as error:
                outcomes[row] = Outcome(False, error.rule)
                continue
            if made is None:
                continue
            guard = {"if_seq_no": told["_seq_no"], "if_primary_term": told["_primary_term"]}
            action: Json = {"_id": told["_id"], "pipeline": "_none", **guard}
            if "_routing" in told:
                action["routing"] = told["_routing"]
            text = spliced(told[SOURCE_TEXT], self._own, made)
            if text == told[SOURCE_TEXT]:
                outcomes[row] = Outcome(True)
            else:
                actions[row] = action, text
        sent = self._send(actions)
        for row, (status, why) in sent.items():
            if status not in (_CONFLICT, *_BUSY):
                refused = "" if status < 300 else f"the server refuses it: {why}"
                outcomes[row] = Outcome(not refused, refused)
        again = [row for row, (status, _) in sent.items() if status in (_CONFLICT, *_BUSY)]
        return again, any(status in _BUSY for status, _ in sent.values())

    def _read(self, changes: Sequence[Change]) -> list[Mapping[str, Any]]:
        docs = [
            {"_id": each.id} if each.routing is None else {"_id": each.id, "routing": each.routing}
            for each in changes
        ]
        headers = {"accept": "application/json", "content-type": "application/json"}
        path = f"/{quote(self.name, safe='')}/_mget{self._vectors}"
        with elastic_errors(self.address):
            answer = self._client.perform_request(
                "POST", path, headers=headers, body={"docs": docs}
            )
        return found_documents(self.address, answer.body)

    def _send(self, actions: Mapping[int, tuple[Json, str]]) -> dict[int, tuple[int, str]]:
        """Store documents; return the HTTP status of each, and what the server says.

        Nothing is sent twice: what was on its way when the connection broke is read again.
        """
        statuses: dict[int, tuple[int, str]] = {}
        piece: list[int] = []
        size = 0
        for row, (_, text) in actions.items():
            if "\n" in text:
                # In a bulk request a line ends the document; elsewhere it stays as it is.
                statuses[row] = self._send_one(*actions[row])
                continue
            if piece and size + len(text) > BULK_BYTES:
                statuses |= self._send_piece(piece, actions)
                piece, size = [], 0
            piece.append(row)
            size += len(text)
        return statuses | self._send_piece(piece, actions) if piece else statuses

    def _send_piece(
        self, rows: Sequence[int], actions: Mapping[int, tuple[Json, str]]
    ) -> dict[int, tuple[int, str]]:
        lines: list[Any] = []
        for row in rows:
            action, text = actions[row]
            lines += [json.dumps({"index": action}), text]
        try:
            with elastic_errors(self.address):
                answer = self._client.bulk(index=self.name, operations=lines)
        except PassingError:
            return dict.fromkeys(rows, (_BUSY[0], ""))
        told = [each["index"] for each in answer["items"]]
        return {
            row: (each["status"], reason_of(each.get("error")))
            for row, each in zip(rows, told, strict=True)
        }

    def _send_one(self, action: Json, text: str) -> tuple[int, str]:
        import elasticsearch

        options = dict(action)
        path = f"/{quote(self.name, safe='')}/_doc/{quote(options.pop('_id'), safe='')}"
        headers = {"accept": "application/json", "content-type": "application/json"}
        try:
            with elastic_errors(self.address):
                self._client.perform_request(
                    "PUT", f"{path}?{urlencode(options)}", headers=headers, body=text
                )
        except PassingError:
            return _BUSY[0], ""
        except LexVLAError as error:
            cause = error.__cause__
            if isinstance(cause, elasticsearch.ApiError) and cause.status_code in (400, _CONFLICT):
                return cause.status_code, str(error)
            raise
        return 200, ""
