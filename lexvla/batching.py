"""Inference over many items: batches, progress, no gradients."""

from __future__ import annotations

import io
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count, islice
from typing import Any, TypeVar

from tqdm import tqdm

from lexvla.errors import InputError, ModelError

__all__ = ["WINDOW", "ahead", "batches", "inference", "split"]

Item = TypeVar("Item")
Made = TypeVar("Made")
WINDOW = 32  # batches whose texts are sorted by length together

_THREADS = min(8, os.cpu_count() or 1)


@contextmanager
def inference(model: Any) -> Iterator[None]:
    """Disable gradients and dropout, and restore the model's mode afterwards."""
    import torch  # not above: without it, other runtimes use the rest of this module

    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    except torch.OutOfMemoryError as error:
        rule = "a batch does not fit into the device's memory: use a smaller batch_size"
        raise ModelError(f"{model.config.model_name}: {rule} ({error})") from error
    finally:
        model.train(was_training)


def split(items: Iterable[Item], size: int) -> Iterator[tuple[Item, ...]]:
    """Cut items into tuples of ``size``; the last may be shorter."""
    rest = iter(items)
    while batch := tuple(islice(rest, size)):
        yield batch


def batches(
    items: Iterable[Item], size: int, show_progress_bar: bool | None, unit: str
) -> Iterator[tuple[Item, ...]]:
    """Cut items into batches with a progress bar on stderr; ``None`` shows it on a terminal.

    A text or word that is no string, or has a lone surrogate, raises `InputError`.
    """
    # An array of two or three dimensions is one image, and one of none holds one value.
    files = str | bytes | bytearray | io.BytesIO
    single = isinstance(items, files) or getattr(items, "ndim", 1) in (0, 2, 3)
    if single or not isinstance(items, Iterable):
        raise TypeError(f"expected a list of {unit}, not a single one")
    if size < 1:
        raise ValueError(f"batch_size must be at least 1, not {size}")
    off = None if show_progress_bar is None else not show_progress_bar
    places = count()
    total = len(items) if isinstance(items, Sized) else None
    with tqdm(total=total, unit=f" {unit}", disable=off) as bar:
        for batch in split(items, size):
            for item, place in zip(batch, places, strict=False):
                if unit in ("texts", "words"):
                    _check_text(item, f"{unit}[{place}]")
            yield batch
            bar.update(len(batch))


def _check_text(text: object, place: str) -> None:
    if not isinstance(text, str):
        raise InputError(place, f"must be a string, not {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(ascii(text), "is not valid Unicode text") from error


def ahead(work: Callable[[Item], Made], items: Iterable[tuple[Item, ...]]) -> Iterator[list[Made]]:
    """Map ``work`` over the images of each batch in threads, one batch ahead of the consumer.

    An `InputError` about an image without a name gets its place.
    """
    with ThreadPoolExecutor(_THREADS) as pool:
        waiting: deque[list[Future[Made]]] = deque()
        places = count()
        try:
            for batch in items:
                waiting.append([pool.submit(work, item) for item in batch])
                if len(waiting) > 1:
                    yield [_result(future, next(places)) for future in waiting.popleft()]
            if waiting:
                yield [_result(future, next(places)) for future in waiting.popleft()]
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _result(future: Future[Made], place: int) -> Made:
    try:
        return future.result()
    except InputError as error:
        if not error.item.startswith("<"):
            raise
        raise InputError(f"images[{place}]", error.rule) from error
