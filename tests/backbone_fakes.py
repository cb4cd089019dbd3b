"""Tiny backbones with random weights in folders, as they would come from the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    CLIPConfig,
    CLIPVisionConfig,
    Dinov2Config,
    Dinov2WithRegistersConfig,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    SiglipConfig,
    SiglipVisionConfig,
)

from lexvla import LexVLA
from lexvla.lexical_head import lexical_vector
from lexvla.losses import InfoNCE, overuse_penalty
from lexvla.preprocessing import preprocess
from model_fakes import CAPTIONS, picture, tokenizer

WIDTH, VISION_WIDTH, SIDE, PATCH = 16, 12, 24, 8
TEXTS = ["a red dog", "two blue birds", "hat"]
PICTURES = [picture(1), picture(2), picture(3)]
_TEXT = {
    "hidden_size": WIDTH,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 256,
    "initializer_range": 0.4,
}
_VISION = {
    "hidden_size": VISION_WIDTH,
    "intermediate_size": 20,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": SIDE,
    "patch_size": PATCH,
    "initializer_range": 0.4,
}
_SMALL_TEXT = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
TEXT_MODELS = ("llama", "qwen2")
VISION_MODELS = ("dinov2", "registers", "siglip", "siglip-pair", "clip", "clip-pair")


def save_language_model(folder: Path, kind: str = "llama", **changes: Any) -> str:
    """Write a tiny causal language model with its tokenizer and return the folder."""
    pieces = tokenizer() if kind == "llama" else byte_level_tokenizer()
    sizes = {**_TEXT, "vocab_size": len(pieces), **changes}
    config = {"llama": LlamaConfig, "qwen2": Qwen2Config}[kind](**sizes)
    torch.manual_seed(1)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    pieces.save_pretrained(folder)
    return str(folder)


def byte_level_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer of Qwen's kind, whose mark of a word's start is another."""
    pieces = Tokenizer(models.BPE())
    pieces.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    pieces.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    pieces.train_from_iterator([f" {text}" for text in CAPTIONS], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=pieces, eos_token="<|endoftext|>")


def save_vision_model(folder: Path, kind: str = "dinov2", **changes: Any) -> str:
    """Write a tiny vision transformer, or an image-text pair with one, and return the folder."""
    sizes = {**_VISION, **changes}
    config: PretrainedConfig
    if kind == "dinov2":
        config = Dinov2Config(**sizes, use_mask_token=False)
    elif kind == "registers":
        config = Dinov2WithRegistersConfig(**sizes, num_register_tokens=3, use_mask_token=False)
    elif kind == "siglip":
        config = SiglipVisionConfig(**sizes)
    elif kind == "siglip-pair":
        config = SiglipConfig(text_config=_SMALL_TEXT, vision_config=sizes)
    elif kind == "clip":
        config = CLIPVisionConfig(**sizes)
    else:
        config = CLIPConfig(text_config=_SMALL_TEXT, vision_config=sizes)
    torch.manual_seed(2)
    AutoModel.from_config(config).save_pretrained(folder)
    return str(folder)


def small(**changes: Any) -> dict[str, Any]:
    """Return the sizes that fit these backbones."""
    return {
        "image_size": SIDE,
        "adapter_heads": 2,
        "adapter_width": 24,
        "dense_width": 6,
        "codebook_size": 4,
        "codes_per_item": 2,
        "vocabulary_chunk": 5,
        "lora_rank": 2,
        "vocabulary_texts": CAPTIONS,
        **changes,
    }


def random_lora(model: LexVLA, scale: float = 1.0) -> LexVLA:
    """Set LoRA's second matrices, which start at zero, to something that shows."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.copy_(scale * torch.randn(weight.shape, generator=generator))
    return model


def encode(model: LexVLA) -> list[np.ndarray]:
    texts, images = model.encode_text(TEXTS), model.encode_image(PICTURES)
    assert images.patches is not None
    assert texts.codes is not None
    assert images.codes is not None
    parts = [texts.lexical.toarray(), images.lexical.toarray(), images.patches]
    return [*parts, texts.dense, images.dense, texts.codes.toarray(), images.codes.toarray()]


def assert_same(one: LexVLA, other: LexVLA) -> None:
    for mine, yours in zip(encode(one), encode(other), strict=True):
        np.testing.assert_array_equal(mine, yours)


def step(model: LexVLA, bfloat16: bool = False) -> dict[str, torch.Tensor]:
    """Take one training step and return the gradient of each trained weight."""
    model.train()
    device = model.device
    contrast = InfoNCE(0.07).to(device)
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW([*trained.values(), *contrast.parameters()], lr=1e-2)
    with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
        image_logits, _ = model.image_logits(
            preprocess(PICTURES, model.config.image_side).to(device)
        )
        states = model.text_states(TEXTS)
        texts = lexical_vector(states.to(model.text_codebook().dtype) @ model.text_codebook().T)
        images = lexical_vector(image_logits)
        loss = contrast(texts @ images.T, torch.arange(3, device=device)) + 0.1 * overuse_penalty(
            images
        )
    loss.backward()
    optimizer.step()
    model.eval()
    return {n: p.grad for n, p in trained.items() if p.grad is not None}
