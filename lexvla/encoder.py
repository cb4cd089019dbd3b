"""The protocol of models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from lexvla.encoding import Encoding
from lexvla.vocabulary import Vocabulary

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["Encoder"]


class Encoder(Protocol):
    """All that `lexvla_indexer` and `lexvla_search` know of a model.

    It may also have ``known_words``, a `KnownWords`: other words of a query are then named to the
    user, and not encoded. If it has ``unread(texts)``, which returns the end of each text that is
    too long for it, the user is told.

    Attributes:
        vocabulary: The terms of the lexical columns.
    """

    vocabulary: Vocabulary

    @property
    def name(self) -> str:
        """The model's name, recorded in indexes of its vectors."""
        ...

    def encode_text(self, texts: Sequence[str]) -> Encoding:
        """Return one row a text."""
        ...

    def encode_image(self, images: Sequence[Image.Image | str | Path]) -> Encoding:
        """Return one row an image."""
        ...
