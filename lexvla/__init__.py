"""LexVLA: images and texts as weighted words."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lexvla.config import LexVLAConfig
    from lexvla.encoding import Encoder, Encoding
    from lexvla.model import LexVLA
    from lexvla.vocabulary import Vocabulary

__all__ = ["Encoder", "Encoding", "LexVLA", "LexVLAConfig", "Vocabulary"]

_MODULES = {
    "Encoder": "lexvla.encoding",
    "Encoding": "lexvla.encoding",
    "LexVLA": "lexvla.model",
    "LexVLAConfig": "lexvla.config",
    "Vocabulary": "lexvla.vocabulary",
}


def __getattr__(name: str) -> object:
    """Load a public name when it is first asked for: the model brings torch and transformers."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)
