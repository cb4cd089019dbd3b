"""Items in, `Encoding` out: batching, devices, progress."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy import sparse
from torch import Tensor, nn
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from lexvla.config import LexVLAConfig
from lexvla.encoding import Encoding
from lexvla.errors import InputError
from lexvla.image_tower import ImageTower
from lexvla.images import ImageSource, open_image
from lexvla.lexical_head import elu1p, lexical_vector, sparsify
from lexvla.text_tower import tokenize
from lexvla.vocabulary import Vocabulary

__all__ = ["EncodeMixin", "preprocess"]

# ImageNet's channel statistics, as DINOv2's own processor uses them.
_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)


def normalise_pixels(pixels: Tensor) -> Tensor:
    """Normalise (B, 3, H, W) pixels in 0 to 1 with ImageNet's channel mean and deviation."""
    mean = torch.tensor(_MEAN, device=pixels.device).view(1, 3, 1, 1)
    std = torch.tensor(_STD, device=pixels.device).view(1, 3, 1, 1)
    return (pixels - mean) / std


def preprocess(images: Iterable[Image.Image], side: int) -> Tensor:
    """Resize RGB images to squares and return (B, 3, side, side) normalised float32.

    Images are taken one by one, so a batch of large files is never in memory as a whole.
    """
    resized = [
        np.asarray(image.resize((side, side), Image.Resampling.BICUBIC, reducing_gap=3.0))
        for image in images
    ]
    pixels = torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2).float() / 255
    return normalise_pixels(pixels)


class EncodeMixin:
    """The encode API of `LexVLA`: everything that turns items into an `Encoding` and back."""

    # What the model brings.
    config: LexVLAConfig
    vocabulary: Vocabulary
    tokenizer: PreTrainedTokenizerBase
    image_tower: ImageTower
    image_codebook: nn.Parameter
    text_logits: Callable[[list[str]], Tensor]
    image_logits: Callable[[Tensor], tuple[Tensor, Tensor]]
    device: torch.device
    dtype: torch.dtype

    @property
    def patch_grid(self) -> tuple[int, int]:
        """Return rows and columns of the patch grid; patch numbers count row by row."""
        return self.config.patch_grid

    def encode_text(
        self,
        texts: Sequence[str],
        batch_size: int = 64,
        show_progress_bar: bool | None = False,
        max_active_dims: int | None = None,
    ) -> Encoding:
        """Encode texts into lexical vectors.

        Args:
            texts: Any strings. One in which no piece is in the vocabulary gets an empty row.
            batch_size: Texts in one forward pass.
            show_progress_bar: ``None`` shows it where stderr is a terminal.
            max_active_dims: Keep at most so many words of each text.

        Returns:
            (n, V) lexical rows; no patches, codes or dense vectors.

        Raises:
            InputError: A text holds half of a character (a lone surrogate).
        """
        if isinstance(texts, str):
            raise TypeError("encode_text takes a list of texts, not one text")
        for text in texts:
            _check_text(text)
        # Texts of like length share a batch, so that little of it is padding.
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        rows: list[sparse.csr_array] = []
        with _inference(self):
            for batch in _batches(order, batch_size, show_progress_bar, "texts"):
                chosen = [texts[i] for i in batch]
                vectors = lexical_vector(self.text_logits(chosen))
                vectors *= self._known(chosen).to(vectors.device)[:, None]
                rows.append(self._sparsify(vectors, max_active_dims))
        if not rows:
            return Encoding(sparse.csr_array((0, len(self.vocabulary)), dtype=np.float32))
        stacked = sparse.csr_array(sparse.vstack(rows, format="csr"))
        return Encoding(sparse.csr_array(stacked[np.argsort(order)]))

    def encode_image(
        self,
        images: Sequence[ImageSource],
        batch_size: int = 64,
        show_progress_bar: bool | None = False,
        max_active_dims: int | None = None,
    ) -> Encoding:
        """Encode images into lexical vectors, each word with the patch that it was read from.

        Args:
            images: Whatever `open_image` reads: paths, bytes, PIL images, uint8 arrays.
            batch_size: Images in one forward pass.
            show_progress_bar: ``None`` shows it where stderr is a terminal.
            max_active_dims: Keep at most so many words of each image.

        Returns:
            (n, V) lexical rows with int16 patches; no codes or dense vectors.

        Raises:
            InputError: An image cannot be read.
        """
        rows: list[sparse.csr_array] = []
        patches: list[np.ndarray] = [np.empty(0, np.int16)]
        with _inference(self):
            for batch in _batches(range(len(images)), batch_size, show_progress_bar, "images"):
                opened = (open_image(images[i]) for i in batch)
                logits, place = self.image_logits(self._pixels(opened))
                matrix = self._sparsify(lexical_vector(logits), max_active_dims)
                row = np.repeat(np.arange(len(batch)), np.diff(matrix.indptr))
                rows.append(matrix)
                patches.append(place.cpu().numpy()[row, matrix.indices])
        if not rows:
            rows = [sparse.csr_array((0, len(self.vocabulary)), dtype=np.float32)]
        stacked = sparse.csr_array(sparse.vstack(rows, format="csr"))
        return Encoding(stacked, np.concatenate(patches))

    def decode(self, encoding: Encoding, top_k: int | None = None) -> list[list[tuple[str, float]]]:
        """Return each item's words with their weights, heaviest first; all of them or ``top_k``."""
        decoded = []
        for row in encoding:
            order = np.argsort(-row.lexical.data, kind="stable")[:top_k]
            columns, weights = row.lexical.indices[order], row.lexical.data[order]
            words = (self.vocabulary.word(int(c)) for c in columns)
            decoded.append(list(zip(words, weights.tolist(), strict=True)))
        return decoded

    def similarity(self, queries: Encoding, items: Encoding) -> np.ndarray:
        """Return the (nq, ni) float32 dot products of lexical vectors."""
        return (queries.lexical @ items.lexical.T).toarray()

    def heatmap(self, image: ImageSource, word: str) -> np.ndarray:
        """Return how strongly each patch speaks for a word: (rows, columns) float32, >= 0.

        The values are the patches' weights before the image's vector is brought to unit length.

        Raises:
            KeyError: The vocabulary has no such word.
            InputError: The image cannot be read.
        """
        column = self.vocabulary.find(word)
        if column is None:
            raise KeyError(word)
        with _inference(self):
            states = self.image_tower(self._pixels([open_image(image)]))[0]
            weights = elu1p((states @ self.image_codebook[column]).float())
        return weights.cpu().numpy().reshape(self.patch_grid)

    def _pixels(self, images: Iterable[Image.Image]) -> Tensor:
        pixels = preprocess(images, self.config.vision_config.image_size)
        return pixels.to(self.device, self.dtype)

    def _sparsify(self, vectors: Tensor, max_active_dims: int | None) -> sparse.csr_array:
        config = self.config
        return sparsify(
            vectors, config.sparsification, config.kept_words, config.threshold, max_active_dims
        )

    def _known(self, texts: list[str]) -> Tensor:
        """Tell which texts have at least one piece that the vocabulary keeps."""
        pieces = tokenize(self.tokenizer, texts, "{text}", self.config.max_text_tokens)
        kept = set(self.vocabulary.token_ids or ())
        return torch.tensor([not kept.isdisjoint(ids) for ids in pieces])


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(ascii(text), "is no valid Unicode text") from error


@contextmanager
def _inference(model: Any) -> Iterator[None]:
    """Switch gradients and dropout off, and put the model's mode back afterwards."""
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(was_training)


def _batches(
    order: Sequence[int], size: int, show_progress_bar: bool | None, unit: str
) -> Iterator[Sequence[int]]:
    if size < 1:
        raise ValueError(f"batch_size must be at least 1, not {size}")
    off = None if show_progress_bar is None else not show_progress_bar
    with tqdm(total=len(order), unit=f" {unit}", disable=off) as bar:
        for start in range(0, len(order), size):
            batch = order[start : start + size]
            yield batch
            bar.update(len(batch))
