"""The card of a saved model, in the hub's format."""

from __future__ import annotations

import json
from typing import Any

from lexvla.config import LexVLAConfig
from lexvla.vocabulary import Vocabulary

__all__ = ["model_card"]

_CARD = """---
library_name: lexvla
pipeline_tag: zero-shot-image-classification
tags: [image-text retrieval, sparse retrieval, lexical representation]
{base_models}---

# {name}

A LexVLA model: it turns images and texts into weighted words of one vocabulary, after *Unified
Lexical Representation for Interpretable Visual-Language Alignment* (Li et al., NeurIPS 2024,
arXiv 2407.17827).

```python
from lexvla import LexVLA

model = LexVLA.from_pretrained("{name}")  # the folder, or the hub id
model.decode(model.encode_image(["image.png"]), top_k=8)
```

| part | details |
|---|---|
| image | {vision} |
| text | {text} |
| vocabulary | {words:,} pieces, sha256 `{vocabulary}` |
| trained here | {trained:,} parameters |
| dense vectors | {dense} |
"""


def model_card(
    config: LexVLAConfig, vocabulary: Vocabulary, towers: tuple[Any, Any], trained: int
) -> str:
    """Return a model's card: Markdown with the hub's metadata.

    Args:
        config: The model's settings.
        vocabulary: Its pieces.
        towers: Language model and vision model; their classes name those without a name.
        trained: The number of parameters that are trained.
    """
    text_class, vision_class = (type(tower).__name__ for tower in towers)
    backbones = [name for name in (config.text_model, config.vision_model) if name]
    lines = "".join(f"  - {json.dumps(name)}\n" for name in backbones)
    lora = f", LoRA of rank {config.lora_rank}" if config.lora_rank else ""
    bits = f", {config.quantization} quantisation" if config.quantization != "none" else ""
    text = f"`{config.text_model or text_class}`{bits}{lora}"
    vision = f"`{config.vision_model or vision_class}`"
    dense = f"width {config.dense_width}, {config.codebook_size:,} codes"
    return _CARD.format(
        base_models=f"base_model:\n{lines}" if backbones else "",
        name=config.model_name,
        vision=f"{vision}, {config.image_side} px, patches of {config.patch_size} px",
        text=text,
        words=len(vocabulary),
        vocabulary=vocabulary.sha256[:12],
        trained=trained,
        dense=dense if config.dense_width else "none",
    )
