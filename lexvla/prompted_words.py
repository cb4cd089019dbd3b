"""Words from the next-token logits of a prompted model (PromptReps)."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from lexvla.data.emoji_phrases import STOP_WORDS
from lexvla.errors import ModelError
from lexvla.vocabulary import Vocabulary

__all__ = ["log1p_relu", "word_pieces", "words_of_logits"]

_WORD = re.compile(r"[a-z]{2,}")
_MARKS = "\u2581\u0120 "  # of a word's start: SentencePiece, byte-level BPE, plain


def log1p_relu(logits: Tensor) -> Tensor:
    """Return ``log(1 + max(x, 0))``: what is kept of next-token logits as weights of words.

    References:
        Zhuang et al.: PromptReps: prompting large language models to generate dense and sparse
        representations for zero-shot document retrieval. EMNLP 2024, arXiv 2404.18424.
    """
    return logits.clamp(min=0).log1p()


def word_pieces(tokenizer: Any, size: int) -> tuple[Vocabulary, Tensor]:
    """Return the English words among a tokenizer's pieces, and where each piece belongs.

    Pieces that differ in case or word-start mark are one word. Stop words and single letters are
    no words here. Only pieces that start a word count, or that are bare words as they follow an
    opening quote.

    Args:
        tokenizer: The model's.
        size: Logits of the model, which may be more than pieces.

    Returns:
        The words, and (size,) int64 columns; pieces that are none have the number of words.

    Raises:
        ModelError: No piece is a word.
    """
    control = set(tokenizer.all_special_ids)
    numbers: dict[str, int] = {}
    columns = torch.full((size,), -1)
    for piece, number in sorted(tokenizer.get_vocab().items(), key=lambda pair: pair[1]):
        word = piece.lstrip(_MARKS).lower()
        if number in control or number >= size or not _WORD.fullmatch(word) or word in STOP_WORDS:
            continue
        columns[number] = numbers.setdefault(word, len(numbers))
    if not numbers:
        raise ModelError("no piece of the tokenizer is an English word")
    columns[columns < 0] = len(numbers)
    return Vocabulary(numbers), columns


def words_of_logits(logits: Tensor, columns: Tensor, words: int) -> Tensor:
    """Return the (..., words) largest logit of each word's pieces, from (..., pieces)."""
    made = logits.new_full((*logits.shape[:-1], words + 1), -torch.inf)
    where = columns.expand(logits.shape)
    return made.scatter_reduce(-1, where, logits, "amax")[..., :words]
