"""Limit how many requests are handled at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from lexvla_search.api.problems import Problem

__all__ = ["Admission"]


class Admission:
    """Admit at most this many requests at a time and turn others away at once; for one event loop.

    `what` names the requests in messages, in the plural.
    """

    def __init__(self, most: int, what: str) -> None:
        self.most = most
        self.inside = 0
        self._what = what

    def check(self) -> None:
        """Raise a `Problem` if no place is left."""
        if self.inside >= self.most:
            raise Problem("busy", f"{self.most} {self._what} are being answered; try again")

    @contextmanager
    def place(self) -> Iterator[None]:
        """Hold a place, or raise a `Problem`."""
        self.check()
        self.inside += 1
        try:
            yield
        finally:
            self.inside -= 1
