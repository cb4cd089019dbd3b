"""The terms that ask for items and words."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from lexvla.lexical_head import lexical_vector
from lexvla.losses import cross_modal_loss, intra_modal_loss, own_words_loss
from lexvla.torch_model import Features
from lexvla.training import objective as module
from lexvla.training.item_memory import ItemMemory
from lexvla.training.objective import Losses, Objective, Targets, TeacherView, dense
from objective_fakes import BOOK, IMAGE, LABELS, SEEN, TAU, TEXT, WIDTH, build, only, terms, unit

RELEVANCE = torch.tensor([[1.0, 0, 0], [0, 0.25, 0.75], [0, 0, 1], [0.5, 0.5, 0]])
RELEVANT = Targets(LABELS, RELEVANCE)  # of the items 0, 2, 2, 1
# How much each text means the items of the batch, by rows the items.
ITEMS_TEXTS = [
    [2 / 3, 0, 0, 1 / 3],
    [0, 3 / 7, 4 / 7, 0],
    [0, 3 / 7, 4 / 7, 0],
    [0, 1 / 3, 0, 2 / 3],
]


def loss_of(row: list[float], shares: list[float]) -> float:
    """Return the cross entropy of a row of logits."""
    total = math.log(sum(map(math.exp, row)))
    return sum(share * (total - value) for value, share in zip(row, shares, strict=True))


def by_rows(values: Tensor, shares: list[list[float]]) -> float:
    """Return the mean over the rows of similarities."""
    rows = (values / TAU).tolist()
    return sum(map(loss_of, rows, shares)) / len(rows)


# Targets


def test_positives_are_a_texts_shares_of_the_images() -> None:
    assert RELEVANT.positives is not None
    assert RELEVANT.positives.tolist() == [
        [1, 0, 0, 0],
        [0, 0.75, 0.75, 0.25],
        [0, 1, 1, 0],
        [0.5, 0, 0, 0.5],
    ]
    assert Targets(LABELS).positives is None
    assert Targets(None, RELEVANCE).positives is None
    assert Targets().positives is None


def test_same_is_which_rows_are_of_one_item() -> None:
    same = Targets(LABELS).same
    assert same is not None
    assert same.dtype == torch.bool
    assert same.int().tolist() == [[1, 0, 0, 0], [0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 1]]
    assert Targets().same is None


@pytest.mark.parametrize("name", ["lexical", "dense"])
def test_a_contrast_shares_rows_and_columns_out(name: str) -> None:
    one, other = (IMAGE.lexical, TEXT.lexical) if name == "lexical" else map(dense, (IMAGE, TEXT))
    images = by_rows(
        one @ other.T,
        [
            [1 / 1.5, 0, 0, 0.5 / 1.5],
            [0, 0.75 / 1.75, 1 / 1.75, 0],
            [0, 0.75 / 1.75, 1 / 1.75, 0],
            [0, 0.25 / 0.75, 0, 0.5 / 0.75],
        ],
    )
    texts = by_rows(
        other @ one.T,
        [[1, 0, 0, 0], [0, 3 / 7, 3 / 7, 1 / 7], [0, 0.5, 0.5, 0], [0.5, 0, 0, 0.5]],
    )
    parts = terms(build(only(name, 0.5)), targets=RELEVANT)
    assert parts[name].item() == pytest.approx(0.5 * (images + texts), rel=1e-5)


# Images of one item


def test_image_pairs_by_hand() -> None:
    """The images 1 and 2 are of one item; the others have no other and add nothing."""
    alike = IMAGE.lexical @ IMAGE.lexical.T / TAU
    total = 0.0
    for row, other in ((1, 2), (2, 1)):
        total -= alike[row, other].item()
        total += math.log(sum(math.exp(alike[row, n].item()) for n in range(4) if n != row))
    parts = terms(build(only("image_pairs", 0.5)))
    assert list(parts) == ["image_pairs"]
    assert parts["image_pairs"].item() == pytest.approx(0.5 * total / 4, rel=1e-5)


def test_three_images_of_one_item_share_a_target() -> None:
    vectors = torch.eye(4)[[0, 0, 1, 2]]
    image = Features(vectors)
    objective = build(only("image_pairs", temperature=1.0))
    found = objective(image, image, 0, targets=Targets(torch.tensor([5, 5, 5, 8])))["image_pairs"]
    first = math.log(math.e + 2) - 0.5  # of two others, one is the same vector
    third = math.log(3)
    assert found.item() == pytest.approx((2 * first + third) / 4)


def test_a_batch_without_two_images_of_an_item_adds_nothing() -> None:
    students = [each.lexical.clone().requires_grad_() for each in (IMAGE, TEXT)]
    image, text = (Features(each) for each in students)
    objective = build(only("image_pairs"))
    found = objective(image, text, 0, targets=Targets(torch.arange(4)))["image_pairs"]
    found.backward()
    assert found.item() == 0
    assert students[0].grad is not None
    assert not students[0].grad.any()


# Own words

FEW = torch.tensor([[2.0, 0, 1], [0, 0, 0.5]])
LOGITS = torch.tensor([[1.0, -1, 0.5], [0, 2, -2]])


def own_words(logits: list[float], words: list[float]) -> float:
    other = sum(math.exp(x) for x, word in zip(logits, words, strict=True) if not word)
    missed = sum(word * math.exp(-x) for x, word in zip(logits, words, strict=True))
    return math.log(1 + other) + math.log(1 + missed)


def test_own_words_are_half_of_images_and_half_of_texts() -> None:
    vectors = unit(2, 3, seed=1)
    image, text = Features(vectors, logits=LOGITS), Features(vectors, logits=-LOGITS)
    parts = build(only("own_words", 3.0))(image, text, 0, targets=Targets(None, None, FEW, 1 - FEW))
    assert list(parts) == ["image_words", "text_words"]
    rows = zip(LOGITS.tolist(), FEW.tolist(), strict=True)
    assert parts["image_words"].item() == pytest.approx(1.5 * sum(own_words(*r) for r in rows) / 2)
    expected = 1.5 * own_words_loss(-LOGITS, 1 - FEW)
    torch.testing.assert_close(parts["text_words"], expected)


@pytest.mark.parametrize("side", ["image_words", "text_words"])
def test_own_words_of_one_side(side: str) -> None:
    image = Features(unit(2, 3, seed=1), logits=LOGITS)
    objective = build(only("own_words"))
    assert set(objective(image, image, 0, targets=Targets()._replace(**{side: FEW}))) == {side}


def test_a_row_without_own_words_has_a_gradient() -> None:
    logits = LOGITS.clone().requires_grad_()
    image = Features(unit(2, 3, seed=1), logits=logits)
    text = Features(unit(2, 3, seed=1))
    targets = Targets(image_words=torch.zeros(2, 3))
    build(only("own_words"))(image, text, 0, targets=targets)["image_words"].backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert (logits.grad > 0).all()


# The memory


def remembered(dtype: torch.dtype = torch.float32) -> ItemMemory:
    memory = ItemMemory(3, 12, dtype)
    memory.texts.copy_(unit(3, 12, seed=80).abs())
    memory.images.copy_(unit(3, 12, seed=81).abs())
    return memory


def test_the_memory_by_hand() -> None:
    """An image looks for its item's texts alone, a text for the images of all that it means."""
    memory = remembered()
    items = torch.eye(3)[LABELS].tolist()
    images = by_rows(IMAGE.lexical @ memory.texts.T, items)
    texts = by_rows(TEXT.lexical @ memory.images.T, RELEVANCE.tolist())
    parts = terms(build(only("memory", 0.5)), targets=RELEVANT, memory=memory)
    assert list(parts) == ["memory"]
    assert parts["memory"].item() == pytest.approx(0.5 * (images + texts), rel=1e-5)


def test_the_memory_of_dense_vectors_by_hand() -> None:
    memory = ItemMemory(3, 12, torch.float32, dense_width=WIDTH)
    assert memory.dense is not None
    memory.dense.texts.copy_(unit(3, WIDTH, seed=82))
    memory.dense.images.copy_(unit(3, WIDTH, seed=83))
    items = torch.eye(3)[LABELS].tolist()
    images = by_rows(dense(IMAGE) @ memory.dense.texts.T, items)
    texts = by_rows(dense(TEXT) @ memory.dense.images.T, RELEVANCE.tolist())
    parts = terms(build(only("memory", 0.5, dense=0.3)), targets=RELEVANT, memory=memory)
    assert list(parts) == ["memory", "dense", "memory_dense"]
    assert parts["memory_dense"].item() == pytest.approx(0.15 * (images + texts), rel=1e-5)
    plain = terms(build(only("dense", 0.3)), targets=RELEVANT, memory=memory)
    assert list(plain) == ["dense"]


def test_a_memory_of_16_bits_is_compared_in_32() -> None:
    objective = build(only("memory"))
    full, short = (
        terms(objective, targets=RELEVANT, memory=remembered(kind))["memory"]
        for kind in (torch.float32, torch.bfloat16)
    )
    assert short.dtype == torch.float32
    torch.testing.assert_close(short, full, atol=0.05, rtol=0)


def test_the_memory_gives_gradient_to_the_batch() -> None:
    students = [each.lexical.clone().requires_grad_() for each in (IMAGE, TEXT)]
    memory = remembered()
    objective = build(only("memory"))
    image, text = (Features(each) for each in students)
    objective(image, text, 0, targets=RELEVANT, memory=memory)["memory"].backward()
    assert all(each.grad is not None and each.grad.any() for each in students)
    assert objective.lexical.log_scale.grad is not None
    assert objective.pairs.log_scale.grad is None


@pytest.mark.parametrize("given", [{}, {"memory": remembered(), "targets": Targets(LABELS)}])
def test_without_memory_or_relevance_the_term_is_silent(given: dict[str, Any]) -> None:
    options = {"targets": RELEVANT, **given}
    assert set(terms(build(only("memory", dense=1.0)), **options)) == {"dense"}


# TCL

HELD = torch.tensor([2, -1, 0, 1, 1, -1, 2])  # the items of the queues' rows
KEYS_OF_ONE_ITEM = torch.tensor(
    [
        [1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0],
        [0, 1, 1, 0, 1, 0, 0, 0, 0, 0, 1],
        [0, 1, 1, 0, 1, 0, 0, 0, 0, 0, 1],
        [0, 0, 0, 1, 0, 0, 0, 1, 1, 0, 0],
    ]
).bool()


def taught(name: str, same: Tensor | None) -> Tensor:
    i, t, i_seen, t_seen = (dense(each) for each in (IMAGE, TEXT, SEEN.image, SEEN.text))
    image_keys = torch.cat([i_seen, SEEN.image_queue])
    text_keys = torch.cat([t_seen, SEEN.text_queue])
    if name == "tcl_intra":
        there = intra_modal_loss(i, image_keys, TAU, same)
        return (there + intra_modal_loss(t, text_keys, TAU, same)) / 2
    there = cross_modal_loss(i, i_seen, text_keys, TAU, 0.4, same)
    return (there + cross_modal_loss(t, t_seen, image_keys, TAU, 0.4, same)) / 2


@pytest.mark.parametrize("name", ["tcl_cross", "tcl_intra"])
def test_keys_of_the_same_item_are_positives(name: str) -> None:
    """Those of the queue too; an item that is not known is the same as no other."""
    seen = replace(SEEN, items=HELD)
    found = terms(build(only(name, 0.3)), targets=RELEVANT, teacher=seen)[name]
    torch.testing.assert_close(found, 0.3 * taught(name, KEYS_OF_ONE_ITEM))
    assert not torch.isclose(found, 0.3 * taught(name, None), rtol=1e-3)


@pytest.mark.parametrize("name", ["tcl_cross", "tcl_intra"])
@pytest.mark.parametrize(
    ("targets", "seen"),
    [
        (Targets(LABELS), replace(SEEN, items=HELD)),  # classes alone: each pair is its own
        (RELEVANT, SEEN),
        (Targets(), replace(SEEN, items=HELD)),
    ],
)
def test_else_each_row_has_its_own_key(name: str, targets: Targets, seen: TeacherView) -> None:
    found = terms(build(only(name, 0.3)), targets=targets, teacher=seen)[name]
    torch.testing.assert_close(found, 0.3 * taught(name, None))


# All of them


def all_words() -> tuple[Features, Features, Targets]:
    words = (unit(4, 12, seed=70) > 0.2).float()
    image, text = (each._replace(logits=unit(4, 12, seed=72)) for each in (IMAGE, TEXT))
    return image, text, RELEVANT._replace(image_words=words, text_words=words)


@pytest.mark.parametrize(
    ("weight", "names", "owner", "function"),
    [
        ("own_words", {"image_words", "text_words"}, module, "own_words_loss"),
        ("image_pairs", {"image_pairs"}, Objective, "_image_pairs"),
        ("memory", {"memory"}, Objective, "_memory"),
    ],
)
def test_a_term_of_weight_0_is_not_computed(
    weight: str, names: set[str], owner: Any, function: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> Tensor:
        raise AssertionError(f"{names} were computed")

    image, text, targets = all_words()
    on = Losses(own_words=1.0, image_pairs=1.0, memory=1.0)
    everything = build(on)(image, text, 9, targets=targets, memory=remembered())
    monkeypatch.setattr(owner, function, fail)
    silent = replace(on, **{weight: 0.0})
    found = build(silent)(image, text, 9, targets=targets, memory=remembered())
    assert everything.keys() - found.keys() == names


def test_all_terms_at_once_are_those_alone() -> None:
    image, text, targets = all_words()
    seen, memory = replace(SEEN, items=HELD), remembered()
    names = ("lexical", "own_words", "image_pairs", "memory", "dense", "tcl_cross", "tcl_intra")
    together = build(replace(only("lexical"), **dict.fromkeys(names, 0.7)))
    parts = together(image, text, 10**6, BOOK, seen, targets, memory)
    assert len(parts) == 8
    for name in names:
        alone = build(only(name, 0.7))(image, text, 10**6, BOOK, seen, targets, memory)
        for key, value in alone.items():
            torch.testing.assert_close(parts[key], value)


# Texts alone


def logits_and_words() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(90)
    return torch.randn(4, 12, generator=generator), torch.rand(4, 12, generator=generator).round()


def test_texts_alone_by_hand() -> None:
    """Texts look for the items that they mean, and the batch's items for their texts."""
    memory = remembered()
    logits, words = logits_and_words()
    objective = build(only("memory", 0.5, lexical=0.3, own_words=0.8))
    targets = RELEVANT._replace(text_words=words)
    parts = objective.texts_alone(TEXT._replace(logits=logits), targets, memory)
    assert list(parts) == ["text_words", "memory", "lexical"]
    expected = 0.4 * own_words_loss(logits, words)
    torch.testing.assert_close(parts["text_words"], expected)
    texts = by_rows(TEXT.lexical @ memory.images.T, RELEVANCE.tolist())
    assert parts["memory"].item() == pytest.approx(0.5 * texts, rel=1e-5)
    images = by_rows(memory.images[LABELS] @ TEXT.lexical.T, ITEMS_TEXTS)
    assert parts["lexical"].item() == pytest.approx(0.3 * images, rel=1e-5)


def test_texts_say_the_words_of_the_items_that_they_mean() -> None:
    memory = ItemMemory(2, 3, torch.float32)
    memory.texts.copy_(torch.tensor([[1.0, 0, 0], [0, 0.6, 0.8]]))
    text = Features(torch.tensor([[0.8, 0.6, 0], [0, 0, 1.0]]))
    targets = Targets(torch.tensor([0, 1]), torch.tensor([[1.0, 0], [0.5, 0.5]]))
    parts = build(only("memory", item_words=4.0)).texts_alone(text, targets, memory)
    # The second text means both: (0.5, 0.3, 0.4), of length 0.5 ** 0.5.
    expected = 4 * ((1 - 0.8) + (1 - 0.4 / 0.5**0.5)) / 2
    assert parts["item_words"].item() == pytest.approx(expected, rel=1e-5)


def test_dense_vectors_of_texts_alone_by_hand() -> None:
    memory = ItemMemory(3, 12, torch.float32, dense_width=WIDTH)
    assert memory.dense is not None
    memory.dense.images.copy_(unit(3, WIDTH, seed=83))
    objective = build(only("memory", 0.5, dense=0.3))
    parts = objective.texts_alone(TEXT, RELEVANT, memory)
    assert list(parts) == ["memory", "memory_dense", "dense"]
    texts = by_rows(dense(TEXT) @ memory.dense.images.T, RELEVANCE.tolist())
    assert parts["memory_dense"].item() == pytest.approx(0.15 * texts, rel=1e-5)
    images = by_rows(memory.dense.images[LABELS] @ dense(TEXT).T, ITEMS_TEXTS)
    assert parts["dense"].item() == pytest.approx(0.3 * images, rel=1e-5)
    # Texts without dense vectors have their words alone.
    silent = objective.texts_alone(TEXT._replace(dense=None), RELEVANT, memory)
    assert list(silent) == ["memory"]


def test_the_terms_of_dense_vectors_are_those_of_all() -> None:
    """They ask for no words of images."""
    losses = only("dense", 0.3, memory=0.5, codis=0.2, tcl_cross=0.1, proxy=0.4)
    memory = ItemMemory(3, 12, torch.float32, dense_width=WIDTH)
    rest = (9, BOOK, SEEN, RELEVANT, memory)
    objective = build(losses)
    whole = objective(IMAGE, TEXT, *rest)
    wordless = IMAGE._replace(lexical=torch.zeros(4, 0))
    parts = objective.meaning(wordless, TEXT, *rest)
    assert list(parts) == ["dense", "memory_dense", "proxy", "codis", "tcl_cross"]
    assert whole.keys() - parts.keys() == {"memory"}
    for name, term in parts.items():
        torch.testing.assert_close(term, whole[name])
    assert objective.meaning(wordless._replace(dense=None), TEXT, *rest) == {}


@pytest.mark.parametrize(
    ("losses", "targets", "terms"),
    [
        ({}, RELEVANT, {"memory"}),
        ({"lexical": 1.0}, RELEVANT, {"memory", "lexical"}),
        ({"lexical": 1.0}, Targets(None, RELEVANCE), {"memory"}),
        ({"own_words": 1.0}, RELEVANT, {"memory"}),
        ({"item_words": 1.0}, RELEVANT, {"memory", "item_words"}),
        ({"own_words": 1.0}, RELEVANT._replace(text_words=torch.ones(4, 12)), {"memory"}),
    ],
)
def test_terms_of_texts_alone_that_are_left_out(
    losses: dict[str, float], targets: Targets, terms: set[str]
) -> None:
    """Without their weight, their targets or the texts' logits."""
    objective = build(only("memory", **losses))
    assert objective.texts_alone(TEXT, targets, remembered()).keys() == terms


def test_texts_alone_get_gradient_from_each_term() -> None:
    logits, words = logits_and_words()
    logits.requires_grad_()
    objective = build(only("memory", lexical=1.0, own_words=1.0, item_words=1.0))
    text = Features(lexical_vector(logits), logits=logits)
    memory = remembered(torch.bfloat16)
    parts = objective.texts_alone(text, RELEVANT._replace(text_words=words), memory)
    for name, term in parts.items():
        assert term.dtype == torch.float32, name
        (gradient,) = torch.autograd.grad(term, logits, retain_graph=True)
        assert gradient.isfinite().all(), name
        assert gradient.any(), name
    assert not memory.images.requires_grad
