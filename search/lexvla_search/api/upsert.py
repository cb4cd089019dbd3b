"""Documents from a stream of lines into the index, batch by batch."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

from PIL import Image
from pydantic import ValidationError
from starlette.requests import Request

from lexvla.encoder import Encoder
from lexvla.encoding import Encoding
from lexvla.errors import InputError
from lexvla.images import open_image
from lexvla_indexer import Document
from lexvla_indexer.isolating import isolate
from lexvla_search import schema
from lexvla_search.api.bodies import decode
from lexvla_search.api.models import DocumentLine
from lexvla_search.api.problems import Problem, invalid
from lexvla_search.api.service import Service

__all__ = ["Upsert"]

_BATCH_LINES = 64  # of one commit
_BATCH_PIXELS = 50_000_000
_MOST_ERRORS = 1000  # that one answer lists
_LONGEST_ID = 512  # characters of an id that it names


@dataclass
class _Item:
    line: int
    document: Document
    image: Image.Image | None


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
        batch: dict[str, _Item] = {}
        lines = pixels = last = 0
        async for number, line in self.service.intake.lines(request):
            item = await self._read(number, line)
            last = number
            if item is None:
                continue
            lines += 1
            batch[item.document.id] = item  # the last of several lines with one id counts
            pixels += 0 if item.image is None else item.image.width * item.image.height
            if lines >= _BATCH_LINES or pixels >= _BATCH_PIXELS:
                await self._store(list(batch.values()), lines)
                batch, lines, pixels = {}, 0, 0
                yield last
        if batch:
            await self._store(list(batch.values()), lines)
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
            document = Document(parsed.id, parsed.uri, parsed.text, parsed.metadata)
            data = None
            if parsed.image is not None:
                data = decode(parsed.image, "image")
            elif parsed.image_url is not None:
                data = await self.service.fetcher.fetch(parsed.image_url)
            image = None if data is None else await self.service.work(lambda: self._open(data))
        except ValidationError as error:
            self._reject(number, _name_in(line), invalid(error, "line").detail)
        except InputError as error:
            self._reject(number, name, error.rule)
        except Problem as problem:
            self._reject(number, name, problem.detail)
        else:
            return _Item(number, document, image)
        return None

    def _open(self, data: bytes) -> Image.Image:
        return open_image(data, "image", self.service.limits.pixels)

    async def _store(self, items: list[_Item], lines: int) -> None:
        parts = await self.service.work(lambda: self._encode(items))
        stored = {document.id for documents, _ in parts for document in documents}
        if stored:
            # Shielded: a commit in progress is finished even if the request ends.
            try:
                await asyncio.shield(self.service.write(lambda: self.service.writer.put(parts)))
            except OSError as error:  # the disk is full or read-only
                raise Problem("not-stored", error.strerror or str(error)) from error
        count = lines - (len(items) - len(stored))
        self.indexed += count
        self.service.metrics.indexed.inc(count)

    def _encode(self, items: list[_Item]) -> list[tuple[list[Document], Encoding]]:
        """Encode images in groups, and texts; reject what cannot be encoded."""
        model = self.service.encoder()
        parts: list[tuple[list[Document], Encoding]] = []
        pictures = [item for item in items if item.image is not None]
        texts = [item for item in items if item.image is None]
        # In small groups, so that queries get their turn at the model.
        groups = [pictures[i : i + 8] for i in range(0, len(pictures), 8)] + [texts]
        for batch in groups:
            for group, made in isolate(lambda some: _encoded(model, some), batch):
                if isinstance(made, InputError):
                    for item in group:
                        self._reject(item.line, item.document.id, made.rule)
                else:
                    parts.append(([item.document for item in group], made))
        return parts


def _name_in(line: bytes) -> str | None:
    try:
        name = json.loads(line)["id"]
        name.encode()  # half a character (a lone surrogate) cannot be sent
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None
    return str(name)


def _encoded(model: Encoder, group: Sequence[_Item]) -> Encoding:
    images = [item.image for item in group if item.image is not None]
    if images:
        return model.encode_image(images)
    return model.encode_text([item.document.text for item in group])
