"""The teacher and its queues."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from backbone_fakes import TEXTS
from lexvla.training.teacher import FeatureQueue, Teacher
from model_fakes import tiny_model
from training_fakes import (
    CAPTIONS,
    CPU,
    adapted,
    all_of,
    assert_all_close,
    pixels,
    unit,
)

pytestmark = pytest.mark.usefixtures("one_thread")


# The teacher


def test_the_average_by_hand() -> None:
    model = tiny_model()
    with torch.no_grad():
        model.image_codebook.fill_(1.0)
        teacher = Teacher(model, 0.75)
        model.image_codebook.fill_(5.0)
        teacher.update(model)  # 0.75 * 1 + 0.25 * 5
        assert (teacher.weights["image_codebook"] == 2.0).all()
        model.image_codebook.fill_(-2.0)
        teacher.update(model)  # 0.75 * 2 - 0.25 * 2
        assert (teacher.weights["image_codebook"] == 1.0).all()


def test_an_average_that_counts_steps_forgets_faster_at_first() -> None:
    """The decay is (1 + step) / (10 + step) until that passes the average's own."""
    model = tiny_model()
    with torch.no_grad():
        for step, kept in ((0, 1 / 10), (2, 3 / 12), (7, 8 / 17), (8, 0.5), (9000, 0.5)):
            model.image_codebook.fill_(1.0)
            average = Teacher(model, 0.5)
            model.image_codebook.fill_(0.0)
            average.update(model, step)
            assert average.weights["image_codebook"][0, 0].item() == pytest.approx(kept)


@pytest.mark.parametrize("tied", [False, True])
def test_the_teacher_runs_by_its_own_weights(tied: bool) -> None:
    model = tiny_model()
    if tied:
        language = model.text_tower.language_model
        language.lm_head.weight = language.get_input_embeddings().weight
    ids = model.prompt_ids(CAPTIONS)
    options = {"dense": True, "locals": True}
    teacher = Teacher(model, 0.9)
    with torch.no_grad():
        first = all_of(*model(pixels(), ids, **options))
    assert_all_close(all_of(*teacher(model, pixels(), ids, **options)), first)
    old = {name: weight.clone() for name, weight in teacher.weights.items()}
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
        student = all_of(*model(pixels(), ids, **options))
    assert not torch.allclose(student[0], first[0], atol=1e-2)
    assert_all_close(all_of(*teacher(model, pixels(), ids, **options)), first)
    teacher.update(model)
    moved = all_of(*teacher(model, pixels(), ids, **options))
    # What it computes now is what a model of the averaged weights computes.
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(0.9 * old[name] + 0.1 * weight)
        assert_all_close(moved, all_of(*model(pixels(), ids, **options)), 1e-4)


def test_the_teacher_leaves_the_student_alone() -> None:
    model = tiny_model()
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    teacher = Teacher(model, 0.5)
    for weight in teacher.weights.values():
        weight.zero_()
    teacher(model, pixels(), model.prompt_ids(CAPTIONS), dense=True)
    teacher.update(model)
    for name, weight in model.named_parameters():
        assert torch.equal(weight, before[name]), name
        assert weight.grad is None


def test_frozen_weights_are_shared(text_model: str, vision_model: str) -> None:
    model = adapted(text_model, vision_model)
    teacher = Teacher(model, 0.5)
    assert set(teacher.weights) == {n for n, p in model.named_parameters() if p.requires_grad}
    assert not any("base_layer" in name or "vision_model" in name for name in teacher.weights)
    ids = model.prompt_ids(TEXTS)
    before = teacher(model, pixels(), ids)[1].lexical
    with torch.no_grad():
        model.text_tower.language_model.get_input_embeddings().weight.mul_(-1)
    assert not torch.allclose(teacher(model, pixels(), ids)[1].lexical, before)


def test_no_gradient_through_the_teacher() -> None:
    model = tiny_model().train()
    teacher = Teacher(model, 0.5)
    found = teacher(model, pixels(), model.prompt_ids(CAPTIONS), dense=True, locals=True)
    assert not any(part.requires_grad for part in all_of(*found))
    assert not any(weight.requires_grad for weight in teacher.weights.values())


def test_a_teachers_state() -> None:
    model = tiny_model()
    first, second = Teacher(model, 0.5), Teacher(tiny_model(seed=1), 0.5)
    state = {name: weight.clone() for name, weight in first.state_dict().items()}
    second.load_state_dict(state)
    ids = model.prompt_ids(CAPTIONS)
    assert_all_close(
        all_of(*second(model, pixels(), ids)), all_of(*first(model, pixels(), ids)), 0.0
    )
    second.update(tiny_model(seed=1))
    assert torch.equal(state["image_codebook"], first.weights["image_codebook"])


# Queues


def row(*values: float) -> Tensor:
    return torch.tensor(values)[:, None]


def test_a_queue_by_hand() -> None:
    queue = FeatureQueue(5, 1, 0, CPU)
    queue.rows.copy_(row(-1, -2, -3, -4, -5))
    queue.push(row(1, 2, 3))
    assert torch.equal(queue.newest(), row(3, 2, 1, -5, -4))
    queue.push(row(4, 5, 6, 7))  # over the end
    assert torch.equal(queue.newest(), row(7, 6, 5, 4, 3))
    assert torch.equal(queue.rows, row(6, 7, 3, 4, 5))
    queue.push(row())
    queue.push(row(1, 2, 3, 4, 5))
    assert torch.equal(queue.newest(), row(5, 4, 3, 2, 1))


@given(st.integers(1, 7), st.lists(st.integers(0, 7), max_size=8))
def test_a_queue_keeps_the_last(size: int, counts: list[int]) -> None:
    queue = FeatureQueue(size, 1, 0, CPU)
    seen = queue.newest()[:, 0].tolist()[::-1]
    for count in counts:
        if count > size:
            with pytest.raises(ValueError, match="do not fit"):
                queue.push(torch.zeros(count, 1))
            continue
        new = torch.arange(len(seen), len(seen) + count, dtype=torch.float32)
        queue.push(new[:, None])
        seen += new.tolist()
        assert queue.newest()[:, 0].tolist() == seen[::-1][:size]


def test_a_queue_begins_with_random_unit_vectors() -> None:
    queue, same, other = (FeatureQueue(6, 4, seed, CPU) for seed in (1, 1, 2))
    torch.testing.assert_close(queue.rows.norm(dim=1), torch.ones(6))
    assert torch.equal(queue.rows, same.rows)
    assert not torch.equal(queue.rows, other.rows)


def test_newest_is_a_copy() -> None:
    queue = FeatureQueue(3, 2, 0, CPU)
    newest, before = queue.newest(), queue.newest()
    queue.push(unit(2, 2))
    assert torch.equal(newest, before)


def test_a_queue_keeps_the_items_beside_their_vectors() -> None:
    queue = FeatureQueue(5, 1, 0, CPU)
    assert queue.newest_items().tolist() == [-1] * 5
    queue.push(row(1, 2, 3), torch.tensor([7, 0, 7]))
    assert queue.newest_items().tolist() == [7, 0, 7, -1, -1]
    queue.push(row(4, 5, 6), torch.tensor([8, 9, 6]))  # over the end
    assert queue.newest_items().tolist() == [6, 9, 8, 7, 0]
    assert torch.equal(queue.newest(), row(6, 5, 4, 3, 2))
    queue.push(row(7))
    assert queue.newest_items().tolist() == [-1, 6, 9, 8, 7]


def test_a_queue_takes_no_gradient_and_any_float() -> None:
    queue = FeatureQueue(3, 1, 0, CPU)
    queue.push(row(0.5).to(torch.bfloat16).requires_grad_())
    assert not queue.rows.requires_grad
    assert queue.newest()[0].item() == 0.5


def test_a_queue_of_no_vector_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        FeatureQueue(0, 4, 0, CPU)


def test_a_queues_state() -> None:
    queue, other = FeatureQueue(4, 1, 0, CPU), FeatureQueue(4, 1, 1, CPU)
    queue.push(row(1, 2, 3), torch.tensor([1, 2, 3]))
    other.load_state_dict(queue.state_dict())
    for each in (queue, other):
        each.push(row(4, 5), torch.tensor([4, 5]))
        assert torch.equal(each.newest(), row(5, 4, 3, 2))
        assert each.newest_items().tolist() == [5, 4, 3, 2]
