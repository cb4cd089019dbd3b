from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor

from lexvla.losses import (
    CLIP_LIMITS,
    TCL_LIMITS,
    InfoNCE,
    flops_penalty,
    overuse_penalty,
    own_words_loss,
)


def softmax_loss(row: list[float], target: int, scale: float) -> float:
    return -scale * row[target] + math.log(sum(math.exp(scale * value) for value in row))


def test_info_nce_is_the_mean_cross_entropy_of_its_rows() -> None:
    rows = [[0.9, 0.1, -0.2], [0.3, 0.5, 0.4]]
    loss = InfoNCE(0.1)(torch.tensor(rows), torch.tensor([0, 2]))
    expected = (softmax_loss(rows[0], 0, 10) + softmax_loss(rows[1], 2, 10)) / 2
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_info_nce_shares_a_target_over_several_columns() -> None:
    rows = [[0.9, 0.1, -0.2]]
    loss = InfoNCE(0.5)(torch.tensor(rows), torch.tensor([[0.75, 0.25, 0.0]]))
    expected = 0.75 * softmax_loss(rows[0], 0, 2) + 0.25 * softmax_loss(rows[0], 1, 2)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_info_nce_of_equal_columns_is_the_logarithm_of_their_number() -> None:
    assert InfoNCE()(torch.zeros(4, 8), torch.arange(4)).item() == pytest.approx(math.log(8))


def test_the_temperature_starts_where_it_is_set_and_stops_at_a_hundredth() -> None:
    loss = InfoNCE()
    assert loss.log_scale.exp().item() == pytest.approx(1 / 0.07)
    rows, targets = torch.tensor([[0.0, 0.01]]), torch.tensor([0])
    with torch.no_grad():
        loss.log_scale.fill_(20.0)
    assert loss(rows, targets).item() == pytest.approx(softmax_loss([0.0, 0.01], 0, 100))


def test_info_nce_gradients() -> None:
    loss = InfoNCE(0.5)
    rows = torch.tensor([[0.2, 0.4, 0.1]], requires_grad=True)
    loss(rows, torch.tensor([0])).backward()
    assert rows.grad is not None
    assert rows.grad.sign().tolist() == [[-1, 1, 1]]  # descent raises the positive
    assert loss.log_scale.grad is not None
    assert loss.log_scale.grad > 0  # the positive is not the best: be less sure


def test_info_nce_computes_in_float32() -> None:
    rows = torch.tensor([[0.5, 0.25]], dtype=torch.bfloat16)
    loss = InfoNCE(1.0)(rows, torch.tensor([0]))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(softmax_loss([0.5, 0.25], 0, 1))


def test_both_directions_add_up() -> None:
    rows = [[0.9, 0.1], [0.3, 0.5]]
    columns = [[0.9, 0.3], [0.1, 0.5]]
    expected = sum(softmax_loss(side[i], i, 10) / 2 for side in (rows, columns) for i in range(2))
    assert InfoNCE(0.1).symmetric(torch.tensor(rows)).item() == pytest.approx(expected, rel=1e-5)


def test_both_directions_share_their_positives_out() -> None:
    """Row 0 has columns 0 and 1; column 2 has no row, and adds nothing to the mean of three."""
    rows = torch.tensor([[0.9, 0.1, -0.2], [0.3, 0.5, 0.4]])
    found = InfoNCE(0.5).symmetric(rows, torch.tensor([[True, True, False], [True, False, False]]))
    a, b = rows.tolist()
    forth = (softmax_loss(a, 0, 2) + softmax_loss(a, 1, 2)) / 2 + softmax_loss(b, 0, 2)
    c, d = rows.T.tolist()[:2]
    back = (softmax_loss(c, 0, 2) + softmax_loss(c, 1, 2)) / 2 + softmax_loss(d, 0, 2)
    assert found.item() == pytest.approx(forth / 2 + back / 3, rel=1e-5)


def test_pairs_that_are_not_square_need_their_positives() -> None:
    with pytest.raises(ValueError, match="give positives"):
        InfoNCE().symmetric(torch.zeros(2, 3))


@pytest.mark.parametrize(
    ("limits", "start", "expected"),
    [
        (CLIP_LIMITS, 0.0001, 0.01),
        (CLIP_LIMITS, 70.0, 70.0),
        (TCL_LIMITS, 0.0001, 0.001),
        (TCL_LIMITS, 0.07, 0.07),
        (TCL_LIMITS, 70.0, 0.5),
    ],
)
def test_the_temperature_stays_in_its_limits(
    limits: tuple[float, float], start: float, expected: float
) -> None:
    loss = InfoNCE(start, limits)
    assert loss.temperature.item() == pytest.approx(expected)
    loss.clamp_temperature()
    assert loss.log_scale.exp().item() == pytest.approx(1 / expected)
    assert loss.temperature.item() == pytest.approx(expected)


@pytest.mark.parametrize("limits", [(0.0, 1.0), (0.5, 0.1), (-1.0, 1.0)])
def test_limits_are_checked(limits: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="limits"):
        InfoNCE(limits=limits)


def test_flops_by_hand() -> None:
    vectors = torch.tensor([[0.6, 0.8, 0.0], [1.0, 0.0, 0.0]])
    assert flops_penalty(vectors).item() == pytest.approx(0.8**2 + 0.4**2)
    assert flops_penalty(vectors.bfloat16()).dtype == torch.float32
    assert flops_penalty(vectors.bfloat16()).item() == pytest.approx(0.8, rel=0.01)


def test_flops_equal_overuse_where_all_words_are_used_alike() -> None:
    assert flops_penalty(torch.eye(4)).item() == pytest.approx(1 / 4)
    assert overuse_penalty(torch.eye(4)).item() == pytest.approx(1 / 4)


def random(*shape: int) -> Tensor:
    values = torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    return (values + 0.1).requires_grad_()


@pytest.mark.parametrize("penalty", [flops_penalty, overuse_penalty])
def test_gradients_of_the_penalties(penalty: Callable[[Tensor], Tensor]) -> None:
    assert torch.autograd.gradcheck(penalty, random(3, 4))


def test_gradients_of_own_words() -> None:
    words = torch.tensor([[1.0, 0.0, 0.5], [0.0, 0.0, 0.0]], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: own_words_loss(x, words), random(2, 3))


def test_gradients_of_info_nce() -> None:
    """Of the temperature too."""
    loss = InfoNCE(0.3).double()
    targets = torch.tensor([[0.25, 0.75, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)

    def run(scale: Tensor, rows: Tensor, method: str, *extra: Tensor) -> Tensor:
        return torch.func.functional_call(
            Method(loss, method), {"loss.log_scale": scale}, (rows, *extra)
        )

    scale = torch.tensor(1.2, dtype=torch.float64, requires_grad=True)
    rows = random(2, 3)
    for extra in (torch.tensor([0, 2]), targets):
        assert torch.autograd.gradcheck(
            lambda s, r, extra=extra: run(s, r, "forward", extra), (scale, rows)
        )
    assert torch.autograd.gradcheck(lambda s, r: run(s, r, "symmetric"), (scale, random(3, 3)))


class Method(torch.nn.Module):
    """One method of a loss, for functional_call, which runs forward only."""

    def __init__(self, loss: InfoNCE, name: str) -> None:
        super().__init__()
        self.loss, self.name = loss, name

    def forward(self, *args: Tensor) -> Tensor:
        return getattr(self.loss, self.name)(*args)


def overuse_by_hand(vectors: list[list[float]]) -> float:
    size = len(vectors[0])
    means = [sum(row[j] for row in vectors) / len(vectors) for j in range(size)]
    return size * sum(mean / sum(means) * mean**2 for mean in means)


@pytest.mark.parametrize(
    "vectors",
    [[[1.0, 0.0]], [[0.6, 0.8], [1.0, 0.0]], [[0.6, 0.0, 0.8], [0.0, 1.0, 0.0], [0.8, 0.6, 0.0]]],
)
def test_overuse_by_hand(vectors: list[list[float]]) -> None:
    assert overuse_penalty(torch.tensor(vectors)).item() == pytest.approx(overuse_by_hand(vectors))


@pytest.mark.parametrize("size", [1, 2, 100])
def test_uniform_unit_vectors_cost_one(size: int) -> None:
    vectors = torch.full((3, size), size**-0.5)
    assert overuse_penalty(vectors).item() == pytest.approx(1)
    assert flops_penalty(vectors).item() == pytest.approx(1)


@given(hnp.arrays("float64", (3, 5), elements=st.floats(0.01, 1)))
def test_overuse_is_at_least_flops(values: object) -> None:
    vectors = torch.nn.functional.normalize(torch.as_tensor(values), dim=1)
    assert overuse_penalty(vectors).item() >= flops_penalty(vectors).item() - 1e-6


def test_a_word_that_all_items_use_costs_more_than_words_of_their_own() -> None:
    own = torch.eye(4)
    shared = torch.zeros(4, 4)
    shared[:, 0] = 1
    assert overuse_penalty(own).item() == pytest.approx(0.25**2 * 4)
    assert overuse_penalty(shared).item() == pytest.approx(4)


def test_overuse_pushes_the_most_used_word_hardest() -> None:
    vectors = torch.tensor([[0.6, 0.8, 0.0], [0.0, 1.0, 0.0]], requires_grad=True)
    overuse_penalty(vectors).backward()
    assert vectors.grad is not None
    assert vectors.grad[0].argmax() == 1
    assert vectors.grad[0, 1] > 0
    torch.testing.assert_close(vectors.grad[0], vectors.grad[1])


def own_words_by_hand(logits: list[float], words: list[float]) -> float:
    other = sum(math.exp(x) for x, w in zip(logits, words, strict=True) if w == 0)
    own = sum(w * math.exp(-x) for x, w in zip(logits, words, strict=True) if w > 0)
    return math.log(1 + other) + math.log(1 + own)


def test_own_words_by_hand() -> None:
    logits = [[0.5, -1.0, 2.0, 0.0], [-3.0, 1.0, 0.0, 4.0]]
    words = [[1.0, 0.0, 0.5, 0.0], [0.0, 0.0, 0.0, 2.0]]
    expected = sum(map(own_words_by_hand, logits, words)) / 2
    loss = own_words_loss(torch.tensor(logits), torch.tensor(words))
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_own_words_gradients_raise_own_and_lower_other_words() -> None:
    logits = torch.zeros(1, 4, requires_grad=True)
    own_words_loss(logits, torch.tensor([[2.0, 0.0, 1.0, 0.0]])).backward()
    assert logits.grad is not None
    # 1 + 2 own parts weigh 2/4 and 1/4; of 1 + 2 others each weighs 1/3.
    torch.testing.assert_close(logits.grad, torch.tensor([[-1 / 2, 1 / 3, -1 / 4, 1 / 3]]))


@pytest.mark.parametrize("words", [[0.0, 0.0, 0.0], [1.0, 1.0, 0.5], [1.0, 0.0, 0.0]])
@pytest.mark.parametrize("size", [0.0, 50.0, 1e4, -1e4])
def test_own_words_stay_finite(words: list[float], size: float) -> None:
    """Whatever the logits, and though an item may have no word, or all of them."""
    logits = torch.tensor([[size, -size, size]], requires_grad=True)
    loss = own_words_loss(logits, torch.tensor([words]))
    loss.backward()
    assert math.isfinite(loss.item())
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_own_words_loss_is_nearly_nothing_when_all_is_right() -> None:
    logits, words = torch.tensor([[20.0, -20.0, -20.0]]), torch.tensor([[1.0, 0.0, 0.0]])
    assert own_words_loss(logits, words).item() < 1e-6
    assert own_words_loss(-logits, words).item() == pytest.approx(40 + math.log(2), rel=1e-4)
