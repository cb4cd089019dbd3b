"""What a memory of concepts begins with, against the same in numpy."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

from lexvla.concept_memory import ConceptMemory, ConceptSizes, layout, roots, with_level
from lexvla.dense_head import DenseHead
from lexvla.errors import InputError
from lexvla.training import concept_start
from lexvla.training.concept_start import (
    Pooled,
    directions,
    fill_codebook,
    fill_dense_head,
    fill_memory,
    folds_of,
    held_out_cosines,
    pool,
    read_classifier,
)
from memory_fakes import CHANNELS, CLASSES, save_classified

pytestmark = pytest.mark.usefixtures("one_thread")

ITEM = [0, 0, 0, 1, 1, 3, 3, 3]  # the item 2 has no vector


def some_vectors(seed: int = 0, width: int = 5) -> tuple[Tensor, Tensor]:
    """Return vectors that lie around a middle of their item."""
    generator = torch.Generator().manual_seed(seed)
    item = torch.tensor(ITEM)
    middles = 3 * torch.randn(4, width, generator=generator)
    return middles[item] + torch.randn(len(item), width, generator=generator), item


def plain_cosines(
    seen: np.ndarray, item: list[int], items: int, asked: np.ndarray, shrink: float = 0.1
) -> np.ndarray:
    """Return cosines to the items by the inverse of the covariance within items."""
    means = {
        each: np.mean([v for v, i in zip(seen, item, strict=True) if i == each], axis=0)
        for each in set(item)
    }
    centre = np.mean(list(means.values()), axis=0)
    rest = np.array([v - means[i] for v, i in zip(seen, item, strict=True)])
    within = rest.T @ rest / len(rest)
    spread = np.diag(within).copy()
    within = (1 - shrink) * within + np.diag(shrink * spread + 1e-4 * spread.mean())
    inverse = np.linalg.inv(within)
    found = np.zeros((len(asked), items))
    for row, vector in enumerate(asked):
        for each, mean in means.items():
            one, other = vector - centre, mean - centre
            found[row, each] = (one @ inverse @ other) / np.sqrt(
                (one @ inverse @ one) * (other @ inverse @ other)
            )
    return found


# Directions


@pytest.mark.parametrize("shrink", [0.1, 0.9])
def test_directions_are_those_of_numpy(shrink: float, monkeypatch: pytest.MonkeyPatch) -> None:
    if shrink != 0.1:  # the default
        monkeypatch.setattr(concept_start, "_SHRINK", shrink)
    vectors, item = some_vectors()
    asked = torch.randn(6, 5, generator=torch.Generator().manual_seed(9))
    found = directions(vectors, item, 4)
    expected = plain_cosines(vectors.double().numpy(), ITEM, 4, asked.double().numpy(), shrink)
    np.testing.assert_allclose(found.cosines(asked).numpy(), expected, atol=1e-4)


def test_directions_worked_out_by_hand() -> None:
    # Two items at (+-2, 0); within both, 1 to either side in x and 2 in y.
    offsets = torch.tensor([[1.0, 2], [-1, 2], [1, -2], [-1, -2]])
    vectors = torch.cat([offsets + torch.tensor([2.0, 0]), offsets - torch.tensor([2.0, 0])])
    found = directions(vectors, torch.tensor([0] * 4 + [1] * 4), 2)
    # The covariance is diagonal, (1, 4), to which 1e-4 of its mean is added.
    expected = torch.diag(torch.tensor([1.00025, 4.00025]).rsqrt())
    torch.testing.assert_close(found.weight, expected)
    torch.testing.assert_close(found.bias, torch.zeros(2))
    torch.testing.assert_close(found.keys, torch.tensor([[1.0, 0], [-1, 0]]))


@given(st.integers(0, 10**6))
def test_keys_are_unit_and_0_without_vectors(seed: int) -> None:
    vectors, item = some_vectors(seed)
    for width in (None, 3):
        found = directions(vectors, item, 4, width)
        assert found.keys.shape == (4, width or 5)
        assert found.weight.shape == (width or 5, 5)
        assert found.keys.norm(dim=1).tolist() == pytest.approx([1, 1, 0, 1], abs=1e-5)
        assert (found.cosines(vectors).abs() <= 1 + 1e-5).all()


@given(st.integers(0, 10**6))
def test_scale_and_place_say_nothing(seed: int) -> None:
    vectors, item = some_vectors(seed)
    shift = torch.tensor([1.0, -2, 3, 0, 5])
    plain = directions(vectors, item, 4).cosines(vectors)
    moved = directions(2 * vectors + shift, item, 4).cosines(2 * vectors + shift)
    torch.testing.assert_close(moved, plain, atol=2e-3, rtol=0)


def test_few_dimensions_keep_the_cosines_of_items_that_span_few() -> None:
    vectors, item = some_vectors(width=12)
    full, few = (directions(vectors, item, 4, width) for width in (None, 3))
    # Three items, less their centre: a plane, within three dimensions.
    torch.testing.assert_close(few.keys @ few.keys.T, full.keys @ full.keys.T, atol=1e-4, rtol=0)
    middles = torch.stack([vectors[item == each].mean(0) for each in (0, 1, 3)])
    torch.testing.assert_close(few.cosines(middles), full.cosines(middles), atol=1e-4, rtol=0)
    own = few.cosines(vectors).gather(1, item[:, None])[:, 0]
    assert (own > 0.5).all()


# Pooling


def test_pooling_is_that_of_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    cells = np.random.default_rng(0).normal(size=(7, 9, 12)).astype(np.float16)
    expected = torch.from_numpy(cells.astype(np.float32))
    own, finer = expected[..., :4], expected[..., 4:]
    for chunk in (2, 7, 256):
        monkeypatch.setattr(concept_start, "_CHUNK", chunk)
        found = pool(cells, 4)
        torch.testing.assert_close(found.looks, roots(own).mean(1))
        torch.testing.assert_close(found.layout, layout(finer))
        torch.testing.assert_close(found.means, own.mean(1))
    chosen = found.rows(torch.tensor([False, True] + [False] * 4 + [True]))
    assert torch.equal(chosen.means, found.means[[1, 6]])


# Comparisons without the own fold


def random_pooled(count: int, seed: int = 0) -> Pooled:
    generator = torch.Generator().manual_seed(seed)
    looks, shape = (torch.randn(count, width, generator=generator) for width in (5, 9))
    return Pooled(looks, shape, looks)


def test_a_view_is_compared_without_its_own_fold() -> None:
    item = torch.tensor([0, 1, 2] * 6)
    fold = torch.tensor([0] * 6 + [1] * 6 + [2] * 6)
    pooled = random_pooled(18)
    found, known = held_out_cosines(pooled, item, fold, 3, 4)
    assert (found.shape, found.dtype) == ((18, 3), torch.float16)
    assert known.all()
    # All of the own fold but one view are others now: its row stays, and those of others change.
    for row in (0, 7, 17):
        mine = fold == fold[row]
        others = mine.clone()
        others[row] = False
        other = random_pooled(18, seed=1)
        changed = Pooled(
            *(torch.where(others[:, None], b, a) for a, b in zip(pooled, other, strict=True))
        )
        again, _ = held_out_cosines(changed, item, fold, 3, 4)
        assert torch.equal(again[row], found[row])
        assert (again[~mine] != found[~mine]).any(1).all()


def test_held_out_cosines_are_sums_of_both_kinds() -> None:
    item, fold = torch.tensor([0, 1, 2] * 4), torch.tensor([4] * 6 + [9] * 6)
    pooled = random_pooled(12)
    found, _ = held_out_cosines(pooled, item, fold, 3, 9)
    for number in (4, 9):
        mine = fold == number
        expected = sum(
            weight
            * plain_cosines(
                vectors[~mine].double().numpy(),
                item[~mine].tolist(),
                3,
                vectors[mine].double().numpy(),
            )
            for vectors, weight in ((pooled.looks, 0.6), (pooled.layout, 1))
        )
        np.testing.assert_allclose(found[mine].float().numpy(), expected, atol=5e-3)


def test_items_of_one_fold_are_not_known() -> None:
    item = torch.tensor([0, 1, 2, 0, 1, 0, 1, 1])
    fold = torch.tensor([0, 0, 0, 0, 0, 1, 1, 1])
    found, known = held_out_cosines(random_pooled(8), item, fold, 3, 4)
    assert known.tolist() == [True, True, False, True, True, True, True, True]
    assert not found[:5, 2].any()  # the other fold has never seen it
    assert found[5:, 2].all()


def test_one_view_of_each_item_does_not_tell_how_views_differ() -> None:
    item, fold = torch.tensor([0, 1, 0, 1]), torch.tensor([0, 0, 1, 1])
    with pytest.raises(InputError, match="must show an item twice"):
        held_out_cosines(random_pooled(4), item, fold, 2, 4)


def test_one_fold_is_refused() -> None:
    item = torch.tensor([0, 1, 0])
    with pytest.raises(InputError, match="must have at least two groups of styles"):
        held_out_cosines(random_pooled(3), item, torch.zeros(3, dtype=torch.long), 2, 4)


def test_folds_of_styles() -> None:
    styles = ["a", "b", "c", "d"]
    assert folds_of(styles, []) == [0, 1, 2, 3]
    found = folds_of(styles, [["b", "d"]])
    assert found[1] == found[3]
    assert len(set(found)) == 3
    assert folds_of(styles, [["a", "b"], ["c", "d"]]) == [0, 0, 1, 1]


@given(st.lists(st.integers(0, 3), min_size=1, max_size=6))
def test_styles_share_a_fold_where_a_group_names_both(groups: list[int]) -> None:
    """A style of the group 0 is named by none."""
    styles = [f"style {number}" for number in range(len(groups))]
    named = [[s for s, g in zip(styles, groups, strict=True) if g == n] for n in (1, 2, 3)]
    found = folds_of(styles, named)
    for one, mine in enumerate(groups):
        for other, yours in enumerate(groups):
            assert (found[one] == found[other]) == (one == other or mine == yours > 0)


@pytest.mark.parametrize(
    ("groups", "rule"),
    [([["a"], ["z"]], "there is no style 'z'"), ([["a"], ["b", "a"]], "the style 'a' twice")],
)
def test_groups_that_are_refused(groups: list[list[str]], rule: str) -> None:
    with pytest.raises(InputError, match=rule) as caught:
        folds_of(["a", "b"], groups)
    assert caught.value.item == "[data] folds"


# Filling


def test_a_filled_memory_gives_the_cosines_and_the_networks_classes(classified: Path) -> None:
    rng = np.random.default_rng(0)
    sizes = ConceptSizes(items=3, classes=CLASSES, channels=CHANNELS, fine=2, layout=6, local=3)
    cells = rng.normal(size=(24, 9, CHANNELS + 8)).astype(np.float16)
    item = torch.tensor([0, 1, 2] * 8)
    cells += 2 * rng.normal(size=(3, 1, CHANNELS + 8)).astype(np.float16)[item]
    torch.manual_seed(0)
    memory, pooled = ConceptMemory(sizes), pool(cells, CHANNELS)
    fill_memory(memory, pooled, item, classified)
    maps = torch.from_numpy(cells.astype(np.float32))
    with torch.no_grad():
        whole = memory.whole(maps)
    looks = directions(pooled.looks, item, 3)
    shape = directions(pooled.layout, item, 3, 6)
    expected = 0.6 * looks.cosines(pooled.looks) + shape.cosines(pooled.layout)
    torch.testing.assert_close(whole[:, :3], expected, atol=1e-4, rtol=1e-4)
    assert whole[:, :3].argmax(1).tolist() == item.tolist()
    weight, bias = read_classifier(classified)
    torch.testing.assert_close(whole[:, 3:], pooled.means @ weight.T + bias, atol=1e-4, rtol=1e-4)
    # A patch's evidence is the numerator of the cosine, here of full rank, by one length for all.
    with torch.no_grad():
        found = memory.local(pooled.looks) @ memory.local_keys.T
    middle = pooled.looks - pooled.looks.mean(0)
    length = (pooled.looks @ looks.weight.T + looks.bias).norm(dim=1).mean()
    torch.testing.assert_close(
        found, middle @ (looks.keys @ looks.weight).T / length, atol=1e-4, rtol=1e-3
    )
    assert memory.scales.tolist() == pytest.approx(concept_start._SCALES)
    assert not any(weight.requires_grad for weight in memory.parameters())
    # Each image shows its item most, and one of its patches says so.
    assert memory.shares(whole)[:, :3].argmax(1).tolist() == item.tolist()
    assert torch.equal(memory(maps, whole)[..., :-1].amax(1), memory.shares(whole))


def test_an_image_codebook_worked_out_by_hand() -> None:
    """Of four concepts one bears the first word, two the second, all the third, none the last."""
    words = torch.tensor(
        [[2.0, 0, 1, 0], [0, 1, 1, 0], [0, 0.5, 1, 0], [0, 0, 0.25, 0]],
    )
    codebook = torch.full((4, 5), 9.0)
    fill_codebook(codebook, words)
    # log(1 + 4/n), and of a word that no concept bears as of one that one bears
    rare = [math.log(5), math.log(3), math.log(2), math.log(5)]
    mean = sum(rare) / 4
    one, two, three = (4 * value / mean for value in rare[:3])
    expected = [
        [2 * one, 0, 0, 0, -4],
        [0, two, 0.5 * two, 0, -4],
        [three, three, three, 0.25 * three, -4],
        [0, 0, 0, 0, -4],
    ]
    torch.testing.assert_close(codebook, torch.tensor(expected))
    # An image that shows the second concept alone says its words, and nothing of the others.
    logits = with_level(torch.tensor([0.0, 1, 0, 0])) @ codebook.T
    torch.testing.assert_close(logits, torch.tensor([-4, two - 4, three - 4, -4]))


def test_an_image_codebook_that_is_trained_is_filled_without_a_gradient() -> None:
    codebook = torch.nn.Parameter(torch.zeros(3, 3))
    fill_codebook(codebook, torch.eye(2, 3))
    assert codebook.requires_grad
    assert codebook.grad_fn is None
    assert (codebook[:, -1] == -4).all()


@given(st.integers(0, 10**6))
def test_words_that_few_concepts_bear_weigh_more(seed: int) -> None:
    rng = np.random.default_rng(seed)
    weights = torch.from_numpy(rng.random((10, 15)) * (rng.random((10, 15)) < 0.3)).float()
    weights[:, 10:] = 0
    weights[torch.arange(10), torch.arange(10)] = 0.5
    codebook = torch.zeros(15, 11)
    fill_codebook(codebook, weights)
    assert torch.equal(codebook[:, :-1] != 0, weights.T != 0)
    assert (codebook[:, :-1] >= 0).all()
    # Of two words of one weight in a concept, the one that fewer concepts bear weighs more.
    borne = (weights > 0).sum(0)
    per_weight = codebook[torch.arange(10), torch.arange(10)]
    order = borne[:10].argsort()
    assert (per_weight[order].diff() <= 1e-6).all()


def test_a_dense_head_worked_out_by_hand() -> None:
    """Three concepts, the last one of no word; the words as fill_codebook weighs them."""
    words = torch.tensor([[1.0, 0], [1, 2], [0, 0]])
    head = DenseHead(4, 5)
    fill_dense_head(head, words, 7)
    # log(1 + 3/n) of two concepts and of one
    two, one = math.log(2.5), math.log(4)
    mixed = torch.tensor([two, 2 * one]) / math.hypot(two, 2 * one)
    first, second = torch.randn(2, 5, generator=torch.Generator().manual_seed(7))
    expected = [first / first.norm(), mixed[0] * first + mixed[1] * second, torch.zeros(5)]
    expected[1] /= expected[1].norm()
    torch.testing.assert_close(head.projection.weight[:, :3], torch.stack(expected).T)
    assert not head.projection.weight[:, 3].any()
    assert not head.projection.bias.any()
    assert head.projection.weight.requires_grad
    # An image that shows one concept is where the concept is.
    found = head(with_level(torch.tensor([0.3, 0, 0])))
    torch.testing.assert_close(found, expected[0])


@given(st.integers(0, 10**6))
def test_concepts_lie_as_near_each_other_as_their_words(seed: int) -> None:
    """In many dimensions; the seed decides which."""
    rng = np.random.default_rng(seed)
    words = torch.from_numpy(rng.random((6, 9)) * (rng.random((6, 9)) < 0.4)).float()
    words[torch.arange(6), torch.arange(6)] = 1
    words[5] = 2 * words[4]
    heads = [DenseHead(7, 4000) for _ in range(3)]
    for head, number in zip(heads, (1, 1, 2), strict=True):
        fill_dense_head(head, words, number)
    weights = [head.projection.weight[:, :6] for head in heads]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    idf = torch.log(1 + 6 / (words > 0).sum(0).clamp(min=1))
    rows = functional.normalize(words * idf, dim=1)
    found = weights[0].T @ weights[0]
    torch.testing.assert_close(found, rows @ rows.T, atol=0.12, rtol=0)
    assert found[4, 5].item() == pytest.approx(1, abs=1e-5)


# The classifier


def test_the_classifier_is_read(classified: Path) -> None:
    weight, bias = read_classifier(classified)
    assert (weight.shape, bias.shape) == ((CLASSES, CHANNELS), (CLASSES,))
    stored = load_file(classified / "model.safetensors")
    assert torch.equal(weight, stored["timm_model.classifier.weight"])
    assert torch.equal(bias, stored["timm_model.classifier.bias"])


def test_a_classifier_in_half_precision(classified: Path, tmp_path: Path) -> None:
    weights = {k: v.half() for k, v in load_file(classified / "model.safetensors").items()}
    save_file(weights, tmp_path / "model.safetensors")
    assert read_classifier(tmp_path)[0].dtype == torch.float32


def test_folders_without_a_classifier_are_named(classified: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    weights = load_file(classified / "model.safetensors")
    head = {name: part for name, part in weights.items() if "classifier" in name}
    rest = {name: part for name, part in weights.items() if name not in head}

    def refuse(rule: str) -> None:
        with pytest.raises(InputError, match=rule) as caught:
            read_classifier(tmp_path)
        assert caught.value.item == str(path)

    refuse("the vision model cannot be read")
    save_file(rest, path)
    refuse("has no classifier, which the memory needs")
    save_file({**weights, "other.classifier.weight": torch.zeros(2, 2)}, path)
    refuse("has no classifier")
    save_file({**rest, "classifier.weight": torch.zeros(2, 2)}, path)
    refuse("the vision model cannot be read .*bias")
    whole = (classified / "model.safetensors").read_bytes()
    for content in (b"", whole[:100], whole[:-100]):
        path.write_bytes(content)
        refuse("the vision model cannot be read")


def test_networks_of_other_seeds_have_other_classifiers(classified: Path, tmp_path: Path) -> None:
    other = read_classifier(save_classified(tmp_path, seed=3))[0]
    assert not torch.equal(other, read_classifier(classified)[0])
