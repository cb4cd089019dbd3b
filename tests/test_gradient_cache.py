"""Gradient caching."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from backbone_fakes import TEXTS
from lexvla.losses import InfoNCE
from lexvla.training.gathering import gather_rows
from lexvla.training.gradient_cache import Parts, cached_backward
from training_fakes import (
    adapted,
    all_of,
    assert_all_close,
    pixels,
    unit,
)

pytestmark = pytest.mark.usefixtures("one_thread")


class Encoder(nn.Module):
    """A small tower with dropout, in float64."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(
            nn.Linear(5, 8), nn.Tanh(), nn.Dropout(0.4), nn.Linear(8, 4)
        ).double()

    def forward(self, rows: Tensor) -> Tensor:
        return functional.normalize(self.layers(rows), dim=1)


def contrast(columns: Parts) -> Tensor:
    return InfoNCE(0.2).double().symmetric(columns[0] @ columns[1].T)


def backward(value: Tensor) -> None:
    value.backward()


def gradients(module: nn.Module) -> list[Tensor]:
    found = [p.grad.clone() for p in module.parameters() if p.grad is not None]
    module.zero_grad()
    return found


@pytest.mark.parametrize("sizes", [(7,), (4, 3), (3, 3, 1), (1, 1, 5)])
@pytest.mark.parametrize("dropout", [False, True])
def test_parts_give_the_gradient_of_the_whole(sizes: tuple[int, ...], dropout: bool) -> None:
    encoder = Encoder().train(dropout)
    rows = torch.randn(2, 7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    spans = rows.split(list(sizes), dim=1)

    def forward(number: int) -> Parts:
        torch.manual_seed(number)
        return [encoder(part) for part in spans[number]]

    calls = [partial(forward, number) for number in range(len(sizes))]
    value = contrast([torch.cat(column) for column in zip(*(c() for c in calls), strict=True)])
    value.backward()
    expected = gradients(encoder)
    torch.manual_seed(99)
    found = cached_backward(calls, contrast, backward, nullcontext)
    assert not found.requires_grad
    torch.testing.assert_close(found, value.detach(), atol=1e-13, rtol=1e-12)
    assert_all_close(gradients(encoder), expected, 1e-12)


def test_what_the_loss_owns_gets_its_gradient_once() -> None:
    encoder, objective = Encoder().eval(), InfoNCE(0.2).double()
    rows = torch.randn(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def loss(columns: Parts) -> Tensor:
        return objective.symmetric(columns[0] @ columns[0].T)

    loss([encoder(rows)]).backward()
    expected = [*gradients(encoder), *gradients(objective)]
    calls = [lambda part=part: [encoder(part)] for part in rows.split(4)]
    cached_backward(calls, loss, backward, nullcontext)
    assert_all_close([*gradients(encoder), *gradients(objective)], expected, 1e-12)


def test_a_feature_that_the_loss_leaves_out_gets_no_gradient() -> None:
    used, unused = nn.Linear(3, 2), nn.Linear(3, 2)
    rows = unit(4, 3)
    calls = [lambda part=part: [used(part), unused(part)] for part in rows.split(2)]
    cached_backward(calls, lambda columns: columns[0].sum(), backward, nullcontext)
    torch.testing.assert_close(used.bias.grad, torch.full((2,), 4.0))
    assert all(p.grad is None or not p.grad.any() for p in unused.parameters())


def test_one_parts_graph_at_a_time() -> None:
    """What autograd saves of a part is gone before the next part is run."""
    encoder = Encoder().train()
    rows = torch.randn(12, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    saved: list[int] = []

    class Saved:
        def __init__(self, value: Tensor) -> None:
            self.value = value
            saved.append(id(self))

        def __del__(self) -> None:
            saved.remove(id(self))

    before: list[int] = []

    def forward(part: Tensor) -> Parts:
        before.append(len(saved))
        with torch.autograd.graph.saved_tensors_hooks(Saved, lambda held: held.value):
            return [encoder(part)]

    calls = [partial(forward, part) for part in rows.split(3)]
    loss = cached_backward(calls, lambda c: (c[0] @ c[0].T).square().mean(), backward, nullcontext)
    assert loss.item() > 0
    assert before == [0] * 8
    assert saved == []


@pytest.mark.parametrize("count", [1, 2, 3])
def test_only_the_last_part_is_shared_with_other_processes(count: int) -> None:
    layer = nn.Linear(3, 2)
    log: list[str] = []

    @contextmanager
    def context() -> Iterator[None]:
        log.append("enter")
        yield
        log.append("exit")

    def forward(part: Tensor) -> Parts:
        log.append("forward" if torch.is_grad_enabled() else "look")
        return [layer(part)]

    def logged(value: Tensor) -> None:
        log.append("backward")
        value.backward()

    def before_last() -> AbstractContextManager[None]:
        return context()

    calls = [partial(forward, part) for part in unit(count, 3).split(1)]
    cached_backward(calls, lambda columns: columns[0].sum(), logged, before_last)
    inside = ["enter", "forward", "backward", "exit"]
    assert log == ["look"] * count + inside * (count - 1) + ["forward", "backward"]


@pytest.mark.parametrize("size", [2, 1])
def test_parts_of_a_lexvla(text_model: str, vision_model: str, size: int) -> None:
    """In train mode, with LoRA's dropout: each part draws the same in both passes."""
    model = adapted(text_model, vision_model).train()
    images, ids = pixels(), model.prompt_ids(TEXTS)
    spans = [slice(first, first + size) for first in range(0, 3, size)]

    def forward(span: slice) -> Parts:
        torch.manual_seed(span.start)
        image, text = model(images[span], ids[span], dense=True)
        return all_of(image, text)

    def loss(columns: Parts) -> Tensor:
        words, image, other, text = columns
        objective = InfoNCE(0.1)
        return objective.symmetric(words @ other.T) + objective.symmetric(image @ text.T)

    calls = [partial(forward, span) for span in spans]
    value = loss([torch.cat(column) for column in zip(*(c() for c in calls), strict=True)])
    value.backward()
    expected = gradients(model)
    assert len(expected) > 20
    found = cached_backward(calls, loss, backward, nullcontext)
    torch.testing.assert_close(found, value.detach())
    for one, other in zip(gradients(model), expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4 * float(other.abs().max()), rtol=1e-4)


def test_alone_rows_are_gathered_as_they_are() -> None:
    rows = unit(3, 2)
    assert gather_rows(rows) is rows
