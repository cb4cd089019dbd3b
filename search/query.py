"""What a search asks for: a text, an image, or both, and which documents may be found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import sparse

from indexer.filters import Filter
from lexvla.encoding import Encoder, Encoding
from lexvla.errors import InputError
from lexvla.images import ImageSource, open_image

__all__ = ["Query"]

MAX_TEXT_LENGTH = 4096  # characters; far above what any text tower reads of a query


@dataclass(frozen=True)
class Query:
    """Ask by text, by image, or by both.

    Args:
        text: Words to look for; blank text counts as none.
        image: A picture to find similar ones to: a path, a PIL image, bytes or an array.
        filter: Which documents may be hits, such as ``year >= 2020 and tag = cat``; see
            `indexer.filters`.

    Raises:
        FilterSyntaxError: The filter cannot be read.
        InputError: There is neither text nor image, or the text is no valid Unicode or too long.
    """

    text: str | None = None
    image: ImageSource | None = None
    filter: str | None = None

    def __post_init__(self) -> None:
        if self.text is not None:
            _check_text(self.text)
        if not self.has_text and self.image is None:
            raise InputError(self.text or "", "a query must have a text or an image")
        if self.filter is not None:
            Filter.parse(self.filter)

    @property
    def has_text(self) -> bool:
        """Say whether there is text to encode."""
        return self.text is not None and bool(self.text.strip())

    def resolve(self, encoder: Encoder) -> Encoding:
        """Encode the query as one row.

        Text and image together give the sum of their unit lexical vectors, made unit again.

        Raises:
            InputError: The text has no known word, or the image cannot be read.
        """
        parts: list[Encoding] = []
        if self.text is not None and self.has_text:
            part = encoder.encode_text([self.text])
            _require_words(part, self.text, "no word of the query is in the vocabulary")
            parts.append(part)
        if self.image is not None:
            name, image = _open(self.image)
            part = encoder.encode_image([image])
            _require_words(part, name, "the model reads no word from the image")
            parts.append(part)
        return parts[0] if len(parts) == 1 else _sum_of_units(parts)


def _check_text(text: object) -> None:
    if not isinstance(text, str):
        raise InputError(repr(text), "a query's text must be a string")
    if len(text) > MAX_TEXT_LENGTH:
        rule = f"a query's text must be at most {MAX_TEXT_LENGTH:,} characters, not {len(text):,}"
        raise InputError(text, rule)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(ascii(text), "a query's text must be valid Unicode") from error


def _open(image: ImageSource) -> tuple[str, Image.Image]:
    name = str(image) if isinstance(image, str | Path) else "the query's image"
    return name, open_image(image, name)


def _require_words(encoding: Encoding, item: str, rule: str) -> None:
    if encoding.lexical.nnz == 0:
        raise InputError(item, rule)


def _sum_of_units(parts: Sequence[Encoding]) -> Encoding:
    total = parts[0].lexical / np.linalg.norm(parts[0].lexical.data)
    for part in parts[1:]:
        total = total + part.lexical / np.linalg.norm(part.lexical.data)
    total = sparse.csr_array(total / np.linalg.norm(total.data), dtype=np.float32)
    total.sort_indices()
    return Encoding(total)
