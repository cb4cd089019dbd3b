"""Disks that are full or read-only, each for one process of its own."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path

import pytest

FORK = multiprocessing.get_context("fork")
_NO_MOUNTS = 77  # the exit code
_NEW_MOUNTS, _NEW_USER = 0x20000, 0x10000000  # of unshare(2)
_READ_ONLY, _REMOUNT, _BIND = 0x1, 0x20, 0x1000  # of mount(2)


class NoMountsError(Exception):
    """This system lets its users mount nothing."""


def in_a_child(work: Callable[[], None], ends_with: int = 0) -> None:
    """Run in a process of its own. It must end with this; what it raises is on stderr."""

    def child() -> None:
        try:
            work()
        except NoMountsError:
            os._exit(_NO_MOUNTS)

    process = FORK.Process(target=child)
    process.start()
    process.join()
    if process.exitcode == _NO_MOUNTS:
        pytest.skip("mounting needs root or user namespaces")
    assert process.exitcode == ends_with


def mount_memory(path: Path, size: int) -> None:
    """Put a disk of so many bytes in the memory at a directory, for this process alone."""
    _own_mounts()
    _mount(b"tmpfs", path, b"tmpfs", 0, f"size={size}".encode())


def mount_read_only(path: Path) -> None:
    """Make a directory read-only, for this process alone."""
    _own_mounts()
    _mount(bytes(path), path, None, _BIND, None)
    _mount(b"none", path, None, _BIND | _REMOUNT | _READ_ONLY, None)


def _own_mounts() -> None:
    user, group = os.getuid(), os.getgid()
    if ctypes.CDLL(None, use_errno=True).unshare(_NEW_USER | _NEW_MOUNTS):
        raise NoMountsError
    try:
        for name, line in (
            ("setgroups", "deny"),
            ("uid_map", f"0 {user} 1"),
            ("gid_map", f"0 {group} 1"),
        ):
            Path("/proc/self", name).write_text(line)
    except OSError as error:
        raise NoMountsError from error


def _mount(
    source: bytes, path: Path, kind: bytes | None, flags: int, options: bytes | None
) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(source, bytes(path), kind, ctypes.c_ulong(flags), options):
        raise NoMountsError
