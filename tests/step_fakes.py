"""Kill a writer at every step that it takes."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lexvla_indexer.embedded import dense_lists, postings, segment, sparse_leg

FORK = multiprocessing.get_context("fork")


class Fuse:
    """Kill this process before the n-th thing that it does to the disk."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def before(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return wrapped

    def light(self) -> None:
        fuse = self

        class Connection(sqlite3.Connection):
            def execute(self, *args: Any) -> sqlite3.Cursor:
                return fuse.before(super().execute)(*args)

            def executemany(self, *args: Any) -> sqlite3.Cursor:
                return fuse.before(super().executemany)(*args)

        connect = sqlite3.connect
        sqlite3.connect = lambda *args, **kw: connect(*args, factory=Connection, **kw)
        for module in (dense_lists, postings, segment, sparse_leg):
            module.save_array = self.before(module.save_array)
        shutil.rmtree = self.before(shutil.rmtree)
        Path.mkdir = self.before(Path.mkdir)
        Path.replace = self.before(Path.replace)


def run_until(steps: int, work: Callable[[], None]) -> bool:
    """Run in a process of its own that is killed at a step. Return whether it was."""

    def child() -> None:
        Fuse(steps).light()
        work()

    process = FORK.Process(target=child)
    process.start()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


def kill_at_every_step(path: Path, work: Callable[[], None], check: Callable[[bool], None]) -> int:
    """Run the work, killed one step later each time, until it lives. Check after each run."""
    pristine = path.with_name("pristine")
    if path.exists():
        shutil.copytree(path, pristine)
    step, killed = 0, True
    while killed:
        step += 1
        killed = run_until(step, work)
        check(killed)
        shutil.rmtree(path)
        if pristine.exists():
            shutil.copytree(pristine, path)
    return step
