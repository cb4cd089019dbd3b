"""Retry a failed batch item by item, so that one bad item does not fail the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from lexvla.errors import InputError, LexVLAError

__all__ = ["isolate"]

T = TypeVar("T")
R = TypeVar("R")
E = TypeVar("E", bound=LexVLAError)


def isolate(
    call: Callable[[Sequence[T]], R],
    batch: Sequence[T],
    error: type[E] = InputError,  # type: ignore[assignment]
) -> Iterator[tuple[Sequence[T], R | E]]:
    """Yield a batch with its result, or each of its items with its own result or error.

    A bad item raises ``error``; other exceptions pass through.
    """
    if len(batch) > 1:
        try:
            result = call(batch)
        except error:
            pass
        else:
            yield batch, result
            return
    for item in batch:
        try:
            yield [item], call([item])
        except error as failure:
            yield [item], failure
