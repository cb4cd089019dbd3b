"""Feature maps of timm's convolutional networks, whose cells are the patches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lexvla.errors import ModelError

__all__ = ["evaluating", "feature_map", "measure"]

# Raised by networks without a map, or with a fixed image size.
_NO_MAP = (AttributeError, AssertionError, IndexError, KeyError, RuntimeError, TypeError)


def feature_map(vision: Any, pixels: Tensor, fine: bool = False) -> Tensor:
    """Return the (B, C, h, w) last feature map of a `TimmWrapperModel`.

    With ``fine``, a cell's channels are followed by those of the four cells that it covers in the
    finer stage, in the order of `torch.nn.functional.pixel_unshuffle`.
    """
    network = vision.timm_model
    if not fine:
        return network.forward_features(pixels)
    last, (finer,) = network.forward_intermediates(pixels, indices=[_finer_stage(vision)])
    rows, columns = last.shape[-2:]
    if finer.shape[-2:] != (2 * rows, 2 * columns):
        rule = f"the last map has {rows} x {columns} cells for {_size(pixels)} pixels, and the"
        sizes = f"{_size(finer)}, which is not twice as many"
        raise ModelError(f"fine_stage: {rule} finer one {sizes}; use sides that the stride divides")
    return torch.cat([last, F.pixel_unshuffle(finer, 2)], dim=1)


def measure(vision: Any, fine: bool = False) -> tuple[int, int]:
    """Return the channels of a cell and the stride in pixels, measured on a small image."""
    rule = f"{vision.config.architecture} gives no (B, C, h, w) feature map to take patches from"
    try:
        stride = int(vision.timm_model.feature_info[-1]["reduction"])
        pixels = torch.zeros(1, 3, 2 * stride, 4 * stride, dtype=vision.dtype, device=vision.device)
        with torch.no_grad(), evaluating(vision):
            shape = feature_map(vision, pixels).shape
            # A non-square image reveals maps with the channels last.
            if shape[2:] != (2, 4):
                sizes = f"its features have the shape {tuple(shape)} for {_size(pixels)} pixels"
                raise ModelError(f"{rule}; {sizes}")
            return (feature_map(vision, pixels, fine).shape if fine else shape)[1], stride
    except _NO_MAP as error:
        raise ModelError(f"{rule} ({error!r})") from error


def _finer_stage(vision: Any) -> int:
    """Return the last stage that has half the stride of the last map."""
    strides = [stage["reduction"] for stage in vision.timm_model.feature_info]
    found = [i for i, stride in enumerate(strides) if 2 * stride == strides[-1]]
    if not found:
        rule = f"no stage has half the stride of the last map; the strides are {strides}"
        raise ModelError(f"fine_stage: {vision.config.architecture}: {rule}")
    return found[-1]


def _size(map_: Tensor) -> str:
    return f"{map_.shape[-2]} x {map_.shape[-1]}"


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put a module into evaluation mode for a while."""
    was_training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(was_training)
