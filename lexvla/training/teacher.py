"""The momentum teacher, and queues of its earlier vectors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional

from lexvla.torch_model import Features, TorchLexVLA

__all__ = ["FeatureQueue", "Teacher"]


class Teacher:
    """Run a model with a moving average of its trained weights (ALBEF, TCL, CODIS).

    Frozen weights are shared with the student. ``decay`` is the share of the old average that a
    step keeps, 0.995 in TCL.
    """

    def __init__(self, model: TorchLexVLA, decay: float) -> None:
        self.decay = decay
        self.weights = {
            name: weight.detach().clone()
            for name, weight in model.named_parameters()
            if weight.requires_grad
        }

    @torch.no_grad()
    def update(self, model: TorchLexVLA, step: int | None = None) -> None:
        """Move the average towards the student; call it before the teacher looks.

        With ``step``, the number of steps taken, the average forgets random initial weights faster.
        """
        decay = self.decay if step is None else min(self.decay, (1 + step) / (10 + step))
        for name, weight in model.named_parameters():
            if name in self.weights:
                self.weights[name].lerp_(weight.detach(), 1 - decay)

    @torch.no_grad()
    def __call__(
        self, model: TorchLexVLA, *inputs: Any, **options: Any
    ) -> tuple[Features, Features]:
        """Return the teacher's features of images and texts; see `TorchLexVLA.forward`."""
        return functional_call(model, self.weights, inputs, options)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the averaged weights."""
        return self.weights

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Load averaged weights of `state_dict`."""
        for name, weight in state.items():
            self.weights[name].copy_(weight)


class FeatureQueue:
    """The last ``size`` unit vectors of the teacher, initially random from ``seed``."""

    def __init__(self, size: int, width: int, seed: int, device: torch.device) -> None:
        if size < 1:
            raise ValueError(f"size must be at least 1, not {size}")
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randn(size, width, generator=generator)
        self.rows = functional.normalize(rows, dim=1).to(device)
        self.items = torch.full((size,), -1, device=device)
        self.next = 0

    @torch.no_grad()
    def push(self, rows: Tensor, items: Tensor | None = None) -> None:
        """Replace the oldest vectors by (n, width) rows of (n,) items, n at most the size."""
        size = len(self.rows)
        if len(rows) > size:
            raise ValueError(f"{len(rows)} vectors do not fit a queue of {size}")
        places = torch.arange(self.next, self.next + len(rows), device=self.rows.device) % size
        self.rows[places] = rows.to(self.rows.dtype)
        self.items[places] = -1 if items is None else items
        self.next = (self.next + len(rows)) % size

    def newest(self) -> Tensor:
        """Return a copy of the vectors (size, width), newest first."""
        return self.rows.roll(-self.next, 0).flip(0)

    def newest_items(self) -> Tensor:
        """Return the items (size,) of `newest`, -1 for none."""
        return self.items.roll(-self.next, 0).flip(0)

    def state_dict(self) -> dict[str, Any]:
        """Return the vectors, their items and the position of the oldest."""
        return {"rows": self.rows, "items": self.items, "next": self.next}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load a state of `state_dict`."""
        self.rows.copy_(state["rows"])
        self.items.copy_(state["items"])
        self.next = state["next"]
