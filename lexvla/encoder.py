"""Items in, `Encoding` out: batching, devices, progress."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy import sparse
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from lexvla.batching import ahead, batches, inference, split
from lexvla.codebook import Codebook, top_codes
from lexvla.config import LexVLAConfig
from lexvla.dense_head import DenseHead
from lexvla.encoding import Encoding
from lexvla.errors import InputError, ModelError
from lexvla.image_tower import ImageTower
from lexvla.images import ImageSource, open_image
from lexvla.known_words import KnownWords
from lexvla.lexical_head import elu1p, lexical_vector, max_over_patches, sparsify
from lexvla.preprocessing import resize, to_pixels
from lexvla.regions import Region, region_patches
from lexvla.text_normalisation import normalise_text
from lexvla.text_tower import PrefixCache, tokenize
from lexvla.vocabulary import WORD_START, Vocabulary

__all__ = ["EncodeMixin"]

# PIL decodes a file when its pixels are first asked for: not to be done by two threads at once,
# where one image is given several times.
_LOADING = Lock()
_WINDOW = 32  # batches whose texts are sorted by length together


class EncodeMixin:
    """The encode API of `LexVLA`: everything that turns items into an `Encoding` and back.

    The encode methods read items batch by batch, and of a batch keep only the sparse rows, on the
    CPU, so host memory grows with the words that are kept and with nothing else. They share these
    arguments: ``batch_size``, items in one forward pass; ``show_progress_bar``, where ``None``
    shows it if stderr is a terminal; ``max_active_dims``, at most so many words of each item. They
    raise `InputError` where there are no items, and `ModelError` where the model gives values that
    are not finite or does not fit into the device's memory.
    """

    # What the model brings.
    config: LexVLAConfig
    vocabulary: Vocabulary
    tokenizer: PreTrainedTokenizerBase
    image_codebook: nn.Parameter
    image_tower: ImageTower
    text_dense_head: DenseHead | None
    image_dense_head: DenseHead | None
    codebook: Codebook | None
    text_codebook: Callable[[], Tensor]
    text_states: Callable[[list[str], PrefixCache | None], Tensor]
    patch_states: Callable[[Tensor], Tensor]

    @property
    def device(self) -> torch.device:
        """Return where the trained parts are, and where inputs are put."""
        return self.image_codebook.device

    @property
    def patch_grid(self) -> tuple[int, int]:
        """Return rows and columns of the patch grid; patch numbers count row by row."""
        return self.config.patch_grid

    @cached_property
    def known_words(self) -> KnownWords | None:
        """The words that texts may have, and plurals of them; ``None`` where they may have any.

        Where the configuration requires a known word, these are the vocabulary and
        ``known_tokens``. Pieces of other words say nothing about them.
        """
        if not self.config.require_known_word:
            return None
        ids = [*(self.vocabulary.token_ids or ()), *range(*self.config.known_tokens)]
        pieces = self.tokenizer.convert_ids_to_tokens(ids)
        whole = (piece[1:] for piece in pieces if piece.startswith(WORD_START))
        return KnownWords(whole, plurals=True)  # which training phrases texts with

    def encode_text(
        self,
        texts: Iterable[str],
        batch_size: int = 64,
        show_progress_bar: bool | None = False,
        max_active_dims: int | None = None,
    ) -> Encoding:
        """Encode texts into lexical vectors, without patches.

        Args:
            texts: Any strings. Where the configuration requires a known word, a text in which no
                piece is in the vocabulary gets an empty row.
            batch_size: See the class, as for the next two.
            show_progress_bar: See there.
            max_active_dims: See there.

        Raises:
            InputError: A text holds half of a character (a lone surrogate), or there is none.
            ModelError: See `EncodeMixin`.
        """
        windows: list[Encoding] = []
        cache = PrefixCache()
        with inference(self):
            codebook = self.text_codebook()
            small = batches(texts, batch_size, show_progress_bar, "texts")
            for window in split(small, _WINDOW):
                chosen = [text for batch in window for text in batch]
                for text in chosen:
                    _check_text(text)
                # Texts of like length share a batch, so that little of it is padding.
                order = sorted(range(len(chosen)), key=lambda i: len(chosen[i]))
                parts = []
                for rows in split(order, batch_size):
                    batch = [chosen[i] for i in rows]
                    states = self.text_states(batch, cache)
                    known = self._known(batch) if self.config.require_known_word else None
                    parts.append(self._text_rows(states, codebook, known, max_active_dims))
                windows.append(Encoding.concat(parts)[np.argsort(order)])
        return _concat(windows, "texts")

    def encode_image(
        self,
        images: Iterable[ImageSource],
        batch_size: int = 64,
        show_progress_bar: bool | None = False,
        max_active_dims: int | None = None,
    ) -> Encoding:
        """Encode images into lexical vectors, each word with the patch that it was read from.

        Args:
            images: Whatever `open_image` reads: paths, bytes, PIL images, uint8 arrays.
            batch_size: See the class, as for the next two.
            show_progress_bar: See there.
            max_active_dims: See there.

        Raises:
            InputError: An image cannot be read, is too small, or there is none.
            ModelError: See `EncodeMixin`.
        """
        parts = []
        with inference(self):
            for states in self._states(images, batch_size, show_progress_bar):
                numbers = np.arange(states.shape[1]) - self.config.pool_cls  # CLS has -1
                parts.append(self._image_rows(states, numbers, max_active_dims))
        return _concat(parts, "images")

    def encode_words(self, words: Iterable[str], max_active_dims: int | None = None) -> Encoding:
        """Encode single words by their rows of the text codebook, without the language model.

        A word of several pieces is the mean of their rows; pieces that the vocabulary leaves out
        do not count (LexVLA section 3.2).

        Args:
            words: Words, or short names of classes. One without a piece in the vocabulary gets an
                empty row.
            max_active_dims: See `EncodeMixin`.

        Raises:
            InputError: There is no word, or one holds half of a character.
        """
        columns = {token: i for i, token in enumerate(self.vocabulary.token_ids or ())}
        parts = []
        with inference(self):
            codebook = self.text_codebook()
            for batch in batches(words, 256, False, "words"):
                means, known = [], []
                for word in batch:
                    _check_text(word)
                    column = self.vocabulary.find(word)
                    plain = normalise_text(word)
                    pieces = self.tokenizer(plain, add_special_tokens=False)["input_ids"]
                    kept = [columns[i] for i in pieces if i in columns]
                    kept = kept if column is None else [column]
                    known.append(bool(kept))
                    means.append(codebook[kept].mean(0) if kept else torch.zeros_like(codebook[0]))
                parts.append(
                    self._text_rows(
                        torch.stack(means), codebook, torch.tensor(known), max_active_dims
                    )
                )
        return _concat(parts, "words")

    def encode_region(
        self,
        images: Sequence[ImageSource],
        regions: Sequence[Region],
        batch_size: int = 64,
        show_progress_bar: bool | None = False,
        max_active_dims: int | None = None,
    ) -> Encoding:
        """Encode a region of each image: the maximum is taken over its patches alone.

        Args:
            images: Whatever `open_image` reads.
            regions: One for each image: a box ``(x, y, width, height)`` in pixels of the upright
                image, or a bool mask of patches, of shape `patch_grid`.
            batch_size: See the class, as for the next two.
            show_progress_bar: See there.
            max_active_dims: See there.

        Returns:
            (n, V) rows, with the numbers that the patches have in the whole image.

        Raises:
            InputError: An image cannot be read, a region lies outside its image or is empty, or
                there is no image.
            ModelError: See `EncodeMixin`.
        """
        parts = []
        pairs = list(zip(images, regions, strict=True))
        with inference(self):
            for batch in ahead(
                lambda pair: self._region(*pair),
                batches(pairs, batch_size, show_progress_bar, "regions"),
            ):
                states = self._without_cls(
                    self.patch_states(self._pixels([pixels for pixels, _ in batch]))
                )
                parts += [
                    self._image_rows(states[row, numbers][None], numbers, max_active_dims)
                    for row, (_, numbers) in enumerate(batch)
                ]
        return _concat(parts, "images")

    def encode_patches(
        self,
        images: Iterable[ImageSource],
        batch_size: int = 64,
        show_progress_bar: bool | None = False,
        max_active_dims: int | None = None,
    ) -> Encoding:
        """Encode every patch of each image by itself, without a maximum (LexVLA section 3.3).

        The arguments are those of `encode_image`.

        Returns:
            (n * P, V) rows: the patches of the first image row by row, then those of the next.

        Raises:
            InputError: An image cannot be read, is too small, or there is none.
            ModelError: See `EncodeMixin`.
        """
        parts = []
        with inference(self):
            for states in self._states(images, batch_size, show_progress_bar):
                for patches in self._without_cls(states):
                    rows = self._image_rows(patches[:, None], np.zeros(1), max_active_dims)
                    numbers = np.arange(len(patches), dtype=np.int16)
                    place = np.repeat(numbers, np.diff(rows.lexical.indptr))
                    parts.append(replace(rows, patches=place))
        return _concat(parts, "images")

    def heatmap(self, image: ImageSource, word: str) -> np.ndarray:
        """Return how strongly each patch speaks for a word: (rows, columns) float32, >= 0.

        The values are the patches' weights before the image's vector is brought to unit length.

        Raises:
            KeyError: The vocabulary has no such word.
            InputError: The image cannot be read.
        """
        return self.heatmaps(image, [word])[0]

    def heatmaps(self, image: ImageSource, words: Sequence[str | int]) -> np.ndarray:
        """Return the `heatmap` of each word, (n, rows, columns), by one pass of the image.

        A word may be given by its column: two pieces of a vocabulary may read as the same word.
        """
        columns = []
        for word in words:
            column = word if isinstance(word, int) else self.vocabulary.find(word)
            if column is None:
                raise KeyError(word)
            columns.append(column)
        with inference(self):
            pixels = self._pixels([self._resized(image)])
            states = self._without_cls(self.patch_states(pixels))[0]
            weights = elu1p((self.image_codebook[columns] @ states.T).float())
        return weights.cpu().numpy().reshape(-1, *self.patch_grid)

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

    def intersection(self, queries: Encoding, items: Encoding) -> sparse.csr_array:
        """Return what each word adds to the similarity of the pairs (query i, item i).

        Args:
            queries: n rows, or one row that goes with every item.
            items: n rows.

        Returns:
            (n, V) float32 CSR of products; a row sums to the pair's similarity.

        Raises:
            ValueError: The numbers of rows do not go together.
        """
        if len(queries) not in (1, len(items)):
            raise ValueError(f"{len(queries)} queries do not go with {len(items)} items")
        mine = queries if len(queries) == len(items) else queries[np.zeros(len(items), int)]
        product = sparse.csr_array(mine.lexical.multiply(items.lexical))
        product.eliminate_zeros()  # a product of small weights may be 0 in 32 bits
        return product

    def sparsity(self, encoding: Encoding) -> dict[str, float]:
        """Return the mean number of active words, and the share of words that are not active."""
        active = encoding.lexical.nnz / max(1, len(encoding))
        return {"active_dims": active, "sparsity_ratio": 1 - active / len(self.vocabulary)}

    def _text_rows(
        self, states: Tensor, codebook: Tensor, known: Tensor | None, limit: int | None
    ) -> Encoding:
        """Encode (B, d) states of texts; those not known get no words."""
        logits = states.to(codebook.dtype) @ codebook.T
        dense = None if self.text_dense_head is None else self.text_dense_head(states)
        return self._encoding(logits, dense, limit, known)[0]

    def _image_rows(self, states: Tensor, numbers: np.ndarray, limit: int | None) -> Encoding:
        """Encode (B, P, d) states of patches that have these P numbers in the image."""
        logits, place = self.words_of_patches(states)
        head = self.image_dense_head
        dense = None if head is None else head(self.pooled(states.float()))
        encoding, rows = self._encoding(logits, dense, limit)
        positions = place.cpu().numpy()[rows, encoding.lexical.indices]
        return replace(encoding, patches=numbers[positions].astype(np.int16))

    def pooled(self, states: Tensor) -> Tensor:
        """Return the (B, d) mean of (B, P, d) states; of a memory's concepts, the largest."""
        return states.mean(1) if self.image_tower.memory is None else states.amax(1)

    def words_of_patches(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Return the (B, V) largest logit of each word over (B, P, d) states, and its patch."""
        rows: Tensor = self.image_codebook
        if self.image_tower.memory is not None:  # of its concepts, most are shown nowhere
            shown = (states != 0).flatten(0, 1).any(0)
            states, rows = states[..., shown], rows[:, shown]
        return max_over_patches(states, rows, self.config.vocabulary_chunk)

    def sparsify(self, vectors: Tensor, max_active_dims: int | None = None) -> sparse.csr_array:
        """Keep the heavy words of unit vectors by the model's own rule; see `sparsify`."""
        config = self.config
        limits = [each for each in (max_active_dims, config.max_active_dims) if each is not None]
        rule = (config.sparsification, config.kept_words, config.threshold)
        return sparsify(vectors, *rule, min(limits, default=None))

    def _encoding(
        self, logits: Tensor, dense: Tensor | None, limit: int | None, known: Tensor | None = None
    ) -> tuple[Encoding, np.ndarray]:
        """Return sparse rows on the CPU, and the row of each stored word."""
        if not logits.isfinite().all():
            rule = "gives logits that are not finite"
            raise ModelError(f"{self.config.model_name} {rule}: weights are damaged, or dtype")
        config = self.config
        vectors = lexical_vector(logits)
        if known is not None:
            vectors *= known.to(vectors.device)[:, None]
        lexical = self.sparsify(vectors, limit)
        rows = np.repeat(np.arange(len(vectors)), np.diff(lexical.indptr))
        if dense is None:
            return Encoding(lexical), rows
        codes = None
        if self.codebook is not None:
            codes = top_codes(self.codebook(dense), config.codes_per_item)
        return Encoding(lexical, None, codes, dense.cpu().numpy()), rows

    def _open(self, source: ImageSource) -> Image.Image:
        least = self.config.smallest_image
        with _LOADING if isinstance(source, Image.Image) else nullcontext():
            image = open_image(source)
        if min(image.size) < least:
            name = str(source) if isinstance(source, str | Path) else "<image>"
            size = f"{image.size[0]} x {image.size[1]} pixels"
            raise InputError(name, f"is too small: {size}, and it needs {least} x {least}")
        return image

    def _states(self, images: Iterable[ImageSource], size: int, bar: bool | None) -> Any:
        for batch in ahead(self._resized, batches(images, size, bar, "images")):
            yield self.patch_states(self._pixels(batch))

    def _resized(self, source: ImageSource) -> np.ndarray:
        return resize(self._open(source), self.config.image_side)

    def _region(self, source: ImageSource, region: Region) -> tuple[np.ndarray, np.ndarray]:
        image = self._open(source)
        patches = region_patches(region, image.size, self.patch_grid)
        return resize(image, self.config.image_side), patches

    def _pixels(self, resized: Sequence[np.ndarray]) -> Tensor:
        return to_pixels(resized, self.config.image_mean, self.config.image_std).to(self.device)

    def _without_cls(self, states: Tensor) -> Tensor:
        return states[:, 1:] if self.config.pool_cls else states

    def _known(self, texts: list[str]) -> Tensor:
        """Tell which texts have at least one piece that the vocabulary keeps, or that is known."""
        pieces = tokenize(self.tokenizer, texts, "{text}", self.config.max_text_tokens)
        kept = {*(self.vocabulary.token_ids or ()), *range(*self.config.known_tokens)}
        return torch.tensor([not kept.isdisjoint(ids) for ids in pieces])


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(ascii(text), "is no valid Unicode text") from error


def _concat(parts: list[Encoding], items: str) -> Encoding:
    if not parts:
        raise InputError(items, "an empty batch cannot be encoded; give at least one item")
    return Encoding.concat(parts)
