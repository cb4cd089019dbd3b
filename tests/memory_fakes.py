"""A tiny convolutional network with its classifier, classes, nouns, and a model with a memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import TimmWrapperConfig, TimmWrapperForImageClassification

from lexvla.torch_model import TorchLexVLA
from lexvla.training.untrained import untrained_model
from model_fakes import CAPTIONS, ITEMS, drawing_sections

SIDE, GRID, STRIDE = 96, 3, 32
CHANNELS, FINE, CLASSES = 256, 48, 4
NAMES = ("tabby", "lorry", "teapot", "frog")


def save_classified(folder: Path, seed: int = 2, classes: int = CLASSES) -> Path:
    """Write a tiny network of timm with random weights and a classifier, and return the folder."""
    trained = {"input_size": (3, 96, 96), "mean": (0.4, 0.5, 0.6), "std": (0.2, 0.2, 0.3)}
    torch.manual_seed(seed)
    config = TimmWrapperConfig(
        architecture="test_efficientnet", pretrained_cfg=trained, num_labels=classes
    )
    model = TimmWrapperForImageClassification(config)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = None  # the mean of all that it sees
    blocks = functional.interpolate(torch.randn(16, 3, 6, 6), size=(SIDE, SIDE))
    with torch.no_grad():  # as if it had seen images, so that its channels tell them apart
        model.train()(pixel_values=blocks)
    model.eval().save_pretrained(folder)
    return folder


def memory_model(network: Path, **changes: Any) -> TorchLexVLA:
    """Return a model with a memory of 6 items and 4 classes, random as its image codebook is."""
    torch.manual_seed(0)
    options: dict[str, Any] = {
        **{"width": 16, "text_layers": 1, "heads": 2, "pieces_below_words": 60},
        **{"image_size": SIDE, "fine_stage": True},
        **{"concept_items": len(ITEMS), "concept_classes": CLASSES, "layout_width": 6},
        **{"local_rank": 2, "dense_width": 6, "codebook_size": 4, "codes_per_item": 2},
        **changes,
    }
    others = options.pop("others", ())
    model = untrained_model(CAPTIONS, others, vision_model=str(network), **options)
    memory = model.image_tower.memory
    if memory is not None:
        for weight in memory.parameters():
            nn.init.normal_(weight, std=0.3)
        with torch.no_grad():
            memory.scales.copy_(torch.tensor([6, 0.7, 1, 0.2, 0.5]))
            rows = model.image_codebook
            rows.copy_(3 * torch.randn(rows.shape) * (torch.rand(rows.shape) < 0.4))
            rows[:, -1] = -2
    return model.eval()


def save_lists(folder: Path) -> tuple[Path, Path]:
    """Write four classes and three nouns, and return both files."""
    classes = [
        {
            "id": f"n0{number}",
            "label": name,
            "names": [name, f"{name} thing"],
            "above": ["animal"] if name in ("tabby", "frog") else ["artefact"],
            "gloss": f"a {name} of some kind",
            "words": {name: 1.0, "animal": 0.5} if name == "tabby" else {name: 1.0},
        }
        for number, name in enumerate(NAMES)
    ]
    nouns = [
        {"text": "kitten", "words": {"tabby": 1.0, "animal": 0.6}},
        {"text": "orchard", "words": {"apple": 0.8, "fruit": 0.5}},
        {"text": "goblin", "words": {"nobody": 1.0}},
    ]
    paths = folder / "classes.jsonl", folder / "nouns.jsonl"
    for path, records in zip(paths, (classes, nouns), strict=True):
        path.write_text("".join(json.dumps(each) + "\n" for each in records), encoding="utf-8")
    return paths


def seen_sections(drawings: Path, network: Path, lists: Path) -> dict[str, dict[str, Any]]:
    """Return the settings of a short run in which a frozen network sees the drawings."""
    sections = drawing_sections(drawings)
    classes, nouns = save_lists(lists)
    sections["model"] = {
        **{"width": 16, "text_layers": 1, "heads": 2, "pieces_below_words": 60},
        **{"vision_model": str(network), "fine_stage": True, "image_size": SIDE},
        **{"concept_items": len(ITEMS), "concept_classes": CLASSES, "layout_width": 4},
        **{"local_rank": 3, "model_name": "tiny", "dense_width": 0, "codebook_size": 0},
    }
    sections["data"] |= {
        **{"views": 3, "patches": 4, "folds": [["round"]], "class_share": 0.25, "noun_rows": 2},
    }
    sections["data.options"] |= {"tones": False, "classes": str(classes), "nouns": str(nouns)}
    sections["train"] |= {"sides": [], "sides_from": []}
    return sections
