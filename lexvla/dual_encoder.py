"""Words from CLIP, SigLIP and their like: their vectors as sparse sums of words (SpLiCE)."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any, Self

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from scipy import sparse
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import AutoModel
from transformers.utils import cached_file

from lexvla import backbones, model
from lexvla.batching import batches, inference, split
from lexvla.data.demo_corpus import load_demo_corpus
from lexvla.encoding import Encoding
from lexvla.errors import InputError, ModelError
from lexvla.images import ImageSource
from lexvla.model import concat
from lexvla.model_folder import CONFIG_FILE
from lexvla.preprocessing import to_pixels
from lexvla.public_settings import PublicSettings, weights_digest
from lexvla.regions import Region
from lexvla.sparse_rows import most_words
from lexvla.text_normalisation import normalise_text
from lexvla.vocabulary import Vocabulary
from lexvla.word_decomposition import decompose
from lexvla.word_list import read_words

__all__ = ["DualEncoder"]

TEMPLATES = ("{text}", "a photo of {text}", "a picture of {text}", "a photo of the {text}")
# Chosen with the small CLIP of benchmarks/small_clip.py, on drawings that it was not trained on.
PENALTY = 0.2
NEAREST = 0.5  # what the words nearest to an image count beside those of its sum
SCORE_WEIGHTS = {"lexical": 0.1, "dense": 1.0, "text": 0.1}
_LONGEST = 77  # tokens of a text; CLIP's limit
_CHUNK = 256  # vectors that are decomposed together


class DualEncoder(model.LexVLA, nn.Module):
    """Texts and images of a model with one space for both, as words.

    An item's dense vector is the model's own. An image's words are a non-negative sparse sum over a
    vocabulary that the model embeds as texts, and the words nearest to it, which count half as
    much. A text's words are those that most raise its product with an image that has them, weighted
    by how much more they do so than the first that is left out: so its product with an image's
    words is near that with the sum that these form, though the image may name a thing by another
    word.

    Images and words are centred first, each by the mean of its own side, since the sides lie apart.
    Texts are not: their products with centred images rank these as those with the images do.

    Args:
        settings: What encodings depend on.
        vocabulary: The words.
        tokenizer: The model's.
        encoder: The model, of transformers.
    """

    config: PublicSettings

    def __init__(
        self, settings: PublicSettings, vocabulary: Vocabulary, tokenizer: Any, encoder: Any
    ) -> None:
        nn.Module.__init__(self)
        self.config = settings
        self.vocabulary = vocabulary
        self.tokenizer = tokenizer
        self.encoder = encoder

    @classmethod
    def from_pretrained(  # type: ignore[override]  # LexVLA chooses by its options
        cls,
        name: str,
        *,
        revision: str | None = None,
        token: str | None = None,
        device: str | torch.device = "cpu",
        dtype: str | torch.dtype | None = None,
        vocabulary: str | Path | Vocabulary | None = None,
        templates: Sequence[str] = TEMPLATES,
        max_active_dims: int = 32,
        text_words: int = 256,
        penalty: float = PENALTY,
        settings: PublicSettings | None = None,
    ) -> Self:
        """Load a dual encoder of transformers.

        Args:
            name: Hub id or folder.
            revision: Branch, tag or commit of a hub id.
            token: Hub token for gated models; by default the one huggingface_hub finds.
            device: Device of the model.
            dtype: Type of its weights; by default float32.
            vocabulary: File of words, one a line; by default 10,000 common English words and pairs.
            templates: Prompts in which a word is embedded, each with one ``{text}``.
            max_active_dims: The most words of an image.
            text_words: The most words of a text.
            penalty: Share of the lasso's penalty that leaves no word.
            settings: Saved ones, in place of the last five.

        Raises:
            ModelError: The model cannot be loaded, or has no patches; or the vocabulary is amiss.
            UnsupportedError: The device is not available.
        """
        place, kind = backbones.as_device(device), backbones.as_dtype(dtype) or torch.float32
        if not isinstance(vocabulary, Vocabulary):
            vocabulary = read_words(vocabulary)
        with backbones.named(name):
            encoder, found = AutoModel.from_pretrained(
                name, revision=revision or "main", token=token, dtype=kind, output_loading_info=True
            )
            config = cached_file(name, CONFIG_FILE, revision=revision or "main", token=token)
        backbones.check_complete(name, found)
        tokenizer = backbones.load_tokenizer(name, revision, token)
        made = _settings(name, encoder, tokenizer, revision, token)
        made.weights_sha256 = weights_digest(Path(config).parent)
        made.vocabulary_sha256 = vocabulary.sha256
        if settings is None:
            made.templates, made.penalty = list(templates), penalty
            made.max_active_dims, made.text_words = max_active_dims, text_words
            made.__post_init__()
        elif settings.weights_sha256 != made.weights_sha256:
            raise ModelError(f"{name}: the weights are not those that the settings were saved with")
        ready = cls(settings or made, vocabulary, tokenizer, encoder.to(place).eval())
        if settings is None:
            ready._read_or_make_centres()
        return ready

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Write settings and words to a folder, which names the model and holds no weights."""
        self.config.save(Path(save_directory), self.vocabulary)

    def calibrate(self, images: Iterable[ImageSource]) -> None:
        """Take the means of the image side from images like those to be searched.

        By default they are those of the package's photographs. Indexes made before do not fit.
        """
        self._take_means(images)
        self.config.calibrated = True

    def _take_means(self, images: Iterable[ImageSource]) -> None:
        sums, count = torch.zeros(2, 1, dtype=torch.float64), 0
        with inference(self):
            for resized in self._image_batches(images, 32, False):
                whole, patches = self._image_vectors(self._pixels(resized))
                sums = sums + torch.stack([whole.sum(0), patches.mean(1).sum(0)]).double().cpu()
                count += len(whole)
        if not count:
            raise InputError("images", "must hold at least one image")
        self.config.image_centre, self.config.patch_centre = (sums / count).float().tolist()
        vars(self).pop("_centres", None)

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return next(self.encoder.parameters()).device

    def facts(self) -> dict[str, Any]:
        """Return what ``lexvla doctor --model`` says, with the mean `reconstruction` of images.

        They are the package's photographs and their quarters.
        """
        images = self.encode_image(_views())
        return {
            **super().facts(),
            "kind": "dual encoder, words by sparse decomposition",
            "active_words": round(images.lexical.nnz / len(images), 1),
            "reconstruction": round(float(self.reconstruction(images).mean()), 3),
        }

    def reconstruction(self, images: Encoding) -> np.ndarray:
        """Return the (n,) cosine of each image's dense vector and the sum that its words form.

        Both are centred, as they are when words are chosen; 0 for images without words.
        """
        if images.dense is None:
            raise ModelError("the reconstruction needs dense vectors")
        own = self._centred(torch.from_numpy(images.dense).to(self.device), 0)
        sums = sparse.csr_array(images.lexical) @ self._words[0].cpu().numpy()
        made = normalize(torch.from_numpy(sums).to(own), dim=1)
        return (own * made).sum(1).cpu().numpy()

    @property
    def text_room(self) -> int:
        """How many tokens of a text are read, besides those that begin and end it."""
        return int(self.config.max_text_tokens - self.tokenizer.num_special_tokens_to_add())

    def encode_text(
        self,
        texts: Iterable[str],
        batch_size: int = 64,
        show_progress_bar: bool | None = False,
        max_active_dims: int | None = None,
    ) -> Encoding:
        """Encode texts: the model's vectors, and the words that images near them have."""
        parts = []
        with inference(self):
            for batch in batches(texts, batch_size, show_progress_bar, "texts"):
                own = self._text_vectors([normalise_text(text) for text in batch])
                most = self._most(max_active_dims, self.config.text_words)
                rows = self._rows(self._heaviest(own, most))
                parts.append(replace(rows, dense=own.cpu().numpy()))
        return concat(parts, "texts")

    def encode_image(
        self,
        images: Iterable[ImageSource],
        batch_size: int = 64,
        show_progress_bar: bool | None = False,
        max_active_dims: int | None = None,
    ) -> Encoding:
        """Encode images: the model's vectors, and words, each with the patch most like it."""
        parts = []
        with inference(self):
            for whole, patches in self._vectors(images, batch_size, show_progress_bar):
                numbers = np.arange(patches.shape[1])
                parts.append(self._whole_rows(whole, patches, numbers, max_active_dims))
        return concat(parts, "images")

    def encode_words(self, words: Iterable[str], max_active_dims: int | None = None) -> Encoding:
        """Encode words by their centred vectors, so that each is nearest to itself."""
        parts = []
        with inference(self):
            for batch in batches(words, 256, False, "words"):
                own = self._in_templates([normalise_text(word) for word in batch])
                most = self._most(max_active_dims, self.config.text_words)
                rows = self._rows(self._heaviest(own - self._words[1], most))
                parts.append(replace(rows, dense=own.cpu().numpy()))
        return concat(parts, "words")

    def encode_region(
        self,
        images: Sequence[ImageSource],
        regions: Sequence[Region],
        batch_size: int = 64,
        show_progress_bar: bool | None = False,
        max_active_dims: int | None = None,
    ) -> Encoding:
        """Encode a region of each image by the mean of its patches."""
        parts = []
        with inference(self):
            for batch in self._region_batches(images, regions, batch_size, show_progress_bar):
                _, patches = self._image_vectors(self._pixels([pixels for pixels, _ in batch]))
                for own, (_, numbers) in zip(patches, batch, strict=True):
                    chosen = own[torch.from_numpy(numbers)][None]
                    mean = normalize(chosen.mean(1) - self._centres[1] + self._centres[0], dim=1)
                    parts.append(self._whole_rows(mean, chosen, numbers, max_active_dims))
        return concat(parts, "images")

    def encode_patches(
        self,
        images: Iterable[ImageSource],
        batch_size: int = 64,
        show_progress_bar: bool | None = False,
        max_active_dims: int | None = None,
    ) -> Encoding:
        """Encode every patch of images separately, as `encode_image`."""
        parts = []
        with inference(self):
            for _, patches in self._vectors(images, batch_size, show_progress_bar):
                count = patches.shape[1]
                for own in patches:
                    moved = normalize(own - self._centres[1] + self._centres[0], dim=1)
                    rows = self._whole_rows(moved, own[:, None], np.zeros(1), max_active_dims)
                    sizes = np.diff(rows.lexical.indptr)
                    place = np.repeat(np.arange(count, dtype=np.int16), sizes)
                    parts.append(replace(rows, patches=place))
        return concat(parts, "images")

    def heatmaps(self, image: ImageSource, words: Sequence[str | int]) -> np.ndarray:
        """Return how far each patch points towards each word, (n, rows, columns): a cosine, or 0.

        Patch and word are centred.
        """
        columns = self._columns(words)
        with inference(self):
            _, patches = self._image_vectors(self._pixels([self._resized(image)]))
            weights = self._words[0][columns] @ self._centred(patches[0], 1).T
        return weights.clamp(min=0).cpu().numpy().reshape(-1, *self.patch_grid)

    def _whole_rows(
        self, own: Tensor, patches: Tensor, numbers: np.ndarray, limit: int | None
    ) -> Encoding:
        """Encode (B, d) vectors of images whose (B, P, d) patches have these P numbers."""
        most = self._most(limit, self.config.max_active_dims)
        moved = self._centred(own, 0)
        found = [self._words_of_images(part, most) for part in moved.split(_CHUNK)]
        rows = self._rows(torch.cat(found))
        item = np.repeat(np.arange(len(own)), np.diff(rows.lexical.indptr))
        likest = (self._centred(patches, 1) @ self._words[0].T).argmax(1).cpu().numpy()
        places = numbers[likest[item, rows.lexical.indices]].astype(np.int16)
        return replace(rows, patches=places, dense=own.cpu().numpy())

    def _words_of_images(self, moved: Tensor, most: int) -> Tensor:
        """Return (B, V) weights of (B, d) centred vectors of images: their sums' and the nearest.

        Sums alone name a thing by one of its words, which a text may not have among its own.
        """
        sums = decompose(moved, self._words[0], self.config.penalty, most)
        weights = normalize(sums, dim=1) + NEAREST * normalize(self._heaviest(moved, most), dim=1)
        kept = weights.topk(most, dim=1)
        return torch.zeros_like(weights).scatter(1, kept.indices, kept.values)

    def _heaviest(self, own: Tensor, most: int) -> Tensor:
        """Return (B, V) products of (B, d) vectors and words, above the first that is left out."""
        products = (own @ self._words[0].T).clamp(min=0)
        if most < len(self.vocabulary):
            products = (products - products.topk(most + 1, dim=1).values[:, -1:]).clamp(min=0)
        return products

    def _most(self, limit: int | None, own: int) -> int:
        return most_words(limit, min(own, len(self.vocabulary)))

    def _rows(self, weights: Tensor) -> Encoding:
        unit = normalize(weights.float(), dim=1).cpu().numpy()
        return Encoding(sparse.csr_array(unit, dtype=np.float32))

    def _centred(self, vectors: Tensor, side: int) -> Tensor:
        return normalize(vectors - self._centres[side], dim=-1)

    @cached_property
    def _centres(self) -> tuple[Tensor, Tensor]:
        """The (d) means of images and of patches."""
        both = self.config.image_centre, self.config.patch_centre
        first, second = (torch.tensor(each, device=self.device) for each in both)
        return first, second

    def _vectors(self, images: Iterable[ImageSource], size: int, bar: bool | None) -> Any:
        for batch in self._image_batches(images, size, bar):
            yield self._image_vectors(self._pixels(batch))

    def _pixels(self, resized: Sequence[np.ndarray]) -> Tensor:
        made = to_pixels(resized, self.config.image_mean, self.config.image_std)
        return made.to(self.device, self.encoder.dtype)

    def _image_vectors(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return (B, d) unit vectors of (B, 3, H, W) pixels, and (B, P, d) of their patches."""
        side, inputs = self.config.grid_side, {"pixel_values": pixels}
        if self.encoder.config.model_type == "siglip2":  # takes patches of any grid
            count, patch = len(pixels), pixels.shape[-1] // side
            cut = pixels.view(count, 3, side, patch, side, patch).permute(0, 2, 4, 3, 5, 1)
            shapes = torch.full((count, 2), side, device=pixels.device)
            mask = torch.ones(count, side * side, dtype=torch.long, device=pixels.device)
            inputs = {"pixel_values": cut.reshape(count, side * side, -1)}
            inputs |= {"pixel_attention_mask": mask, "spatial_shapes": shapes}
        found = self.encoder.get_image_features(**inputs)
        whole = normalize(found.pooler_output.float(), dim=-1)
        states, vision = found.last_hidden_state, self.encoder.vision_model
        states = states[:, states.shape[1] - side * side :]
        if (head := getattr(vision, "head", None)) is not None:  # pools by attention: of one patch
            patches = head(states.reshape(-1, 1, states.shape[-1])).view(*states.shape[:2], -1)
        else:
            patches = self.encoder.visual_projection(vision.post_layernorm(states))
        self._check(whole)
        return whole, normalize(patches.float(), dim=-1)

    def _text_vectors(self, texts: Sequence[str]) -> Tensor:
        """Return (B, d) unit vectors of texts."""
        padding = "max_length" if self.encoder.config.model_type.startswith("siglip") else "longest"
        inputs = self.tokenizer(
            list(texts),
            padding=padding,
            truncation=True,
            max_length=self.config.max_text_tokens,
            return_tensors="pt",
        ).to(self.device)
        inputs.pop("token_type_ids", None)
        vectors = normalize(self.encoder.get_text_features(**inputs).pooler_output.float(), dim=-1)
        self._check(vectors)
        return vectors

    def _check(self, vectors: Tensor) -> None:
        if not vectors.isfinite().all():
            rule = "gives vectors that are not finite"
            raise ModelError(f"{self.config.model}: {rule}: weights are damaged, or dtype")

    def _in_templates(self, words: Sequence[str]) -> Tensor:
        """Return (B, d) unit means of each word in all templates."""
        made = [
            self._text_vectors([template.replace("{text}", word) for word in words])
            for template in self.config.templates
        ]
        return normalize(torch.stack(made).mean(0), dim=-1)

    @cached_property
    def _words(self) -> tuple[Tensor, Tensor, Tensor]:
        """The (V, d) centred unit vectors of the vocabulary, the (d) mean taken off, and before."""
        names = [self.vocabulary.word(column) for column in range(len(self.vocabulary))]
        key = [self.config.weights_sha256, self.vocabulary.sha256, *self.config.templates]
        path = _cache_file("words", key)
        own = _read(path, "words", len(names))
        if own is None:
            with inference(self):
                own = torch.cat([self._in_templates(part) for part in split(names, 256)]).cpu()
            _write(path, {"words": own})
        own = own.to(self.device)
        centre = own.mean(0)
        return normalize(own - centre, dim=1), centre, own

    @cached_property
    def _word_vectors(self) -> np.ndarray:
        return self._words[2].cpu().numpy()

    def _read_or_make_centres(self) -> None:
        """Take the means of the image side from the package's photographs and parts of them."""
        config = self.config
        facts = (config.image_side, config.grid_side, config.image_mean, config.image_std)
        path = _cache_file("centres", [config.weights_sha256, *map(str, facts)])
        stored = _read(path, "centres", 2)
        if stored is not None:
            config.image_centre, config.patch_centre = stored.tolist()
            return
        self._take_means(_views())
        centres = torch.tensor([config.image_centre, config.patch_centre])
        _write(path, {"centres": centres})


def _views() -> list[Image.Image]:
    """Return the package's photographs, and the quarters of each."""
    views = []
    for item in load_demo_corpus("photographs"):
        width, height = item.image.size
        views.append(item.image)
        for x in (0, width // 2):
            for y in (0, height // 2):
                views.append(item.image.crop((x, y, x + width // 2, y + height // 2)))
    return views


def _settings(
    name: str, encoder: Any, tokenizer: Any, revision: str | None, token: str | None
) -> PublicSettings:
    """Return what follows from a model's configuration."""
    config = encoder.config
    vision: Any = getattr(config, "vision_config", None)
    tower = getattr(encoder, "vision_model", None)
    projects = hasattr(encoder, "visual_projection") and hasattr(tower, "post_layernorm")
    if not (projects or hasattr(tower, "head")):
        rule = f"a {config.model_type} model gives no vectors of patches; use CLIP or SigLIP"
        raise ModelError(f"{name}: {rule}")
    patch = vision.patch_size
    grid = (
        int(vision.num_patches**0.5)  # it has no fixed size
        if config.model_type == "siglip2"
        else vision.image_size // patch
    )
    statistics = backbones.image_statistics(name, revision, token)
    if statistics is None:
        raise ModelError(f"{name}: preprocessor_config.json with the channels' means is missing")
    longest = min(getattr(config.text_config, "max_position_embeddings", _LONGEST), _LONGEST)
    return PublicSettings(
        kind="dual-encoder",
        model=name,
        revision=getattr(config, "_commit_hash", None) or revision,
        image_side=grid * patch,
        grid_side=grid,
        image_mean=statistics[0],
        image_std=statistics[1],
        max_text_tokens=min(longest, tokenizer.model_max_length),
        score_weights=dict(SCORE_WEIGHTS),
    )


def _cache_file(what: str, key: Sequence[str]) -> Path:
    base = os.environ.get("XDG_CACHE_HOME", "")
    root = Path(base) if Path(base).is_absolute() else Path.home() / ".cache"
    digest = hashlib.sha256(json.dumps(list(key)).encode()).hexdigest()
    return root / "lexvla" / what / f"{digest[:32]}.safetensors"


def _read(path: Path, name: str, rows: int) -> Tensor | None:
    """Read a cached tensor; ``None`` if there is none, or it is damaged."""
    try:
        found = load_file(path)[name]
    except (OSError, SafetensorError, KeyError):
        return None
    return found if len(found) == rows and bool(found.isfinite().all()) else None


def _write(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write a file of the cache atomically; where that cannot be, it is made again next time."""
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as file:
            part = Path(file.name)
        try:
            save_file({name: each.contiguous() for name, each in tensors.items()}, part)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
