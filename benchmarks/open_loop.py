"""Load generation with requests in open and closed loops."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

__all__ = ["Loop", "Outcome", "request"]

_MOST_WAITING = 4000  # requests at a time: beyond, the generator itself would be what is measured


def request(path: str, body: bytes) -> bytes:
    """Return a POST of JSON as bytes."""
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


@dataclass
class Outcome:
    """Results of the requests of a run.

    Attributes:
        seconds: Duration, to the last answer.
        took: Seconds from when a request was due to the end of its answer, by status; status 0 for
            no answer.
    """

    seconds: float = 0.0
    took: dict[int, list[float]] = field(default_factory=dict)

    @property
    def counts(self) -> Counter[int]:
        """The number of answers by status."""
        return Counter({status: len(times) for status, times in self.took.items()})

    @property
    def rate(self) -> float:
        """Answers of status 200 a second."""
        return len(self.took.get(200, ())) / self.seconds if self.seconds else 0.0

    def percentile(self, percent: float, status: int = 200) -> float:
        """Return a percentile of the seconds of the answers."""
        times = sorted(self.took.get(status, ()))
        if not times:
            return float("nan")
        return times[min(len(times) - 1, int(len(times) * percent / 100))]


class Loop:
    """Send requests to a port of this machine.

    Args:
        port: The port.
        requests: Complete HTTP requests, sent in turn.
        seed: Seed of the arrival times.
    """

    def __init__(self, port: int, requests: Sequence[bytes], seed: int = 0) -> None:
        self._port, self._requests = port, requests
        self._next, self._rng = 0, random.Random(seed)  # noqa: S311 - no secret
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def closed(self, clients: int, seconds: float) -> Outcome:
        """Send requests from clients that each wait for their answer."""
        outcome, started = Outcome(), time.perf_counter()

        async def client() -> None:
            while time.perf_counter() < started + seconds:
                await self._ask(outcome, time.perf_counter())

        await asyncio.gather(*(client() for _ in range(clients)))
        return self._ended(outcome, started)

    async def open(self, rate: float, seconds: float) -> Outcome:
        """Send requests by a Poisson process of this rate, regardless of answers."""
        outcome, started = Outcome(), time.perf_counter()
        due, waiting = started, set()
        while (due := due + self._rng.expovariate(rate)) < started + seconds:
            await asyncio.sleep(max(due - time.perf_counter(), 0))
            if len(waiting) > _MOST_WAITING:
                raise RuntimeError("too many requests wait for this benchmark itself")
            task = asyncio.create_task(self._ask(outcome, due))
            waiting.add(task)
            task.add_done_callback(waiting.discard)
        await asyncio.gather(*waiting)
        return self._ended(outcome, started)

    def _ended(self, outcome: Outcome, started: float) -> Outcome:
        outcome.seconds = time.perf_counter() - started
        for _, writer in self._idle:
            writer.close()
        self._idle.clear()
        return outcome

    async def _ask(self, outcome: Outcome, due: float) -> None:
        data = self._requests[self._next % len(self._requests)]
        self._next += 1
        try:
            status = await self._talk(data)
        except (OSError, EOFError, asyncio.IncompleteReadError):
            status = 0
        outcome.took.setdefault(status, []).append(time.perf_counter() - due)

    async def _talk(self, data: bytes) -> int:
        while self._idle:
            reader, writer = self._idle.pop()
            if not reader.at_eof():
                break
            writer.close()  # it was idle for longer than the server keeps it
        else:
            reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            writer.write(data)
            head = await reader.readuntil(b"\r\n\r\n")
            lines = head.lower().split(b"\r\n")
            length = next(int(line[15:]) for line in lines if line.startswith(b"content-length:"))
            await reader.readexactly(length)
        except BaseException:
            writer.close()
            raise
        if b"connection: close" in lines:
            writer.close()
        else:
            self._idle.append((reader, writer))
        return int(head[9:12])
