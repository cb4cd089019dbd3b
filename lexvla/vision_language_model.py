"""Words from vision-language models: what they would say of an image, and which patch says it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from math import isqrt
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor

from lexvla import backbones
from lexvla.batching import inference
from lexvla.encoding import Encoding
from lexvla.errors import ModelError
from lexvla.images import ImageSource
from lexvla.language_model import LanguageModel
from lexvla.model import concat
from lexvla.prompted_words import log1p_relu
from lexvla.regions import Region

__all__ = ["VisionLanguageModel"]

IMAGE_PROMPT = 'The focus of the image lies on important words:"'
_SIDE = 448  # pixels, of models that take any size
_BATCH = 8  # images have hundreds of tokens each


class VisionLanguageModel(LanguageModel):
    """Texts and images as the words that a vision-language model answers a prompt with.

    An image's words are the answer to a prompt behind it. A word's patch is the image token at
    which the model would most likely say it.
    """

    _auto: Any = AutoModelForImageTextToText
    _kind = "vision-language-model"

    def _prepare(self, name: str, asked: dict[str, Any]) -> None:
        """Load the processor, and count the tokens of an image."""
        with backbones.named(name):
            self.processor = AutoProcessor.from_pretrained(name, **asked)
        config = self.tower.language_model.config
        vision = getattr(config, "vision_config", None)
        self.config.image_side = int(getattr(vision, "image_size", None) or _SIDE)
        self._image_id = getattr(config, "image_token_id", None)
        if self._image_id is None:
            self._image_id = getattr(config, "image_token_index", None)
        if self._image_id is None:
            rule = f"a {config.model_type} model has no tokens of images"
            raise ModelError(f"{name}: {rule}, which the patches are taken from")
        grey = np.full((self.config.image_side, self.config.image_side, 3), 128, np.uint8)
        with backbones.named(name):
            inputs = self._inputs([grey])
        count = int((inputs["input_ids"] == self._image_id).sum())
        self.config.grid_side = isqrt(count)
        if count == 0 or isqrt(count) ** 2 != count:
            rule = f"gives an image {count} tokens, which are not a square of patches"
            raise ModelError(f"{name}: {rule}; turn its tiles off in preprocessor_config.json")

    def encode_image(
        self,
        images: Iterable[ImageSource],
        batch_size: int = _BATCH,
        show_progress_bar: bool | None = False,
        max_active_dims: int | None = None,
    ) -> Encoding:
        """Encode images as the words behind them, each with its patch."""
        parts = []
        with inference(self):
            for batch in self._image_batches(images, min(batch_size, _BATCH), show_progress_bar):
                last, patches = self._shown(batch)
                rows = self._rows(self._words_of(last), max_active_dims)
                parts += self._placed(rows, patches, np.arange(patches.shape[1]))
        return concat(parts, "images")

    def encode_region(
        self,
        images: Sequence[ImageSource],
        regions: Sequence[Region],
        batch_size: int = _BATCH,
        show_progress_bar: bool | None = False,
        max_active_dims: int | None = None,
    ) -> Encoding:
        """Encode a region of each image by the likeliest words at its patches."""
        parts = []
        size = min(batch_size, _BATCH)
        with inference(self):
            for batch in self._region_batches(images, regions, size, show_progress_bar):
                _, patches = self._shown([pixels for pixels, _ in batch])
                for own, (_, numbers) in zip(patches, batch, strict=True):
                    chosen = own[torch.from_numpy(numbers)]
                    rows = self._rows(self._words_of(chosen).amax(0)[None], max_active_dims)
                    parts += self._placed(rows, chosen[None], numbers)
        return concat(parts, "images")

    def encode_patches(
        self,
        images: Iterable[ImageSource],
        batch_size: int = _BATCH,
        show_progress_bar: bool | None = False,
        max_active_dims: int | None = None,
    ) -> Encoding:
        """Encode every patch of images by the words at its token."""
        parts = []
        with inference(self):
            for batch in self._image_batches(images, min(batch_size, _BATCH), show_progress_bar):
                for own in self._shown(batch)[1]:
                    rows = self._rows(self._words_of(own), max_active_dims)
                    numbers = np.arange(len(own), dtype=np.int16)
                    place = np.repeat(numbers, np.diff(rows.lexical.indptr))
                    parts.append(replace(rows, patches=place))
        return concat(parts, "images")

    def heatmaps(self, image: ImageSource, words: Sequence[str | int]) -> np.ndarray:
        """Return log(1 + x) of how far each word's logit is above the patch's mean, or 0."""
        columns = self._columns(words)
        with inference(self):
            logits = self._words_of(self._shown([self._resized(image)])[1][0])
            weights = log1p_relu(logits - logits.mean(1, keepdim=True))[:, columns].T
        return weights.cpu().numpy().reshape(-1, *self.patch_grid)

    def _placed(self, rows: Encoding, patches: Tensor, numbers: np.ndarray) -> list[Encoding]:
        """Give each word of each row the patch, of these numbers, where it is likeliest."""
        parts = []
        for row, own in zip(rows, patches, strict=True):
            best = self._words_of(own)[:, torch.from_numpy(row.lexical.indices).long()].argmax(0)
            parts.append(replace(row, patches=numbers[best.cpu().numpy()].astype(np.int16)))
        return parts

    def _shown(self, resized: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
        """Return the (B, d) states behind the prompts, and (B, P, d) of the images' tokens."""
        inputs = self._inputs(resized).to(self.device, self.tower.language_model.dtype)
        found = self.tower.language_model.model(**inputs).last_hidden_state
        shown = inputs["input_ids"] == self._image_id
        patches = found[shown].view(len(resized), -1, found.shape[-1])
        # All prompts are alike, so none is padded.
        return found[:, -1], patches

    def _inputs(self, resized: Sequence[np.ndarray]) -> Any:
        images = [Image.fromarray(pixels) for pixels in resized]
        if getattr(self.processor, "chat_template", None):
            content = [{"type": "image"}, {"type": "text", "text": IMAGE_PROMPT[:-1]}]
            asked = self.processor.apply_chat_template(
                [{"role": "user", "content": content}], add_generation_prompt=True
            )
            prompt = asked + '"'
        else:
            prompt = f"{self.processor.image_token}{IMAGE_PROMPT}"
        options = (
            {"do_image_splitting": False}
            if hasattr(getattr(self.processor, "image_processor", None), "do_image_splitting")
            else {}
        )
        return self.processor(
            images=[[image] for image in images],
            text=[prompt] * len(images),
            return_tensors="pt",
            **options,
        )
