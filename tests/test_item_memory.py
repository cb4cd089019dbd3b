from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lexvla.torch_model import Features
from lexvla.training.item_memory import ItemMemory


def rows(*values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values)


def words(*values: tuple[float, ...]) -> Features:
    return Features(rows(*values))


def test_it_begins_with_nothing() -> None:
    memory = ItemMemory(3, 2, torch.bfloat16)
    for held in (memory.texts, memory.images):
        assert held.shape == (3, 2)
        assert held.dtype == torch.bfloat16
        assert not held.any()


def test_the_first_vectors_are_taken_and_later_ones_meet_half_way() -> None:
    memory = ItemMemory(3, 2, torch.float32)
    first = torch.tensor([2]), rows((0, 0, 1.0)), words((1.0, 0)), words((0.6, 0.8))
    memory.remember(*first)
    torch.testing.assert_close(memory.images, rows((0, 0), (0, 0), (1.0, 0)))
    torch.testing.assert_close(memory.texts, rows((0, 0), (0, 0), (0.6, 0.8)))
    memory.remember(torch.tensor([2]), rows((0, 0, 1.0)), words((0, 1.0)), words((0.6, 0.8)))
    half = 0.5**0.5
    torch.testing.assert_close(memory.images[2], torch.tensor([half, half]))
    torch.testing.assert_close(memory.texts[2], torch.tensor([0.6, 0.8]))
    assert not memory.images[:2].any()


def test_an_item_that_is_in_the_batch_twice() -> None:
    """Its images count alike, and a text by how much it means the item alone."""
    memory = ItemMemory(2, 2, torch.float32)
    relevance = rows((0.2, 0.8), (1.0, 0), (0.4, 0.6))
    images = words((1.0, 0), (0.6, 0.8), (0, 1.0))
    texts = words((1.0, 0), (0, 1.0), (0, 1.0))
    memory.remember(torch.tensor([1, 0, 1]), relevance, images, texts)
    half = 0.5**0.5
    torch.testing.assert_close(memory.images, rows((0.6, 0.8), (half, half)))
    torch.testing.assert_close(memory.texts, rows((0, 1.0), (0.8, 0.6)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_round_trip_of_its_state(dtype: torch.dtype) -> None:
    memory, other = (ItemMemory(2, 2, dtype) for _ in range(2))
    batch = torch.tensor([1]), rows((0, 1.0)), words((0.6, 0.8)), words((0.8, 0.6))
    memory.remember(*batch)
    state = {name: held.clone() for name, held in memory.state_dict().items()}
    other.load_state_dict(state)
    for each in (memory, other):
        each.remember(torch.tensor([1]), rows((0, 1.0)), words((1.0, 0)), words((0, 1.0)))
    assert torch.equal(memory.texts, other.texts)
    assert torch.equal(memory.images, other.images)
    assert not torch.equal(state["texts"], other.texts)


def test_words_that_stay() -> None:
    """Dense vectors move: they are of heads that learn."""
    memory = ItemMemory(2, 2, torch.float32, dense_width=2)
    assert memory.dense is not None
    memory.images.copy_(rows((1.0, 0), (0.6, 0.8)))
    memory.texts.copy_(rows((0, 1.0), (0.8, 0.6)))
    held = memory.images.clone(), memory.texts.clone()
    image = Features(rows((0, 1.0)), dense=rows((0.6, 0.8)))
    text = Features(rows((0.8, 0.6)), dense=rows((1.0, 0)))
    memory.remember(torch.tensor([1]), rows((0, 1.0)), image, text, words_stay=True)
    assert torch.equal(memory.images, held[0])
    assert torch.equal(memory.texts, held[1])
    torch.testing.assert_close(memory.dense.images, rows((0, 0), (0.6, 0.8)))
    torch.testing.assert_close(memory.dense.texts, rows((0, 0), (1.0, 0)))
    # Nor are they asked for.
    nothing = Features(torch.zeros(1, 0), dense=image.dense)
    memory.remember(torch.tensor([0]), rows((1.0, 0)), nothing, text, words_stay=True)
    assert torch.equal(memory.images, held[0])


@pytest.mark.parametrize("dense", [rows((1.0, 0)), None])
def test_texts_may_be_remembered_alone(dense: Tensor | None) -> None:
    memory = ItemMemory(2, 2, torch.float32, dense_width=2)
    assert memory.dense is not None
    text = Features(rows((0.8, 0.6)), dense=dense)
    memory.remember(torch.tensor([1]), rows((0.5, 0.5)), None, text)
    torch.testing.assert_close(memory.texts, rows((0, 0), (0.8, 0.6)))
    expected = rows((0.0, 0), (0, 0) if dense is None else (1.0, 0))
    torch.testing.assert_close(memory.dense.texts, expected)
    assert not memory.images.any()
    assert not memory.dense.images.any()


def test_no_gradient_is_remembered() -> None:
    memory = ItemMemory(2, 2, torch.float32)
    images = rows((1.0, 0)).requires_grad_()
    memory.remember(torch.tensor([0]), rows((1.0, 0)), Features(images), Features(images))
    assert not memory.images.requires_grad
    assert not memory.texts.requires_grad


def test_dense_vectors_are_remembered_beside_the_words() -> None:
    memory, other = (ItemMemory(2, 2, torch.bfloat16, dense_width=3) for _ in range(2))
    image = Features(rows((1.0, 0)), dense=rows((0, 0.6, 0.8)))
    text = Features(rows((0, 1.0)), dense=rows((1.0, 0, 0)))
    memory.remember(torch.tensor([1]), rows((0.5, 0.5)), image, text)
    other.load_state_dict(memory.state_dict())
    for each in (memory, other):
        assert each.dense is not None
        assert each.dense.images.dtype == torch.float32
        torch.testing.assert_close(each.dense.images, rows((0, 0, 0), (0, 0.6, 0.8)))
        torch.testing.assert_close(each.dense.texts, rows((0, 0, 0), (1.0, 0, 0)))
        assert each.texts.tolist() == [[0, 0], [0, 1]]
