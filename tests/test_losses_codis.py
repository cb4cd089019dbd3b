from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from lexvla.codebook import ipot, sinkhorn
from lexvla.losses import codis_loss


def unit(*shape: int, seed: int = 0) -> Tensor:
    values = torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return functional.normalize(values, dim=-1)


def ipot_of_cosines(cosines: Tensor) -> Tensor:
    return ipot(1 - cosines)


def inputs(rows: int = 3, codes: int = 4) -> tuple[Tensor, ...]:
    """Return images, texts, both teachers' vectors, and codes that are no unit vectors."""
    sides = [unit(rows, 3, seed=seed) for seed in range(4)]
    return (*sides, 2 * unit(codes, 3, seed=9))


def slow_swap(student: Tensor, codes: Tensor, plan: Tensor, tau: float) -> float:
    total = 0.0
    for n in range(len(student)):
        logits = [float(student[n] @ code / code.norm()) / tau for code in codes]
        norm = math.log(sum(map(math.exp, logits)))
        share = [float(x) / float(plan[n].sum()) for x in plan[n]]
        total -= sum(s * (x - norm) for s, x in zip(share, logits, strict=True))
    return total / len(student)


@pytest.mark.parametrize("solver", [sinkhorn, ipot_of_cosines])
def test_terms_by_slow_loop(solver) -> None:
    images, texts, image_teacher, text_teacher, codes = inputs()
    found = codis_loss(*inputs(), 0.2, solver=solver)
    plans, costs = [], []
    for teacher in (image_teacher, text_teacher):
        cosines = [[float(row @ code / code.norm()) for code in codes] for row in teacher]
        plan = solver(torch.tensor(cosines))
        plans.append(plan)
        costs.append(
            sum(float(plan[i, j]) * (1 - cosines[i][j]) for i in range(3) for j in range(4))
        )
    assert found.image_transport.item() == pytest.approx(costs[0], rel=1e-5)
    assert found.text_transport.item() == pytest.approx(costs[1], rel=1e-5)
    # Swapped: the text's student learns the image teacher's plan.
    assert found.text_to_codes.item() == pytest.approx(
        slow_swap(texts, codes, plans[0], 0.2), rel=1e-5
    )
    assert found.image_to_codes.item() == pytest.approx(
        slow_swap(images, codes, plans[1], 0.2), rel=1e-5
    )


def test_vectors_on_their_codes_cost_nothing_to_move() -> None:
    items = torch.eye(3)
    terms = codis_loss(items, items, items, items, items, 0.1)
    assert terms.image_transport.item() == pytest.approx(0, abs=1e-6)
    expected = math.log(1 + 2 * math.exp(-10))
    assert terms.text_to_codes.item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("codes", "used"), [(4, 0), (6, 0), (7, 1), (10, 2), (40, 5)])
def test_the_queue_fills_up_to_half_the_codes(codes: int, used: int) -> None:
    """A batch of 3 and a queue of 5."""
    seen = []

    def solver(cosines: Tensor) -> Tensor:
        seen.append(cosines)
        return sinkhorn(cosines)

    queues = unit(5, 3, seed=5), unit(5, 3, seed=6)
    terms = codis_loss(*inputs(3, codes), 0.2, *queues, solver)
    assert [len(part) for part in seen] == [3 + used, 3 + used]
    cosines = torch.cat([inputs()[2], queues[0][:used]]) @ unit(codes, 3, seed=9).T
    cost = (sinkhorn(cosines) * (1 - cosines)).sum()
    assert terms.image_transport.item() == pytest.approx(cost.item())


def test_gradients() -> None:
    """The plan is fixed: the loss does not differentiate through it, but differences would."""
    images, texts, image_teacher, text_teacher, codes = inputs()
    plan = sinkhorn(unit(3, 4))

    def run(images: Tensor, texts: Tensor, codes: Tensor) -> tuple[Tensor, ...]:
        return codis_loss(
            images, texts, image_teacher, text_teacher, codes, 0.3, solver=lambda _: plan
        )

    leaves = [value.requires_grad_() for value in (images, texts, codes)]
    assert torch.autograd.gradcheck(run, leaves)


def test_gradients_reach_students_and_codes_only() -> None:
    leaves = [value.requires_grad_() for value in inputs()]
    queue = unit(2, 3).requires_grad_()
    sum(codis_loss(*leaves, 0.2, queue, queue)).backward()
    images, texts, image_teacher, text_teacher, codes = leaves
    for learnt in (images, texts, codes):
        assert learnt.grad is not None
        assert learnt.grad.abs().max() > 0
    for fixed in (image_teacher, text_teacher, queue):
        assert fixed.grad is None


def test_no_gradient_goes_through_a_solver_that_has_one() -> None:
    values = inputs()
    codes = values[4].requires_grad_()
    codis_loss(*values, 0.2, solver=lambda x: x.softmax(dim=1) / 3).image_transport.backward()
    cosines = values[2] @ functional.normalize(codes, dim=1).T
    plan = cosines.detach().softmax(dim=1) / 3
    (expected,) = torch.autograd.grad((plan * (1 - cosines)).sum(), codes)
    torch.testing.assert_close(codes.grad, expected)


def test_transport_moves_codes_by_the_cost_alone() -> None:
    """Its gradient is that of <T, D> with a constant T."""
    values = inputs()
    codes = values[4].requires_grad_()
    codis_loss(*values, 0.2).image_transport.backward()
    cosines = values[2] @ functional.normalize(codes, dim=1).T
    plan = sinkhorn(cosines).double()
    (expected,) = torch.autograd.grad((plan * (1 - cosines)).sum(), codes)
    torch.testing.assert_close(codes.grad, expected)


def test_16_bit_vectors_are_accepted() -> None:
    terms = codis_loss(*(value.bfloat16() for value in inputs()), 0.05)
    for term in terms:
        assert term.dtype == torch.float32
        assert math.isfinite(term.item())
