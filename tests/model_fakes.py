"""A tiny LexVLA with random weights, and a tiny folder of drawings, made in memory at once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Dinov2Config, LlamaConfig, PreTrainedTokenizerFast

from lexvla.config import PROMPT, LexVLAConfig
from lexvla.torch_model import TorchLexVLA
from lexvla.training.tokenizer import build_vocabulary, train_tokenizer

CAPTIONS = (
    "a red dog",
    "the cat's green hat",
    "two blue birds, flying",
    "white horse and man",
    "riding a café bicycle",
)
STOP_WORDS = frozenset({"a", "and", "s", "the"})
GRID = 3  # patches along a side


def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer([*CAPTIONS, PROMPT], 60)


def tiny_model(seed: int = 0, **config: Any) -> TorchLexVLA:
    """Return a model of 24-pixel images and 15 words, whose weights are far from alike."""
    pieces = tokenizer()
    vocabulary = build_vocabulary(pieces, CAPTIONS, STOP_WORDS)
    torch.manual_seed(seed)
    text = LlamaConfig(
        vocab_size=len(pieces),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=256,
        initializer_range=0.4,
        attention_dropout=0.1,
        tie_word_embeddings=False,
    )
    vision = Dinov2Config(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=8 * GRID,
        patch_size=8,
        initializer_range=0.4,
        hidden_dropout_prob=0.1,
        use_mask_token=False,
    )
    sizes = {
        "adapter_heads": 2,
        "adapter_width": 24,
        "vocabulary_chunk": 5,
        "dense_width": 6,
        "codebook_size": 4,
        "codes_per_item": 2,
        "require_known_word": True,
        **config,
    }
    model = TorchLexVLA(LexVLAConfig(text, vision, **sizes), vocabulary, pieces)
    return model.eval()


def picture(seed: int, size: tuple[int, int] = (40, 30)) -> Image.Image:
    """Return an image of coloured blocks."""
    blocks = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), np.uint8)
    return Image.fromarray(blocks).resize(size, Image.Resampling.NEAREST)


# id, label, tags, group, subgroup, colour
ITEMS: tuple[tuple[str, str, list[str], str, str, tuple[int, int, int]], ...] = (
    ("1f34e", "red apple", ["fruit", "red"], "food-drink", "food-fruit", (220, 40, 45)),
    ("1f438", "frog", ["face", "green"], "animals-nature", "animal-amphibian", (90, 170, 60)),
    ("1f499", "blue heart", ["blue", "love"], "smileys-emotion", "heart", (50, 120, 220)),
    ("1f9d1", "person", ["adult"], "people-body", "person", (255, 205, 60)),
    ("1f3b1", "pool 8 ball", ["8", "billiards", "game"], "activities", "game", (25, 25, 28)),
    ("1f4d6", "open book", [], "objects", "book-paper", (250, 250, 250)),
)
STYLES = ("flat", "round")
LONELY = 5  # the item that the second set does not draw
PERSON, TONES = 3, ((250, 220, 190), (90, 60, 40))


def save_drawings(folder: Path) -> Path:
    """Write `ITEMS` as `scripts/build_training_drawings.py` does: a block of colour for each.

    The first set draws a wide block and the second a tall one; the person comes in two skin
    tones more.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pixels, item, style, tone = [], [], [], []
    for number, (*_, colour) in enumerate(ITEMS):
        for kind in range(1 if number == LONELY else 2):
            for skin, paint in enumerate([colour, *TONES] if number == PERSON else [colour]):
                drawing = np.zeros((64, 64, 4), np.uint8)
                box = np.s_[24:40, 8:56] if kind == 0 else np.s_[8:56, 24:40]
                drawing[box] = (*paint, 255)
                pixels.append(drawing)
                item.append(number)
                style.append(kind)
                tone.append(skin)
    keys = ("id", "label", "tags", "group", "subgroup")
    lines = [json.dumps(dict(zip(keys, each[:5], strict=True))) for each in ITEMS]
    (folder / "items.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    np.savez(
        folder / "drawings.npz",
        pixels=np.stack(pixels),
        item=np.array(item, np.int32),
        style=np.array(style, np.int8),
        tone=np.array(tone, np.int8),
        style_names=np.array(STYLES),
    )
    return folder


def drawing_sections(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the settings of a short run on `save_drawings`, with all that such a run can have."""
    return {
        "model": {
            "width": 16,
            "vision_layers": 1,
            "text_layers": 1,
            "heads": 2,
            "image_size": 8 * GRID,
            "pieces_below_words": 60,
            "dense_width": 0,
            "codebook_size": 0,
            "model_name": "tiny",
        },
        "data": {"kind": "drawings", "path": str(folder), "batch_size": 8},
        "data.options": {"styles": list(STYLES)},
        "loss": {
            "own_words": 1.0,
            "image_pairs": 0.5,
            "memory": 0.5,
            "memory_from": 4,
            "penalty_ramp": 4,
        },
        "train": {
            "steps": 8,
            "warmup": 2,
            "save_every": 3,
            "device": "cpu",
            "threads": 1,
            "rate": 4e-3,
            "muon_rate": 5e-3,
            "weight_decay": 0.05,
            "jitter": 1.0,
            "sides": [16, 24],
            "sides_from": [0.0, 0.5],
            "average": 0.9,
            "half": True,
        },
    }


def edit_json(path: Path, change: Callable[[dict], object]) -> None:
    values = json.loads(path.read_text(encoding="utf-8"))
    change(values)
    path.write_text(json.dumps(values), encoding="utf-8")


def edit_weights(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    """Change the weights and their hash alike, as one does who means it."""
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    edit_json(
        folder / "config.json", lambda v: v["weights_sha256"].update({"model.safetensors": digest})
    )
