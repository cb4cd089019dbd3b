"""What follows from a model's configuration, however the configuration was read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

__all__ = ["ModelSettings", "SavedSettings", "own_side"]

# What encodings depend on besides the weights; part of the fingerprint.
_SETTINGS = (
    *("text_model", "text_revision", "vision_model", "vision_revision", "vocabulary_sha256"),
    *("prompt", "max_text_tokens", "require_known_word", "known_tokens"),
    *("image_size", "image_mean", "image_std", "pool_cls", "fine_stage"),
    *("sparsification", "kept_words", "threshold", "max_active_dims"),
    *("codes_per_item", "code_temperature"),
)


class ModelSettings:
    """Names and sizes that follow from the fields of a `LexVLAConfig`."""

    text_config: Any
    vision_config: Any
    image_size: int | None
    map_width: int
    map_stride: int
    concept_items: int
    concept_classes: int
    values_sha256: str

    @property
    def fingerprint(self) -> str:
        """Hash of weights and settings that encodings depend on; empty if not saved."""
        if not self.values_sha256:
            return ""
        names = {key: getattr(self, key) for key in (*_SETTINGS, "values_sha256")}
        return hashlib.sha256(json.dumps(names, sort_keys=True).encode()).hexdigest()

    @property
    def has_map(self) -> bool:
        """Whether patches are the cells of a feature map of timm's network."""
        return bool(self.vision_config.model_type == "timm_wrapper")

    @property
    def vision_width(self) -> int:
        """Channels of a patch, or of a cell of the feature map."""
        return int(self.map_width if self.has_map else self.vision_config.hidden_size)

    @property
    def lexical_width(self) -> int:
        """Width of patch states and of the image codebook's rows."""
        concepts = self.concept_items + self.concept_classes
        return concepts + 1 if self.concept_items else int(self.text_config.hidden_size)

    @property
    def patch_size(self) -> int:
        """Side of a patch in pixels; of a feature map, its stride."""
        return int(self.map_stride if self.has_map else self.vision_config.patch_size)

    @property
    def smallest_image(self) -> int:
        """Smallest side of an image in pixels: a patch, or a quarter of a map's stride."""
        return self.patch_size // 4 if self.has_map else self.patch_size

    @property
    def image_side(self) -> int:
        """Side in pixels that images are resized to."""
        if self.image_size or not self.has_map:
            return int(self.image_size or self.vision_config.image_size)
        return own_side(self.vision_config) // self.map_stride * self.map_stride

    @property
    def patch_grid(self) -> tuple[int, int]:
        """Rows and columns of an image's patches."""
        side = self.image_side // self.patch_size
        return side, side


class SavedSettings(ModelSettings):
    """The fields of a ``config.json``, read without transformers.

    Raises:
        KeyError: A tower's configuration is missing.
    """

    score_weights: dict[str, float] | None = None
    relevance: list[float] | None = None

    def __init__(self, values: Mapping[str, Any]) -> None:
        vars(self).update(values)
        self.text_config = SimpleNamespace(**values["text_config"])
        self.vision_config = SimpleNamespace(**values["vision_config"])

    def __getattr__(self, name: str) -> Any:  # other fields are in the instance's dict
        raise AttributeError(f"config.json lacks {name}")


def own_side(config: Any) -> int:
    """Return the input side that timm's network was trained with; 0 if unknown."""
    trained = getattr(config, "pretrained_cfg", None) or {}
    return int(trained.get("input_size", [0])[-1])
