"""What a run on pairs begins with: the model, and how fast its parts are trained."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lexvla.errors import InputError
from lexvla.model import LexVLA
from lexvla.training.objective import Objective
from lexvla.training.pair_recipe import PairRecipe, Run

__all__ = ["parameter_groups", "start_model"]


def start_model(recipe: PairRecipe, device: torch.device) -> LexVLA:
    """Load or assemble the model that a recipe starts from, with what its losses train.

    Raises:
        InputError: A loss needs a part that the model has not.
        ModelError: A model cannot be loaded.
    """
    loss, options = recipe.loss, dict(recipe.model)
    place: dict[str, Any] = {"device": device}
    if "start" in options:
        model = LexVLA.from_pretrained(options.pop("start"), **options, **place)
    else:
        model = LexVLA.from_backbones(**options, **place)
    if loss.needs_dense and not model.config.dense_width:
        raise InputError("[loss]", "the dense terms need a model with a dense_width")
    if loss.codis and model.codebook is None:
        raise InputError("[loss]", "codis needs a model with a codebook_size")
    # What no term uses gets no gradient, which DDP would wait for.
    for part, used in (
        (model.text_dense_head, loss.needs_dense),
        (model.image_dense_head, loss.needs_dense),
        (model.codebook, loss.codis > 0),
        (model.image_codebook, loss.needs_image_words),
    ):
        if part is not None:
            part.requires_grad_(used)
    return model


def parameter_groups(model: LexVLA, objective: Objective, run: Run) -> list[dict[str, Any]]:
    """Return what is trained in groups of rate and decay; only matrices decay."""
    lora: list[Tensor] = []
    matrices: list[Tensor] = []
    rest: list[Tensor] = list(objective.parameters())
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            kind = lora if "lora_" in name else matrices if weight.ndim > 1 else rest
            kind.append(weight)
    rate, decay = run.rate, run.weight_decay
    groups = [
        {"params": lora, "lr": run.lora_rate or rate, "weight_decay": decay},
        {"params": matrices, "lr": rate, "weight_decay": decay},
        {"params": rest, "lr": rate, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
