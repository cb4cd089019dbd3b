"""Codes and proxies, health, views and sources."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional

from lexvla.codebook import Codebook, code_counts
from lexvla.errors import ModelError
from lexvla.images import resize
from lexvla.losses import HierarchicalProxy
from lexvla.training.augment import random_view
from lexvla.training.teacher import FeatureQueue
from lexvla.training.trainer import (
    check_health,
    forget,
    initialise_codes,
    recluster_proxies,
    reseed_codes,
    signs,
)
from model_fakes import picture
from training_fakes import (
    CAPTIONS,
    CPU,
    SIDE,
    pixels,
    shared_model,
    unit,
)

pytestmark = pytest.mark.usefixtures("one_thread")


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
