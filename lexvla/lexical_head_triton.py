"""Fused CUDA kernels of `lexvla.lexical_head`.

Of the logits, only each word's maximum and its patch leave the registers. The gradients gather a
row for each (item, word), one narrow slice of the width at a time: a slice of all rows fits into
the L2 cache, whole rows do not. There are no atomics, so results are deterministic.

Instead of masks, rows of a block past the end repeat the last row.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["forward", "to_codebook", "to_patches"]

# The interpreter cannot tune: it uses the first configuration.
_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def _configs(names: str, *rows: tuple[int, ...]) -> list[triton.Config]:
    """Return one configuration a row: block sizes in the order of names, warps, stages."""
    return [
        triton.Config(dict(zip(names.split(), blocks, strict=True)), num_warps=w, num_stages=s)
        for *blocks, w, s in rows[: 1 if _INTERPRETED else None]
    ]


def _fitting(configs: Sequence[triton.Config], values: dict[str, Any], **_: Any) -> list[Any]:
    """Drop tiles far larger than the patches, or too large for 32-bit states."""
    most = max(64, triton.next_power_of_2(values["count"]))
    wide = values["patches"].element_size() > 2
    return [
        config
        for config in configs
        if (block := config.kwargs)["BLOCK_P"] <= most
        and not (wide and block["BLOCK_P"] * block["BLOCK_V"] * block["BLOCK_D"] > 2**19)
    ]


@triton.autotune(
    configs=_configs(
        "BLOCK_V BLOCK_P BLOCK_D GROUP",
        (64, 64, 32, 8, 4, 3),
        (64, 64, 64, 8, 4, 4),
        (128, 64, 64, 8, 4, 4),
        (64, 128, 64, 8, 4, 4),
        (128, 128, 32, 8, 8, 4),
        (128, 128, 64, 8, 4, 4),
        (128, 128, 64, 8, 8, 3),
        (64, 256, 64, 8, 4, 4),
        (64, 256, 32, 8, 4, 4),
        (128, 256, 32, 8, 8, 4),
        (128, 256, 64, 8, 8, 3),
        (128, 256, 64, 8, 8, 4),
        (128, 256, 64, 16, 8, 4),
    ),
    key=["count", "words", "width", "PRECISION"],
    prune_configs_by={"early_config_prune": _fitting},
)
@triton.heuristics({"EVEN": lambda values: values["width"] % values["BLOCK_D"] == 0})
@triton.jit
def _forward(
    patches: tl.tensor,
    codebook: tl.tensor,
    logits: tl.tensor,
    place: tl.tensor,
    items: int,
    count: int,
    words: int,
    width: int,
    item_stride: int,
    patch_stride: int,
    word_stride: int,
    PRECISION: tl.constexpr,
    EVEN: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_D: tl.constexpr,
    GROUP: tl.constexpr,
) -> None:
    # A group of word blocks visits all items before the next, so that both stay in the L2 cache.
    blocks = tl.cdiv(words, BLOCK_V)
    program = tl.program_id(0)
    first = program // (GROUP * items) * GROUP
    size = tl.minimum(blocks - first, GROUP)
    block = first + program % (GROUP * items) % size
    item = (program % (GROUP * items) // size).to(tl.int64)

    word = block * BLOCK_V + tl.arange(0, BLOCK_V)
    row = tl.minimum(word, words - 1).to(tl.int64)
    column = tl.arange(0, BLOCK_D)
    word_tile = codebook + row[:, None] * word_stride + column[None, :]
    best = tl.full((BLOCK_V,), float("-inf"), tl.float32)
    where = tl.zeros((BLOCK_V,), tl.int32)
    broken = tl.zeros((BLOCK_V,), tl.int32)
    for start in range(0, count, BLOCK_P):
        patch = tl.minimum(start + tl.arange(0, BLOCK_P), count - 1).to(tl.int64)
        left = word_tile
        right = patches + item * item_stride + patch[None, :] * patch_stride + column[:, None]
        tile = tl.zeros((BLOCK_V, BLOCK_P), tl.float32)
        for done in range(0, width, BLOCK_D):
            if EVEN:
                a = tl.load(left)
                b = tl.load(right)
            else:
                a = tl.load(left, mask=column[None, :] < width - done, other=0.0)
                b = tl.load(right, mask=column[:, None] < width - done, other=0.0)
            tile = tl.dot(a, b, tile, input_precision=PRECISION)
            left += BLOCK_D
            right += BLOCK_D
        # A maximum ignores NaN, so NaN counts as infinite here and is restored at the end.
        wrong = tile != tile
        top, at = tl.max(tl.where(wrong, float("inf"), tile), axis=1, return_indices=True)
        broken = broken | tl.max(wrong.to(tl.int32), axis=1)
        where = tl.where(top > best, start + at, where)
        best = tl.maximum(best, top)
    # Ties go to the first, so a repeated last row never wins.
    where = tl.minimum(where, count - 1)
    best = tl.where(broken > 0, float("nan"), best)
    out = item * words + word
    tl.store(logits + out, best.to(logits.dtype.element_ty), mask=word < words)
    tl.store(place + out, where.to(tl.int16), mask=word < words)


@triton.autotune(
    configs=_configs(
        "BLOCK_V BLOCK_D AHEAD",
        (32, 32, 1, 4, 1),
        (16, 128, 1, 4, 1),
        (32, 64, 1, 4, 1),
        (32, 64, 3, 4, 1),
        (32, 128, 1, 4, 1),
        (32, 128, 3, 4, 1),
        (64, 64, 1, 4, 1),
        (64, 128, 1, 8, 1),
        (64, 128, 3, 8, 1),
        (16, 256, 1, 4, 1),
    ),
    key=["words", "width"],
)
@triton.jit
def _to_codebook(
    gradient: tl.tensor,
    patches: tl.tensor,
    place: tl.tensor,
    out: tl.tensor,
    items: int,
    words: int,
    width: int,
    item_stride: int,
    patch_stride: int,
    BLOCK_V: tl.constexpr,
    BLOCK_D: tl.constexpr,
    AHEAD: tl.constexpr,
) -> None:
    blocks = tl.cdiv(words, BLOCK_V)
    word = tl.program_id(0) % blocks * BLOCK_V + tl.arange(0, BLOCK_V)
    column = tl.program_id(0) // blocks * BLOCK_D + tl.arange(0, BLOCK_D)
    row = tl.minimum(word, words - 1)
    inside = column[None, :] < width
    total = tl.zeros((BLOCK_V, BLOCK_D), tl.float32)
    for _ in tl.range(0, items, num_stages=AHEAD):
        weight = tl.load(gradient + row).to(tl.float32)
        patch = tl.load(place + row).to(tl.int64)
        tile = patches + patch[:, None] * patch_stride + column[None, :]
        total += weight[:, None] * tl.load(tile, mask=inside, other=0.0).to(tl.float32)
        gradient += words
        place += words
        patches += item_stride
    target = out + word.to(tl.int64)[:, None] * width + column[None, :]
    tl.store(target, total.to(out.dtype.element_ty), mask=inside & (word < words)[:, None])


@triton.autotune(
    configs=_configs(
        "BLOCK_V BLOCK_D AHEAD",
        (16, 32, 1, 4, 1),
        (8, 128, 1, 2, 1),
        (16, 64, 1, 2, 1),
        (16, 128, 1, 4, 1),
        (16, 128, 3, 4, 1),
        (32, 64, 1, 4, 1),
        (32, 128, 1, 4, 1),
        (32, 128, 3, 4, 1),
        (16, 256, 1, 4, 1),
    ),
    key=["count", "words", "width"],
)
@triton.jit
def _to_patches(
    gradient: tl.tensor,
    codebook: tl.tensor,
    order: tl.tensor,
    starts: tl.tensor,
    out: tl.tensor,
    items: int,
    count: int,
    words: int,
    width: int,
    word_stride: int,
    BLOCK_V: tl.constexpr,
    BLOCK_D: tl.constexpr,
    AHEAD: tl.constexpr,
) -> None:
    row = (tl.program_id(0) % (items * count)).to(tl.int64)
    column = tl.program_id(0) // (items * count) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = column[None, :] < width
    item = row // count
    gradient += item * words
    order += item * words
    start = tl.load(starts + row).to(tl.int32)
    end = tl.load(starts + row + 1, mask=row % count + 1 < count, other=words).to(tl.int32)
    total = tl.zeros((BLOCK_V, BLOCK_D), tl.float32)
    for first in tl.range(start, end, BLOCK_V, num_stages=AHEAD):
        number = first + tl.arange(0, BLOCK_V)
        word = tl.load(order + number, mask=number < end, other=0)
        weight = tl.load(gradient + word, mask=number < end, other=0.0).to(tl.float32)
        tile = codebook + word[:, None] * word_stride + column[None, :]
        mask = inside & (number < end)[:, None]
        total += weight[:, None] * tl.load(tile, mask=mask, other=0.0).to(tl.float32)
    target = out + row * width + column
    tl.store(target, tl.sum(total, axis=0).to(out.dtype.element_ty), mask=column < width)


def forward(patches: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    """Return (B, V) logits in the states' dtype and (B, V) int16 places.

    Args:
        patches: (B, P, d) float32, bfloat16 or float16; P is at most 32,767.
        codebook: (V, d), of the same dtype.
    """
    patches, codebook = _rows(patches), _rows(codebook)
    items, count, width = patches.shape
    words = len(codebook)
    logits = patches.new_empty(items, words)
    place = patches.new_empty(items, words, dtype=torch.int16)
    with torch.cuda.device_of(patches):
        _forward[lambda values: (items * triton.cdiv(words, values["BLOCK_V"]),)](
            patches,
            codebook,
            logits,
            place,
            items,
            count,
            words,
            width,
            *patches.stride()[:2],
            codebook.stride(0),
            PRECISION=_precision(),
        )
    return logits, place


def to_codebook(gradient: Tensor, patches: Tensor, place: Tensor) -> Tensor:
    """Return the (V, d) gradient of the codebook.

    Args:
        gradient: (B, V), of the logits.
        patches: (B, P, d) states.
        place: (B, V) int16, from `forward`.
    """
    patches = _rows(patches)
    width = patches.shape[2]
    items, words = place.shape
    out = patches.new_empty(words, width)
    with torch.cuda.device_of(patches):
        _to_codebook[lambda values: _slices(words, width, values, values["BLOCK_V"])](
            gradient.contiguous(),
            patches,
            place.contiguous(),
            out,
            items,
            words,
            width,
            *patches.stride()[:2],
        )
    return out


def to_patches(gradient: Tensor, codebook: Tensor, order: Tensor, starts: Tensor) -> Tensor:
    """Return the (B, P, d) gradient of the patches.

    Args:
        gradient: (B, V), of the logits.
        codebook: (V, d).
        order: (B, V) integers, words of each item sorted by patch.
        starts: (B, P) integers, position in ``order`` where the words of each patch begin.
    """
    codebook = _rows(codebook)
    words, width = codebook.shape
    items, count = starts.shape
    out = codebook.new_empty(items, count, width)
    with torch.cuda.device_of(codebook):
        _to_patches[lambda values: _slices(items * count, width, values, 1)](
            gradient.contiguous(),
            codebook,
            order.contiguous(),
            starts.contiguous(),
            out,
            items,
            count,
            words,
            width,
            codebook.stride(0),
        )
    return out


def _rows(states: Tensor) -> Tensor:
    # A view without the CLS token needs no copy.
    return states if states.stride(-1) == 1 else states.contiguous()


def _slices(rows: int, width: int, values: dict[str, int], block: int) -> tuple[int]:
    return (triton.cdiv(rows, block) * triton.cdiv(width, values["BLOCK_D"]),)


def _precision() -> str:
    """Return the precision of float32 products from torch's settings."""
    setting = torch.backends.cuda.matmul
    if hasattr(setting, "fp32_precision"):  # torch >= 2.9, where the older setting may not be read
        return "tf32" if setting.fp32_precision == "tf32" else "ieee"
    return "tf32" if setting.allow_tf32 else "ieee"
