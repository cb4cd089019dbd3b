"""Reading the index that an alias means, while it is moved to another."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol, TypeVar

from lexvla.errors import EngineUnavailableError, IndexCorruptError
from lexvla_indexer.elastic.connection import may_be_moved, was_answered

__all__ = ["following"]

# Seconds until an alias that is being moved is asked again. A server closes the shards of a
# deleted index before it says that the alias means another; on a slow disk that takes a while.
_SETTLING = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)


class _Found(Protocol):
    """What is asked; of one index."""

    @property
    def index(self) -> str: ...


S = TypeVar("S", bound=_Found)
T = TypeVar("T")


def following(found: Callable[[bool], S], ask: Callable[[S], T]) -> T:
    """Ask the index that an alias means; again where it was replaced meanwhile.

    An index that is being deleted has no shards first, and is not found then. For a moment before,
    the server still says that the alias means it.

    Args:
        found: Gives what is to be asked; of the newest index for certain if it is told so.
        ask: What to ask.
    """
    asked, waits = found(False), iter(_SETTLING)
    while True:
        try:
            return ask(asked)
        except (EngineUnavailableError, IndexCorruptError) as error:
            if not was_answered(error):
                raise
            newest = found(True)
            if newest.index == asked.index:
                wait = next(waits, None)
                if wait is None or not may_be_moved(error):
                    raise
                time.sleep(wait)
            asked = newest
