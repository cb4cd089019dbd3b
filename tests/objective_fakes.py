"""A tiny batch for the tests of the objective."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from lexvla.torch_model import Features
from lexvla.training.objective import Losses, Objective, Targets, TeacherView

COUNT, WORDS, WIDTH, QUEUE, CODES, CLASSES = 4, 12, 5, 7, 6, 3
SILENT = Losses(lexical=0, penalty_image=0, penalty_text=0, temperature=0.2)
TAU = 0.2
LABELS = torch.tensor([0, 2, 2, 1])


def unit(*shape: int, seed: int) -> Tensor:
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return functional.normalize(values, dim=-1)


def features(seed: int, locals_: int = 0) -> Features:
    parts = unit(COUNT, locals_, WIDTH, seed=seed + 2) if locals_ else None
    return Features(unit(COUNT, WORDS, seed=seed).abs(), unit(COUNT, WIDTH, seed=seed + 1), parts)


IMAGE, TEXT = features(10), features(20)
MASK = torch.tensor([[1, 1, 0], [0, 1, 1], [0, 0, 1], [1, 1, 1]]).bool()
SEEN = TeacherView(
    features(30, 25),
    features(40, 3)._replace(mask=MASK),
    unit(QUEUE, WIDTH, seed=50),
    unit(QUEUE, WIDTH, seed=51),
)
BOOK = unit(CODES, WIDTH, seed=60)


def build(losses: Losses, **options: Any) -> Objective:
    torch.manual_seed(0)
    return Objective(losses, WIDTH, CLASSES, **options)


def terms(objective: Objective, step: int = 10**6, **options: Any) -> dict[str, Tensor]:
    given = {"codes": BOOK, "teacher": SEEN, "targets": Targets(LABELS), **options}
    parts: dict[str, Tensor] = objective(IMAGE, TEXT, step, **given)
    return parts


def only(name: str, weight: float = 1.0, **settings: Any) -> Losses:
    return replace(SILENT, **{name: weight}, **settings)
