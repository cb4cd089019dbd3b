"""Tiny dual encoders of each class, with random weights, in folders as from the hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AltCLIPConfig,
    AutoModel,
    ChineseCLIPConfig,
    CLIPConfig,
    PretrainedConfig,
    Siglip2Config,
    SiglipConfig,
)

from model_fakes import tokenizer

KINDS = ("clip", "siglip", "siglip2", "chinese_clip", "altclip")
WORDS = ("dog", "cat", "red", "blue bird", "hat", "white horse", "man", "bicycle")
SIDE, PATCH, GRID = 24, 8, 3


def save_dual_encoder(folder: Path, kind: str = "clip", seed: int = 0) -> str:
    """Write a tiny model with its tokenizer and the means of its pixels; return the folder."""
    pieces = tokenizer()
    pieces.pad_token = pieces.pad_token or pieces.eos_token or "</s>"
    text: dict[str, Any] = {
        **{"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1},
        **{"num_attention_heads": 2, "vocab_size": len(pieces), "max_position_embeddings": 40},
        **{"initializer_range": 0.4, "pad_token_id": pieces.pad_token_id},
    }
    vision = {
        **{"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1},
        **{"num_attention_heads": 2, "image_size": SIDE, "patch_size": PATCH},
        **{"initializer_range": 0.4},
    }
    config: PretrainedConfig
    if kind == "clip":
        ends = {"eos_token_id": pieces.eos_token_id, "bos_token_id": pieces.bos_token_id}
        config = CLIPConfig(text_config={**text, **ends}, vision_config=vision, projection_dim=12)
    elif kind == "siglip":
        config = SiglipConfig(text_config={**text, "projection_size": 16}, vision_config=vision)
    elif kind == "siglip2":
        vision["num_patches"] = GRID * GRID
        config = Siglip2Config(text_config={**text, "projection_size": 16}, vision_config=vision)
    elif kind == "chinese_clip":
        config = ChineseCLIPConfig(text_config=text, vision_config=vision, projection_dim=12)
    else:
        text |= {"project_dim": 16, "type_vocab_size": 1}
        config = AltCLIPConfig(text_config=text, vision_config=vision, projection_dim=12)
    torch.manual_seed(seed)
    made = AutoModel.from_config(config)
    with torch.no_grad():
        for name, part in made.named_parameters():
            if part.ndim > 1 and "logit" not in name:
                part.copy_(torch.randn(part.shape) * 0.3)
    made.save_pretrained(folder)
    pieces.save_pretrained(folder)
    means = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.25]}
    (folder / "preprocessor_config.json").write_text(json.dumps(means), encoding="utf-8")
    return str(folder)


def word_file(folder: Path, words: tuple[str, ...] = WORDS) -> Path:
    """Write a vocabulary file and return its path."""
    path = folder / "words.txt"
    path.write_text("\n".join(words) + "\n", encoding="utf-8")
    return path
