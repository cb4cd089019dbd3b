"""LexVLA as everybody uses it: one class, whichever runtime works behind it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cached_property
from importlib import import_module
from pathlib import Path
from threading import Lock
from typing import Any, Literal

import numpy as np
from PIL import Image
from scipy import sparse

from lexvla.encoding import Encoding
from lexvla.errors import InputError, ModelError, OptionalDependencyError, UnsupportedError
from lexvla.images import ImageSource, name_of, open_image, resize
from lexvla.known_words import KnownWords
from lexvla.model_folder import CONFIG_FILE, find_folder
from lexvla.public_models import load_public, public_type
from lexvla.regions import Region, region_patches
from lexvla.vocabulary import WORD_START, Vocabulary

__all__ = ["LexVLA", "Runtime", "check_text", "concat", "is_exported"]

Runtime = Literal["onnx", "torch"]
# By name, as they build on this module, and each needs packages that the other does without.
_CLASSES = {
    "onnx": ("lexvla.onnx_model", "OnnxLexVLA"),
    "torch": ("lexvla.torch_model", "TorchLexVLA"),
}
_OF_TORCH = ("safetensors", "torch", "transformers")
# PIL decodes a file when its pixels are first asked for: not to be done by two threads at once,
# where one image is given several times.
_LOADING = Lock()


class LexVLA:
    """Turn images and texts into weighted words (Li et al., NeurIPS 2024, arXiv 2407.17827).

    `lexvla.onnx_model` runs models that `lexvla export` wrote, without torch;
    `lexvla.torch_model` runs all models, and trains them. Both give the same encodings.

    The encode methods share these arguments: ``batch_size``, items in a forward pass;
    ``show_progress_bar``, by default off, ``None`` for on if stderr is a terminal;
    ``max_active_dims``, the largest number of words of an item. They keep only sparse rows, on the
    CPU. They raise `InputError` without items, and `ModelError` if values are not finite or a batch
    does not fit into the device's memory.
    """

    config: Any
    vocabulary: Vocabulary
    tokenizer: Any

    @classmethod
    def from_pretrained(
        cls, path: str | Path | None = None, *, runtime: Runtime | None = None, **options: Any
    ) -> LexVLA:
        """Load a saved model, or without a path the one that ships with the package.

        Args:
            path: A folder of `save_pretrained` or `lexvla export`, a hub id, or a public model of
                transformers that gives words without training: see `lexvla.public_models`.
            runtime: ``onnx``, which needs no torch, or ``torch``; by default ``onnx`` for an
                exported model on a CPU.
            options: For torch: see `lexvla.torch_model.TorchLexVLA.from_pretrained`. ``revision``
                and ``token`` of a hub id are for both.

        Raises:
            ModelError: The model is incomplete or damaged, or was not exported for ``onnx``.
            OptionalDependencyError: The model needs torch, which is not installed.
        """
        if runtime not in ("onnx", "torch", None):
            raise ValueError(f"unknown runtime {runtime!r}: use onnx or torch")
        own = {key: options[key] for key in ("revision", "token") if key in options}
        others = {k: v for k, v in options.items() if k not in own and (k, v) != ("device", "cpu")}
        if runtime == "onnx" and others:
            raise UnsupportedError(f"{', '.join(others)}: only for runtime='torch'")
        if path is not None and (kind := public_type(path, **own)):
            if runtime == "onnx":
                raise UnsupportedError(f"{path}: a {kind} model runs on torch only")
            with _needs_torch():
                return load_public(path, kind, **options)
        if runtime is None:
            runtime = "onnx" if not others and is_exported(path, **own) else "torch"
        chosen: Any = own if runtime == "onnx" else options
        return _imported(*_CLASSES[runtime]).from_pretrained(path, **chosen)

    @classmethod
    def from_backbones(cls, *arguments: Any, **options: Any) -> LexVLA:
        """Assemble an untrained model; see `lexvla.torch_model.TorchLexVLA.from_backbones`."""
        return _imported(*_CLASSES["torch"]).from_backbones(*arguments, **options)

    @property
    def name(self) -> str:
        """The name that indexes record, with a hash of weights and settings."""
        weights = self.config.fingerprint[:12] or "unsaved"
        return f"{self.config.model_name}@{weights}"

    @property
    def score_weights(self) -> dict[str, float] | None:
        """What each leg counts in a search's score; see `LexVLAConfig`."""
        return self.config.score_weights

    @property
    def relevance(self) -> list[float] | None:
        """Slope and intercept that make a relevance of such a score; see `LexVLAConfig`."""
        return self.config.relevance

    @property
    def patch_grid(self) -> tuple[int, int]:
        """Rows and columns of patches, which are numbered row by row."""
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

        If the configuration requires a known word, a text without a piece of the vocabulary gets an
        empty row. A text with a lone surrogate raises `InputError`.
        """
        raise NotImplementedError

    def encode_image(
        self,
        images: Iterable[ImageSource],
        batch_size: int = 64,
        show_progress_bar: bool | None = False,
        max_active_dims: int | None = None,
    ) -> Encoding:
        """Encode images into lexical vectors, each word with its patch.

        Images may be given in all forms that `open_image` takes. One that cannot be read or is too
        small raises `InputError`.
        """
        raise NotImplementedError

    def encode_words(self, words: Iterable[str], max_active_dims: int | None = None) -> Encoding:
        """Encode single words by their rows of the text codebook, without the language model.

        A word or short class name of several pieces is the mean of their rows, without pieces that
        are not in the vocabulary (LexVLA section 3.2); if there are none, its row is empty.
        """
        raise NotImplementedError

    def encode_region(
        self,
        images: Sequence[ImageSource],
        regions: Sequence[Region],
        batch_size: int = 64,
        show_progress_bar: bool | None = False,
        max_active_dims: int | None = None,
    ) -> Encoding:
        """Encode a region of each image, with the maximum over its patches only.

        A region is a box ``(x, y, width, height)`` in pixels of the upright image, or a bool mask
        of patches of shape `patch_grid`; one that is empty or leaves the image raises `InputError`.
        Patches are numbered as in the whole image.
        """
        raise NotImplementedError

    def encode_patches(
        self,
        images: Iterable[ImageSource],
        batch_size: int = 64,
        show_progress_bar: bool | None = False,
        max_active_dims: int | None = None,
    ) -> Encoding:
        """Encode every patch of images separately (LexVLA section 3.3), as `encode_image`.

        Returns:
            (n * P, V) rows: the patches of the first image row by row, then those of the next.
        """
        raise NotImplementedError

    def heatmap(self, image: ImageSource, word: str) -> np.ndarray:
        """Return the (rows, columns) float32 weights of a word in the patches.

        Raises:
            KeyError: The word is not in the vocabulary.
        """
        return self.heatmaps(image, [word])[0]

    def heatmaps(self, image: ImageSource, words: Sequence[str | int]) -> np.ndarray:
        """Return the `heatmap` of each word, (n, rows, columns), in one pass.

        Words may be given as columns, because two pieces may read as the same word.
        """
        raise NotImplementedError

    def _columns(self, words: Sequence[str | int]) -> list[int]:
        columns = []
        for word in words:
            column = word if isinstance(word, int) else self.vocabulary.find(word)
            if column is None:
                raise KeyError(word)
            columns.append(column)
        return columns

    def decode(self, encoding: Encoding, top_k: int | None = None) -> list[list[tuple[str, float]]]:
        """Return the words of each item with their weights, heaviest first."""
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
        """Return the contribution of each word to the similarity of query i and item i.

        One query is compared with every item.

        Returns:
            (n, V) float32 CSR of products; a row sums to the pair's similarity.
        """
        if len(queries) not in (1, len(items)):
            raise ValueError(f"{len(queries)} queries do not match {len(items)} items")
        mine = queries if len(queries) == len(items) else queries[np.zeros(len(items), int)]
        product = sparse.csr_array(mine.lexical.multiply(items.lexical))
        product.eliminate_zeros()  # a product of small weights may be 0 in 32 bits
        return product

    def sparsity(self, encoding: Encoding) -> dict[str, float]:
        """Return the mean number of active words, and the share of inactive words."""
        active = encoding.lexical.nnz / max(1, len(encoding))
        return {"active_dims": active, "sparsity_ratio": 1 - active / len(self.vocabulary)}

    def nearest_words(self, vectors: np.ndarray, top_k: int = 8) -> list[list[tuple[str, float]]]:
        """Return the words whose dense vectors are nearest to each of (n, w) dense unit vectors.

        Each comes with its cosine, the nearest first. The first call encodes the vocabulary as
        texts, which takes seconds for thousands of words. `ModelError` without dense heads.
        """
        cosines = vectors @ self._word_vectors.T
        best = np.argsort(-cosines, axis=1, kind="stable")[:, :top_k]
        return [
            [(self.vocabulary.word(int(column)), float(row[column])) for column in columns]
            for row, columns in zip(cosines, best, strict=True)
        ]

    @cached_property
    def _word_vectors(self) -> np.ndarray:
        words = [self.vocabulary.word(column) for column in range(len(self.vocabulary))]
        dense = self.encode_text(words).dense
        if dense is None:
            raise ModelError(f"{self.name} has no dense vectors")
        return dense

    def _open(self, source: ImageSource) -> Image.Image:
        least = self.config.smallest_image
        with _LOADING if isinstance(source, Image.Image) else nullcontext():
            image = open_image(source)
        if min(image.size) < least:
            size = f"{image.size[0]} x {image.size[1]} pixels"
            raise InputError(
                name_of(source), f"is too small: {size}, and it needs {least} x {least}"
            )
        return image

    def _resized(self, source: ImageSource) -> np.ndarray:
        return resize(self._open(source), self.config.image_side)

    def _region(self, source: ImageSource, region: Region) -> tuple[np.ndarray, np.ndarray]:
        image = self._open(source)
        patches = region_patches(region, image.size, self.patch_grid)
        return resize(image, self.config.image_side), patches


def is_exported(
    path: str | Path | None, revision: str | None = None, token: str | None = None
) -> bool:
    """Tell whether a model has graphs that ONNX Runtime can run."""
    try:
        folder = find_folder(path, revision, token)
        return bool(json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8")).get("graphs"))
    except (OSError, ValueError, AttributeError):
        return False  # the other runtime says what is wrong


def _imported(module: str, name: str) -> Any:
    with _needs_torch():
        return getattr(import_module(module), name)


@contextmanager
def _needs_torch() -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        if (package := str(error.name).partition(".")[0]) not in _OF_TORCH:
            raise
        raise OptionalDependencyError(package, "torch") from error


def check_text(text: str) -> None:
    """Raise `InputError` if a text has a lone surrogate."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(ascii(text), "is not valid Unicode text") from error


def concat(parts: list[Encoding], items: str) -> Encoding:
    """Stack encodings; raise `InputError` if there are none."""
    if not parts:
        raise InputError(items, "an empty batch cannot be encoded; give at least one item")
    return Encoding.concat(parts)
