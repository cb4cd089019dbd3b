from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.optimize import linprog

from lexvla import codebook as codebook_module
from lexvla.codebook import (
    Codebook,
    code_counts,
    count_dead_codes,
    ipot,
    sinkhorn,
    spherical_kmeans,
    usage_entropy,
)
from lexvla.dense_head import DenseHead


def test_assignment_is_a_softmax_of_cosines() -> None:
    codebook = Codebook(2, 2, temperature=0.5)
    with torch.no_grad():
        codebook.codes.copy_(torch.tensor([[3.0, 0.0], [0.0, 0.25]]))  # length does not matter
        found = codebook(torch.tensor([[1.0, 0.0], [0.6, 0.8]]))
    one = math.exp(1 / 0.5) / (math.exp(1 / 0.5) + 1)
    two = math.exp(1.2) / (math.exp(1.2) + math.exp(1.6))
    torch.testing.assert_close(found, torch.tensor([[one, 1 - one], [two, 1 - two]]))


def test_codes_start_as_unit_vectors() -> None:
    torch.testing.assert_close(Codebook(5, 3, 1.0).codes.norm(dim=1), torch.ones(5))


def test_dense_vectors_are_unit_float32_in_any_precision() -> None:
    head = DenseHead(4, 3)
    for dtype in (torch.float32, torch.bfloat16):
        vectors = head.to(dtype)(torch.randn(2, 5, 4))
        assert vectors.shape == (2, 5, 3)
        assert vectors.dtype == torch.float32
        torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(2, 5))


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(values, dim=-1)


def slow_sinkhorn(scores: list[list[float]], epsilon: float, rounds: int) -> list[list[float]]:
    plan = [[math.exp(x / epsilon) for x in row] for row in scores]
    rows, columns = len(plan), len(plan[0])
    for _ in range(rounds):
        sums = [sum(row[j] for row in plan) for j in range(columns)]
        plan = [[x / s / columns for x, s in zip(row, sums, strict=True)] for row in plan]
        plan = [[x / sum(row) / rows for x in row] for row in plan]
    return plan


@pytest.mark.parametrize("rounds", [1, 3])
def test_sinkhorn_by_slow_loop(rounds: int) -> None:
    scores = [[0.9, 0.1, -0.5], [0.8, 0.7, 0.0], [0.9, -0.9, 0.2], [0.0, 0.0, 0.1]]
    expected = torch.tensor(slow_sinkhorn(scores, 0.2, rounds))
    torch.testing.assert_close(sinkhorn(torch.tensor(scores), 0.2, rounds), expected)


def test_sinkhorn_shares_items_out() -> None:
    plan = sinkhorn(unit(12, 4) @ unit(6, 4, seed=1).T, epsilon=0.2, rounds=100)
    torch.testing.assert_close(plan.sum(dim=1), torch.full((12,), 1 / 12))
    torch.testing.assert_close(plan.sum(dim=0), torch.full((6,), 1 / 6), rtol=1e-3, atol=0)
    usual = sinkhorn(unit(12, 4) @ unit(6, 4, seed=1).T)
    torch.testing.assert_close(usual.sum(dim=1), torch.full((12,), 1 / 12))
    assert (usual.sum(dim=0) - 1 / 6).abs().max() < 0.1


def test_sinkhorn_does_not_overflow() -> None:
    scores = torch.tensor([[1.0, -1.0], [1.0, -1.0]], dtype=torch.bfloat16)
    plan = sinkhorn(scores, epsilon=0.001)
    assert plan.dtype == torch.float32
    torch.testing.assert_close(plan, torch.full((2, 2), 0.25))


def slow_ipot(cost: np.ndarray, beta: float, iterations: int) -> np.ndarray:
    """As published: in plain numbers, not in logarithms."""
    rows, columns = cost.shape
    sigma, plan, kernel = np.full(columns, 1 / columns), np.ones((rows, columns)), -cost / beta
    for _ in range(iterations):
        q = np.exp(kernel) * plan
        delta = 1 / (rows * (q @ sigma))
        sigma = 1 / (columns * (q.T @ delta))
        plan = delta[:, None] * q * sigma
    return plan


def test_ipot_by_slow_loop() -> None:
    cost = np.random.default_rng(0).uniform(0, 2, (5, 3))
    found = ipot(torch.from_numpy(cost))
    np.testing.assert_allclose(found, slow_ipot(cost, 0.5, 50), atol=1e-5)
    np.testing.assert_allclose(found.sum(dim=0), 1 / 3, atol=1e-5)
    np.testing.assert_allclose(found.sum(dim=1), 1 / 5, atol=1e-2)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("rows", "columns"), [(3, 3), (6, 3), (4, 5)])
def test_ipot_nears_the_optimum(rows: int, columns: int, seed: int) -> None:
    """Found by a linear programme over all plans with these margins."""
    cost = np.random.default_rng(seed).uniform(0, 2, (rows, columns))
    margins = [np.kron(np.eye(rows), np.ones(columns)), np.kron(np.ones(rows), np.eye(columns))]
    totals = [1 / rows] * rows + [1 / columns] * columns
    exact = linprog(cost.ravel(), A_eq=np.vstack(margins), b_eq=totals)
    plan = ipot(torch.from_numpy(cost), beta=0.02, iterations=300).numpy()
    assert float((plan * cost).sum()) == pytest.approx(exact.fun, abs=1e-3)
    np.testing.assert_allclose(plan.sum(axis=1), 1 / rows, atol=1e-3)
    np.testing.assert_allclose(plan.sum(axis=0), 1 / columns, atol=1e-3)


def test_plans_have_no_gradient() -> None:
    scores = unit(3, 2).requires_grad_()
    assert not sinkhorn(scores).requires_grad
    assert not ipot(1 - scores).requires_grad


def groups(count: int, each: int) -> torch.Tensor:
    """Return vectors of different lengths, close around each axis in turn."""
    axes = torch.eye(count).repeat(each, 1)
    noise = 0.05 * torch.randn(axes.shape, generator=torch.Generator().manual_seed(0))
    return (axes + noise) * torch.arange(1, len(axes) + 1)[:, None]


@pytest.mark.parametrize("seed", range(5))
def test_kmeans_finds_groups_by_direction(seed: int) -> None:
    vectors = groups(6, 5)
    centres, nearest = spherical_kmeans(vectors, 6, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(centres.norm(dim=1), torch.ones(6))
    assert sorted(nearest[:6].tolist()) == list(range(6))
    assert torch.equal(nearest, nearest[:6].repeat(5))
    units = torch.nn.functional.normalize(vectors, dim=1)
    for cluster in range(6):
        mean = torch.nn.functional.normalize(units[nearest == cluster].mean(dim=0), dim=0)
        torch.testing.assert_close(centres[cluster], mean)


def test_kmeans_has_a_centre_for_each_vector() -> None:
    """As many clusters as vectors: none may stay empty."""
    for seed in range(5):
        _, nearest = spherical_kmeans(unit(7, 3), 7, generator=torch.Generator().manual_seed(seed))
        assert sorted(nearest.tolist()) == list(range(7))


def test_kmeans_stands_equal_vectors() -> None:
    centres, nearest = spherical_kmeans(torch.ones(5, 2), 3)
    assert centres.isfinite().all()
    assert len(set(nearest.tolist())) == 1
    opposite, _ = spherical_kmeans(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), 1)
    assert opposite.norm(dim=1).item() == pytest.approx(1)


def test_an_empty_cluster_starts_anew_at_the_worst_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both centres start at the same vector: the second has nothing."""
    monkeypatch.setattr(codebook_module, "_spread", lambda vectors, *_: vectors[[0, 0]].clone())
    near = torch.tensor([[1.0, 0.1 * i] for i in range(10)])
    _, nearest = spherical_kmeans(torch.cat([near, torch.tensor([[-1.0, 0.0]])]), 2)
    assert nearest.tolist() == [0] * 10 + [1]


@pytest.mark.parametrize("count", [0, 4])
def test_kmeans_needs_as_many_vectors_as_clusters(count: int) -> None:
    with pytest.raises(ValueError, match=f"{count} clusters of 3 vectors"):
        spherical_kmeans(unit(3, 2), count)


def test_codes_are_set_to_clusters() -> None:
    codebook = Codebook(6, 6, 1.0)
    codebook.initialise(groups(6, 5), torch.Generator().manual_seed(0))
    assert code_counts(groups(6, 5), codebook.codes).tolist() == [5] * 6
    assert codebook.codes.requires_grad


def test_empty_codes_are_reseeded_from_the_queue() -> None:
    codebook = Codebook(4, 3, 1.0)
    before, queue = codebook.codes.detach().clone(), 2 * unit(9, 3, seed=5)
    replaced = codebook.reseed(torch.tensor([3, 0, 1, 0]), queue)
    assert replaced.tolist() == [1, 3]
    assert torch.equal(codebook.codes[[0, 2]], before[[0, 2]])
    rows = (codebook.codes[replaced] @ queue.T / 2).max(dim=1)
    torch.testing.assert_close(rows.values, torch.ones(2))
    assert len(set(rows.indices.tolist())) == 2
    assert codebook.reseed(torch.zeros(4), queue[:1]).tolist() == [0]  # no row serves twice
    assert codebook.reseed(torch.ones(4), queue).tolist() == []


def test_codes_are_brought_back_to_unit_length() -> None:
    codebook = Codebook(4, 3, 1.0)
    before = codebook.codes.detach().clone()
    with torch.no_grad():
        codebook.codes.mul_(torch.tensor([[0.5], [2.0], [1.0], [7.0]]))
    codebook.renormalise()
    torch.testing.assert_close(codebook.codes.detach(), before)


def test_use_of_the_codes() -> None:
    codes = torch.tensor([[2.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    vectors = torch.tensor([[1.0, 0.1], [0.9, -0.2], [0.0, 1.0], [-0.1, 0.3]])
    counts = code_counts(vectors, codes)
    assert counts.tolist() == [2, 2, 0, 0]
    assert usage_entropy(counts) == pytest.approx(math.log(2))
    assert count_dead_codes(counts) == 2
    assert usage_entropy(torch.ones(8)) == pytest.approx(math.log(8))
    assert usage_entropy(torch.tensor([0, 5])) == 0
    assert usage_entropy(torch.zeros(3)) == 0
