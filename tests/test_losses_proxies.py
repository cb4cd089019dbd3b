from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from lexvla.losses import ProxyAnchor, ProxyNCA


def unit(*shape: int, seed: int = 0) -> Tensor:
    values = torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return functional.normalize(values, dim=-1)


def slow_anchor(
    vectors: Tensor, labels: list[int], proxies: Tensor, alpha: float, margin: float
) -> float:
    pull, push, present = 0.0, 0.0, 0
    for c, proxy in enumerate(proxies):
        cosines = [float(x @ proxy / proxy.norm()) for x in vectors]
        own = [s for s, y in zip(cosines, labels, strict=True) if y == c]
        others = [s for s, y in zip(cosines, labels, strict=True) if y != c]
        present += bool(own)
        pull += math.log(1 + sum(math.exp(-alpha * (s - margin)) for s in own))
        push += math.log(1 + sum(math.exp(alpha * (s + margin)) for s in others))
    return pull / present + push / len(proxies)


@pytest.mark.parametrize("labels", [[0, 1, 1, 3], [2, 2, 2, 2], [0, 1, 2, 3]])
@pytest.mark.parametrize(("alpha", "margin"), [(32.0, 0.1), (2.0, 0.3)])
def test_anchor_by_slow_loop(labels: list[int], alpha: float, margin: float) -> None:
    loss = ProxyAnchor(5, 3, alpha, margin).double()
    vectors = unit(4, 3)
    expected = slow_anchor(vectors, labels, loss.proxies.detach(), alpha, margin)
    assert loss(vectors, torch.tensor(labels)).item() == pytest.approx(expected)


def test_anchor_by_hand() -> None:
    loss = ProxyAnchor(2, 2)
    with torch.no_grad():
        loss.proxies.copy_(torch.tensor([[3.0, 0.0], [0.0, 0.5]]))
    found = loss(torch.tensor([[1.0, 0.0]]), torch.tensor([0]))
    pull = math.log(1 + math.exp(-32 * 0.9))
    push = math.log(1 + math.exp(32 * 0.1)) / 2
    assert found.item() == pytest.approx(pull + push, rel=1e-5)


def slow_nca(vectors: Tensor, labels: list[int], proxies: Tensor, scale: float) -> float:
    total = 0.0
    for x, y in zip(vectors, labels, strict=True):
        near = [math.exp(-scale * float((x - p / p.norm()).pow(2).sum())) for p in proxies]
        total -= math.log(near[y] / (sum(near) - near[y]))
    return total / len(vectors)


@pytest.mark.parametrize("scale", [1.0, 8.0])
def test_nca_by_slow_loop(scale: float) -> None:
    loss = ProxyNCA(4, 3, scale).double()
    vectors, labels = unit(3, 3), [0, 3, 3]
    expected = slow_nca(vectors, labels, loss.proxies.detach(), scale)
    assert loss(vectors, torch.tensor(labels)).item() == pytest.approx(expected)


def test_nca_by_hand() -> None:
    """Distance 0 from the own proxy and 2 from the other: -log(1 / e^-2)."""
    loss = ProxyNCA(2, 2)
    with torch.no_grad():
        loss.proxies.copy_(torch.tensor([[3.0, 0.0], [0.0, 0.5]]))
    assert loss(torch.tensor([[1.0, 0.0]]), torch.tensor([0])).item() == pytest.approx(-2)


@pytest.mark.parametrize("kind", [ProxyAnchor, partial(ProxyAnchor, alpha=4.0), ProxyNCA])
def test_gradients(kind) -> None:
    loss = kind(4, 3).double()
    labels = torch.tensor([1, 1, 3])

    def run(vectors: Tensor, proxies: Tensor) -> Tensor:
        return torch.func.functional_call(loss, {"proxies": proxies}, (vectors, labels))

    proxies = loss.proxies.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(run, (unit(3, 3).requires_grad_(), proxies))


@pytest.mark.parametrize("kind", [ProxyAnchor, ProxyNCA])
def test_descent_pulls_own_and_pushes_other_proxies(kind) -> None:
    loss = kind(2, 2)
    with torch.no_grad():
        loss.proxies.copy_(torch.eye(2))
    vectors = functional.normalize(torch.tensor([[1.0, 1.0]]), dim=1).requires_grad_()
    loss(vectors, torch.tensor([0])).backward()
    assert vectors.grad is not None
    assert vectors.grad.sign().tolist() == [[-1, 1]]


@pytest.mark.parametrize("kind", [ProxyAnchor, partial(ProxyNCA, scale=32.0)])
def test_16_bit_and_extreme_vectors(kind) -> None:
    """The proxies point straight at the wrong class."""
    loss = kind(2, 2)
    with torch.no_grad():
        loss.proxies.copy_(torch.tensor([[-1.0, 0.0], [1.0, 0.0]]))
    vectors = torch.tensor([[1.0, 0.0]] * 3, dtype=torch.bfloat16)
    found = loss(vectors, torch.tensor([0, 0, 0]))
    assert found.dtype == torch.float32
    assert math.isfinite(found.item())
    found.backward()
    assert loss.proxies.grad.isfinite().all()


def test_proxies_start_as_kaiming_of_fan_out() -> None:
    """With 400 proxies the standard deviation is sqrt(2 / 400)."""
    torch.manual_seed(0)
    for kind in (ProxyAnchor, ProxyNCA):
        assert kind(400, 50).proxies.std().item() == pytest.approx(math.sqrt(2 / 400), rel=0.05)


def test_arguments_are_checked() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        ProxyNCA(1, 4)
    with pytest.raises(ValueError, match="above 0"):
        ProxyAnchor(0, 4)
    with pytest.raises(ValueError, match="above 0"):
        ProxyAnchor(3, 4, alpha=0.0)
