"""Gradient caching, for contrastive batches larger than memory (GradCache)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor

__all__ = ["cached_backward"]

Parts = list[Tensor]


def cached_backward(
    forwards: Sequence[Callable[[], Parts]],
    loss: Callable[[Parts], Tensor],
    backward: Callable[[Tensor], None],
    before_last: Callable[[], AbstractContextManager[object]],
) -> Tensor:
    """Compute a batch's gradient part by part, as if the parts were one batch.

    Every part runs forward twice: first without a graph, for the loss of the whole batch and its
    gradient at the features; then with a graph, to backpropagate that gradient. Memory holds the
    graph of one part.

    Args:
        forwards: Return the features of each part, the same in both calls: seed their randomness.
        loss: Maps the concatenated features of the batch to the loss.
        backward: Calls ``backward`` on a scalar, as accelerate does.
        before_last: Context of all parts but the last, such as DDP's ``no_sync``.

    Returns:
        The detached loss.

    References:
        Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup",
        arXiv 2101.06983.
    """
    with torch.no_grad():
        features = [forward() for forward in forwards]
    leaves = [torch.cat(column).requires_grad_() for column in zip(*features, strict=True)]
    value = loss(leaves)
    value.backward()
    sizes = [len(part[0]) for part in features]
    columns = [_gradient(leaf).split(sizes) for leaf in leaves]
    for number, forward in enumerate(forwards):
        if number + 1 < len(forwards):
            with before_last():
                _continue(forward(), [column[number] for column in columns], backward)
        else:
            _continue(forward(), [column[number] for column in columns], backward)
    return value.detach()


def _gradient(leaf: Tensor) -> Tensor:
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad


def _continue(
    features: Parts, gradients: Sequence[Tensor], backward: Callable[[Tensor], None]
) -> None:
    pairs = zip(features, gradients, strict=True)
    backward(torch.stack([(part * gradient).sum() for part, gradient in pairs]).sum())
