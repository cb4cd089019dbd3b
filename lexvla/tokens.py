"""Texts as token ids, in the prompt."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lexvla.errors import ModelError
from lexvla.text_normalisation import normalise_text

__all__ = ["FastTokenizer", "common_prefix", "tokenize", "unread"]


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

    def __call__(self, texts: str | list[str], *, add_special_tokens: bool = True, **_: Any) -> Any:
        """Return token ids and their offsets in the text, or lists of both."""
        if isinstance(texts, str):
            found = self._tokenizer.encode(texts, add_special_tokens=add_special_tokens)
            return {"input_ids": found.ids, "offset_mapping": found.offsets}
        made = self._tokenizer.encode_batch(texts, add_special_tokens=add_special_tokens)
        return {
            "input_ids": [each.ids for each in made],
            "offset_mapping": [each.offsets for each in made],
        }

    def convert_ids_to_tokens(self, ids: Sequence[int]) -> list[str | None]:
        """Return the piece of each id, ``None`` where there is none."""
        return [self._tokenizer.id_to_token(number) for number in ids]


def tokenize(
    tokenizer: Any, texts: list[str], prompt: str, max_text_tokens: int
) -> list[list[int]]:
    """Normalise each text, put it into the prompt and return token ids.

    A text is cut at the character where its last allowed token ends, before the prompt is put
    around it, so the ids are always those of one string.
    """
    if not texts:
        return []
    before, after = prompt.split("{text}")
    cut = [read for read, _ in _cut(tokenizer, texts, max_text_tokens)]
    return tokenizer([before + text + after for text in cut])["input_ids"]


def unread(tokenizer: Any, texts: list[str], max_text_tokens: int) -> list[str]:
    """Return what `tokenize` cuts off each text, normalised; empty if nothing."""
    return [rest for _, rest in _cut(tokenizer, texts, max_text_tokens)] if texts else []


def _cut(tokenizer: Any, texts: list[str], max_text_tokens: int) -> list[tuple[str, str]]:
    texts = [normalise_text(text) for text in texts]
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
