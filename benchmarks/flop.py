"""Count the FLOP of the products for an item.

2 for each weight and token, and 4 x width for each pair of query and visible key. Padding, LoRA,
norms and the unpacking of quantised weights do not count.
"""

from __future__ import annotations

from typing import Any

from lexvla.config import LexVLAConfig


def language_flop(config: Any, tokens: int, past: int = 0) -> int:
    """Count the FLOP of a Llama-like transformer for ``tokens`` tokens after ``past`` others."""
    width = config.hidden_size
    head = getattr(config, "head_dim", None) or width // config.num_attention_heads
    queries, keys = config.num_attention_heads * head, config.num_key_value_heads * head
    weights = 2 * width * queries + 2 * width * keys + 3 * width * config.intermediate_size
    pairs = tokens * past + tokens * (tokens + 1) // 2
    return config.num_hidden_layers * (2 * weights * tokens + 4 * queries * pairs)


def vision_flop(config: Any, patches: int) -> int:
    """Count the FLOP of a vision transformer for an image of so many patches and one CLS token."""
    width, tokens = config.hidden_size, patches + 1
    inner = getattr(config, "intermediate_size", None) or int(config.mlp_ratio * width)
    layer = 2 * tokens * (4 * width**2 + 2 * width * inner) + 4 * width * tokens**2
    embedding = 2 * patches * config.num_channels * config.patch_size**2 * width
    return embedding + config.num_hidden_layers * layer


def adapter_flop(config: LexVLAConfig, tokens: int) -> int:
    """Count the FLOP of the adapter for so many tokens."""
    width, inner = config.vision_width, config.adapter_width
    weights = 4 * width**2 + 3 * width * inner + inner * config.text_config.hidden_size
    return 2 * tokens * weights + 4 * width * tokens**2


def head_flop(config: LexVLAConfig, words: int, states: int = 1) -> int:
    """Count the FLOP of codebook product, dense head and codes of an item with so many states."""
    width, dense = config.text_config.hidden_size, config.dense_width
    return 2 * (states * width * words + width * dense + dense * config.codebook_size)


def text_flop(config: LexVLAConfig, words: int, tokens: int, past: int = 0) -> int:
    """Count the FLOP of a text of so many tokens after ``past`` ones that are kept."""
    return language_flop(config.text_config, tokens, past) + head_flop(config, words)


def image_flop(config: LexVLAConfig, words: int) -> int:
    """Count the FLOP of an image."""
    rows, columns = config.patch_grid
    patches = rows * columns
    towers = vision_flop(config.vision_config, patches) + adapter_flop(config, patches + 1)
    return towers + head_flop(config, words, patches)
