"""Words from any causal language model: what it would say next of a text (PromptReps)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from scipy import sparse
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import cached_file

from lexvla import backbones, model
from lexvla.batching import WINDOW, batches, inference, split
from lexvla.config import PROMPT, QUANTIZATIONS
from lexvla.encoding import Encoding
from lexvla.errors import ModelError, UnsupportedError
from lexvla.images import ImageSource
from lexvla.model import concat
from lexvla.model_folder import CONFIG_FILE
from lexvla.prompted_words import weights_of_words, word_pieces, words_of_logits
from lexvla.public_settings import PublicSettings, weights_digest
from lexvla.sparse_rows import most_words
from lexvla.text_tower import PrefixCache, TextTower
from lexvla.tokens import tokenize
from lexvla.vocabulary import Vocabulary
from lexvla.word_list import read_words

__all__ = ["OPEN_PROMPT", "LanguageModel"]

# A model that was not trained on the prompt answers it by a quote first, and then by words.
OPEN_PROMPT = PROMPT + '"'


class LanguageModel(model.LexVLA, nn.Module):
    """Texts as the English words that a causal language model answers the prompt with.

    Args:
        settings: What encodings depend on.
        vocabulary: The words.
        tokenizer: The model's.
        language_model: The model, of transformers.
        columns: The word of each piece, as by `word_pieces`.
    """

    config: PublicSettings
    _auto: Any = AutoModelForCausalLM
    _kind = "language-model"

    def __init__(
        self,
        settings: PublicSettings,
        vocabulary: Vocabulary,
        tokenizer: Any,
        language_model: Any,
        columns: Tensor,
    ) -> None:
        nn.Module.__init__(self)
        self.config = settings
        self.vocabulary = vocabulary
        self.tokenizer = tokenizer
        self.tower = TextTower(settings, language_model)  # type: ignore[arg-type]  # not used
        self.columns = columns.to(language_model.device)

    @classmethod
    def from_pretrained(  # type: ignore[override]  # LexVLA chooses by its options
        cls,
        name: str,
        *,
        revision: str | None = None,
        token: str | None = None,
        device: str | torch.device = "cpu",
        dtype: str | torch.dtype | None = None,
        quantization: str = "none",
        vocabulary: str | Path | Vocabulary | None = None,
        prompt: str = OPEN_PROMPT,
        max_active_dims: int = 64,
        max_text_tokens: int = 64,
        settings: PublicSettings | None = None,
    ) -> Self:
        """Load a language model of transformers, or a GGUF file.

        Args:
            name: Hub id, folder, or path of a ``.gguf`` file, which needs the package gguf.
            revision: Branch, tag or commit of a hub id.
            token: Hub token for gated models; by default the one huggingface_hub finds.
            device: Device of the model.
            dtype: Type of its weights; by default float32, or bfloat16 if quantised.
            quantization: ``none``, ``int8`` or ``nf4``.
            vocabulary: File of words, one a line; those that are a single piece are kept. By
                default the common English words that ship.
            prompt: Prompt for a text; ``{text}`` is its place.
            max_active_dims: The most words of an item.
            max_text_tokens: Largest number of tokens of a text, without the prompt.
            settings: Saved ones, in place of the last four.

        Raises:
            ModelError: The model cannot be loaded, or none of its pieces is a word.
            UnsupportedError: The device, or quantisation on it, is not available.
        """
        if quantization not in QUANTIZATIONS:
            known = ", ".join(QUANTIZATIONS)
            raise UnsupportedError(f"quantization must be one of {known}, not {quantization!r}")
        place = backbones.as_device(device)
        usual = torch.float32 if quantization == "none" else torch.bfloat16
        kind = backbones.as_dtype(dtype) or usual
        if not isinstance(vocabulary, Vocabulary):
            vocabulary = read_words(vocabulary)
        where, file = name, Path(name)
        asked: dict[str, Any] = {"revision": revision or "main", "token": token}
        if file.suffix == ".gguf":
            if not file.is_file():
                raise ModelError(f"{name}: no such file")
            where, asked = str(file.parent), {"gguf_file": file.name}
        more = backbones.quantization_options(quantization, place, kind)
        with backbones.named(name):
            loaded, found = cls._auto.from_pretrained(
                where, dtype=kind, output_loading_info=True, **asked, **more
            )
            if file.suffix != ".gguf":
                file = Path(cached_file(name, CONFIG_FILE, **asked)).parent
            tokenizer = AutoTokenizer.from_pretrained(where, **asked)
        backbones.check_complete(name, found)
        if loaded.get_output_embeddings() is None or not tokenizer.is_fast:
            raise ModelError(f"{name}: has no output embedding, or no fast tokenizer")
        size = loaded.get_output_embeddings().weight.shape[0]
        try:
            words, columns = word_pieces(tokenizer, size, vocabulary)
        except ModelError as error:
            raise ModelError(f"{name}: {error}") from error
        digest = weights_digest(file)
        commit = getattr(loaded.config, "_commit_hash", None)
        made = settings or PublicSettings(
            kind=cls._kind,
            model=name,
            revision=commit or revision,
            weights_sha256=digest,
            vocabulary_sha256=words.sha256,
            max_active_dims=max_active_dims,
            templates=[prompt],
            max_text_tokens=max_text_tokens,
        )
        if digest != made.weights_sha256:
            raise ModelError(f"{name}: the weights are not those that the settings were saved with")
        if quantization == "none":
            loaded = loaded.to(place)
        ready = cls(made, words, tokenizer, loaded.eval(), columns)
        ready._prepare(where, asked)
        return ready

    def _prepare(self, name: str, asked: dict[str, Any]) -> None:
        """Load what else the model needs."""

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Write settings and words to a folder, which names the model and holds no weights."""
        self.config.save(Path(save_directory), self.vocabulary)

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        found: torch.device = self.tower.language_model.device
        return found

    def facts(self) -> dict[str, Any]:
        """Return what ``lexvla doctor --model`` says."""
        return {**super().facts(), "kind": f"{self._kind.replace('-', ' ')}, words by its prompt"}

    def encode_text(
        self,
        texts: Iterable[str],
        batch_size: int = 64,
        show_progress_bar: bool | None = False,
        max_active_dims: int | None = None,
    ) -> Encoding:
        """Encode texts as the words that the model answers the prompt with."""
        windows: list[Encoding] = []
        cache = PrefixCache()
        with inference(self):
            small = batches(texts, batch_size, show_progress_bar, "texts")
            for window in split(small, WINDOW):
                chosen = [text for batch in window for text in batch]
                # Texts of like length share a batch, so that little of it is padding.
                order = sorted(range(len(chosen)), key=lambda i: len(chosen[i]))
                parts = []
                for rows in split(order, batch_size):
                    ids = self._prompted([chosen[i] for i in rows])
                    logits = self._words_of(self.tower(ids, cache))
                    parts.append(self._rows(logits, max_active_dims))
                windows.append(Encoding.concat(parts)[np.argsort(order)])
        return concat(windows, "texts")

    def encode_words(self, words: Iterable[str], max_active_dims: int | None = None) -> Encoding:
        """Encode words as texts."""
        return self.encode_text(words, max_active_dims=max_active_dims)

    def encode_image(
        self,
        images: Iterable[ImageSource],
        batch_size: int = 64,
        show_progress_bar: bool | None = False,
        max_active_dims: int | None = None,
    ) -> Encoding:
        """Raise `UnsupportedError`: a language model has no image side."""
        raise UnsupportedError(
            f"{self.config.model_name} has no image side; use a dual encoder such as CLIP, or a"
            " vision-language model"
        )

    def _prompted(self, texts: list[str]) -> list[list[int]]:
        (prompt,) = self.config.templates
        return tokenize(self.tokenizer, texts, prompt, self.config.max_text_tokens)

    def _words_of(self, states: Tensor) -> Tensor:
        """Return the (..., V) logits of words after (..., d) states."""
        language = self.tower.language_model
        logits = language.get_output_embeddings()(states).float()
        if cap := getattr(language.config.get_text_config(), "final_logit_softcapping", None):
            logits = (logits / cap).tanh() * cap
        if not logits.isfinite().all():
            rule = "gives logits that are not finite"
            raise ModelError(f"{self.config.model}: {rule}: weights are damaged, or dtype")
        return words_of_logits(logits, self.columns, len(self.vocabulary))

    def _rows(self, logits: Tensor, limit: int | None) -> Encoding:
        most = most_words(limit, self.config.max_active_dims)
        weights = weights_of_words(logits, most).cpu().numpy()
        return Encoding(sparse.csr_array(weights, dtype=np.float32))
