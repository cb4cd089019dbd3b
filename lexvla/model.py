"""LexVLA: an image tower and a text tower that meet in a vocabulary."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.utils import logging

from lexvla.config import LexVLAConfig
from lexvla.encoder import EncodeMixin
from lexvla.errors import ModelError
from lexvla.image_tower import ImageTower
from lexvla.lexical_head import max_over_patches
from lexvla.text_tower import TextTower, tokenize
from lexvla.vocabulary import Vocabulary

__all__ = ["LexVLA"]

_CONFIG_FILE = "config.json"
_WEIGHTS_FILE = "model.safetensors"
_TOKENIZER_FILE = "tokenizer.json"
_VOCABULARY_FILE = "vocabulary.json"
_DEFAULT = Path(__file__).parent / "pretrained"


class LexVLA(EncodeMixin, PreTrainedModel):
    """Turn images and texts into weighted words (Li et al., NeurIPS 2024, arXiv 2407.17827).

    Args:
        config: Sizes of all parts.
        vocabulary: The kept pieces, with their token ids.
        tokenizer: The tokenizer of the language model.

    Raises:
        ModelError: The vocabulary is not of this tokenizer and language model.
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
        ids = vocabulary.token_ids
        if ids is None:
            raise ModelError("the vocabulary of a model needs the token id of each term")
        if ids and not 0 <= min(ids) <= max(ids) < config.text_config.vocab_size:
            raise ModelError("the vocabulary holds token ids that the language model has not")
        if tokenizer.convert_ids_to_tokens(list(ids)) != list(vocabulary.terms):
            raise ModelError("the vocabulary's terms are not the tokenizer's pieces")
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
        folder = Path(save_directory)
        with _quiet():
            super().save_pretrained(folder, **kwargs)
        self.config.fingerprint = _fingerprint(folder / _WEIGHTS_FILE)
        self.config.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        self.vocabulary.save(folder / _VOCABULARY_FILE)

    @classmethod
    def from_pretrained(cls, path: str | Path | None = None, **kwargs: Any) -> Self:
        """Load a saved model, or without a path the one that ships with the package.

        Args:
            path: The folder that `save_pretrained` wrote.
            kwargs: For transformers, such as ``dtype`` (float32 where none is given).

        Raises:
            ModelError: The folder holds no complete model, or a file of it is damaged.
        """
        folder = Path(path) if path is not None else _DEFAULT
        files = (_CONFIG_FILE, _WEIGHTS_FILE, _TOKENIZER_FILE, _VOCABULARY_FILE)
        missing = [name for name in files if not (folder / name).is_file()]
        if missing:
            raise ModelError(f"{folder}: no LexVLA model here, {', '.join(missing)} missing")
        config = _read_config(folder / _CONFIG_FILE)
        vocabulary = Vocabulary.load(folder / _VOCABULARY_FILE)
        tokenizer = _read_tokenizer(folder)
        weights = folder / _WEIGHTS_FILE
        if _fingerprint(weights) != config.fingerprint:
            raise ModelError(f"{weights}: not the weights whose fingerprint {_CONFIG_FILE} holds")
        kwargs.setdefault("dtype", torch.float32)
        try:
            with _quiet():
                model, found = super().from_pretrained(
                    folder,
                    config=config,
                    vocabulary=vocabulary,
                    tokenizer=tokenizer,
                    use_safetensors=True,
                    output_loading_info=True,
                    ignore_mismatched_sizes=True,  # they are found below, and named
                    **kwargs,
                )
        except ModelError as error:  # of the constructor, which knows no file
            raise ModelError(f"{folder / _VOCABULARY_FILE}: {error}") from error
        for kind in ("missing", "unexpected", "mismatched"):
            if names := sorted(map(str, found[f"{kind}_keys"])):
                rule = f"{kind} for {_CONFIG_FILE} and {_VOCABULARY_FILE}: {', '.join(names[:3])}"
                raise ModelError(f"{weights}: weights {rule}")
        return model


def _read_config(path: Path) -> LexVLAConfig:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values["model_type"] != LexVLAConfig.model_type:
            raise ModelError(f"{path}: describes a {values['model_type']} model, not a LexVLA")
        return LexVLAConfig.from_dict(values)
    except (
        OSError,
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
        StrictDataclassError,
    ) as error:
        raise ModelError(f"{path}: no readable configuration ({error})") from error


def _read_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    try:
        # Not AutoTokenizer: that one reads config.json as well, and warns that it is not Llama's.
        return PreTrainedTokenizerFast.from_pretrained(folder)
    except (OSError, ValueError, TypeError, LookupError) as error:
        path = folder / _TOKENIZER_FILE
        raise ModelError(f"{path}: no readable tokenizer ({error})") from error


def _fingerprint(path: Path) -> str:
    """Return the SHA-256 of a weights file.

    Raises:
        ModelError: The file is damaged.
    """
    try:
        with safe_open(path, framework="pt"), path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path}: no readable weights ({error})") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers' bars and reports off stderr: what they would say of faults is raised."""
    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
