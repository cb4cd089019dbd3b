"""Tiny vision-language models with random weights, in folders as from the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForImageTextToText,
    CLIPImageProcessor,
    CLIPVisionConfig,
    Idefics3Config,
    Idefics3ImageProcessor,
    Idefics3Processor,
    LlamaConfig,
    LlavaConfig,
    LlavaProcessor,
    PaliGemmaConfig,
    PaliGemmaProcessor,
    PretrainedConfig,
    PreTrainedTokenizerBase,
    Qwen2VLConfig,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    SiglipImageProcessor,
)

from lexvla.config import PROMPT
from lexvla.training.tokenizer import train_tokenizer
from model_fakes import CAPTIONS

GRIDS = {"llava": 3, "idefics3": 3, "paligemma": 3, "qwen2_vl": 16}  # patches of a side, by class
PATCH = 8

TOWER = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
TOWER |= {"num_attention_heads": 2}
RANDOM = {"initializer_range": 0.4}
TEXT: dict[str, Any] = {**TOWER, **RANDOM, "max_position_embeddings": 256}


def save_vision_language_model(folder: Path, kind: str = "llava", grid: int = 3) -> str:
    """Write a tiny model whose images have grid x grid tokens, and return the folder.

    Qwen2-VL takes images of any size, so that its grid is always that of `GRIDS`.
    """
    make = {"llava": _llava, "idefics3": _idefics3, "paligemma": _paligemma}
    config, processor = {**make, "qwen2_vl": _qwen2_vl}[kind](grid)
    torch.manual_seed(0)
    AutoModelForImageTextToText.from_config(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


def _pieces(*special: str) -> PreTrainedTokenizerBase:
    pieces = train_tokenizer([*CAPTIONS, PROMPT], 60)
    pieces.add_special_tokens({"additional_special_tokens": list(special)})
    pieces.pad_token = pieces.pad_token or pieces.eos_token
    return pieces


def _llava(grid: int) -> tuple[PretrainedConfig, Any]:
    pieces = _pieces("<image>")
    pieces.image_token = "<image>"
    side = PATCH * grid
    config = LlavaConfig(
        text_config=LlamaConfig(vocab_size=len(pieces), **TEXT),
        vision_config=CLIPVisionConfig(**TOWER, **RANDOM, image_size=side, patch_size=PATCH),
        image_token_id=pieces.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
        image_seq_length=grid * grid,
    )
    size = {"height": side, "width": side}
    return config, LlavaProcessor(
        image_processor=CLIPImageProcessor(size=size, crop_size=size),
        tokenizer=pieces,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        image_token="<image>",
        num_additional_image_tokens=1,
    )


def _idefics3(grid: int) -> tuple[PretrainedConfig, Any]:
    marks = ("<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>")
    pieces = _pieces(*marks)  # the processor would add those that are missing
    side = 2 * PATCH * grid  # four patches are one token
    config = Idefics3Config(
        text_config=LlamaConfig(vocab_size=len(pieces), **TEXT),
        vision_config={**TOWER, **RANDOM, "image_size": side, "patch_size": PATCH},
        image_token_id=pieces.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        pad_token_id=pieces.pad_token_id,
    )
    size = {"longest_edge": side}
    return config, Idefics3Processor(
        image_processor=Idefics3ImageProcessor(size=size, max_image_size=size),
        tokenizer=pieces,
        image_seq_len=grid * grid,
    )


def _paligemma(grid: int) -> tuple[PretrainedConfig, Any]:
    pieces = _pieces("<image>")
    pieces.image_token = "<image>"
    pieces.image_token_id = pieces.convert_tokens_to_ids("<image>")
    side = PATCH * grid
    images = SiglipImageProcessor(size={"height": side, "width": side})
    images.image_seq_length = grid * grid
    processor = PaliGemmaProcessor(images, pieces)
    text = {**TEXT, "model_type": "gemma", "head_dim": 8, "num_key_value_heads": 1}
    vision = {**TOWER, **RANDOM, "model_type": "siglip_vision_model"}
    config = PaliGemmaConfig(
        text_config={**text, "vocab_size": len(pieces)},  # which has grown
        vision_config={**vision, "image_size": side, "patch_size": PATCH},
        image_token_index=pieces.image_token_id,
        projection_dim=16,
        hidden_size=16,
    )
    return config, processor


def _qwen2_vl(grid: int) -> tuple[PretrainedConfig, Any]:
    marks = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
    pieces = _pieces(*marks)
    image, video, start, end = pieces.convert_tokens_to_ids(list(marks))
    patch = 448 // (2 * GRIDS["qwen2_vl"])  # of the side that lexvla gives such images
    rotary = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
    config = Qwen2VLConfig(
        text_config={
            **{**TEXT, "vocab_size": len(pieces), "num_key_value_heads": 2},
            **{"rope_parameters": rotary, "bos_token_id": None, "eos_token_id": None},
        },
        vision_config={
            **{"depth": 1, "embed_dim": 16, "hidden_size": 16, "mlp_ratio": 2, "num_heads": 2},
            **{"patch_size": patch, "spatial_merge_size": 2, **RANDOM},
        },
        image_token_id=image,
        video_token_id=video,
        vision_start_token_id=start,
        vision_end_token_id=end,
    )
    return config, Qwen2VLProcessor(
        image_processor=Qwen2VLImageProcessor(patch_size=patch, merge_size=2),
        video_processor=Qwen2VLVideoProcessor(patch_size=patch, merge_size=2),
        tokenizer=pieces,
    )
