"""Ctrl-C ends a command that writes to an index gently; a second one ends it at once."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event
from typing import Any

from lexvla_search.cli.console import INTERRUPTED, note

__all__ = ["stopping"]


@contextmanager
def stopping() -> Iterator[Event]:
    """Yield what Ctrl-C sets. A second Ctrl-C ends the process: its last commit stays whole."""
    stop = Event()

    def on_signal(number: int, frame: Any) -> None:
        if stop.is_set():
            os._exit(INTERRUPTED)
        stop.set()
        note("lexvla: stopping, once what is encoded is in the index; Ctrl-C again stops at once")

    before = signal.signal(signal.SIGINT, on_signal)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)
