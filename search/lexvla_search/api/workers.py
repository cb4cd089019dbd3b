"""Processes that serve one socket: started, kept running and stopped together."""

from __future__ import annotations

import ctypes
import logging
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess
from typing import Any

import uvicorn

from lexvla.errors import LexVLAError

__all__ = ["BACKLOG", "listen", "run_one", "run_several"]

logger = logging.getLogger(__name__)

_SPAWN = multiprocessing.get_context("spawn")
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_M_MMAP_THRESHOLD = -3  # of malloc.h
_STEADY = 10.0  # seconds; a process that ends sooner would fail again

BACKLOG = 2048  # connections waiting to be accepted

Make = Callable[[], Any]


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket, whose connections wait until a process serves them."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Name the protocol: only then does asyncio send small packets at once (TCP_NODELAY).
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host.strip("[]"), port))
        listening.listen(BACKLOG)
    except OSError as error:
        listening.close()
        raise LexVLAError(f"cannot listen at {host} port {port}: {error.strerror}") from error
    listening.set_inheritable(True)
    return listening


def run_one(make: Make, options: Mapping[str, Any], listening: socket.socket) -> bool:
    """Serve in this process until a signal comes. Return whether it started.

    `options` are for `uvicorn.Config`.
    """
    # uvicorn finishes its requests, then raises the signal again for other handlers.
    for number in _SIGNALS:
        signal.signal(number, lambda *_: None)
    _give_back_images()
    server = uvicorn.Server(uvicorn.Config(make, factory=True, **options))
    server.run(sockets=[listening])
    return server.started


def run_several(
    make: Make, options: Mapping[str, Any], listening: socket.socket, count: int
) -> bool:
    """Serve in several processes until a signal comes; see `run_one`.

    A process that dies is replaced; if it dies at once, all end.
    """
    ended = threading.Event()
    started: dict[SpawnProcess, float] = {}

    def start() -> None:
        process = _SPAWN.Process(target=_work, args=(make, options, listening))
        process.start()
        started[process] = time.monotonic()

    for number in _SIGNALS:
        signal.signal(number, lambda *_: ended.set())
    for _ in range(count):
        start()
    failed = False
    while not (ended.is_set() or failed):
        wait([process.sentinel for process in started], timeout=0.2)
        for process in [process for process in started if not process.is_alive()]:
            age = time.monotonic() - started.pop(process)
            if ended.is_set():
                break
            logger.error("process %s ended with %s", process.pid, process.exitcode)
            failed = age < _STEADY
            if not failed:
                start()
    for process in started:
        process.terminate()
    for process in started:
        process.join()
    return not failed


def _give_back_images() -> None:
    """Make glibc return blocks of 8 MiB, such as those of images, to the system once free."""
    # By default it keeps them: after a few large images, hundreds of megabytes of nothing.
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        mallopt(_M_MMAP_THRESHOLD, 8 << 20)


def _work(make: Make, options: Mapping[str, Any], listening: socket.socket) -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()
    sys.exit(not run_one(make, options, listening))


def _end_with(sentinel: int) -> None:
    """End this process if its parent is killed."""
    wait([sentinel])
    os.kill(os.getpid(), signal.SIGTERM)
