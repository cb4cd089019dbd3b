"""The lexical head: codebook product, maximum over patches, elu1p, unit length, sparsification."""

from __future__ import annotations

import logging
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from scipy import sparse
from torch import Tensor
from torch.nn import functional

from lexvla.sparse_rows import cut_of, unit_rows

__all__ = [
    "elu1p",
    "lexical_vector",
    "max_over_patches",
    "max_over_patches_reference",
    "sparsify",
]

_log = logging.getLogger(__name__)

# Places are int16.
_MOST_PATCHES = 32767

# Logits of a product on CPUs: 8 MiB that stay in the cache until reduced. Smaller tiles are not
# faster on an idle machine, and slower on a busy one.
_TILE = 2**21


def elu1p(logits: Tensor) -> Tensor:
    """Return ``x + 1`` where x >= 0, else ``exp(x)`` (LexVLA eq. 2). Any shape."""
    return functional.elu(logits) + 1


def lexical_vector(logits: Tensor) -> Tensor:
    """Return unit vectors (..., V) of non-negative word weights from logits (LexVLA eqs. 2, 4)."""
    return functional.normalize(elu1p(logits.float()), dim=-1)


def max_over_patches(patches: Tensor, codebook: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
    """Multiply patch states with the codebook and keep each word's best patch.

    elu1p is increasing, so the maximum before it gives LexVLA eq. 4 at less cost. Only a word's
    best patch gets gradient, so neither direction holds the (B, P, V) logits. Ties go to any of the
    patches; NaN is kept.

    Args:
        patches: (B, P, d) states; P is 1 to 32,767.
        codebook: (V, d), of the same dtype.
        chunk: Words whose logits are in memory at a time, without a fused kernel.

    Returns:
        (B, V) logits, and (B, V) int16 numbers of their patches.
    """
    count, width = patches.shape[1:]
    if not 0 < count <= _MOST_PATCHES:
        raise ValueError(f"patches of an item must be 1 to {_MOST_PATCHES}, not {count}")
    if codebook.shape[1] != width:
        raise ValueError(f"patches have width {width}, but the codebook {codebook.shape[1]}")
    kind = patches.device.type
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
        patches, codebook = patches.to(dtype), codebook.to(dtype)
    return _forward(patches, codebook, chunk)


def max_over_patches_reference(patches: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    """Compute `max_over_patches` in a simple way that holds all (B, P, V) logits."""
    best = (patches @ codebook.T).max(dim=1)
    return best.values, best.indices.to(torch.int16)


# Custom operators, so that torch.compile does not unroll their loops.
@torch.library.custom_op(
    "lexvla::max_over_patches",
    mutates_args=(),
    schema="(Tensor patches, Tensor codebook, SymInt chunk) -> (Tensor, Tensor)",
)
def _forward(patches: Tensor, codebook: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
    if kernels := _kernels(patches):
        return kernels.forward(patches, codebook)
    batch, count, width = patches.shape
    logits, place = _outputs(patches, codebook, chunk)
    items = max(1, _TILE // (count * chunk)) if patches.device.type == "cpu" else batch
    for first in range(0, len(codebook), chunk):
        words = codebook[first : first + chunk].T
        for item in range(0, batch, items):
            part = patches[item : item + items]
            span = slice(item, item + items), slice(first, first + chunk)
            # In this order, results do not depend on the codebook's alignment in memory.
            # Without a name, the tile is freed before the next is made.
            logits[span], place[span] = _best(
                (part.reshape(-1, width) @ words).view(len(part), count, -1)
            )
    return logits, place


@_forward.register_fake
def _outputs(patches: Tensor, codebook: Tensor, _: int) -> tuple[Tensor, Tensor]:
    shape = len(patches), len(codebook)
    return patches.new_empty(shape), patches.new_empty(shape, dtype=torch.int16)


@torch.library.custom_op(
    "lexvla::max_over_patches_to_codebook",
    mutates_args=(),
    schema="(Tensor gradient, Tensor patches, Tensor place) -> Tensor",
)
def _to_codebook(gradient: Tensor, patches: Tensor, place: Tensor) -> Tensor:
    """Return the (V, d) gradient of the codebook: for each word, B weighted patches."""
    if kernels := _kernels(patches):
        return kernels.to_codebook(gradient, patches, place)
    batch, count, width = patches.shape
    first = torch.arange(batch, dtype=torch.int32, device=place.device) * count
    # A sparse product, a bag of B rows a word: at least twice as fast as torch's CSR.
    return functional.embedding_bag(
        (place.T.contiguous() + first).view(-1),
        patches.reshape(-1, width),
        torch.arange(place.shape[1], dtype=torch.int32, device=place.device) * batch,
        mode="sum",
        per_sample_weights=gradient.T.reshape(-1),
    )


@_to_codebook.register_fake
def _(gradient: Tensor, patches: Tensor, _: Tensor) -> Tensor:
    return patches.new_empty(gradient.shape[1], patches.shape[2])


@torch.library.custom_op(
    "lexvla::max_over_patches_to_patches",
    mutates_args=(),
    schema="(Tensor gradient, Tensor codebook, Tensor place, SymInt count) -> Tensor",
)
def _to_patches(gradient: Tensor, codebook: Tensor, place: Tensor, count: int) -> Tensor:
    """Return the (B, P, d) gradient of the patches: for each patch, its words."""
    batch, size = place.shape
    places, words = place.sort(dim=1, stable=True)
    numbers = torch.arange(count, dtype=place.dtype, device=place.device).expand(batch, count)
    starts = torch.searchsorted(places, numbers.contiguous())
    del places
    if kernels := _kernels(codebook):
        return kernels.to_patches(gradient, codebook, words, starts)
    starts += torch.arange(batch, device=place.device)[:, None] * size
    bags = functional.embedding_bag(
        words.view(-1),
        codebook.contiguous(),
        starts.view(-1),
        mode="sum",
        per_sample_weights=gradient.gather(1, words).view(-1),
    )
    return bags.view(batch, count, codebook.shape[1])


@_to_patches.register_fake
def _(gradient: Tensor, codebook: Tensor, _: Tensor, count: int) -> Tensor:
    return codebook.new_empty(len(gradient), count, codebook.shape[1])


def _best(tile: Tensor) -> tuple[Tensor, Tensor]:
    """Return the maximum of (B, P, V) over P and its place, both (B, V)."""
    if tile.device.type != "cpu":
        return tile.max(dim=1)
    # As an image of P x 1 pixels, channels last: pooling is vectorised over channels, `max` is not.
    image = tile.unsqueeze(2).permute(0, 3, 1, 2)
    best, place = functional.max_pool2d_with_indices(image, (tile.shape[1], 1))
    return best.flatten(1), place.flatten(1)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    patches, codebook, _ = inputs
    ctx.save_for_backward(patches, codebook, output[1])
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
    patches, codebook, place = ctx.saved_tensors
    to_patches, to_codebook, _ = ctx.needs_input_grad
    return (
        _to_patches(gradient, codebook, place, patches.shape[1]) if to_patches else None,
        _to_codebook(gradient, patches, place) if to_codebook else None,
        None,
    )


_forward.register_autograd(_backward, setup_context=_keep)


def _kernels(states: Tensor) -> ModuleType | None:
    """Return the fused kernels if they support these states."""
    if states.device.type != "cuda" or states.dtype == torch.float64:
        return None
    return _triton() if torch.cuda.get_device_capability(states.device) >= (8, 0) else None


@cache
def _triton() -> ModuleType | None:
    try:
        return import_module("lexvla.lexical_head_triton")
    except ImportError as error:
        _log.debug("the lexical head runs in plain torch, without triton: %s", error)
        return None


def sparsify(
    vectors: Tensor,
    rule: str,
    kept_words: int,
    threshold: float,
    max_active_dims: int | None = None,
) -> sparse.csr_array:
    """Keep the heaviest words of (n, V) unit vectors on any device, as float32 CSR of unit rows.

    The rules are those of `lexvla.sparse_rows.cut_of`.
    """
    least, most = cut_of(rule, kept_words, threshold, vectors.shape[1], max_active_dims)
    keep = vectors > least
    if most < vectors.shape[1]:  # fewer leave the device; of equal ones, which are kept comes later
        keep &= vectors >= vectors.topk(max(1, most), dim=1).values[:, -1:]
    rows, columns = keep.nonzero(as_tuple=True)
    weights = vectors[rows, columns].float().cpu().numpy()
    places = rows.cpu().numpy(), columns.cpu().numpy()
    return unit_rows(*places, weights, tuple(vectors.shape), most)
