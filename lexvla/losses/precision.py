"""Floating-point precision inside the losses."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["at_least_float32", "dot_products"]


def at_least_float32(values: Tensor) -> Tensor:
    """Widen 16-bit floats to 32 bits, for sums of exponentials."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def dot_products(rows: Tensor, columns: Tensor) -> Tensor:
    """Multiply (N, d) by (M, d) to (N, M) in at least 32 bits, under autocast too."""
    dtype = torch.promote_types(at_least_float32(rows).dtype, columns.dtype)
    with torch.autocast(rows.device.type, enabled=False):
        return rows.to(dtype) @ columns.to(dtype).T
