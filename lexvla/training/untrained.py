"""Small models with random weights, with tokenizer and vocabulary made from captions."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import chain
from typing import Any

import torch
from transformers import Dinov2Config, LlamaConfig, PreTrainedTokenizerFast

from lexvla import backbones
from lexvla.config import PROMPT, LexVLAConfig
from lexvla.data.emoji_phrases import STOP_WORDS
from lexvla.data.phrasings import FRAMES
from lexvla.text_normalisation import normalise_text
from lexvla.torch_model import TorchLexVLA
from lexvla.training.tokenizer import build_vocabulary, train_tokenizer
from lexvla.vocabulary import Vocabulary

__all__ = ["untrained_model"]

_FRAME_WORDS = [re.sub(r"{.*?}", "", frame) for frame in FRAMES]


def untrained_model(
    captions: Iterable[str],
    other_texts: Iterable[str] = (),
    *,
    width: int,
    vision_model: str | None = None,
    vision_layers: int = 6,
    text_layers: int = 3,
    heads: int = 3,
    patch_size: int = 8,
    image_size: int = 64,
    pieces_below_words: int = 800,
    drop_path: float = 0.1,
    dropout: float = 0.1,
    **config: Any,
) -> TorchLexVLA:
    """Build a model with an untrained text tower and, without ``vision_model``, image tower.

    Args:
        captions: Texts whose words, without stop words, are the vocabulary.
        other_texts: Texts whose words are read too, and explained by those of the vocabulary.
        width: Width of both towers and of the lexical space.
        vision_model: Folder of a pretrained vision model, which is frozen and saved with the model.
        vision_layers: Layers of the vision model, a DINOv2.
        text_layers: Layers of the language model, a Llama.
        heads: Attention heads of both and of the adapter.
        patch_size: Side of a patch in pixels.
        image_size: Side of an image in pixels.
        pieces_below_words: Number of smaller pieces, for unknown words.
        drop_path: Share of the vision model's layers that a training step skips.
        dropout: Dropout of the language model's attention.
        config: Other fields of `LexVLAConfig`.
    """
    LexVLAConfig.refuse_unknown(config)
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
        raise ValueError("captions must not be empty: they make the vocabulary")
    other_texts = list(other_texts)
    frames = _FRAME_WORDS if other_texts else ()
    tokenizer = train_tokenizer([*captions, PROMPT, *frames], pieces_below_words, other_texts)
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
    settings = {
        "adapter_heads": heads,
        "adapter_width": 3 * width,
        "vocabulary_chunk": 512,
        "require_known_word": True,
        "known_tokens": _known_tokens(tokenizer, captions, other_texts),
        **config,
    }
    if vision_model is not None:
        settings = {"image_size": image_size, **settings}
        return _on_backbone(vision_model, text, vocabulary, tokenizer, settings)
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
    whole = LexVLAConfig(text_config=text, vision_config=vision, **settings)
    return TorchLexVLA(whole, vocabulary, tokenizer)


def _known_tokens(
    tokenizer: PreTrainedTokenizerFast, captions: list[str], other_texts: list[str]
) -> tuple[int, int]:
    """Return the range of token ids of the words that only the other texts have.

    These are consecutive. Words that are also parts of captions' words lie elsewhere, among pieces
    such as single letters, which do not make a text known.
    """
    if not other_texts:
        return 0, 0

    def tokens(texts: Iterable[str]) -> set[int]:
        return set(chain.from_iterable(tokenizer(list(map(normalise_text, texts)))["input_ids"]))

    rows: list[tuple[int, int]] = []
    for token in sorted(tokens(other_texts) - tokens([*captions, PROMPT, *_FRAME_WORDS])):
        if rows and rows[-1][1] == token:
            rows[-1] = rows[-1][0], token + 1
        else:
            rows.append((token, token + 1))
    return max(rows, key=lambda row: row[1] - row[0], default=(0, 0))


def _on_backbone(
    name: str,
    text: LlamaConfig,
    vocabulary: Vocabulary,
    tokenizer: PreTrainedTokenizerFast,
    settings: dict[str, Any],
) -> TorchLexVLA:
    """Build a model with a frozen pretrained vision model, which is saved with it."""
    vision = backbones.read_backbone_config(name)
    fine = bool(settings.get("fine_stage"))
    fields = backbones.vision_fields(name, vision, None, None, fine)
    settings = {"vision_frozen": True, **fields, **settings}
    vision.name_or_path = ""  # it is saved with the model
    config = LexVLAConfig(text_config=text, vision_config=vision, **settings)
    network = backbones.load_vision_model(config, name, torch.device("cpu"), torch.float32, None)
    network.requires_grad_(not config.vision_frozen)
    return TorchLexVLA(config, vocabulary, tokenizer, vision_model=network)
