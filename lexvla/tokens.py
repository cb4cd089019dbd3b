"""Texts as token ids, in the prompt."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lexvla.errors import ModelError
from lexvla.text_normalisation import normalise_text

__all__ = ["FastTokenizer", "common_prefix", "cut", "fill", "tokenize", "unread"]


class FastTokenizer:
    """A ``tokenizer.json``, called as the tokenizers of transformers are.

    Raises:
        ModelError: The file cannot be read.
    """

    def __init__(self, path: Path) -> None:
        from tokenizers import Tokenizer

        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:
            raise ModelError(f"{path}: the tokenizer cannot be read ({error})") from error
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()

    def __call__(
        self,
        texts: str | list[str],
        *,
        add_special_tokens: bool = True,
        return_offsets_mapping: bool = False,
    ) -> dict[str, list[Any]]:
        """Return token ids of a text and, if asked, their offsets in it, or lists of both."""
        single = isinstance(texts, str)
        encode = self._tokenizer.encode_batch_fast  # without offsets
        if return_offsets_mapping:
            encode = self._tokenizer.encode_batch
        made = encode([texts] if single else texts, add_special_tokens=add_special_tokens)
        found: dict[str, list[Any]] = {"input_ids": [each.ids for each in made]}
        if return_offsets_mapping:
            found["offset_mapping"] = [each.offsets for each in made]
        return {name: values[0] for name, values in found.items()} if single else found

    def convert_ids_to_tokens(self, ids: Sequence[int]) -> list[str | None]:
        """Return the piece of each id, ``None`` where there is none."""
        return [self._tokenizer.id_to_token(number) for number in ids]


def tokenize(
    tokenizer: Any, texts: list[str], prompt: str, max_text_tokens: int
) -> list[list[int]]:
    """Normalise and `cut` each text, put it into the prompt and return token ids."""
    return fill(tokenizer, cut(tokenizer, texts, max_text_tokens), prompt)


def cut(tokenizer: Any, texts: list[str], max_text_tokens: int) -> list[str]:
    """Normalise each text, and cut it at the character where its last allowed token ends."""
    return [read for read, _ in _cut(tokenizer, texts, max_text_tokens)]


def fill(tokenizer: Any, texts: list[str], prompt: str) -> list[list[int]]:
    """Return token ids of the prompt around each text: those of one string."""
    before, after = prompt.split("{text}")
    ids: list[list[int]] = []
    if texts:
        ids = tokenizer([before + text + after for text in texts])["input_ids"]
    return ids


def unread(tokenizer: Any, texts: list[str], max_text_tokens: int) -> list[str]:
    """Return what `tokenize` cuts off each text, normalised; empty if nothing."""
    return [rest for _, rest in _cut(tokenizer, texts, max_text_tokens)]


def _cut(tokenizer: Any, texts: list[str], max_text_tokens: int) -> list[tuple[str, str]]:
    if not texts:
        return []
    texts = [normalise_text(text) for text in texts]
    # A token has a character of its own, or marks the start of a word: short texts are read whole.
    if all(text.isascii() and 2 * len(text) < max_text_tokens for text in texts):
        return [(text, "") for text in texts]
    parts = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)
    ends = [
        offsets[max_text_tokens - 1][1] if len(offsets) > max_text_tokens else len(text)
        for text, offsets in zip(texts, parts["offset_mapping"], strict=True)
    ]
    return [(text[:end], text[end:].strip()) for text, end in zip(texts, ends, strict=True)]


def common_prefix(token_ids: list[list[int]]) -> int:
    """Count the tokens that all sequences begin with, leaving each its last token."""
    shortest, longest = min(token_ids), max(token_ids)
    limit = min(map(len, token_ids)) - 1
    shared = 0
    while shared < limit and shortest[shared] == longest[shared]:
        shared += 1
    return shared
