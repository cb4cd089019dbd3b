"""The rows of all processes, so that each contrasts over the global batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed

__all__ = ["gather_rows", "share_state"]


class _Gather(torch.autograd.Function):
    """Every process computes the same loss of the same rows, so its own rows' gradient is at hand.

    It is multiplied by the number of processes, by which DDP's mean over them divides again.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        world = distributed.get_world_size()
        rows = rows.contiguous()
        parts = [torch.empty_like(rows) for _ in range(world)]
        distributed.all_gather(parts, rows)
        ctx.span = slice(
            distributed.get_rank() * len(rows), (distributed.get_rank() + 1) * len(rows)
        )
        ctx.world = world
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient[ctx.span] * ctx.world


def gather_rows(rows: Tensor) -> Tensor:
    """Return the (world * N, ...) rows of all processes in their order; alone, the rows as given.

    All processes must have the same N, and compute the same loss of the result.
    """
    if not distributed.is_initialized() or distributed.get_world_size() == 1:
        return rows
    gathered: Tensor = _Gather.apply(rows)
    return gathered


def share_state(tensors: list[Tensor]) -> None:
    """Overwrite tensors by those of the first process; alone, leave them."""
    if distributed.is_initialized() and distributed.get_world_size() > 1:
        for tensor in tensors:
            distributed.broadcast(tensor, 0)
