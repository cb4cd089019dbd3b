"""The fake encoder with a vector for each patch, and for each single word."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import sparse

from lexvla.encoding import Encoding
from lexvla.images import ImageSource
from search_fakes import FakeEncoder, unit


class PatchFake(FakeEncoder):
    """Read each patch by its own colours; words are their own vectors."""

    def encode_words(self, words: Sequence[str]) -> Encoding:
        return self.encode_text(list(words))

    def encode_patches(self, images: Sequence[ImageSource]) -> Encoding:
        rows = np.concatenate([self._activations(image) for image in images])
        return Encoding(sparse.csr_array(unit(rows)))
