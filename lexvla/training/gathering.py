"""Gathering of rows from all processes, to contrast over the global batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed

__all__ = ["gather_rows", "share_state"]


class _Gather(torch.autograd.Function):
    """Gather rows; backward returns the gradient of the process's own rows.

    All processes compute the same loss of the same rows. The gradient is multiplied by the number
    of processes, because DDP averages over them.
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
    """Return the (world * N, ...) rows of all processes in order.

    All processes must have the same N and compute the same loss of the result.
    """
    if not distributed.is_initialized() or distributed.get_world_size() == 1:
        return rows
    gathered: Tensor = _Gather.apply(rows)
    return gathered


def share_state(tensors: list[Tensor]) -> None:
    """Broadcast tensors of the first process to the others."""
    if distributed.is_initialized() and distributed.get_world_size() > 1:
        for tensor in tensors:
            distributed.broadcast(tensor, 0)
