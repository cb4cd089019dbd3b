"""Running a model over many items: batches, progress, gradients off."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from typing import Any, TypeVar

import torch
from tqdm import tqdm

from lexvla.errors import ModelError

__all__ = ["ahead", "batches", "inference", "split"]

Item = TypeVar("Item")
Made = TypeVar("Made")
_THREADS = min(8, os.cpu_count() or 1)


@contextmanager
def inference(model: Any) -> Iterator[None]:
    """Switch gradients and dropout off, and put the model's mode back afterwards.

    Raises:
        ModelError: The device's memory does not hold a batch.
    """
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    except torch.OutOfMemoryError as error:
        rule = "a batch does not fit into the device's memory: give a smaller batch_size"
        raise ModelError(f"{model.config.model_name}: {rule} ({error})") from error
    finally:
        model.train(was_training)


def split(items: Iterable[Item], size: int) -> Iterator[tuple[Item, ...]]:
    """Cut items into tuples of ``size``, the last one of what is left."""
    rest = iter(items)
    while batch := tuple(islice(rest, size)):
        yield batch


def batches(
    items: Iterable[Item], size: int, show_progress_bar: bool | None, unit: str
) -> Iterator[tuple[Item, ...]]:
    """Cut items into batches with a progress bar on stderr; ``None`` shows it on a terminal.

    Raises:
        TypeError: There is one item in place of a list.
        ValueError: The size is less than 1.
    """
    if isinstance(items, str | bytes):
        raise TypeError(f"needs a list of {unit}, not one")
    if size < 1:
        raise ValueError(f"batch_size must be at least 1, not {size}")
    off = None if show_progress_bar is None else not show_progress_bar
    total = len(items) if isinstance(items, Sized) else None
    with tqdm(total=total, unit=f" {unit}", disable=off) as bar:
        for batch in split(items, size):
            yield batch
            bar.update(len(batch))


def ahead(work: Callable[[Item], Made], items: Iterable[tuple[Item, ...]]) -> Iterator[list[Made]]:
    """Do the work on each item of each batch in threads, one batch ahead of the one asked for.

    What the work raises is raised when its batch is asked for.
    """
    with ThreadPoolExecutor(_THREADS) as pool:
        waiting: deque[list[Future[Made]]] = deque()
        try:
            for batch in items:
                waiting.append([pool.submit(work, item) for item in batch])
                if len(waiting) > 1:
                    yield [future.result() for future in waiting.popleft()]
            if waiting:
                yield [future.result() for future in waiting.popleft()]
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
