from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from lexvla.losses import (
    cross_modal_loss,
    intra_modal_loss,
    local_loss,
    pool_patches,
    ramped_alpha,
)


def unit(*shape: int, seed: int = 0) -> Tensor:
    values = torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return functional.normalize(values, dim=-1)


def softmax(logits: list[float]) -> list[float]:
    total = sum(map(math.exp, logits))
    return [math.exp(x) / total for x in logits]


def slow_cross_modal(
    student: Tensor, teacher: Tensor, keys: Tensor, tau: float, alpha: float, same: list[list[int]]
) -> float:
    total = 0.0
    for n in range(len(student)):
        guess = softmax([float(student[n] @ key) / tau for key in keys])
        soft = softmax([float(teacher[n] @ key) / tau for key in keys])
        for j in range(len(keys)):
            hard = 1 / len(same[n]) if j in same[n] else 0.0
            total -= (alpha * soft[j] + (1 - alpha) * hard) * math.log(guess[j])
    return total / len(student)


@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("batch", [1, 3])
def test_cross_modal_by_slow_loop(alpha: float, batch: int) -> None:
    student, teacher, keys = unit(batch, 4), unit(batch, 4, seed=1), unit(batch + 5, 4, seed=2)
    own = [[n] for n in range(batch)]
    expected = slow_cross_modal(student, teacher, keys, 0.2, alpha, own)
    assert cross_modal_loss(student, teacher, keys, 0.2, alpha).item() == pytest.approx(expected)


def test_keys_of_the_same_item_share_the_target() -> None:
    student, teacher, keys = unit(2, 4), unit(2, 4, seed=1), unit(5, 4, seed=2)
    same = torch.tensor([[1, 0, 0, 1, 0], [0, 1, 0, 0, 0]], dtype=torch.bool)
    expected = slow_cross_modal(student, teacher, keys, 0.5, 0.4, [[0, 3], [1]])
    found = cross_modal_loss(student, teacher, keys, 0.5, positives=same)
    assert found.item() == pytest.approx(expected)


def test_cross_modal_by_hand() -> None:
    """Equal keys for the student, so its guess is 1/2 whatever the target."""
    keys = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    student = torch.tensor([[0.0, 1.0]])
    teacher = torch.tensor([[1.0, 0.0]])
    assert cross_modal_loss(student, teacher, keys, 0.1).item() == pytest.approx(math.log(2))
    # Without a part of the teacher's: log(1 + e^-2).
    found = cross_modal_loss(teacher, student, keys, 1.0, alpha=0.0)
    assert found.item() == pytest.approx(math.log(1 + math.exp(-2)))


def test_alpha_is_ramped_over_the_first_epoch() -> None:
    assert [ramped_alpha(step, 10) for step in (0, 5, 10, 99)] == pytest.approx([0, 0.2, 0.4, 0.4])
    assert ramped_alpha(0, 0, 0.3) == 0.3


@pytest.mark.parametrize("batch", [1, 3])
def test_intra_modal_has_hard_targets(batch: int) -> None:
    student, keys = unit(batch, 4), unit(batch + 2, 4, seed=1)
    expected = slow_cross_modal(student, student, keys, 0.3, 0.0, [[n] for n in range(batch)])
    assert intra_modal_loss(student, keys, 0.3).item() == pytest.approx(expected)


def test_intra_modal_by_hand() -> None:
    """The first row's guess is 1/3 for each key, the second's own key is the nearest."""
    keys = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [1.0, 0.0]])
    student = torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
    own = (math.log(3) + math.log(1 + 2 * math.exp(-2))) / 2
    assert intra_modal_loss(student, keys, 1.0).item() == pytest.approx(own)
    alone = torch.eye(2, 3, dtype=torch.bool)
    assert intra_modal_loss(student, keys, 1.0, alone).item() == pytest.approx(own)
    # The second row's target is shared by its own key and the far one.
    both = torch.tensor([[True, False, True], [False, True, True]])
    second = math.log(1 + 2 * math.exp(-2)) / 2 + math.log(2 + math.exp(2)) / 2
    expected = (math.log(3) + second) / 2
    assert intra_modal_loss(student, keys, 1.0, both).item() == pytest.approx(expected)


def test_intra_modal_with_keys_of_the_same_item_by_slow_loop() -> None:
    student, keys = unit(2, 4), unit(5, 4, seed=1)
    same = torch.tensor([[1, 0, 0, 1, 0], [0, 1, 0, 0, 0]], dtype=torch.bool)
    expected = slow_cross_modal(student, student, keys, 0.3, 0.0, [[0, 3], [1]])
    assert intra_modal_loss(student, keys, 0.3, same).item() == pytest.approx(expected)


def slow_local(student: Tensor, locals_: Tensor, tau: float, mask: list[list[int]]) -> float:
    total = 0.0
    for n in range(len(student)):
        others = sum(
            math.exp(float(locals_[j, k] @ student[n]) / tau)
            for j in range(len(student))
            for k in range(locals_.shape[1])
            if j != n and mask[j][k]
        )
        losses = []
        for k in range(locals_.shape[1]):
            if mask[n][k]:
                own = math.exp(float(locals_[n, k] @ student[n]) / tau)
                losses.append(-math.log(own / (own + others)))
        total += sum(losses) / len(losses)
    return total / len(student)


def test_local_by_slow_loop() -> None:
    student, locals_ = unit(3, 4), unit(3, 5, 4, seed=1)
    whole = [[1] * 5] * 3
    expected = slow_local(student, locals_, 0.2, whole)
    assert local_loss(student, locals_, 0.2).item() == pytest.approx(expected)
    full = local_loss(student, locals_, 0.2, torch.tensor(whole).bool())
    assert full.item() == pytest.approx(expected)


def test_local_with_pads_by_slow_loop() -> None:
    student, locals_ = unit(3, 4), unit(3, 5, 4, seed=1)
    mask = [[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 0, 0, 0, 0]]
    expected = slow_local(student, locals_, 0.2, mask)
    found = local_loss(student, locals_, 0.2, torch.tensor(mask).bool())
    assert found.item() == pytest.approx(expected)


def test_what_stands_in_a_pad_does_not_matter() -> None:
    student, locals_ = unit(2, 4), unit(2, 3, 4, seed=1)
    mask = torch.tensor([[True, True, False], [True, True, True]])
    changed = locals_.clone()
    changed[0, 2] = 9.0
    torch.testing.assert_close(
        local_loss(student, locals_, 0.1, mask), local_loss(student, changed, 0.1, mask)
    )


def test_one_item_has_no_negatives() -> None:
    student = unit(1, 4).requires_grad_()
    for mask in (None, torch.tensor([[True, False, True]])):
        loss = local_loss(student, unit(1, 3, 4, seed=1), 0.07, mask)
        loss.backward()
        assert loss.item() == 0
    assert student.grad is not None
    assert student.grad.abs().max() == 0


def test_an_item_of_pads_only_costs_nothing() -> None:
    student = unit(2, 4).requires_grad_()
    mask = torch.tensor([[False, False], [True, True]])
    loss = local_loss(student, unit(2, 2, 4, seed=1), 0.07, mask)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-12)  # its locals are no negatives either


@pytest.mark.parametrize(("rows", "columns"), [(16, 16), (4, 4), (8, 12), (24, 24)])
def test_pooling_by_slow_loop(rows: int, columns: int) -> None:
    patches = unit(2, rows * columns, 3)
    found = pool_patches(patches, (rows, columns))
    assert found.shape == (2, 16, 3)
    high, wide = rows // 4, columns // 4
    for window in range(16):
        top, left = window // 4 * high, window % 4 * wide
        inside = [r * columns + c for r in range(top, top + high) for c in range(left, left + wide)]
        torch.testing.assert_close(found[:, window], patches[:, inside].mean(dim=1))


def test_any_grid_gives_16_locals() -> None:
    assert pool_patches(unit(1, 49, 3)).shape == (1, 16, 3)
    assert pool_patches(unit(1, 10, 3), (5, 2)).shape == (1, 16, 3)
    assert pool_patches(unit(1, 36, 3), side=2).shape == (1, 4, 3)
    with pytest.raises(ValueError, match="10 patches do not fill a grid of 3 by 3"):
        pool_patches(unit(1, 10, 3))


def test_gradients() -> None:
    """Of the student and of the temperature; the teacher gets none."""
    student = unit(2, 3).requires_grad_()
    tau = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    keys, locals_ = unit(4, 3, seed=1), unit(2, 2, 3, seed=2)
    mask = torch.tensor([[True, True], [True, False]])
    check = torch.autograd.gradcheck
    assert check(lambda s, t: cross_modal_loss(s, keys[:2], keys, t, 0.0), (student, tau))
    # The targets depend on the temperature, without a gradient.
    assert check(lambda s: cross_modal_loss(s, keys[:2], keys, 0.4), student)
    assert check(lambda s, t: intra_modal_loss(s, keys, t), (student, tau))
    same = torch.tensor([[True, False, True, False], [False, True, False, False]])
    assert check(lambda s, t: intra_modal_loss(s, keys, t, same), (student, tau))
    assert check(lambda s, t: local_loss(s, locals_, t, mask), (student, tau))
    assert check(lambda p: pool_patches(p, (5, 4)), unit(1, 20, 2).requires_grad_())


def test_no_gradient_reaches_the_teacher() -> None:
    student = unit(2, 3).requires_grad_()
    teacher, keys, locals_ = (
        unit(*shape, seed=1).requires_grad_() for shape in ((2, 3), (4, 3), (2, 2, 3))
    )
    loss = cross_modal_loss(student, teacher, keys, 0.1) + intra_modal_loss(student, keys, 0.1)
    (loss + local_loss(student, locals_, 0.1)).backward()
    assert student.grad is not None
    assert teacher.grad is None
    assert keys.grad is None
    assert locals_.grad is None


def test_16_bit_vectors_are_compared_in_32_bits() -> None:
    student, keys, locals_ = unit(2, 4).bfloat16(), unit(3, 4).float(), unit(2, 3, 4).bfloat16()
    assert cross_modal_loss(student, student, keys, 0.07).dtype == torch.float32
    assert intra_modal_loss(student, keys, 0.07).dtype == torch.float32
    assert local_loss(student, locals_, 0.001).dtype == torch.float32
    assert math.isfinite(local_loss(student, locals_, 0.001).item())
