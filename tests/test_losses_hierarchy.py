from __future__ import annotations

import doctest
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from lexvla.errors import InputError
from lexvla.losses import (
    HierarchicalProxy,
    ProxyAnchor,
    ProxyNCA,
    class_levels,
    class_tree,
    coarse_count,
)

TREE = [[0, 0, 1, 1, 2]]


def unit(*shape: int, seed: int = 0) -> Tensor:
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return functional.normalize(values, dim=-1)


def given(**options) -> HierarchicalProxy:
    return HierarchicalProxy(5, 3, parents=TREE, least_classes=2, **options)


@pytest.mark.parametrize("base", [ProxyAnchor, partial(ProxyNCA, scale=4.0)])
def test_levels_add_up(base) -> None:
    loss = given(base=base, weights=(1.0, 0.3))
    fine, coarse = loss.levels
    assert fine.proxies.shape == (5, 3)
    assert coarse.proxies.shape == (3, 3)
    vectors = unit(4, 3)
    expected = fine(vectors, torch.tensor([0, 1, 3, 4])) + 0.3 * coarse(
        vectors, torch.tensor([0, 0, 1, 2])
    )
    torch.testing.assert_close(loss(vectors, torch.tensor([0, 1, 3, 4])), expected)


def test_the_coarse_level_weighs_a_tenth() -> None:
    assert given().weights == (1.0, 0.1)


def test_three_levels() -> None:
    parents = [[0, 0, 1, 1, 2], [0, 0, 1]]
    loss = HierarchicalProxy(5, 3, weights=(1.0, 0.5, 0.25), parents=parents, least_classes=2)
    vectors, labels = unit(2, 3), torch.tensor([1, 4])
    first, second, third = loss.levels
    expected = (
        first(vectors, labels)
        + 0.5 * second(vectors, torch.tensor([0, 2]))
        + 0.25 * third(vectors, torch.tensor([0, 1]))
    )
    torch.testing.assert_close(loss(vectors, labels), expected)


def test_a_batch_of_one_coarse_class_has_the_fine_level_only() -> None:
    loss = given()
    vectors, labels = unit(2, 3), torch.tensor([2, 3])
    torch.testing.assert_close(loss(vectors, labels), loss.levels[0](vectors, labels))


@pytest.mark.parametrize(("classes", "levels"), [(31, 1), (32, 2)])
def test_few_classes_have_no_coarse_level(classes: int, levels: int) -> None:
    assert len(HierarchicalProxy(classes, 3).levels) == levels
    tree = [[0, *[1] * (classes - 1)]]
    assert len(HierarchicalProxy(classes, 3, parents=tree).levels) == levels


def test_a_third_level_needs_many_classes_too() -> None:
    def sizes(classes: int) -> list[int]:
        loss = HierarchicalProxy(classes, 2, weights=(1, 0.1, 0.1))
        return [len(level.proxies) for level in loss.levels]

    assert sizes(100) == [100, 10]
    assert sizes(1600) == [1600, 40, 8]


@pytest.mark.parametrize(
    ("classes", "count"), [(32, 8), (64, 8), (100, 10), (11318, 106), (10**6, 512)]
)
def test_coarse_count(classes: int, count: int) -> None:
    assert coarse_count(classes) == count


@pytest.mark.parametrize("base", [ProxyAnchor, partial(ProxyNCA, scale=4.0)])
def test_gradients(base) -> None:
    loss = given(base=base).double()
    labels = torch.tensor([0, 2, 4])

    def run(vectors: Tensor, fine: Tensor, coarse: Tensor) -> Tensor:
        proxies = {"levels.0.proxies": fine, "levels.1.proxies": coarse}
        return torch.func.functional_call(loss, proxies, (vectors, labels))

    leaves = [unit(3, 3), *(level.proxies.detach() for level in loss.levels)]
    assert torch.autograd.gradcheck(run, [v.double().clone().requires_grad_() for v in leaves])


def clustered(classes: int = 64, groups: int = 8, seed: int = 0) -> HierarchicalProxy:
    """Return a loss whose fine proxies lie close around orthogonal axes, class c by c mod 8."""
    loss = HierarchicalProxy(classes, groups)
    noise = 0.05 * torch.randn(classes, groups, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        loss.levels[0].proxies.copy_(3 * torch.eye(groups)[torch.arange(classes) % groups] + noise)
    return loss


def test_the_coarse_level_is_silent_before_clustering() -> None:
    loss = clustered()
    vectors, labels = unit(4, 8), torch.arange(4)
    torch.testing.assert_close(loss(vectors, labels), loss.levels[0](vectors, labels))
    loss.recluster()
    assert loss(vectors, labels) > loss.levels[0](vectors, labels)


def test_clustering_finds_the_groups() -> None:
    loss = clustered()
    (moved,) = loss.recluster(torch.Generator().manual_seed(0))
    assert moved.tolist() == list(range(8))  # all are new
    parents = loss.parents(0)
    for label in range(64):
        assert parents[label] == parents[label % 8]
    assert len(set(parents.tolist())) == 8
    units = functional.normalize(loss.levels[0].proxies, dim=1)
    for coarse in range(8):
        centre = functional.normalize(units[parents == coarse].sum(dim=0), dim=0)
        torch.testing.assert_close(loss.levels[1].proxies[coarse], centre)


@pytest.mark.parametrize("seed", range(3))
def test_coarse_classes_keep_their_numbers(seed: int) -> None:
    """Whatever order the clusters are found in."""
    loss = clustered()
    loss.recluster(torch.Generator().manual_seed(7))
    parents = loss.parents(0).clone()
    (moved,) = loss.recluster(torch.Generator().manual_seed(seed))
    assert moved.tolist() == []
    assert torch.equal(loss.parents(0), parents)


def test_coarse_proxies_that_moved_are_named() -> None:
    loss = clustered()
    loss.recluster(torch.Generator().manual_seed(7))
    with torch.no_grad():  # training drew one coarse proxy away from its classes
        loss.levels[1].proxies[5] += 0.5
    assert [m.tolist() for m in loss.recluster(torch.Generator().manual_seed(1))] == [[5]]


def test_clusters_are_saved_with_the_weights() -> None:
    loss = clustered()
    loss.recluster()
    other = HierarchicalProxy(64, 8)
    other.load_state_dict(loss.state_dict())
    vectors, labels = unit(4, 8), torch.arange(4)
    torch.testing.assert_close(other(vectors, labels), loss(vectors, labels))


def test_a_third_level_is_clustered_from_the_second() -> None:
    torch.manual_seed(0)
    loss = HierarchicalProxy(1600, 4, weights=(1, 0.1, 0.1))
    moved = loss.recluster()
    assert [len(m) for m in moved] == [40, 8]
    assert loss.parents(1).shape == (40,)
    assert loss(unit(9, 4), torch.arange(9)).isfinite()


def test_a_given_tree_is_not_clustered() -> None:
    with pytest.raises(ValueError, match="given"):
        given().recluster()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": ()}, "no weights"),
        ({"parents": []}, "0 levels of parents and 2 weights"),
        ({"parents": [[0, 1]]}, "2 parents of 5 classes"),
        ({"parents": [[0, 0, 2, 2, 2]]}, "gap"),
        ({"parents": [[0, 0, 1, 1, -1]]}, "gap"),
        ({"parents": [[0, 0, 0, 0, 0]]}, "same parent"),
    ],
)
def test_arguments_are_checked(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HierarchicalProxy(5, 3, **{"least_classes": 2, **options})


BIRDS = {
    "robin": "bird",
    "rook": "bird",
    "oak": "tree",
    "bird": "animal",
    "tree": "plant",
}


def test_levels_of_a_tree() -> None:
    assert class_levels(["robin", "oak", "rook"], BIRDS, 1) == []
    assert class_levels(["robin", "oak", "rook"], BIRDS) == [[0, 1, 0]]
    assert class_levels(["robin", "oak", "rook"], BIRDS, 3) == [[0, 1, 0], [0, 1]]
    assert doctest.testmod(class_tree).attempted == 1
    assert doctest.testmod(class_tree).failed == 0


@pytest.mark.parametrize(
    ("classes", "parents", "item", "rule"),
    [
        (["robin", "elm"], BIRDS, "elm", "has no parent"),
        (["robin", "rook"], BIRDS, "bird", "only class of level 1"),
        (["robin"], BIRDS, "robin", "only class of level 0"),
        (["robin", "oak", "robin"], BIRDS, "robin", "2 times"),
        (["robin", "oak"], BIRDS | {"animal": "robin"}, "robin", "its own ancestor"),
        (["robin", "oak"], BIRDS | {"plant": "plant"}, "plant", "its own ancestor"),
    ],
)
def test_bad_trees_are_refused(classes: list[str], parents: dict, item: str, rule: str) -> None:
    with pytest.raises(InputError, match=rule) as caught:
        class_levels(classes, parents)
    assert caught.value.item == item


def test_a_tree_needs_levels_and_classes() -> None:
    with pytest.raises(ValueError, match="0 levels"):
        class_levels(["a", "b"], {}, 0)
    with pytest.raises(ValueError, match="0 classes"):
        class_levels([], {})
