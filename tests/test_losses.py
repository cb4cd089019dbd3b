from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor

from lexvla.losses import InfoNCE, overuse_penalty, own_words_loss


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


def overuse_by_hand(vectors: list[list[float]]) -> float:
    size = len(vectors[0])
    means = [sum(row[j] for row in vectors) / len(vectors) for j in range(size)]
    return size * sum(mean / sum(means) * mean**2 for mean in means)


def flops(vectors: Tensor) -> Tensor:
    return vectors.mean(dim=0).pow(2).sum()


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
    assert flops(vectors).item() == pytest.approx(1)


@given(hnp.arrays("float64", (3, 5), elements=st.floats(0.01, 1)))
def test_overuse_is_at_least_flops(values: object) -> None:
    vectors = torch.nn.functional.normalize(torch.as_tensor(values), dim=1)
    assert overuse_penalty(vectors).item() >= flops(vectors).item() - 1e-6


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
