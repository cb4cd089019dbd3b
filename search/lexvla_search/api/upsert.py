"""Documents from a stream of lines into the index, batch by batch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError
from starlette.requests import Request

from lexvla.encoding import Encoding
from lexvla.errors import InputError
from lexvla.images import open_image
from lexvla_indexer import Document
from lexvla_indexer.isolating import isolate
from lexvla_search import schema
from lexvla_search.api.bodies import decode
from lexvla_search.api.decoding import count_pixels
from lexvla_search.api.models import DocumentLine
from lexvla_search.api.problems import Problem, invalid
from lexvla_search.api.service import Service
from lexvla_search.api.thumbnails import Thumbnail, thumbnail_of

__all__ = ["Upsert"]

_BATCH_LINES, _BATCH_BYTES, _BATCH_PIXELS = 64, 16 << 20, 50_000_000  # of one commit
_GROUP_IMAGES, _GROUP_PIXELS = 8, 25_000_000  # open at a time, so that queries get their turn
_MOST_ERRORS = 1000  # that one answer lists
_LONGEST_ID = 512  # characters of an id that it names


@dataclass
class _Item:
    line: int
    document: Document
    image: bytes | None
    pixels: int


@dataclass
class _Encoded:
    items: list[_Item]
    encoding: Encoding
    thumbnails: list[Thumbnail]

    def only(self, chosen: Mapping[str, _Item]) -> tuple[list[Document], Encoding]:
        """Return the documents of the items chosen by id, with their vectors."""
        rows = [i for i, item in enumerate(self.items) if chosen[item.document.id] is item]
        return [self.items[i].document for i in rows], self.encoding[rows]


@dataclass
class Upsert:
    """Read documents and commit them in batches.

    `errors` says why lines were rejected, for the first thousand.
    """

    service: Service
    indexed: int = 0
    rejected: int = 0
    errors: list[schema.LineError] = field(default_factory=list)

    async def run(self, request: Request) -> AsyncIterator[int]:
        """Read the lines of a body. Yield the number of the last line after each commit.

        A `Problem` ends the upsert; earlier commits stay.
        """
        batch: list[_Item] = []
        size = pixels = last = 0
        async for number, line in self.service.intake.lines(request):
            item = await self._read(number, line)
            last = number
            if item is None:
                continue
            batch.append(item)
            pixels += item.pixels
            size += len(item.image or b"")
            if len(batch) >= _BATCH_LINES or size >= _BATCH_BYTES or pixels >= _BATCH_PIXELS:
                await self._store(batch)
                batch, size, pixels = [], 0, 0
                yield last
        if batch:
            await self._store(batch)
        yield last

    def report(self) -> schema.UpsertAnswer:
        """Return the outcome of the lines so far."""
        return {"indexed": self.indexed, "rejected": self.rejected, "errors": self.errors}

    def _reject(self, line: int, name: str | None, detail: str) -> None:
        self.rejected += 1
        if len(self.errors) < _MOST_ERRORS:
            short = None if name is None else name[:_LONGEST_ID]
            self.errors.append({"line": line, "id": short, "detail": detail})

    async def _read(self, number: int, line: bytes) -> _Item | None:
        name: str | None = None
        try:
            parsed = DocumentLine.model_validate_json(line)
            name = parsed.id
            data = None
            if parsed.image is not None:
                data = decode(parsed.image, "image")
            elif parsed.image_url is not None:
                data = await self.service.fetcher.fetch(parsed.image_url)
            fingerprint, pixels = "", 0
            if data is not None:
                fingerprint = f"upload:{hashlib.sha256(data).hexdigest()}:"  # as of an ingest
                pixels = await self.service.work(lambda: self._count(data))
            document = Document(name, parsed.uri, parsed.text, parsed.metadata, fingerprint)
        except ValidationError as error:
            self._reject(number, _name_in(line), invalid(error, "line").detail)
        except InputError as error:
            self._reject(number, name, error.rule)
        except Problem as problem:
            self._reject(number, name, problem.detail)
        else:
            return _Item(number, document, data, pixels)
        return None

    def _count(self, data: bytes) -> int:
        return count_pixels(data, "image", self.service.limits.pixels)

    async def _store(self, items: list[_Item]) -> None:
        service, parts = self.service, list[_Encoded]()
        for group in _groups(items):
            # Images are decoded only now: what a slow client sends may take no room meanwhile.
            async with service.decoding.hold(sum(item.pixels for item in group)):
                parts += await service.work(lambda group=group: self._encode(group))  # type: ignore[misc]
        encoded = sorted(
            (item for part in parts for item in part.items), key=lambda item: item.line
        )
        if encoded:
            # Of several lines with one id the last counts, of those that can be encoded.
            last = {item.document.id: item for item in encoded}
            put = [part.only(last) for part in parts]
            await service.write(lambda: service.writer.put([own for own in put if own[0]]))
            await service.keep_thumbnails(
                list(last),
                [
                    one
                    for part in parts
                    for one in part.thumbnails
                    if one.fingerprint == last[one.id].document.fingerprint
                ],
            )
        self.indexed += len(encoded)
        service.metrics.indexed.inc(len(encoded))

    def _encode(self, group: list[_Item]) -> list[_Encoded]:
        """Encode images, or texts; reject what cannot be encoded."""
        model, most = self.service.encoder(), self.service.limits.pixels
        opened: list[tuple[_Item, Any]] = []
        for item in group:
            try:
                image = None if item.image is None else open_image(item.image, "image", most)
                opened.append((item, item.document.text if image is None else image))
            except InputError as error:
                self._reject(item.line, item.document.id, error.rule)
        encode = model.encode_text if group[0].image is None else model.encode_image
        parts: list[_Encoded] = []
        for some, made in isolate(lambda pairs: encode([given for _, given in pairs]), opened):
            if isinstance(made, InputError):
                for item, _ in some:
                    self._reject(item.line, item.document.id, made.rule)
            else:
                items = [item for item, _ in some]
                parts.append(_Encoded(items, made, self._thumbnails(some)))
        return parts

    def _thumbnails(self, opened: Sequence[tuple[_Item, Any]]) -> list[Thumbnail]:
        if self.service.thumbnails is None:
            return []
        return [
            Thumbnail(item.document.id, item.document.fingerprint, thumbnail_of(image))
            for item, image in opened
            if item.image is not None
        ]


def _groups(items: list[_Item]) -> Iterator[list[_Item]]:
    """Yield images in small groups, and all texts."""
    group: list[_Item] = []
    for item in items:
        if item.image is None:
            continue
        pixels = sum(other.pixels for other in group) + item.pixels
        if group and (len(group) >= _GROUP_IMAGES or pixels > _GROUP_PIXELS):
            yield group
            group = []
        group.append(item)
    texts = [item for item in items if item.image is None]
    yield from (some for some in (group, texts) if some)


def _name_in(line: bytes) -> str | None:
    try:
        name = json.loads(line)["id"]
        name.encode()  # half a character (a lone surrogate) cannot be sent
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None
    return str(name)
