"""What the tests of the trainer share."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

from backbone_fakes import random_lora, small
from lexvla.features import Features
from lexvla.model import LexVLA
from lexvla.preprocessing import preprocess
from model_fakes import GRID, picture, tiny_model

SIDE = 8 * GRID
CPU = torch.device("cpu")


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


def adapted(text_model: str, vision_model: str) -> LexVLA:
    """A model of frozen towers with LoRA."""
    torch.manual_seed(0)
    model = LexVLA.from_backbones(text_model, vision_model, **small(lora_dropout=0.3))
    return random_lora(model)
