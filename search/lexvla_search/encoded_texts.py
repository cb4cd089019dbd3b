"""An encoder that has encoded some texts already, all in one call."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from lexvla.encoder import Encoder
from lexvla.encoding import Encoding
from lexvla.errors import LexVLAError
from lexvla_search.typed_words import understood

__all__ = ["EncodedTexts"]


class EncodedTexts:
    """Stand for an encoder, and answer for queries' texts without asking it again."""

    def __init__(self, encoder: Encoder, texts: Iterable[str]) -> None:
        self.name, self.vocabulary = encoder.name, encoder.vocabulary
        self._encoder = encoder
        self._rows: dict[str, Encoding] = {}
        read = [part for part in dict.fromkeys(understood(t, encoder)[0] for t in texts) if part]
        try:
            rows = encoder.encode_text(read) if len(read) > 1 else ()
        except LexVLAError:
            return  # each query tells its own
        self._rows = dict(zip(read, rows, strict=False))

    def encode_text(self, texts: Sequence[str], **options: Any) -> Encoding:
        """Encode texts; see the encoder."""
        if len(texts) == 1 and texts[0] in self._rows and not options:
            return self._rows[texts[0]]
        return self._encoder.encode_text(texts, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._encoder, name)
