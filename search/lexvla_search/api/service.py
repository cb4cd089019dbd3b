"""State shared by all requests in a process: the index, the model, threads and limits."""

from __future__ import annotations

import asyncio
import bisect
import logging
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from starlette.requests import ClientDisconnect, Request

from lexvla.encoder import Encoder
from lexvla.encoding import Encoding
from lexvla.errors import (
    IndexCorruptError,
    IndexVersionError,
    LexVLAError,
    UnknownDocumentError,
    UnsupportedError,
)
from lexvla_indexer import Document, Index, open_index
from lexvla_search import schema
from lexvla_search.api.admission import Admission
from lexvla_search.api.batcher import Batcher, Overdue, before
from lexvla_search.api.bodies import Intake
from lexvla_search.api.decoding import DecodingRoom, count_pixels
from lexvla_search.api.fetching import Fetcher
from lexvla_search.api.keys import Keys
from lexvla_search.api.metrics import Metrics
from lexvla_search.api.pictures import Pictures
from lexvla_search.api.problems import Problem
from lexvla_search.api.settings import Settings
from lexvla_search.api.thumbnails import Thumbnail, Thumbnails
from lexvla_search.api.writing import IndexWriter
from lexvla_search.fitting import load_fusion
from lexvla_search.searcher import Searcher

__all__ = ["Service"]

logger = logging.getLogger(__name__)

FUSION_SECONDS = 2.0  # between checks for a newly fitted fusion

Made = TypeVar("Made")


class Service:
    """Hold one open index and one model for many requests.

    Without a model, search is by plain words only.
    """

    def __init__(self, settings: Settings, model: Encoder | None, metrics: Metrics) -> None:
        self.settings = settings
        self.limits = limits = settings.limits
        self.metrics = metrics
        self.keys = None if settings.keys is None else Keys(settings.keys)
        self.index: Index = open_index(settings.index)
        self.index.warm_up()
        self.model = None if model is None else Batcher(model, self._observe)
        self.searcher = Searcher(self.model, self.index)
        places = [self.index.directory, *settings.images, settings.keys]
        absolute = [place.absolute() for place in places if place is not None]
        self.paths = tuple(dict.fromkeys([*absolute, *(path.resolve() for path in absolute)]))
        self._looked = time.monotonic()
        self.writer = IndexWriter(settings.index, self.model, limits.writer_seconds)
        self.admission = Admission(limits.concurrency, "requests")
        self.upserts = Admission(limits.upserts, "upserts")
        self.intake = Intake(limits)
        self.decoding = DecodingRoom(max(limits.decoded_pixels, limits.pixels))
        self.thumbnails = self._open_thumbnails()
        self.pictures = Pictures(self.index, settings.images, self.thumbnails, self._signing())
        self.fetcher = Fetcher(settings.image_hosts, limits.body_bytes)
        self._threads = ThreadPoolExecutor(limits.threads, "search")
        self._writing = ThreadPoolExecutor(1, "write")

    def _open_thumbnails(self) -> Thumbnails | None:
        if self.settings.thumbnails is None:
            return None
        folder = self.settings.thumbnail_folder or self.index.directory
        if folder is None:
            raise LexVLAError("an index on a server has no folder for thumbnails; name another")
        return Thumbnails(folder, self.settings.thumbnails)

    def _signing(self) -> Callable[[], bytes] | None:
        if self.keys is not None:
            return self.keys.signing
        return (lambda: self.settings.signing) if self.settings.origins else None

    def _observe(self, call: str, items: int, waiting: int) -> None:
        self.metrics.batches.labels(call).observe(items)
        self.metrics.model_queue.set(waiting)

    async def run(self, work: Callable[[], Made]) -> Made:
        """Run work in a thread; raise a `Problem` if the server is too busy."""
        with self.admission.place():
            return await self._in_time(work, time.monotonic() + self.limits.wait_seconds)

    async def run_on(
        self,
        request: Request,
        images: Mapping[str, bytes | Path],
        work: Callable[[], Made],
        most: int | None = None,
    ) -> Made:
        """Run work on images, given by names for errors, as `run` does, once there is room.

        Each may have `most` pixels, by default `Limits.pixels`. Room for all of them is held, at
        most for `Limits.decoded_pixels`. Of a client that left meanwhile nothing is decoded.
        """
        if not images:
            return await self.run(work)
        deadline = time.monotonic() + self.limits.wait_seconds
        most = most or self.limits.pixels

        def count() -> int:
            return sum(count_pixels(image, name, most) for name, image in images.items())

        with self.admission.place():
            pixels = await self._in_time(count, deadline)
            return await self._in_room(request, pixels, work, deadline)

    async def run_in_turn(
        self, request: Request, pixels: Sequence[int], work: Callable[[], Made]
    ) -> Made:
        """Run work that opens images of so many pixels, one after the other, as `run_on` does."""
        if not pixels:
            return await self.run(work)
        deadline = time.monotonic() + self.limits.wait_seconds
        with self.admission.place():
            return await self._in_room(request, max(pixels), work, deadline)

    async def _in_room(
        self, request: Request, pixels: int, work: Callable[[], Made], deadline: float
    ) -> Made:
        try:
            async with self.decoding.hold(pixels, deadline):
                if await request.is_disconnected():
                    raise ClientDisconnect
                return await self._in_time(work, deadline)
        except Overdue as error:
            raise self._late() from error

    async def _in_time(self, work: Callable[[], Made], deadline: float) -> Made:
        def in_time() -> Made:
            with before(deadline):
                return work()

        running = self._submit(in_time)
        waiting = asyncio.wrap_future(running)
        await asyncio.wait([waiting], timeout=max(0.0, deadline - time.monotonic()))
        if running.cancel():  # not begun, and now never will be
            raise self._late()
        try:
            return await waiting
        except Overdue as error:
            raise self._late() from error

    async def work(self, work: Callable[[], Made]) -> Made:
        """Run work in a thread for a request that was already admitted."""
        return await asyncio.wrap_future(self._submit(work))

    def _submit(self, work: Callable[[], Made]) -> Future[Made]:
        asked = time.perf_counter()

        def timed() -> Made:
            self.metrics.stages.labels("wait").observe(time.perf_counter() - asked)
            return work()

        return self._threads.submit(timed)

    def _late(self) -> Problem:
        seconds = f"{self.limits.wait_seconds:g} seconds"
        return Problem("busy", f"its turn did not come within {seconds}; try again")

    async def write(self, work: Callable[[], Made]) -> Made:
        """Run work in the writer thread; raise a `Problem` if the index cannot be written."""

        def timed() -> Made:
            started = time.perf_counter()
            try:
                return work()
            finally:
                self.metrics.stages.labels("commit").observe(time.perf_counter() - started)

        # Shielded: a commit in progress is finished even if the request ends.
        committing = asyncio.get_running_loop().run_in_executor(self._writing, timed)
        try:
            return await asyncio.shield(committing)
        except OSError as error:  # the disk is full or read-only
            raise Problem("not-stored", error.strerror or str(error)) from error

    async def keep_thumbnails(self, names: Sequence[str], new: Sequence[Thumbnail] = ()) -> None:
        """Keep the thumbnails of these documents, and no others of theirs."""
        thumbnails = self.thumbnails
        if thumbnails is None:
            return
        try:
            await self.write(lambda: thumbnails.replace(names, new))
        except sqlite3.Error as error:
            # What was asked for is done: the documents themselves are committed.
            logger.warning("thumbnails are not kept: %s", error)

    @property
    def shows_pictures(self) -> bool:
        """Whether any document may have a picture."""
        return bool(self.settings.images) or self.thumbnails is not None

    def encoder(self) -> Batcher:
        """Return the model; `UnsupportedError` if there is none."""
        if self.model is None:
            raise UnsupportedError("this server runs without a model: it can only search by words")
        return self.model

    def fetch(self, name: str) -> tuple[Document, Encoding]:
        """Return a document and its vectors as last committed, or raise a `Problem` if unknown."""
        self.index.count()  # moves this thread to the newest commit
        try:
            (document,), encoding = self.index.fetch([name])
        except UnknownDocumentError as error:
            raise Problem("not-found", f"the index has no document {name!r}") from error
        return document, encoding

    def words(self, encoding: Encoding, top_k: int) -> list[schema.Word]:
        """Return the strongest words of a single row, with their patches."""
        weights, columns = encoding.lexical.data, encoding.lexical.indices
        vocabulary = self.index.vocabulary
        best = (-weights).argsort(kind="stable")[:top_k].tolist()
        patches = None if encoding.patches is None else encoding.patches.tolist()
        return [
            {
                "word": vocabulary.word(int(columns[i])),
                "weight": float(weights[i]),
                "patch": None if patches is None or patches[i] < 0 else patches[i],
            }
            for i in best
        ]

    def complete(self, prefix: str, most: int) -> list[str]:
        """Return words of the vocabulary that start with a prefix, the shortest first."""
        forms = self._words
        key = prefix.casefold()
        start = bisect.bisect_left(forms, (key, ""))
        end = bisect.bisect_left(forms, (key + "\U0010ffff", ""), start)
        return sorted((word for _, word in forms[start:end]), key=lambda word: (len(word), word))[
            :most
        ]

    @cached_property
    def _words(self) -> list[tuple[str, str]]:
        vocabulary = self.index.vocabulary
        words = {vocabulary.word(i) for i in range(len(vocabulary))}
        return sorted((word.casefold(), word) for word in words)

    @cached_property
    def _legs(self) -> dict[str, int]:
        return dict(self.index.info().get("legs") or {})

    def legs(self) -> dict[str, int]:
        """Return the legs of vectors and their widths; empty for an index never written to."""
        legs = self._legs
        if not legs:
            del self._legs  # to be read again
        return legs

    def fusion(self) -> str:
        """Describe the fusion used for queries that do not name one."""
        fusion, legs = self.searcher.fusion, self.index.legs()
        return legs[0] if fusion is self.searcher.default and len(legs) == 1 else str(fusion)

    def look_for_fusion(self) -> None:
        """Pick up a fusion that was fitted for the index after it was opened."""
        now = time.monotonic()
        if now < self._looked + FUSION_SECONDS:
            return
        self._looked = now
        try:
            self.searcher.fusion = load_fusion(self.index) or self.searcher.default
        except (IndexCorruptError, IndexVersionError) as error:
            logger.warning("the fusion stays as it was: %s", error)

    def close(self) -> None:
        """Finish pending work and close the index."""
        self._threads.shutdown()
        self._writing.shutdown()
        if self.model is not None:
            self.model.close()
        if self.thumbnails is not None:
            self.thumbnails.close()
        self.index.close()
