"""The start of a run: model, feed and optimisers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lexvla.config import LexVLAConfig
from lexvla.data.emoji import EmojiDrawings
from lexvla.errors import InputError
from lexvla.torch_model import TorchLexVLA
from lexvla.training.drawing_feed import DrawingFeed
from lexvla.training.feed import Feed
from lexvla.training.objective import Objective
from lexvla.training.pair_feed import PairFeed
from lexvla.training.recipe import NAMED, Recipe, Run
from lexvla.training.seen_drawings import SeenDrawings
from lexvla.training.sources import Source, captions_of
from lexvla.training.untrained import untrained_model

__all__ = ["open_feed", "optimizers", "start_model"]

_TABLES = ("codebook", "embed_tokens", "lm_head", "memory")


def start_model(recipe: Recipe, source: Source, device: torch.device) -> TorchLexVLA:
    """Load, assemble or build a recipe's model, and freeze what its losses do not train."""
    loss, options = recipe.loss, dict(recipe.model)
    place: dict[str, Any] = {"device": device}
    if "start" in options:
        named = {key: options.pop(key, "") for key in NAMED}
        model = TorchLexVLA.from_pretrained(options.pop("start"), **options, **place)
        _rename(model.config, **named)
    elif "width" in options:
        try:
            others = source.other_texts() if isinstance(source, EmojiDrawings) else ()
            model = untrained_model(captions_of(source), others, **options).to(device)
        except (TypeError, ValueError) as error:
            raise InputError("[model]", str(error)) from error
    else:
        model = TorchLexVLA.from_backbones(**options, **place)
    patch = model.config.patch_size
    for side in recipe.train.sides:
        if side % patch:
            raise InputError("[train] sides", f"{side} must be a multiple of the patch, {patch}")
    if device.type == "cpu":  # the fused kernel's backward pass is far slower on CPUs
        model.text_tower.language_model.set_attn_implementation("eager")
        if not model.config.has_map:
            model.image_tower.vision_model.set_attn_implementation("eager")
    if loss.needs_dense and not model.config.dense_width:
        raise InputError("[loss]", "the dense terms need a model with a dense_width")
    if loss.codis and model.codebook is None:
        raise InputError("[loss]", "codis needs a model with a codebook_size")
    # DDP would wait for gradients of unused parts.
    for part, used in (
        (model.text_dense_head, loss.needs_dense),
        (model.image_dense_head, loss.needs_dense),
        (model.codebook, loss.codis > 0),
        (model.image_codebook, loss.needs_image_words),
    ):
        if part is not None:
            part.requires_grad_(used)
    return model


def _rename(config: LexVLAConfig, model_name: str, knowledge: str) -> None:
    """Drop what was said of a model, and fitted to its scores, before it was trained further."""
    config.model_name = model_name or "lexvla"
    config.knowledge = knowledge
    config.relevance = None


def open_feed(
    source: Source, recipe: Recipe, model: TorchLexVLA, rank: int, world_size: int
) -> Feed:
    """Return the feed of a process."""
    if isinstance(source, EmojiDrawings):
        if recipe.data.views and world_size > 1:
            raise InputError("[data] views", f"are for one process, and there are {world_size}")
        seen = SeenDrawings(source, recipe, model) if recipe.data.views else None
        return DrawingFeed(source, recipe, model.config, model.vocabulary, seen)
    return PairFeed(source, recipe, model.config, model.vocabulary, rank, world_size)


def optimizers(model: TorchLexVLA, objective: Objective, run: Run) -> list[torch.optim.Optimizer]:
    """Return AdamW for trained weights, and Muon for inner matrices if it has a rate.

    Only matrices have weight decay. Tables of words and codes always use AdamW, which moves only
    the rows of a step; Muon would move all.
    """
    lora: list[Tensor] = []
    inner: list[Tensor] = []
    matrices: list[Tensor] = []
    rest: list[Tensor] = list(objective.parameters())
    for name, weight in model.named_parameters():
        if not weight.requires_grad:
            continue
        table = any(part in name for part in _TABLES)
        if "lora_" in name:
            lora.append(weight)
        elif weight.ndim < 2:
            rest.append(weight)
        elif run.muon_rate is not None and weight.ndim == 2 and not table:
            inner.append(weight)
        else:
            matrices.append(weight)
    rate, decay = run.rate, run.weight_decay
    groups = [
        {"params": lora, "lr": run.lora_rate or rate, "weight_decay": decay},
        {"params": matrices, "lr": rate, "weight_decay": decay},
        {"params": rest, "lr": rate, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    made: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, betas=(0.9, 0.98))]
    if inner and run.muon_rate is not None:
        muon = torch.optim.Muon(
            inner, lr=run.muon_rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw"
        )
        made.append(muon)
    return made
