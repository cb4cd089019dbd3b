from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from backbone_fakes import TEXTS, random_lora, small
from data_fakes import COUNT, fake_pair, members, write_images, write_parquet, write_tar
from lexvla.codebook import Codebook, code_counts
from lexvla.data.pairs import Pair, PairList
from lexvla.errors import InputError, ModelError
from lexvla.features import Features
from lexvla.lexical_head import lexical_vector
from lexvla.losses import HierarchicalProxy, InfoNCE
from lexvla.model import LexVLA
from lexvla.preprocessing import preprocess, resize
from lexvla.training.clusters import forget, initialise_codes, recluster_proxies, reseed_codes
from lexvla.training.gathering import gather_rows
from lexvla.training.gradient_cache import Parts, cached_backward
from lexvla.training.health import check_health, signs
from lexvla.training.pair_recipe import Data
from lexvla.training.sources import classes_of, open_source, parents_of
from lexvla.training.teacher import FeatureQueue, Teacher
from lexvla.training.views import random_view
from model_fakes import GRID, picture, tiny_model

SIDE = 8 * GRID
CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def _threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


CAPTIONS = ["a red dog", "hat", "two blue birds, flying"]
PICTURES = [picture(1), picture(2), picture(3)]


def pixels() -> Tensor:
    return preprocess(PICTURES, SIDE)


@cache
def shared_model() -> LexVLA:
    """A model that no test changes."""
    return tiny_model()


def unit(*shape: int, seed: int = 0) -> Tensor:
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return functional.normalize(values, dim=-1)


def all_of(*features: Features) -> list[Tensor]:
    return [part for each in features for part in each if part is not None]


def assert_all_close(found: list[Tensor], expected: list[Tensor], tolerance: float = 1e-6) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=tolerance, rtol=tolerance)


# LexVLA.forward


@pytest.mark.parametrize("pool_cls", [False, True])
def test_forward_is_what_encode_computes(pool_cls: bool) -> None:
    model = tiny_model(pool_cls=pool_cls)
    with torch.no_grad():
        image, text = model(pixels(), model.prompt_ids(CAPTIONS), dense=True)
        assert_all_close(
            [image.lexical, text.lexical],
            [
                lexical_vector(model.image_logits(pixels())[0]),
                lexical_vector(model.text_logits(CAPTIONS)),
            ],
        )
    np.testing.assert_allclose(image.dense, model.encode_image(PICTURES).dense, atol=1e-6)
    np.testing.assert_allclose(text.dense, model.encode_text(CAPTIONS).dense, atol=1e-6)
    assert image.locals is None
    assert text.locals is None
    assert all_of(image, text)[0].dtype == torch.float32


def test_forward_gives_no_more_than_is_asked_for() -> None:
    model = shared_model()
    image, text = model(pixels(), model.prompt_ids(CAPTIONS))
    assert image[1:] == text[1:] == (None, None, None)


def test_forward_without_dense_heads() -> None:
    model = tiny_model(dense_width=0, codebook_size=0)
    ids = model.prompt_ids(CAPTIONS)
    assert model(pixels(), ids)[0].dense is None
    with pytest.raises(ModelError, match="dense_width"):
        model(pixels(), ids, dense=True)


@pytest.mark.parametrize("pool_cls", [False, True])
def test_image_locals_are_the_patches_without_cls(pool_cls: bool) -> None:
    model = tiny_model(pool_cls=pool_cls)
    with torch.no_grad():
        image, _ = model(pixels(), model.prompt_ids(CAPTIONS), dense=True, locals=True)
        assert model.image_dense_head is not None
        expected = model.image_dense_head(model.patch_states(pixels())[:, -GRID * GRID :])
    assert image.locals is not None
    assert image.mask is None
    assert image.locals.shape == (3, GRID * GRID, 6)
    torch.testing.assert_close(image.locals, expected)
    torch.testing.assert_close(image.locals.norm(dim=2), torch.ones(3, GRID * GRID))


def own_tokens(model: LexVLA, texts: list[str]) -> list[list[str]]:
    """Return the tokens that the mask of the texts' locals leaves."""
    ids = model.prompt_ids(texts)
    images = torch.zeros(len(texts), 3, SIDE, SIDE)
    with torch.no_grad():
        _, text = model(images, ids, dense=True, locals=True)
    assert text.mask is not None
    assert text.locals is not None
    assert text.mask.dtype == torch.bool
    assert text.locals.shape[:2] == text.mask.shape
    length = text.mask.shape[1]
    return [
        [
            str(model.tokenizer.convert_ids_to_tokens(row[place - length]))
            for place in range(length)
            if text.mask[number, place]
        ]
        for number, row in enumerate(ids)
    ]


def test_text_locals_are_the_texts_own_tokens() -> None:
    """Neither padding, nor the prompt before a text, nor its end behind."""
    found = own_tokens(shared_model(), CAPTIONS)
    assert found == [
        ["▁a", "▁red", "▁dog"],
        ["▁hat"],
        ["▁two", "▁blue", "▁birds", "▁,", "▁flying"],
    ]


def test_what_all_texts_begin_with_is_no_local() -> None:
    """It is run once for the whole batch, with the prompt."""
    assert own_tokens(shared_model(), ["a red dog", "a red hat"]) == [["▁dog"], ["▁hat"]]
    assert own_tokens(shared_model(), ["a", "a red"]) == [[], ["▁red"]]
    assert own_tokens(shared_model(), ["hat", "hat"]) == [[], []]


def test_text_locals_under_another_prompt() -> None:
    bare = tiny_model(prompt="{text}")
    # The last token gives the text's own vector.
    assert own_tokens(bare, ["a red dog", "hat"]) == [["▁a", "▁red"], []]
    ended = tiny_model(prompt="the {text} :")
    assert own_tokens(ended, ["red dog", "hat"]) == [["▁red", "▁dog"], ["▁hat"]]


def test_text_locals_do_not_depend_on_the_other_texts() -> None:
    model = shared_model()
    with torch.no_grad():
        _, text = model(pixels(), model.prompt_ids(CAPTIONS), dense=True, locals=True)
        assert model.text_dense_head is not None
        for number, ids in enumerate(model.prompt_ids(CAPTIONS)):
            backbone = model.text_tower.language_model.get_decoder()
            states = backbone(input_ids=torch.tensor([ids])).last_hidden_state[0]
            end = len(ids) - model._prompt_end
            own = text.locals[number][text.mask[number]]
            expected = model.text_dense_head(states[end - len(own) : end])
            torch.testing.assert_close(own, expected, atol=1e-5, rtol=1e-5)


def adapted(text_model: str, vision_model: str) -> LexVLA:
    """A model of frozen towers with LoRA."""
    torch.manual_seed(0)
    model = LexVLA.from_backbones(text_model, vision_model, **small(lora_dropout=0.3))
    return random_lora(model)


def test_gradient_reaches_all_that_is_trained(text_model: str, vision_model: str) -> None:
    model = adapted(text_model, vision_model).train()
    image, text = model(pixels(), model.prompt_ids(TEXTS), dense=True, locals=True)
    assert image.dense is not None
    assert text.dense is not None
    ((image.lexical * text.lexical).sum() + (image.dense * text.dense).sum()).backward()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    for part in ("lora_A", "lora_B", "adapter", "image_codebook", "text_dense", "image_dense"):
        found = [p.grad for name, p in trained.items() if part in name]
        assert found, part
        assert all(grad is not None and grad.abs().sum() > 0 for grad in found), part
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)


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
    queue.push(row(1, 2, 3))
    other.load_state_dict(queue.state_dict())
    for each in (queue, other):
        each.push(row(4, 5))
    assert torch.equal(other.newest(), row(5, 4, 3, 2))
    assert torch.equal(queue.newest(), other.newest())


# Gradient caching


class Encoder(nn.Module):
    """A small tower with dropout, in float64."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(
            nn.Linear(5, 8), nn.Tanh(), nn.Dropout(0.4), nn.Linear(8, 4)
        ).double()

    def forward(self, rows: Tensor) -> Tensor:
        return functional.normalize(self.layers(rows), dim=1)


def contrast(columns: Parts) -> Tensor:
    return InfoNCE(0.2).double().symmetric(columns[0] @ columns[1].T)


def backward(value: Tensor) -> None:
    value.backward()


def gradients(module: nn.Module) -> list[Tensor]:
    found = [p.grad.clone() for p in module.parameters() if p.grad is not None]
    module.zero_grad()
    return found


@pytest.mark.parametrize("sizes", [(7,), (4, 3), (3, 3, 1), (1, 1, 5)])
@pytest.mark.parametrize("dropout", [False, True])
def test_parts_give_the_gradient_of_the_whole(sizes: tuple[int, ...], dropout: bool) -> None:
    encoder = Encoder().train(dropout)
    rows = torch.randn(2, 7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    spans = rows.split(list(sizes), dim=1)

    def forward(number: int) -> Parts:
        torch.manual_seed(number)
        return [encoder(part) for part in spans[number]]

    calls = [partial(forward, number) for number in range(len(sizes))]
    value = contrast([torch.cat(column) for column in zip(*(c() for c in calls), strict=True)])
    value.backward()
    expected = gradients(encoder)
    torch.manual_seed(99)
    found = cached_backward(calls, contrast, backward, nullcontext)
    assert not found.requires_grad
    torch.testing.assert_close(found, value.detach(), atol=1e-13, rtol=1e-12)
    assert_all_close(gradients(encoder), expected, 1e-12)


def test_what_the_loss_owns_gets_its_gradient_once() -> None:
    encoder, objective = Encoder().eval(), InfoNCE(0.2).double()
    rows = torch.randn(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def loss(columns: Parts) -> Tensor:
        return objective.symmetric(columns[0] @ columns[0].T)

    loss([encoder(rows)]).backward()
    expected = [*gradients(encoder), *gradients(objective)]
    calls = [lambda part=part: [encoder(part)] for part in rows.split(4)]
    cached_backward(calls, loss, backward, nullcontext)
    assert_all_close([*gradients(encoder), *gradients(objective)], expected, 1e-12)


def test_a_feature_that_the_loss_leaves_out_gets_no_gradient() -> None:
    used, unused = nn.Linear(3, 2), nn.Linear(3, 2)
    rows = unit(4, 3)
    calls = [lambda part=part: [used(part), unused(part)] for part in rows.split(2)]
    cached_backward(calls, lambda columns: columns[0].sum(), backward, nullcontext)
    torch.testing.assert_close(used.bias.grad, torch.full((2,), 4.0))
    assert all(p.grad is None or not p.grad.any() for p in unused.parameters())


def test_one_parts_graph_at_a_time() -> None:
    """What autograd saves of a part is gone before the next part is run."""
    encoder = Encoder().train()
    rows = torch.randn(12, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    saved: list[int] = []

    class Saved:
        def __init__(self, value: Tensor) -> None:
            self.value = value
            saved.append(id(self))

        def __del__(self) -> None:
            saved.remove(id(self))

    before: list[int] = []

    def forward(part: Tensor) -> Parts:
        before.append(len(saved))
        with torch.autograd.graph.saved_tensors_hooks(Saved, lambda held: held.value):
            return [encoder(part)]

    calls = [partial(forward, part) for part in rows.split(3)]
    loss = cached_backward(calls, lambda c: (c[0] @ c[0].T).square().mean(), backward, nullcontext)
    assert loss.item() > 0
    assert before == [0] * 8
    assert saved == []


@pytest.mark.parametrize("count", [1, 2, 3])
def test_only_the_last_part_is_shared_with_other_processes(count: int) -> None:
    layer = nn.Linear(3, 2)
    log: list[str] = []

    @contextmanager
    def context() -> Iterator[None]:
        log.append("enter")
        yield
        log.append("exit")

    def forward(part: Tensor) -> Parts:
        log.append("forward" if torch.is_grad_enabled() else "look")
        return [layer(part)]

    def logged(value: Tensor) -> None:
        log.append("backward")
        value.backward()

    def before_last() -> AbstractContextManager[None]:
        return context()

    calls = [partial(forward, part) for part in unit(count, 3).split(1)]
    cached_backward(calls, lambda columns: columns[0].sum(), logged, before_last)
    inside = ["enter", "forward", "backward", "exit"]
    assert log == ["look"] * count + inside * (count - 1) + ["forward", "backward"]


@pytest.mark.parametrize("size", [2, 1])
def test_parts_of_a_lexvla(text_model: str, vision_model: str, size: int) -> None:
    """In train mode, with LoRA's dropout: each part draws the same in both passes."""
    model = adapted(text_model, vision_model).train()
    images, ids = pixels(), model.prompt_ids(TEXTS)
    spans = [slice(first, first + size) for first in range(0, 3, size)]

    def forward(span: slice) -> Parts:
        torch.manual_seed(span.start)
        image, text = model(images[span], ids[span], dense=True)
        return all_of(image, text)

    def loss(columns: Parts) -> Tensor:
        words, image, other, text = columns
        objective = InfoNCE(0.1)
        return objective.symmetric(words @ other.T) + objective.symmetric(image @ text.T)

    calls = [partial(forward, span) for span in spans]
    value = loss([torch.cat(column) for column in zip(*(c() for c in calls), strict=True)])
    value.backward()
    expected = gradients(model)
    assert len(expected) > 20
    found = cached_backward(calls, loss, backward, nullcontext)
    torch.testing.assert_close(found, value.detach())
    for one, other in zip(gradients(model), expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4 * float(other.abs().max()), rtol=1e-4)


def test_alone_rows_are_gathered_as_they_are() -> None:
    rows = unit(3, 2)
    assert gather_rows(rows) is rows


# Codes and proxies


def stepped(weight: nn.Parameter) -> torch.optim.AdamW:
    """Return an optimiser that has moments of every row."""
    optimizer = torch.optim.AdamW([weight], lr=1e-3, amsgrad=True)
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    optimizer.zero_grad()
    return optimizer


MOMENTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")


def test_forget_clears_the_rows_and_no_others() -> None:
    weight = nn.Parameter(unit(5, 3))
    optimizer = stepped(weight)
    before = {name: optimizer.state[weight][name].clone() for name in MOMENTS}
    forget(optimizer, weight, torch.tensor([3, 1]))
    for name in MOMENTS:
        moment = optimizer.state[weight][name]
        assert not moment[[1, 3]].any()
        assert torch.equal(moment[[0, 2, 4]], before[name][[0, 2, 4]])
        assert before[name].all()
    assert optimizer.state[weight]["step"].item() == 1


def test_forget_before_the_first_step_and_without_rows() -> None:
    weight = nn.Parameter(unit(2, 3))
    optimizer = torch.optim.AdamW([weight])
    forget(optimizer, weight, torch.tensor([0]))
    assert weight not in optimizer.state
    optimizer = stepped(weight)
    forget(optimizer, weight, torch.tensor([], dtype=torch.long))
    assert optimizer.state[weight]["exp_avg"].all()


def test_codes_begin_as_clusters_of_the_newest_vectors() -> None:
    """Each queue has two directions among the newest, and random vectors before."""
    eye = torch.eye(4)
    queues = FeatureQueue(9, 4, 0, CPU), FeatureQueue(9, 4, 1, CPU)
    queues[0].push(eye[[0, 0, 1, 1]])
    queues[1].push(eye[[2, 2, 3, 3]])
    torch.manual_seed(0)
    codebook = Codebook(4, 4, 0.1)
    weight = codebook.codes
    rows = torch.cat([queue.newest()[:4] for queue in queues])
    initialise_codes(codebook, rows, seed=3)
    assert codebook.codes is weight  # the optimiser's
    assert torch.equal(codebook.codes.detach().sort(0, descending=True).values[0], torch.ones(4))
    torch.testing.assert_close(codebook.codes.detach().T @ codebook.codes.detach(), eye)
    again = Codebook(4, 4, 0.1)
    initialise_codes(again, rows, seed=3)
    assert torch.equal(again.codes, codebook.codes)


def test_dead_codes_start_anew() -> None:
    torch.manual_seed(0)
    codebook = Codebook(5, 4, 0.1)
    optimizer = stepped(codebook.codes)
    old = codebook.codes.detach().clone()
    queue = FeatureQueue(6, 4, 0, CPU)
    counts = torch.tensor([2, 0, 1, 0, 7])
    reseed_codes(codebook, counts, queue.rows, optimizer, seed=1)
    new = codebook.codes.detach()
    assert torch.equal(new[[0, 2, 4]], old[[0, 2, 4]])
    for code in new[[1, 3]]:
        assert (queue.rows - code).abs().sum(1).min() < 1e-6
    assert not torch.equal(new[1], new[3])
    assert not counts.any()
    moment = optimizer.state[codebook.codes]["exp_avg"]
    assert not moment[[1, 3]].any()
    assert moment[[0, 2, 4]].all()


def test_the_same_seed_reseeds_alike() -> None:
    """So that all processes have the same codes."""
    found = []
    for _ in range(2):
        torch.manual_seed(0)
        codebook, queue = Codebook(5, 4, 0.1), FeatureQueue(6, 4, 0, CPU)
        counts = code_counts(queue.rows[:1], codebook.codes.detach())
        optimizer = torch.optim.AdamW(codebook.parameters())
        reseed_codes(codebook, counts, queue.rows, optimizer, seed=1)
        found.append(codebook.codes.detach())
    assert torch.equal(*found)


def test_reclustered_proxies_forget_what_moved() -> None:
    torch.manual_seed(0)
    proxies = HierarchicalProxy(32, 6)
    fine, coarse = (level.get_parameter("proxies") for level in proxies.levels)
    optimizer = torch.optim.AdamW([fine, coarse], lr=1e-3)

    def step() -> None:
        for weight in (fine, coarse):
            weight.grad = torch.ones_like(weight)
        optimizer.step()

    step()
    assert (proxies.parents(0) == -1).all()
    recluster_proxies(proxies, optimizer, seed=1)
    assert not optimizer.state[coarse]["exp_avg"].any()  # all were random
    assert optimizer.state[fine]["exp_avg"].all()
    assert set(proxies.parents(0).tolist()) == set(range(8))
    # Only the proxies of one cluster change: the others' centres, and moments, stay.
    with torch.no_grad():
        for weight in (fine, coarse):
            optimizer.state[weight]["exp_avg"].fill_(1.0)
    before, parents = coarse.detach().clone(), proxies.parents(0).clone()
    recluster_proxies(proxies, optimizer, seed=1)
    unit_before, unit_now = (functional.normalize(x, dim=1) for x in (before, coarse.detach()))
    stayed = (unit_before * unit_now).sum(1) >= 0.999
    moments = optimizer.state[coarse]["exp_avg"]
    assert moments[stayed].all()
    assert not moments[~stayed].any()
    assert stayed.any()
    assert (parents == proxies.parents(0)).any()


# Health

GOOD = {"loss": 3.0, "gradient": 1.0, "words": 20.0, "alike": 0.5}


def test_signs_by_hand() -> None:
    """The bound is 1/sqrt(4)."""
    vectors = torch.tensor([[0.8, 0.6, 0, 0], [0, 0, 0, 1.0]]).requires_grad_()
    found = signs(vectors)
    assert found["words"] == 1.5
    assert found["alike"] == pytest.approx(math.sqrt(0.4**2 + 0.3**2 + 0.5**2))
    assert signs(torch.tensor([[0.6, 0.8]] * 3))["alike"] == pytest.approx(1.0)


@pytest.mark.parametrize("name", ["loss", "gradient"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_no_number_ends_the_run(name: str, value: float) -> None:
    with pytest.raises(ModelError, match=r"step 1: .*lower rate"):
        check_health(1, {**GOOD, name: value})


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"words": 0.99}, "no active word"),
        ({"alike": 0.9996}, "same vector"),
    ],
)
def test_collapsed_vectors_end_the_run(changes: dict[str, float], rule: str) -> None:
    check_health(500, {**GOOD, **changes})  # too early to tell
    with pytest.raises(ModelError, match=f"step 501: .*{rule}"):
        check_health(501, {**GOOD, **changes})


def test_a_healthy_run_goes_on() -> None:
    check_health(1, GOOD)
    check_health(10**6, {**GOOD, "words": 1.0, "alike": 0.9995})


def test_equal_vectors_are_alike_and_untrained_ones_are_not() -> None:
    equal = signs(unit(1, 500).abs().expand(8, -1))
    assert equal["alike"] > 0.9999
    with torch.no_grad():
        image, _ = shared_model()(pixels(), shared_model().prompt_ids(CAPTIONS))
    check_health(501, {**GOOD, **signs(image.lexical)})


# Views


def view(image: Image.Image, seed: int = 0, crop: float = 0.5, jitter: float = 0.0) -> np.ndarray:
    return random_view(image, SIDE, crop, jitter, np.random.default_rng(seed))


def painted(width: int, height: int) -> Image.Image:
    """Red grows from left to right, green from top to bottom."""
    red = np.linspace(0, 255, width)[None].repeat(height, 0)
    green = np.linspace(0, 255, height)[:, None].repeat(width, 1)
    return Image.fromarray(np.stack([red, green, red * 0 + 90], 2).astype(np.uint8))


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1), (2, 3), (300, 20), (640, 480)])
@pytest.mark.parametrize("crop", [1e-6, 0.2, 1.0])
def test_a_view_of_an_image_of_any_size(size: tuple[int, int], crop: float) -> None:
    for seed in range(20):
        found = view(painted(*size), seed, crop, jitter=0.4)
        assert found.shape == (SIDE, SIDE, 3)
        assert found.dtype == np.uint8


@pytest.mark.parametrize("size", [(24, 24), (40, 30), (300, 20), (1000, 700), (1, 1)])
def test_without_crop_and_jitter_a_view_is_what_encode_sees(size: tuple[int, int]) -> None:
    image = painted(*size)
    for seed in range(3):
        np.testing.assert_array_equal(view(image, seed, crop=1.0), resize(image, SIDE))


def test_a_view_follows_from_the_generator() -> None:
    image = picture(1, (60, 40))
    first, same, other = (view(image, seed, jitter=0.4) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, same)
    assert (first != other).any()


@pytest.mark.parametrize("crop", [0.2, 0.9])
def test_a_view_is_not_flipped(crop: float) -> None:
    """Red still grows to the right, and green downwards."""
    for seed in range(50):
        found = view(painted(96, 64), seed, crop).astype(int)
        assert (np.diff(found[..., 0], axis=1) >= 0).all()
        assert (np.diff(found[..., 1], axis=0) >= 0).all()
        assert found[0, -1, 0] > found[0, 0, 0]
        assert found[-1, 0, 1] > found[0, 0, 1]


def shown(crop: float, seed: int, monkeypatch: pytest.MonkeyPatch) -> tuple[float, float]:
    """Return the shares of width and height that a view shows."""
    boxes = []
    real = Image.Image.resize

    def spy(self: Image.Image, size: tuple[int, int], *args: object, **more: object) -> Image.Image:
        boxes.append(more["box"])
        return real(self, size, *args, **more)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "resize", spy)
        view(painted(100, 50), seed, crop)
    left, top, right, bottom = boxes[0]
    assert min(left, top) >= 0
    assert right <= 100 + 1e-9
    assert bottom <= 50 + 1e-9
    return (right - left) / 100, (bottom - top) / 50


@pytest.mark.parametrize("crop", [0.1, 0.5, 0.9, 0.99])
def test_a_view_shows_no_less_than_asked_for(crop: float, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = [shown(crop, seed, monkeypatch) for seed in range(200)]
    areas = [width * height for width, height in parts]
    ratios = [width / height for width, height in parts]
    assert min(areas) >= crop - 1e-9
    assert min(areas) < crop + 0.1 * (1 - crop)
    assert max(areas) > 1 - 0.1 * (1 - crop)
    assert 3 / 4 - 1e-9 <= min(ratios) < 1 < max(ratios) <= 4 / 3 + 1e-9


def test_jitter_changes_colours_within_its_bounds() -> None:
    grey = Image.new("RGB", (30, 30), (100, 100, 100))
    means = [float(view(grey, seed, crop=1.0, jitter=0.2).mean()) for seed in range(100)]
    assert 79 <= min(means) < 90
    assert 110 < max(means) <= 121


# Sources


def caption_file(folder: Path, records: list[dict[str, object]]) -> Path:
    path = folder / "captions.jsonl"
    path.write_text("\n".join(json.dumps(record) for record in records), encoding="utf-8")
    return path


def test_a_caption_file_and_an_unknown_option(tmp_path: Path) -> None:
    write_images(tmp_path)
    path = caption_file(tmp_path, [{"image": "00.png", "text": "hat"}])
    source = open_source(Data("captions", str(path)))
    assert not hasattr(source, "shards")
    assert len(source) == 1  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"captions.jsonl.*\[data.options\].*'split'"):
        open_source(Data("captions", str(path), options={"split": "train"}))


def test_options_reach_the_source(tmp_path: Path) -> None:
    write_images(tmp_path)
    images = [
        {"filename": f"{n:02}.png", "split": ("train", "val")[n % 2], "sentences": [{"raw": "hat"}]}
        for n in range(COUNT)
    ]
    path = tmp_path / "dataset.json"
    path.write_text(json.dumps({"images": images}), encoding="utf-8")
    source = open_source(Data("karpathy", str(path), options={"split": "val"}))
    assert len(source) == COUNT // 2  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"\[data.options\] captions must be at least 1"):
        open_source(Data("karpathy", str(path), options={"captions": 0}))


def test_a_recipes_table_names_columns(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    path = write_parquet(tmp_path / "pairs.parquet", range(4))
    options = {"columns": {"id": "name", "label": "kind"}, "cache_dir": str(tmp_path / "cache")}
    source = open_source(Data("hugging_face", str(path), options=options))
    assert classes_of(source) == ["kind 0", "kind 1"]
    assert source[2].id == "n2"  # type: ignore[index]
    options["columns"] = {"colour": "name"}
    with pytest.raises(InputError, match=r"\[data.options\].*'colour'"):
        open_source(Data("hugging_face", str(path), options=options))


def test_a_source_that_is_not_there(tmp_path: Path) -> None:
    for kind in ("captions", "karpathy", "webdataset"):
        with pytest.raises(InputError):
            open_source(Data(kind, str(tmp_path / "none.jsonl")))


def test_shards_have_no_classes_beforehand(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "one.tar", members(range(3)))
    source = open_source(Data("webdataset", str(path), options={"label_key": "class"}))
    with pytest.raises(InputError, match="shards"):
        classes_of(source)


def paired(*records: tuple[str | None, tuple[str, ...]]) -> PairList:
    return PairList(
        "fruit", [Pair(f"p{n}", b"", ("hat",), *record) for n, record in enumerate(records)]
    )


def test_classes_are_sorted_and_none_is_none() -> None:
    assert classes_of(paired(("pear", ()), (None, ()), ("apple", ()), ("pear", ()))) == [
        "apple",
        "pear",
    ]
    assert classes_of(PairList("list", [fake_pair(1)])) == []


def test_parents_come_from_class_paths() -> None:
    source = paired(
        ("pear", ("food", "fruit", "pear")),  # the nearest of those above
        ("oak", ("tree",)),  # the class itself may be left out
        ("apple", ("food", "fruit", "apple", "red apple")),  # what lies below is no parent
        (None, ("tree", "elm")),
        ("pear", ()),  # no path here, but another of its pairs has one
    )
    assert parents_of(source, classes_of(source)) == [[0, 1, 0]]


def test_a_class_has_one_parent() -> None:
    twice = paired(("pear", ("fruit", "pear")), ("oak", ("tree",)), ("pear", ("green", "pear")))
    with pytest.raises(InputError, match=r"'pear' lies under 'fruit' and 'green'"):
        parents_of(twice, classes_of(twice))
    for path in ((), ("oak",)):
        lonely = paired(("pear", ("fruit",)), ("oak", path))
        with pytest.raises(InputError, match=r"oak.*no parent"):
            parents_of(lonely, classes_of(lonely))
    same = paired(("pear", ("food",)), ("apple", ("food",)))
    with pytest.raises(InputError, match=r"food.*only class"):
        parents_of(same, classes_of(same))


def test_a_bad_record_is_passed_over_for_parents() -> None:
    class Holed(PairList):
        def __getitem__(self, number: int) -> Pair:
            if number == 1:
                raise InputError("p1", "is bad")
            return super().__getitem__(number)

    source = Holed("holed", [Pair(f"p{n}", b"", ("a",), *r) for n, r in enumerate(LEVELS)])
    assert parents_of(source, ["oak", "pear"]) == [[1, 0]]


LEVELS = [("pear", ("fruit",)), ("pear", ("bad",)), ("oak", ("tree",))]
