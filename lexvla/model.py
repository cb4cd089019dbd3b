"""LexVLA: an image tower and a text tower that meet in a vocabulary."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from lexvla.config import LexVLAConfig
from lexvla.encoder import EncodeMixin
from lexvla.errors import ModelError
from lexvla.image_tower import ImageTower
from lexvla.lexical_head import max_over_patches
from lexvla.text_tower import TextTower, tokenize
from lexvla.vocabulary import Vocabulary

__all__ = ["LexVLA"]

_VOCABULARY_FILE = "vocabulary.json"
_DEFAULT = Path(__file__).parent / "pretrained"


class LexVLA(EncodeMixin, PreTrainedModel):
    """Turn images and texts into weighted words (Li et al., NeurIPS 2024, arXiv 2407.17827).

    Args:
        config: Sizes of all parts.
        vocabulary: The kept pieces, with their token ids.
        tokenizer: The tokenizer of the language model.
    """

    config_class = LexVLAConfig
    main_input_name = "pixel_values"

    def __init__(
        self,
        config: LexVLAConfig,
        vocabulary: Vocabulary,
        tokenizer: PreTrainedTokenizerBase,
    ) -> None:
        super().__init__(config)
        if vocabulary.token_ids is None:
            raise ModelError("the vocabulary of a model needs the token id of each term")
        self.vocabulary = vocabulary
        self.tokenizer = tokenizer
        self.text_tower = TextTower(config)
        self.image_tower = ImageTower(config)
        self.image_codebook = nn.Parameter(self.text_codebook().detach().clone())
        self.post_init()

    @property
    def name(self) -> str:
        """Name the model as an index records it: by its weights, wherever they lie."""
        weights = self.config.fingerprint[:12] or "unsaved"
        return f"{self.config.model_name}@{weights}"

    def text_codebook(self) -> Tensor:
        """Return the (V, d) rows of the language model's output embedding for the kept pieces."""
        rows = self.text_tower.language_model.get_output_embeddings().weight
        return rows[torch.tensor(self.vocabulary.token_ids, device=rows.device)]

    def text_logits(self, texts: list[str]) -> Tensor:
        """Return (B, V) logits of the words that each text is about (LexVLA eq. 2)."""
        ids = tokenize(self.tokenizer, texts, self.config.prompt, self.config.max_text_tokens)
        return self.text_tower(ids) @ self.text_codebook().T

    def image_logits(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return (B, V) logits and the int16 patch that each comes from (LexVLA eq. 4).

        Args:
            pixels: (B, 3, H, W), normalised as `preprocess` does.
        """
        patches = self.image_tower(pixels)
        return max_over_patches(patches, self.image_codebook, self.config.vocabulary_chunk)

    def _init_weights(self, module: nn.Module) -> None:
        # The towers initialise themselves; only the adapter's layers are left to torch's defaults.
        return

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Write weights (safetensors), configuration, tokenizer and vocabulary to a folder."""
        digest = hashlib.sha256()
        for name, weight in self.state_dict().items():
            digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
            digest.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        self.config.fingerprint = digest.hexdigest()
        super().save_pretrained(save_directory, **kwargs)
        self.tokenizer.save_pretrained(save_directory)
        self.vocabulary.save(Path(save_directory) / _VOCABULARY_FILE)

    @classmethod
    def from_pretrained(cls, path: str | Path | None = None, **kwargs: Any) -> Self:
        """Load a saved model, or without a path the one that ships with the package.

        Raises:
            ModelError: The folder holds no complete model.
        """
        folder = Path(path) if path is not None else _DEFAULT
        missing = [
            name
            for name in ("config.json", "model.safetensors", "tokenizer.json", _VOCABULARY_FILE)
            if not (folder / name).is_file()
        ]
        if missing:
            raise ModelError(f"{folder}: no LexVLA model here, {', '.join(missing)} missing")
        vocabulary = Vocabulary.load(folder / _VOCABULARY_FILE)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        kwargs.setdefault("dtype", torch.float32)
        return super().from_pretrained(
            folder, vocabulary=vocabulary, tokenizer=tokenizer, use_safetensors=True, **kwargs
        )
