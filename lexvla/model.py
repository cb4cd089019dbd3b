"""LexVLA as everybody uses it: one class, whichever runtime works behind it."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import cached_property
from importlib import import_module
from pathlib import Path
from threading import Lock
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
from PIL import Image
from scipy import sparse

from lexvla.batching import WINDOW, ahead, batches, split
from lexvla.encoding import Encoding
from lexvla.errors import InputError, ModelError, OptionalDependencyError, UnsupportedError
from lexvla.images import ENOUGH_SIDE, ImageSource, name_of, open_image, resize
from lexvla.known_words import KnownWords
from lexvla.model_folder import CONFIG_FILE, find_folder, read_values
from lexvla.public_models import load_public, public_type, unknown_options
from lexvla.regions import Region, region_patches
from lexvla.sparse_rows import top_codes
from lexvla.text_normalisation import normalise_text
from lexvla.tokens import common_prefix, cut, fill, tokenize, unread
from lexvla.vocabulary import WORD_START, Vocabulary

__all__ = ["Found", "LexVLA", "Runtime", "concat", "is_exported"]

Runtime = Literal["onnx", "torch"]
Item = TypeVar("Item")
Made = TypeVar("Made")
# By name, as they build on this module, and each needs packages that the other does without.
_CLASSES = {
    "onnx": ("lexvla.onnx_model", "OnnxLexVLA"),
    "torch": ("lexvla.torch_model", "TorchLexVLA"),
}
_OF_TORCH = ("safetensors", "torch", "transformers")
# PIL decodes a file when its pixels are first asked for: not to be done by two threads at once,
# where one image is given several times.
_LOADING = Lock()


class Found(NamedTuple):
    """What a runtime makes of n items.

    Attributes:
        logits: (n, V) of the words, an array of the runtime.
        dense: (n, d) float32 unit vectors, if the model has them.
        codes: (n, K) float32 probabilities of the codes, likewise.
        places: (n, V): the place among an image's patches that each logit comes from.
    """

    logits: Any
    dense: np.ndarray | None = None
    codes: np.ndarray | None = None
    places: Any = None


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
            UnsupportedError: The model does not take an option.
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
        load = _imported(*_CLASSES[runtime]).from_pretrained
        if unknown := unknown_options(load, chosen):
            read_values(find_folder(path, own.get("revision"), own.get("token")))
            raise UnsupportedError(f"{', '.join(unknown)}: a LexVLA takes no such option")
        return load(path, **chosen)

    @classmethod
    def from_backbones(cls, *arguments: Any, **options: Any) -> LexVLA:
        """Assemble an untrained model; see `lexvla.torch_model.TorchLexVLA.from_backbones`."""
        return _imported(*_CLASSES["torch"]).from_backbones(*arguments, **options)

    @property
    def name(self) -> str:
        """The name that indexes record, with a hash of weights and settings."""
        weights = self.config.fingerprint[:12] or "unsaved"
        return f"{self.config.model_name}@{weights}"

    def facts(self) -> dict[str, Any]:
        """Return what ``lexvla doctor --model`` says of the model."""
        rows, columns = self.patch_grid
        patches = f"{rows} x {columns}" if rows else "none: no image side"
        return {"name": self.name, "words": len(self.vocabulary), "patches": patches}

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

    def unread(self, texts: Sequence[str]) -> list[str]:
        """Return the end of each text that is too long to be read; empty if all of it is read."""
        return unread(self.tokenizer, list(texts), self.text_room)

    @property
    def text_room(self) -> int:
        """How many tokens of a text are read."""
        return self.config.max_text_tokens

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
        windows: list[Encoding] = []
        small = batches(texts, batch_size, show_progress_bar, "texts")
        with self._running() as running:

            def encode(part: tuple[list[list[int]], np.ndarray | None]) -> Encoding:
                found = self._run_texts(part[0], running)
                return self._encoding(found, max_active_dims, part[1])[0]

            for window in split(small, WINDOW):
                chosen = [text for batch in window for text in batch]
                chosen = cut(self.tokenizer, chosen, self.config.max_text_tokens)
                ids = fill(self.tokenizer, chosen, self.config.prompt)
                known = self._known(chosen)
                # Those of like length share a batch, so that little of it is padding; those that
                # cut the prompt otherwise come last, as they run through more of it.
                start = len(self._prefix)
                order = sorted(
                    range(len(ids)), key=lambda i: (ids[i][:start] != self._prefix, len(ids[i]))
                )
                chosen_rows = map(list, split(order, min(batch_size, self._texts)))
                parts = [
                    ([ids[i] for i in rows], None if known is None else known[rows])
                    for rows in chosen_rows
                ]
                encoding = Encoding.concat(list(self._each(encode, parts, running)))
                in_order = order == list(range(len(ids)))
                windows.append(encoding if in_order else encoding[np.argsort(order)])
        return concat(windows, "texts")

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
        parts = []
        with self._running():
            for states in self._states_of(images, batch_size, show_progress_bar):
                numbers = np.arange(states.shape[1]) - self.config.pool_cls  # CLS has -1
                parts.append(self._image_rows(states, numbers, max_active_dims))
        return concat(parts, "images")

    def encode_words(self, words: Iterable[str], max_active_dims: int | None = None) -> Encoding:
        """Encode single words by their rows of the text codebook, without the language model.

        A word or short class name of several pieces is the mean of their rows, without pieces that
        are not in the vocabulary (LexVLA section 3.2); if there are none, its row is empty.
        """
        columns = {token: i for i, token in enumerate(self.vocabulary.token_ids or ())}
        parts = []
        with self._running() as running:
            for batch in batches(words, 256, False, "words"):
                rows = []
                for word in batch:
                    column = self.vocabulary.find(word)
                    pieces = self.tokenizer(normalise_text(word), add_special_tokens=False)
                    kept = [columns[i] for i in pieces["input_ids"] if i in columns]
                    rows.append(kept if column is None else [column])
                known = np.array([bool(row) for row in rows])
                found = self._run_words(rows, running)
                parts.append(self._encoding(found, max_active_dims, known)[0])
        return concat(parts, "words")

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
        parts = []
        with self._running():
            for batch in self._region_batches(images, regions, batch_size, show_progress_bar):
                patches = iter([numbers for _, numbers in batch])
                for states in self._run_images([pixels for pixels, _ in batch]):
                    for own in self._without_cls(states):
                        numbers = next(patches)
                        parts.append(self._image_rows(own[numbers][None], numbers, max_active_dims))
        return concat(parts, "images")

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
        parts = []
        with self._running():
            for states in self._states_of(images, batch_size, show_progress_bar):
                for own in self._without_cls(states):
                    rows = self._image_rows(own[:, None], np.zeros(1), max_active_dims)
                    numbers = np.arange(len(own), dtype=np.int16)
                    places = np.repeat(numbers, np.diff(rows.lexical.indptr))
                    parts.append(replace(rows, patches=places))
        return concat(parts, "images")

    def heatmap(self, image: ImageSource, word: str) -> np.ndarray:
        """Return the (rows, columns) float32 weights of a word in the patches.

        Raises:
            KeyError: The word is not in the vocabulary.
        """
        return self.heatmaps(image, [word])[0]

    def heatmaps(self, image: ImageSource, words: Sequence[str | int]) -> np.ndarray:
        """Return the `heatmap` of each word, (n, rows, columns), in one pass.

        Words may be given as columns, because two pieces may read as the same word. `KeyError` if
        the vocabulary has none.
        """
        raise NotImplementedError

    def prompt_ids(self, texts: list[str]) -> list[list[int]]:
        """Normalise texts, put them into the prompt and return their token ids."""
        return tokenize(self.tokenizer, texts, self.config.prompt, self.config.max_text_tokens)

    def _columns(self, words: Sequence[str | int]) -> list[int]:
        columns = []
        for word in words:
            column = self.vocabulary.find(word) if isinstance(word, str) else int(word)
            if column is None or not 0 <= column < len(self.vocabulary):
                raise KeyError(word)
            columns.append(column)
        return columns

    def decode(self, encoding: Encoding, top_k: int | None = None) -> list[list[tuple[str, float]]]:
        """Return the words of each item with their weights, heaviest first."""
        decoded = []
        for row in range(len(encoding)):
            columns, weights, _ = encoding.words(row)
            order = np.argsort(-weights, kind="stable")[:top_k]
            words = map(self.vocabulary.word, columns[order].tolist())
            decoded.append(list(zip(words, weights[order].tolist(), strict=True)))
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

    def _image_batches(
        self, images: Iterable[ImageSource], size: int, bar: bool | None
    ) -> Iterator[list[np.ndarray]]:
        """Yield batches of resized images, decoded ahead."""
        return ahead(self._resized, batches(images, size, bar, "images"))

    def _region_batches(
        self,
        images: Sequence[ImageSource],
        regions: Sequence[Region],
        size: int,
        bar: bool | None,
    ) -> Iterator[list[tuple[np.ndarray, np.ndarray]]]:
        """Yield batches of resized images, each with the numbers of its region's patches."""
        if len(images) != len(regions):
            raise ValueError(f"{len(images)} images with {len(regions)} regions")
        pairs = list(zip(images, regions, strict=True))
        return ahead(lambda pair: self._region(*pair), batches(pairs, size, bar, "regions"))

    # What a runtime does; arrays named states and logits are its own, all others numpy's.

    _rows: Any  # its `lexical_vector` and `sparsify`

    def _running(self) -> AbstractContextManager[Any]:
        """Return the context that the methods below run in; it may yield what calls share."""
        raise NotImplementedError

    _texts = sys.maxsize  # in a pass, at most

    def _each(
        self, work: Callable[[Item], Made], parts: Sequence[Item], running: Any
    ) -> Iterable[Made]:
        """Map ``work`` over parts, in threads where the runtime gains by it."""
        return map(work, parts)

    def _run_texts(self, ids: list[list[int]], running: Any) -> Found:
        """Run token ids of texts in the prompt; `running` is what that context yields."""
        raise NotImplementedError

    def _run_words(self, columns: list[list[int]], running: Any) -> Found:
        """Run means of these rows of the text codebook; of none, anything."""
        raise NotImplementedError

    def _run_images(self, resized: Sequence[np.ndarray]) -> Iterable[Any]:
        """Yield (B, P, d) states of the patches of images, the CLS token first with `pool_cls`."""
        raise NotImplementedError

    def _run_patches(self, states: Any) -> Found:
        """Run (B, P, d) states of patches, to the best patch of each word."""
        raise NotImplementedError

    @cached_property
    def _prefix(self) -> list[int]:
        """Token ids that most texts begin with in the prompt."""
        ids = tokenize(self.tokenizer, ["a", "the"], self.config.prompt, 1)
        return ids[0][: common_prefix(ids)]

    def _known(self, texts: list[str]) -> np.ndarray | None:
        """Tell which texts have at least one piece that the vocabulary keeps, or that is known."""
        if not self.config.require_known_word:
            return None
        pieces = self.tokenizer(texts)["input_ids"]
        kept, more = self.vocabulary.kept_ids, range(*self.config.known_tokens)
        return np.array([any(i in kept or i in more for i in ids) for ids in pieces])

    def _states_of(
        self, images: Iterable[ImageSource], size: int, bar: bool | None
    ) -> Iterator[Any]:
        for resized in self._image_batches(images, size, bar):
            yield from self._run_images(resized)

    def _without_cls(self, states: Any) -> Any:
        return states[:, 1:] if self.config.pool_cls else states

    def _image_rows(self, states: Any, numbers: np.ndarray, limit: int | None) -> Encoding:
        """Encode (B, P, d) states of patches with these P numbers."""
        found = self._run_patches(states)
        encoding, rows = self._encoding(found, limit)
        positions = found.places[rows, encoding.lexical.indices]
        return replace(encoding, patches=numbers[positions].astype(np.int16))

    def _encoding(
        self, found: Found, limit: int | None, known: np.ndarray | None = None
    ) -> tuple[Encoding, np.ndarray]:
        """Return sparse rows, empty if not known, and the row of each stored word."""
        config, logits = self.config, found.logits
        if not math.isfinite(float(logits.max())) or not math.isfinite(float(logits.min())):
            fault = "gives logits that are not finite: weights are damaged, or dtype is too small"
            raise ModelError(f"{config.model_name} {fault}")
        vectors = self._rows.lexical_vector(logits)
        if known is not None and not known.all():
            vectors[np.flatnonzero(~known).tolist()] = 0
        lexical = self.sparsify(vectors, limit)
        codes = None if found.codes is None else top_codes(found.codes, config.codes_per_item)
        rows = np.repeat(np.arange(len(vectors)), np.diff(lexical.indptr))
        return Encoding(lexical, None, codes, found.dense), rows

    def sparsify(self, vectors: Any, max_active_dims: int | None = None) -> sparse.csr_array:
        """Keep the heavy words of (n, V) unit vectors of the runtime, by the model's own rule."""
        config = self.config
        limits = [each for each in (max_active_dims, config.max_active_dims) if each is not None]
        rule = (config.sparsification, config.kept_words, config.threshold)
        made: sparse.csr_array = self._rows.sparsify(vectors, *rule, min(limits, default=None))
        return made

    def _open(self, source: ImageSource, least_side: int | None = None) -> Image.Image:
        least = self.config.smallest_image
        with _LOADING if isinstance(source, Image.Image) else nullcontext():
            image = open_image(source, least_side=least_side)
        if min(image.size) < least:
            size = f"{image.size[0]} x {image.size[1]} pixels"
            raise InputError(
                name_of(source), f"is too small: {size}, and it needs {least} x {least}"
            )
        return image

    def _resized(self, source: ImageSource) -> np.ndarray:
        return resize(self._open(source, ENOUGH_SIDE), self.config.image_side)

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


def concat(parts: list[Encoding], items: str) -> Encoding:
    """Stack encodings; raise `InputError` if there are none."""
    if not parts:
        raise InputError(items, "an empty batch cannot be encoded; give at least one item")
    return Encoding.concat(parts)
