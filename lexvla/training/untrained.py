"""A small model of random weights, with a tokenizer and vocabulary made from captions."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from transformers import Dinov2Config, LlamaConfig

from lexvla.config import PROMPT, LexVLAConfig
from lexvla.data.emoji_phrases import STOP_WORDS
from lexvla.model import LexVLA
from lexvla.training.tokenizer import build_vocabulary, train_tokenizer

__all__ = ["untrained_model"]


def untrained_model(
    captions: Iterable[str],
    *,
    width: int,
    vision_layers: int = 6,
    text_layers: int = 3,
    heads: int = 3,
    patch_size: int = 8,
    image_size: int = 64,
    pieces_below_words: int = 800,
    drop_path: float = 0.1,
    dropout: float = 0.1,
    **config: Any,
) -> LexVLA:
    """Build a model that is trained as a whole: the towers too.

    Args:
        captions: Their words are the vocabulary, but for words such as "the".
        width: Of both towers, and the lexical width.
        vision_layers: Layers of the vision model, a DINOv2.
        text_layers: Layers of the language model, a Llama.
        heads: Attention heads, of both and of the adapter.
        patch_size: Pixels.
        image_size: Pixels.
        pieces_below_words: Smaller pieces, for words that no caption has.
        drop_path: Share of the vision model's layers that a training step leaves out.
        dropout: Of the language model's attention.
        config: Other fields of `LexVLAConfig`.

    Raises:
        ValueError: A setting is out of its range, or the sizes do not go together.
    """
    for name, size in (
        ("width", width),
        ("vision_layers", vision_layers),
        ("text_layers", text_layers),
        ("heads", heads),
        ("patch_size", patch_size),
        ("image_size", image_size),
        ("pieces_below_words", pieces_below_words),
    ):
        if type(size) is not int or size < 1:
            raise ValueError(f"{name} must be a whole number above 0, not {size!r}")
    if not (0 <= drop_path < 1 and 0 <= dropout < 1):
        raise ValueError("drop_path and dropout must be from 0, below 1")
    if width % (2 * heads) or image_size % patch_size:
        raise ValueError(
            "width must be a multiple of twice the heads, and image_size of patch_size"
        )
    captions = list(captions)
    if not captions:
        raise ValueError("there are no captions to make a vocabulary from")
    tokenizer = train_tokenizer([*captions, PROMPT], pieces_below_words)
    vocabulary = build_vocabulary(tokenizer, captions, STOP_WORDS)
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=width * 8 // 3,
        num_hidden_layers=text_layers,
        num_attention_heads=heads,
        max_position_embeddings=256,
        initializer_range=0.05,
        attention_dropout=dropout,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=False,
        attn_implementation="eager",  # on CPUs the fused kernel's backward pass is far slower
    )
    vision = Dinov2Config(
        hidden_size=width,
        num_hidden_layers=vision_layers,
        num_attention_heads=heads,
        image_size=image_size,
        patch_size=patch_size,
        drop_path_rate=drop_path,
        hidden_dropout_prob=0.0,
        use_mask_token=False,
        attn_implementation="eager",
    )
    settings = {
        "adapter_heads": heads,
        "adapter_width": 3 * width,
        "vocabulary_chunk": 512,
        "require_known_word": True,
        **config,
    }
    return LexVLA(
        LexVLAConfig(text_config=text, vision_config=vision, **settings), vocabulary, tokenizer
    )
