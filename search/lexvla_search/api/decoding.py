"""Limit how many pixels are decoded at a time, over all requests."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from lexvla.images import image_size
from lexvla_search.api.batcher import Overdue

__all__ = ["DecodingRoom", "count_pixels"]


class DecodingRoom:
    """Hold room for the pixels of images, granted in the order of asking; for one event loop."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.held = 0
        self._line: deque[tuple[int, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def hold(self, pixels: int, deadline: float | None = None) -> AsyncIterator[None]:
        """Wait for room, and hold it; `Overdue` if none came before a time of `time.monotonic`.

        Nothing may be held while asking, or two could wait for each other.
        """
        left = None if deadline is None else deadline - time.monotonic()
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        place = (min(pixels, self.most), turn)
        self._line.append(place)
        self._admit()
        try:
            try:
                async with asyncio.timeout(left):
                    await turn
            except TimeoutError as error:
                raise Overdue from error
            yield
        finally:
            if turn.done() and not turn.cancelled():
                self.held -= place[0]
            self._line = deque(other for other in self._line if other is not place)
            self._admit()

    def _admit(self) -> None:
        while self._line and self.held + self._line[0][0] <= self.most:
            pixels, turn = self._line.popleft()
            if not turn.cancelled():
                self.held += pixels
                turn.set_result(None)


def count_pixels(image: bytes | Path, name: str, most: int) -> int:
    """Return the pixels that a file's header states; `InputError` if they are more than `most`."""
    width, height = image_size(image, name, most)
    return width * height
