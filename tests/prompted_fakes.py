"""Tiny vision-language models with random weights, in folders as from the hub."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import (
    AutoModelForImageTextToText,
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaProcessor,
)

from lexvla.config import PROMPT
from lexvla.training.tokenizer import train_tokenizer
from model_fakes import CAPTIONS

SIDE, PATCH, GRID = 24, 8, 3


def save_vision_language_model(folder: Path, seed: int = 0, grid: int = GRID) -> str:
    """Write a tiny LLaVA whose images have grid x grid tokens, and return the folder."""
    pieces = train_tokenizer([*CAPTIONS, PROMPT], 60)
    pieces.add_special_tokens({"additional_special_tokens": ["<image>"]})
    pieces.image_token = "<image>"
    pieces.pad_token = pieces.pad_token or pieces.eos_token
    number = pieces.convert_tokens_to_ids("<image>")
    side = PATCH * grid
    text = LlamaConfig(
        **{"vocab_size": len(pieces), "hidden_size": 16, "intermediate_size": 24},
        **{"num_hidden_layers": 2, "num_attention_heads": 2, "initializer_range": 0.4},
        max_position_embeddings=256,
    )
    vision = CLIPVisionConfig(
        **{"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2},
        **{"num_attention_heads": 2, "image_size": side, "patch_size": PATCH},
        initializer_range=0.4,
    )
    config = LlavaConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=number,
        vision_feature_layer=-1,
        image_seq_length=grid * grid,
    )
    torch.manual_seed(seed)
    AutoModelForImageTextToText.from_config(config).save_pretrained(folder)
    size = {"height": side, "width": side}
    LlavaProcessor(
        image_processor=CLIPImageProcessor(size=size, crop_size=size),
        tokenizer=pieces,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        image_token="<image>",
        num_additional_image_tokens=1,
    ).save_pretrained(folder)
    return str(folder)
