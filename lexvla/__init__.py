"""LexVLA: images and texts as weighted words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lexvla.encoding import Encoder, Encoding
from lexvla.vocabulary import Vocabulary

if TYPE_CHECKING:
    from lexvla.config import LexVLAConfig
    from lexvla.model import LexVLA

__all__ = ["Encoder", "Encoding", "LexVLA", "LexVLAConfig", "Vocabulary"]


def __getattr__(name: str) -> Any:
    # The model is loaded when asked for: it brings torch and transformers.
    if name == "LexVLA":
        from lexvla.model import LexVLA

        return LexVLA
    if name == "LexVLAConfig":
        from lexvla.config import LexVLAConfig

        return LexVLAConfig
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
