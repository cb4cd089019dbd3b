"""Mixed precision narrows the towers' numbers, and none of the losses'."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from lexvla.losses import (
    HierarchicalProxy,
    InfoNCE,
    ProxyAnchor,
    ProxyNCA,
    codis_loss,
    cross_modal_loss,
    flops_penalty,
    intra_modal_loss,
    local_loss,
    overuse_penalty,
)


def unit(*shape: int, seed: int = 0) -> Tensor:
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return functional.normalize(values, dim=-1)


LABELS = torch.arange(4)
KEYS = unit(9, 8, seed=1)
LOSSES: dict[str, Callable[[Tensor], Tensor]] = {
    "info_nce": lambda x: InfoNCE().symmetric(functional.linear(x, x).float()),
    "flops": lambda x: flops_penalty(x.abs()),
    "overuse": lambda x: overuse_penalty(x.abs()),
    "codis": lambda x: torch.stack(codis_loss(x, x, x, x, KEYS, 0.1)).sum(),
    "cross_modal": lambda x: cross_modal_loss(x, x, KEYS, 0.1),
    "intra_modal": lambda x: intra_modal_loss(x, KEYS, 0.1),
    "local": lambda x: local_loss(x, unit(4, 3, 8), 0.1),
    "nca": lambda x: ProxyNCA(4, 8)(x, LABELS),
    "anchor": lambda x: ProxyAnchor(4, 8)(x, LABELS),
    "hierarchy": lambda x: HierarchicalProxy(4, 8, parents=[[0, 1, 2, 0]], least_classes=2)(
        x, LABELS
    ),
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses_are_the_same_under_autocast(name: str) -> None:
    values, grads = [], []
    for enabled in (False, True):
        torch.manual_seed(0)
        vectors = unit(4, 8).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = LOSSES[name](vectors)
        loss.backward()
        values.append(loss.detach())
        grads.append(vectors.grad)
    assert values[1].dtype == torch.float32
    exact = name != "info_nce"  # which is given similarities, and does not compute them
    torch.testing.assert_close(*values, rtol=1e-6 if exact else 0.05, atol=1e-6)
    if exact:
        torch.testing.assert_close(*grads)


@pytest.mark.parametrize("name", LOSSES)
def test_16_bit_vectors_meet_32_bit_keys(name: str) -> None:
    assert LOSSES[name](unit(4, 8).bfloat16()).dtype == torch.float32
