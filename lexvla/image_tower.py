"""The image tower: a vision model and an adapter to the lexical space."""

from __future__ import annotations

from dataclasses import dataclass
from inspect import signature
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import AutoModel

from lexvla.concept_memory import ConceptMemory, ConceptSizes
from lexvla.config import LexVLAConfig
from lexvla.errors import ModelError
from lexvla.feature_maps import evaluating, feature_map, measure

__all__ = ["Adapter", "CachedCells", "ImageTower"]


@dataclass(frozen=True)
class CachedCells:
    """Outputs of a frozen vision model for B images.

    Attributes:
        cells: (B, T, C) states; of a feature map, possibly a sample.
        whole: Result of `ConceptMemory.whole` for the images, if there is a memory.
    """

    cells: Tensor
    whole: Tensor | None = None

    def __len__(self) -> int:
        return len(self.cells)

    def __getitem__(self, rows: slice) -> CachedCells:
        return CachedCells(self.cells[rows], None if self.whole is None else self.whole[rows])

    def to(self, device: torch.device) -> CachedCells:
        """Move to a device."""
        whole = None if self.whole is None else self.whole.to(device)
        return CachedCells(self.cells.to(device), whole)


class Adapter(nn.Module):
    """Project patch states to the lexical width with one attention layer and two MLPs.

    LexVLA section 3.3 names the layers; order and widths are this project's choice, with the
    paper's 17 M parameters at full size.
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
        # Not fused: on CPUs, that kernel's backward pass is slower than all else together.
        weights = query @ key.transpose(-2, -1) * (width // self.heads) ** -0.5
        attended = weights.softmax(dim=-1).to(value.dtype) @ value
        attended = attended.transpose(1, 2).reshape(batch, count, width)
        states = states + self.attention_out(attended)
        states = states + self.mlp(self.mlp_norm(states))
        return self.out(self.out_norm(states))


class ImageTower(nn.Module):
    """Map images to states of their patches in the lexical space.

    Args:
        config: Kinds and sizes of vision model and adapter.
        vision_model: The vision model; by default with random weights.
    """

    def __init__(self, config: LexVLAConfig, vision_model: Any = None) -> None:
        super().__init__()
        if vision_model is None:
            vision_model = AutoModel.from_config(config.vision_config)
        self.vision_model: Any = vision_model
        self.has_map, self.fine_stage = config.has_map, config.fine_stage
        self.patch_size, self.pool_cls = config.patch_size, config.pool_cls
        if self.has_map:
            _check_map(config, vision_model)
        self.adapter: Any = None
        self.memory = _concept_memory(config, vision_model) if config.concept_items else None
        if self.memory is None:
            sizes = (config.vision_width, config.lexical_width)
            self.adapter = Adapter(*sizes, config.adapter_heads, config.adapter_width)
        self.extra_tokens = 0 if self.has_map else self._count_extra_tokens(config.image_side)
        if self.pool_cls and not self.extra_tokens:
            kind = vision_model.config.model_type
            raise ModelError(f"pool_cls: {kind} has no CLS token; set it to false")

    def train(self, mode: bool = True) -> Self:
        """Set the mode; a frozen vision model stays in evaluation mode."""
        super().train(mode)
        if is_frozen(self.vision_model):
            self.vision_model.eval()
        return self

    def forward(self, pixels: Tensor) -> Tensor:
        """Map (B, 3, H, W) normalised pixels to (B, P, d) patch states.

        With ``pool_cls`` the CLS token comes first, and there are P + 1 states.
        """
        return self.adapt(self.cells(pixels))

    def cells(self, pixels: Tensor) -> Tensor:
        """Map (B, 3, H, W) normalised pixels to the vision model's (B, T, C) states.

        These are a transformer's tokens, CLS and registers first, or the cells of a feature map,
        row by row.
        """
        frozen = is_frozen(self.vision_model)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
            pixels = pixels.to(self.vision_model.dtype)
            states = self._map_cells(pixels) if self.has_map else self._tokens(pixels)
        return states.to(next((self.memory or self.adapter).parameters()).dtype)

    def adapt(self, cells: Tensor, whole: Tensor | None = None) -> Tensor:
        """Map (B, T, C) states of `cells` to (B, P, d) states in the lexical space.

        CLS and register tokens take part in the adapter's attention and are then dropped, so every
        word comes from a visible patch. With ``pool_cls`` the CLS token stays, as the first of
        P + 1 states. A memory of concepts replaces the adapter.

        Args:
            cells: All cells of the images, or a sample if ``whole`` is given.
            whole: Known result of `ConceptMemory.whole` for the images.
        """
        if self.memory is not None:
            whole = self.memory.whole(cells) if whole is None else whole
            states = self.memory(cells, whole)
        else:
            states = self.adapter(cells)
        patches = states[:, self.extra_tokens :]
        return torch.cat([states[:, :1], patches], dim=1) if self.pool_cls else patches

    def _tokens(self, pixels: Tensor) -> Tensor:
        vision = self.vision_model
        more = {}
        # DINOv2 always interpolates its position embeddings; others must be told to.
        if "interpolate_pos_encoding" in signature(vision.forward).parameters:
            own = (vision.config.image_size, vision.config.image_size)
            more["interpolate_pos_encoding"] = tuple(pixels.shape[-2:]) != own
        return vision(pixel_values=pixels, **more).last_hidden_state

    def _map_cells(self, pixels: Tensor) -> Tensor:
        # Channels last: two thirds of the time on CPUs.
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        states = feature_map(self.vision_model, pixels, self.fine_stage)
        grid, sides = tuple(states.shape[-2:]), tuple(pixels.shape[-2:])
        if grid != tuple(side // self.patch_size for side in sides):
            rule = f"{grid[0]} x {grid[1]} cells for {sides[0]} x {sides[1]} pixels"
            raise ModelError(f"{rule}; use sides that the stride of {self.patch_size} divides")
        return states.flatten(2).transpose(1, 2)

    def _count_extra_tokens(self, side: int) -> int:
        """Return how many tokens precede those of the patches, measured on a black image."""
        vision = self.vision_model
        pixels = torch.zeros(1, 3, side, side, dtype=vision.dtype, device=vision.device)
        with torch.no_grad(), evaluating(vision):
            tokens = self._tokens(pixels).shape[1]
        patches = (side // self.patch_size) ** 2
        if tokens < patches:
            rule = f"{tokens} states for {patches} patches; a ViT with patch tokens is needed"
            raise ModelError(f"{vision.config.model_type}: {rule}")
        return tokens - patches


def _concept_memory(config: LexVLAConfig, vision_model: Any) -> ConceptMemory:
    """Build a memory of concepts for the vision model's channels."""
    channels, _ = measure(vision_model)
    sizes = ConceptSizes(
        config.concept_items,
        config.concept_classes,
        channels,
        (config.map_width - channels) // 4,
        config.layout_width,
        config.local_rank,
    )
    return ConceptMemory(sizes)


def is_frozen(module: nn.Module) -> bool:
    """Tell whether no weight of a module is trained."""
    return not any(parameter.requires_grad for parameter in module.parameters())


def _check_map(config: LexVLAConfig, vision_model: Any) -> None:
    """Raise an error if the feature map differs from the configuration."""
    found, named = measure(vision_model, config.fine_stage), (config.map_width, config.map_stride)
    if found != named:
        network = f"{vision_model.config.architecture} has {found[0]} and {found[1]}"
        rule = f"map_width and map_stride are {named[0]} and {named[1]}"
        raise ModelError(f"{rule}, but {network}")
