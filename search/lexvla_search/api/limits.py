"""How much is taken in at once: bodies by size and time, requests by number."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from starlette.requests import Request

from lexvla_search.api.problems import Problem
from lexvla_search.api.settings import Limits

__all__ = ["Admission", "Intake"]


class Admission:
    """Let in so many requests at a time, and turn others away at once. For one event loop.

    Args:
        most: How many.
        what: What they are, in the plural.
    """

    def __init__(self, most: int, what: str) -> None:
        self.most = most
        self.inside = 0
        self._what = what

    def check(self) -> None:
        """See whether there is a place.

        Raises:
            Problem: There is none left.
        """
        if self.inside >= self.most:
            raise Problem("busy", f"{self.most} {self._what} are being answered; try again")

    @contextmanager
    def place(self) -> Iterator[None]:
        """Hold a place.

        Raises:
            Problem: There is none left.
        """
        self.check()
        self.inside += 1
        try:
            yield
        finally:
            self.inside -= 1


class Intake:
    """Read bodies within the limits. For one event loop."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.held = 0  # bytes of bodies in memory

    @asynccontextmanager
    async def body(self, request: Request) -> AsyncIterator[bytes]:
        """Give a whole body, and account for its bytes until all is done with it.

        Raises:
            Problem: It is too large, comes too slowly, or all bodies together would take too much
                memory.
        """
        most = self._limits.body_bytes
        self._check_length(request, most)
        body = bytearray()
        try:
            try:
                async with asyncio.timeout(self._limits.body_seconds):
                    async for chunk in request.stream():
                        if len(body) + len(chunk) > most:
                            raise _too_large(most)
                        if self.held + len(chunk) > self._limits.received_bytes:
                            raise Problem("busy", "too many bytes are being received; try again")
                        body += chunk
                        self.held += len(chunk)
            except TimeoutError as error:
                raise self._too_slow() from error
            yield bytes(body)
        finally:
            self.held -= len(body)

    async def lines(self, request: Request) -> AsyncIterator[tuple[int, bytes]]:
        """Yield the lines of a body with their numbers, from 1, as they come; no blank ones.

        Raises:
            Problem: A line or all of them are too large, or nothing comes for too long.
        """
        limits = self._limits
        self._check_length(request, limits.upsert_bytes)
        stream = aiter(request.stream())
        rest, total, number = bytearray(), 0, 0
        while True:
            try:
                chunk = await asyncio.wait_for(anext(stream), limits.body_seconds)
            except StopAsyncIteration:
                break
            except TimeoutError as error:
                raise self._too_slow() from error
            total += len(chunk)
            if total > limits.upsert_bytes:
                raise _too_large(limits.upsert_bytes)
            rest += chunk
            if b"\n" in chunk:
                *whole, last = bytes(rest).split(b"\n")
                rest = bytearray(last)
                for line in whole:
                    number += 1
                    if line.strip():
                        yield number, line
            if len(rest) > limits.body_bytes:
                detail = f"line {number + 1} is larger than {limits.body_bytes:,} bytes"
                raise Problem("too-large", detail)
        if rest.strip():
            yield number + 1, bytes(rest)

    def _check_length(self, request: Request, most: int) -> None:
        length = request.headers.get("content-length", "")
        if length.isascii() and length.isdecimal() and int(length) > most:
            raise _too_large(most)

    def _too_slow(self) -> Problem:
        seconds = f"{self._limits.body_seconds:g} seconds"
        headers = {"Connection": "close"}
        return Problem("timeout", f"the body did not come within {seconds}", headers=headers)


def _too_large(most: int) -> Problem:
    return Problem("too-large", f"the body is larger than {most:,} bytes")
