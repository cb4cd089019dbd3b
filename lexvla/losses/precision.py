"""The width of the numbers inside the losses."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["at_least_float32"]


def at_least_float32(values: Tensor) -> Tensor:
    """Widen 16-bit floats to 32 bits, for sums of exponentials; leave wider ones as they are."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
