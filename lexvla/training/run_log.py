"""The log of a run: a progress bar, a JSON line a step, TensorBoard."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tqdm import tqdm

__all__ = ["RunLog"]

_SHOWN = ("loss", "words", "dead")


class RunLog:
    """Write ``log.jsonl`` and show a progress bar.

    Args:
        folder: Folder of the log.
        step: Steps taken; later lines of an existing log are dropped.
        steps: Steps of the whole run.
        silent: Write and show nothing, for all processes but the first.
        tensorboard: Whether to write TensorBoard logs too.
    """

    def __init__(
        self, folder: Path, step: int, steps: int, silent: bool = False, tensorboard: bool = False
    ) -> None:
        path = folder / "log.jsonl"
        self._bar = tqdm(total=steps, initial=step, disable=silent or None, unit="step")
        self._file = self._board = None
        if silent:
            return
        old = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
        self._file = path.open("w", encoding="utf-8")
        self._file.writelines(old[:step])
        if tensorboard:
            self._board = _open_board(folder)

    def add(self, step: int, parts: Mapping[str, float]) -> None:
        """Log the parts of a step's loss and its signs of health."""
        self._bar.update()
        self._bar.set_postfix({k: f"{parts[k]:.3g}" for k in _SHOWN if k in parts})
        if self._file is not None:
            self._file.write(json.dumps({"step": step, **parts}) + "\n")
        if self._board is not None:
            for name, value in parts.items():
                self._board.add_scalar(name, value, step)

    def flush(self) -> None:
        """Flush the file, before a checkpoint."""
        if self._file is not None:
            self._file.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for each in (self._bar, self._file, self._board):
            if each is not None:
                each.close()


def _open_board(folder: Path) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder))
