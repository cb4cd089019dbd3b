"""Time, memory, and descriptions of the machine."""

from __future__ import annotations

import gc
import platform
import resource
import statistics
import threading
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from lexvla.errors import ModelError

MOST_REPEATS = 50
GIB = 2**30
_STATUS = Path("/proc/self/status")


class Clock:
    """Time calls on a device: the median of repeats, after a warm-up.

    Args:
        device: Device to synchronise before and after each call.
        seconds: Approximate time for each call, with at least three repeats.
    """

    def __init__(self, device: torch.device, seconds: float) -> None:
        self.device, self.seconds = device, seconds

    def once(self, call: Callable[[], Any]) -> float | None:
        """Return a call's seconds, or ``None`` if it runs out of device memory."""
        try:
            synchronise(self.device)
            started = time.perf_counter()
            call()
            synchronise(self.device)
            return time.perf_counter() - started
        except torch.OutOfMemoryError:
            pass
        except ModelError as error:  # raised by the encode methods
            if not isinstance(error.__cause__, torch.OutOfMemoryError):
                raise
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return None

    def medians(self, *calls: Callable[[], Any]) -> list[float | None]:
        """Return median seconds of interleaved calls; ``None`` for out of memory."""
        took: list[list[float]] = [[] for _ in calls]
        fits = [self.once(call) is not None for call in calls]
        end = time.perf_counter() + self.seconds * len(calls)
        for repeat in range(MOST_REPEATS):
            if repeat >= 3 and time.perf_counter() > end:
                break
            for i, call in enumerate(calls):
                seconds = self.once(call) if fits[i] else None
                if seconds is None:
                    fits[i] = False
                else:
                    took[i].append(seconds)
        return [statistics.median(t) if ok else None for t, ok in zip(took, fits, strict=True)]


def synchronise(device: torch.device) -> None:
    """Wait for a device to finish its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Product:
    """Multiply two large square matrices, for the peak performance of a device."""

    def __init__(self, device: torch.device, dtype: torch.dtype, side: int) -> None:
        self.a, self.b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        self.flop = 2 * side**3

    def __call__(self) -> None:
        """Multiply them."""
        torch.mm(self.a, self.b)


class Peak:
    """Record peak memory from construction to `gib`.

    On a GPU: torch's tensors. On a CPU: the process's private memory, sampled every 20 ms from
    Linux's /proc, without pages of mapped checkpoints. Elsewhere: the process's peak size since it
    started.
    """

    def __init__(self, device: torch.device) -> None:
        gc.collect()
        self.device, self.most, self.ended = device, 0, threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
        elif _STATUS.exists():
            self.thread.start()

    def gib(self) -> float:
        """Stop and return the peak in GiB."""
        self.ended.set()
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / GIB
        if self.thread.ident is not None:
            self.thread.join()
            return max(self.most, _own_memory()) / GIB
        unit = 1 if platform.system() == "Darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GIB

    def _watch(self) -> None:
        while not self.ended.wait(0.02):
            self.most = max(self.most, _own_memory())


def _own_memory() -> int:
    lines = _STATUS.read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) * 1024


def describe(device: torch.device) -> dict[str, str]:
    """Return device and versions for a report."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        memory = torch.cuda.get_device_properties(device).total_memory / GIB
        name = f"{name}, {memory:.0f} GiB, CUDA {torch.version.cuda}"
    else:
        name = f"{processor()}, threads: {torch.get_num_threads()}"
    packages = ("torch", "transformers", "bitsandbytes", "peft")
    return {"device": name} | {package: _version(package) for package in packages}


def processor() -> str:
    """Return the name of the processor."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"
