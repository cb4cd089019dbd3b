"""The image side: a vision transformer and the adapter into the lexical space."""

from __future__ import annotations

from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel

from lexvla.config import LexVLAConfig
from lexvla.errors import ModelError

__all__ = ["Adapter", "ImageTower"]


class Adapter(nn.Module):
    """Project patch states to the lexical width with one attention layer and two MLPs.

    LexVLA section 3.3 names the layers; their order and widths are this project's choice and
    give the paper's 17 M parameters at full size.
    """

    def __init__(self, width: int, lexical_width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.attention_in = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
        self.out_norm = nn.LayerNorm(width)
        self.out = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, lexical_width)
        )

    def forward(self, states: Tensor) -> Tensor:
        """Map (B, n, width) to (B, n, lexical_width)."""
        batch, count, width = states.shape
        mixed = self.attention_in(self.attention_norm(states))
        query, key, value = (
            part.reshape(batch, count, self.heads, -1).transpose(1, 2)
            for part in mixed.chunk(3, dim=-1)
        )
        # Written out: the fused kernel's backward pass on CPUs is slower than all else together.
        weights = query @ key.transpose(-2, -1) * (width // self.heads) ** -0.5
        attended = weights.softmax(dim=-1).to(value.dtype) @ value
        attended = attended.transpose(1, 2).reshape(batch, count, width)
        states = states + self.attention_out(attended)
        states = states + self.mlp(self.mlp_norm(states))
        return self.out(self.out_norm(states))


class ImageTower(nn.Module):
    """Give each patch of an image its state in the lexical space.

    Args:
        config: Names the vision model's kind and size, and the adapter's.
        vision_model: The vision transformer itself; without it, one with random weights is made.
    """

    def __init__(self, config: LexVLAConfig, vision_model: Any = None) -> None:
        super().__init__()
        if vision_model is None:
            vision_model = AutoModel.from_config(config.vision_config)
        self.vision_model: Any = vision_model
        self.pool_cls = config.pool_cls
        self.adapter = Adapter(
            config.vision_config.hidden_size,
            config.text_config.hidden_size,
            config.adapter_heads,
            config.adapter_width,
        )

    def forward(self, pixels: Tensor) -> Tensor:
        """Map (B, 3, H, W) normalised pixels to (B, P, d) patch states.

        CLS and register tokens take part in the adapter's attention and are then left out, so
        that a word always comes from a patch that can be shown. With ``pool_cls`` the CLS token
        stays, as the first of P + 1 states.

        Raises:
            ModelError: The vision model gives no state for each patch, or no CLS for ``pool_cls``.
        """
        vision = self.vision_model
        config = vision.config
        more = {}
        # DINOv2 brings its position embeddings to any size by itself; others must be asked.
        if "interpolate_pos_encoding" in signature(vision.forward).parameters:
            own = (config.image_size, config.image_size)
            more["interpolate_pos_encoding"] = tuple(pixels.shape[-2:]) != own
        pixels = pixels.to(vision.dtype)
        states = vision(pixel_values=pixels, **more).last_hidden_state
        states = self.adapter(states.to(self.adapter.out_norm.weight.dtype))
        patch = config.patch_size
        count = (pixels.shape[-2] // patch) * (pixels.shape[-1] // patch)
        extra = states.shape[1] - count
        if extra < 0:
            rule = f"{states.shape[1]} states for {count} patches"
            raise ModelError(f"{config.model_type}: {rule}; a ViT with patch tokens is needed")
        patches = states[:, extra:]
        if not self.pool_cls:
            return patches
        if not extra:
            raise ModelError(f"pool_cls: {config.model_type} has no CLS token; set it to false")
        return torch.cat([states[:, :1], patches], dim=1)
