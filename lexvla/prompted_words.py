"""Words from the next-token logits of a prompted model (PromptReps)."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from lexvla.data.emoji_phrases import STOP_WORDS
from lexvla.errors import ModelError
from lexvla.vocabulary import Vocabulary

__all__ = ["log1p_relu", "weights_of_words", "word_pieces", "words_of_logits"]

_WORD = re.compile(r"[a-z]{2,}")
_MARKS = "\u2581\u0120 "  # of a word's start: SentencePiece, byte-level BPE, plain


def log1p_relu(logits: Tensor) -> Tensor:
    """Return ``log(1 + max(x, 0))``: what is kept of next-token logits as weights of words.

    References:
        Zhuang et al.: PromptReps: prompting large language models to generate dense and sparse
        representations for zero-shot document retrieval. EMNLP 2024, arXiv 2404.18424.
    """
    return logits.clamp(min=0).log1p()


def word_pieces(
    tokenizer: Any, size: int, kept: Vocabulary | None = None
) -> tuple[Vocabulary, Tensor]:
    """Return the English words among a tokenizer's pieces, and the word of each piece.

    Pieces that differ in case or word-start mark are one word. Stop words, single letters and
    control pieces are none.

    Args:
        tokenizer: The model's.
        size: Logits of the model, which may be more than pieces.
        kept: Only these words, in this order.

    Returns:
        The words, and (size,) int64 columns; pieces that are none have the number of words.

    Raises:
        ModelError: No piece is a word that is kept.
    """
    control = set(tokenizer.all_special_ids)
    numbers: dict[str, int] = {}
    found: dict[int, str] = {}
    for piece, number in sorted(tokenizer.get_vocab().items(), key=lambda pair: pair[1]):
        word = piece.lstrip(_MARKS).lower()
        if number in control or number >= size or not _WORD.fullmatch(word) or word in STOP_WORDS:
            continue
        numbers.setdefault(word, len(numbers))
        found[number] = word
    if kept is not None:
        numbers = {
            word: number for number, word in enumerate(w for w in kept.terms if w in numbers)
        }
    if not numbers:
        raise ModelError("no piece of the tokenizer is an English word of the vocabulary")
    columns = torch.full((size,), len(numbers))
    for number, word in found.items():
        columns[number] = numbers.get(word, len(numbers))
    return Vocabulary(numbers), columns


def words_of_logits(logits: Tensor, columns: Tensor, words: int) -> Tensor:
    """Return the (..., words) largest logit of each word's pieces, from (..., pieces)."""
    made = logits.new_full((*logits.shape[:-1], words + 1), -torch.inf)
    return made.scatter_reduce(-1, columns.expand(logits.shape), logits, "amax")[..., :words]


def weights_of_words(logits: Tensor, most: int) -> Tensor:
    """Return (B, V) weights of the ``most`` likeliest words; they are unit vectors.

    Logits mean the same if all are moved alike, so they are counted from the likeliest word that is
    left out.
    """
    count = min(most + 1, logits.shape[1])
    floor = logits.topk(count, dim=1).values[:, -1:]
    if count <= most:  # every word may be kept: counted from just below the last
        floor = floor - 1
    return normalize(log1p_relu(logits - floor), dim=1)
