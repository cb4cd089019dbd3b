"""The LexVLA model: an image tower and a text tower with a shared vocabulary."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from huggingface_hub import HfApi
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lexvla import backbones, lexical_head, model, model_folder, saving
from lexvla.batching import inference
from lexvla.codebook import Codebook
from lexvla.config import LexVLAConfig, Quantization
from lexvla.dense_head import DenseHead
from lexvla.errors import InputError, ModelError, UnsupportedError
from lexvla.image_tower import CachedCells, ImageTower
from lexvla.images import ImageSource
from lexvla.lexical_head import lexical_vector, max_over_patches
from lexvla.model import Found
from lexvla.model_card import model_card
from lexvla.preprocessing import to_pixels
from lexvla.text_tower import PrefixCache, TextTower
from lexvla.vocabulary import Vocabulary

__all__ = ["Features", "TorchLexVLA"]


class Features(NamedTuple):
    """Vectors of a batch of images or of texts; ``None`` if not asked for.

    Attributes:
        lexical: (B, V) float32 unit vectors of word weights, not truncated.
        dense: (B, w) float32 unit vectors.
        locals: (B, L, w) float32 unit vectors of patches or tokens.
        mask: (B, L) bool, which locals are real; ``None`` for all.
        logits: (B, V) of the words, before elu1p.
    """

    lexical: Tensor
    dense: Tensor | None = None
    locals: Tensor | None = None
    mask: Tensor | None = None
    logits: Tensor | None = None


class TorchLexVLA(model.LexVLA, PreTrainedModel):
    """The model on torch, which trains and runs models of any kind.

    Args:
        config: Sizes of all parts.
        vocabulary: The kept pieces, with their token ids.
        tokenizer: The tokenizer of the language model.
        language_model: A causal language model; by default with random weights.
        vision_model: A vision model; by default with random weights.
    """

    config_class = LexVLAConfig
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = True
    _rows = lexical_head

    def __init__(
        self,
        config: LexVLAConfig,
        vocabulary: Vocabulary,
        tokenizer: PreTrainedTokenizerBase,
        language_model: Any = None,
        vision_model: Any = None,
    ) -> None:
        super().__init__(config)
        _check_vocabulary(vocabulary, tokenizer, config.text_config.vocab_size)
        config.vocabulary_sha256 = vocabulary.sha256
        self.vocabulary = vocabulary
        self.tokenizer = tokenizer
        self.text_tower = TextTower(config, language_model)
        self.image_tower = ImageTower(config, vision_model)
        width = config.lexical_width
        if config.concept_items:
            rows = torch.zeros(len(vocabulary), width)
        else:
            rows = self.text_codebook().detach().to("cpu", torch.float32, copy=True)
        self.image_codebook = nn.Parameter(rows)
        self.text_dense_head: DenseHead | None = None
        self.image_dense_head: DenseHead | None = None
        self.codebook: Codebook | None = None
        if config.dense_width:
            text_width = config.text_config.hidden_size
            self.text_dense_head = DenseHead(text_width, config.dense_width)
            self.image_dense_head = DenseHead(width, config.dense_width)
        if config.codebook_size:
            self.codebook = Codebook(
                config.codebook_size, config.dense_width, config.code_temperature
            )

    def text_codebook(self) -> Tensor:
        """Return the (V, d) rows of the language model's output embedding for the kept pieces."""
        rows = self.text_tower.language_model.get_output_embeddings().weight
        return rows[torch.tensor(self.vocabulary.token_ids, device=rows.device)]

    def text_states(self, texts: list[str], cache: PrefixCache | None = None) -> Tensor:
        """Return (B, d) states of the language model after each text in the prompt.

        ``cache`` keeps the prompt's keys and values between calls.
        """
        if not texts:
            raise InputError("texts", "must hold at least one text")
        return self.text_tower(self.prompt_ids(texts), cache)

    def text_logits(self, texts: list[str]) -> Tensor:
        """Return (B, V) logits of the words that each text is about (LexVLA eq. 2)."""
        return self.text_states(texts) @ self.text_codebook().T

    def patch_states(self, pixels: Tensor) -> Tensor:
        """Return (B, P, d) states of the patches; with ``pool_cls`` the CLS token comes first.

        ``pixels`` are (B, 3, H, W), normalised as by `preprocess`.
        """
        patch = self.config.patch_size
        if not pixels.shape[0] or min(pixels.shape[-2:]) < patch:
            rule = f"must be at least one image of at least one patch ({patch} x {patch} pixels)"
            raise InputError(f"pixels of shape {tuple(pixels.shape)}", rule)
        return self.image_tower(pixels)

    def image_logits(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return (B, V) logits and the int16 patch that each comes from (LexVLA eq. 4).

        With ``pool_cls`` the CLS token is the patch -1.
        """
        logits, place = self.words_of_patches(self.patch_states(pixels))
        return logits, place - 1 if self.config.pool_cls else place

    def forward(
        self,
        images: Tensor | CachedCells,
        token_ids: list[list[int]],
        dense: bool = False,
        locals: bool = False,  # noqa: A002 - TCL's word
        logits: bool = False,
        image_words: bool = True,
    ) -> tuple[Features, Features]:
        """Return the features of images and of texts, for training.

        Args:
            images: (B, 3, H, W) pixels, normalised as `preprocess` does; or what a frozen vision
                model made of them before.
            token_ids: A sequence for each text, in the prompt: see `prompt_ids`.
            dense: Whether dense vectors are wanted.
            locals: Whether those of patches and of the texts' own tokens are wanted too.
            logits: Whether the words' logits are wanted.
            image_words: Whether those of images are; else their lexical vectors have no word.
        """
        if isinstance(images, CachedCells):
            patches = self.image_tower.adapt(images.cells, images.whole)
        else:
            patches = self.patch_states(images)
        image_logits = patches.new_zeros(len(patches), 0)
        if image_words:
            image_logits, _ = self.words_of_patches(patches)
        if locals:
            states, mask = self.text_tower.states(token_ids)
            last = states[:, -1]
        else:
            last = self.text_tower.by_length(token_ids)
        text_logits = last @ self.text_codebook().T
        image, text = Features(lexical_vector(image_logits)), Features(lexical_vector(text_logits))
        if logits:
            image, text = image._replace(logits=image_logits), text._replace(logits=text_logits)
        if not dense:
            return image, text
        if self.image_dense_head is None or self.text_dense_head is None:
            raise ModelError("the model has no dense heads; give it a dense_width")
        image = image._replace(dense=self.image_dense_head(self.pooled(patches)))
        text = text._replace(dense=self.text_dense_head(last))
        if locals:
            own = patches[:, 1:] if self.config.pool_cls else patches
            image = image._replace(locals=self.image_dense_head(own))
            mask = mask.clone()
            mask[:, mask.shape[1] - self._prompt_end :] = False
            text = text._replace(locals=self.text_dense_head(states), mask=mask)
        return image, text

    def words_of_texts(self, token_ids: list[list[int]]) -> tuple[Tensor, Tensor]:
        """Return the (B, V) logits and (B, d) states of texts alone, for training."""
        states = self.text_tower.by_length(token_ids)
        return states @ self.text_codebook().T, states

    @cached_property
    def _prompt_end(self) -> int:
        """The number of tokens after a text, at least the last one, which gives its vector."""
        end = self.config.prompt.split("{text}")[1]
        return max(1, len(self.tokenizer(end, add_special_tokens=False)["input_ids"]))

    def _move_small_parts(self, device: torch.device) -> None:
        """Move all but the language model: quantised, it cannot be moved."""
        self.image_codebook.data = self.image_codebook.data.to(device)
        for name, part in self.named_children():
            if name != "text_tower":
                part.to(device)

    def _init_weights(self, module: nn.Module) -> None:
        # The towers initialise themselves; other layers keep torch's defaults.
        return

    @property
    def device(self) -> torch.device:
        """The device of the trained parts, to which inputs are moved."""
        return self.image_codebook.device

    def heatmaps(self, image: ImageSource, words: Sequence[str | int]) -> np.ndarray:
        """Return the `heatmap` of each word, (n, rows, columns), in one pass."""
        columns = self._columns(words)
        with self._running():
            (states,) = self._run_images([self._resized(image)])
            own = self._without_cls(states)[0]
            weights = lexical_head.elu1p((self.image_codebook[columns] @ own.T).float())
        return weights.cpu().numpy().reshape(-1, *self.patch_grid)

    @contextmanager
    def _running(self) -> Iterator[_TextParts]:
        with inference(self):
            yield _TextParts(self)

    def _run_texts(self, ids: list[list[int]], running: _TextParts) -> Found:
        return self._text_found(self.text_tower(ids, running.cache), running.codebook)

    def _run_words(self, columns: list[list[int]], running: _TextParts) -> Found:
        rows = running.codebook
        means = [rows[kept].mean(0) if kept else torch.zeros_like(rows[0]) for kept in columns]
        return self._text_found(torch.stack(means), rows)

    def _text_found(self, states: Tensor, codebook: Tensor) -> Found:
        head = self.text_dense_head
        dense = None if head is None else head(states)
        return self._found(states.to(codebook.dtype) @ codebook.T, dense)

    def _run_images(self, resized: Sequence[np.ndarray]) -> Iterator[Tensor]:
        pixels = to_pixels(resized, self.config.image_mean, self.config.image_std)
        yield self.patch_states(pixels.to(self.device))

    def _run_patches(self, states: Tensor) -> Found:
        logits, places = self.words_of_patches(states)
        head = self.image_dense_head
        dense = None if head is None else head(self.pooled(states.float()))
        return self._found(logits, dense)._replace(places=places.cpu().numpy())

    def _found(self, logits: Tensor, dense: Tensor | None) -> Found:
        if dense is None:
            return Found(logits)
        codes = None if self.codebook is None else self.codebook(dense).cpu().numpy()
        return Found(logits, dense.cpu().numpy(), codes)

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

    @classmethod
    def from_backbones(
        cls,
        text_model: str,
        vision_model: str,
        *,
        text_revision: str | None = None,
        vision_revision: str | None = None,
        quantization: Quantization = "none",
        lora_rank: int = 8,
        image_size: int | None = 224,
        vocabulary: Vocabulary | None = None,
        vocabulary_rule: str = "letters",
        vocabulary_texts: Iterable[str] | None = None,
        device: str | torch.device = "cpu",
        dtype: str | torch.dtype | None = None,
        token: str | None = None,
        **config: Any,
    ) -> Self:
        """Assemble an untrained model from pretrained backbones, initialised as in the paper.

        The backbones are frozen; LoRA, adapter, image codebook, dense heads and codes are trained
        in float32. The image codebook starts as a copy of the text codebook (LexVLA section 3.3).

        Args:
            text_model: Hub id or path of a causal language model, such as
                ``meta-llama/Llama-2-7b-hf``.
            vision_model: Hub id or path of a vision transformer, such as ``facebook/dinov2-base``,
                or of a convolutional network of timm.
            text_revision: Branch, tag or commit; the commit is recorded.
            vision_revision: Likewise for the vision model.
            quantization: ``none``, ``int8`` or ``nf4``, for the language model.
            lora_rank: Rank of LoRA on the language model; 0 for none.
            image_size: Side in pixels that images are resized to; ``None`` for the backbone's.
            vocabulary: The kept pieces; by default chosen by ``vocabulary_rule``.
            vocabulary_rule: See `Vocabulary.from_tokenizer`.
            vocabulary_texts: Keep only pieces that these texts produce.
            device: Device of the model.
            dtype: Type of the backbones; by default bfloat16 if quantised, else float32.
            token: Hub token for gated models; by default the one huggingface_hub finds.
            config: Other fields of `LexVLAConfig`.

        Raises:
            ModelError: A backbone cannot be loaded or does not fit the other options.
            OptionalDependencyError: PEFT, bitsandbytes or timm is missing.
            UnsupportedError: The device, or quantisation on it, is not available.
        """
        LexVLAConfig.refuse_unknown(config)
        place = backbones.as_device(device)
        kind = backbones.as_dtype(dtype) or (
            torch.float32 if quantization == "none" else torch.bfloat16
        )
        text_config = backbones.read_backbone_config(text_model, text_revision, token)
        commit = getattr(text_config, "_commit_hash", None)
        text_config = text_config.get_text_config()
        vision_config = backbones.read_backbone_config(vision_model, vision_revision, token)
        fine = bool(config.get("fine_stage"))
        fields = backbones.vision_fields(vision_model, vision_config, vision_revision, token, fine)
        tokenizer = backbones.load_tokenizer(text_model, text_revision, token)
        settings = LexVLAConfig(
            text_config=text_config,
            vision_config=vision_config,
            text_model=text_model,
            text_revision=commit or text_revision,
            vision_model=vision_model,
            vision_revision=getattr(vision_config, "_commit_hash", None) or vision_revision,
            backbone_dtype=str(kind).removeprefix("torch."),
            quantization=quantization,
            lora_rank=lora_rank,
            image_size=image_size,
            vocabulary_rule=vocabulary_rule if vocabulary is None else "",
            **{**fields, **config},
        )
        if vocabulary is None:
            vocabulary = Vocabulary.from_tokenizer(tokenizer, vocabulary_rule, vocabulary_texts)
        language = backbones.load_language_model(settings, text_model, place, kind, token)
        language.requires_grad_(False)
        if lora_rank:
            language = backbones.add_lora(language, settings)
        vision = backbones.load_vision_model(settings, vision_model, place, kind, token)
        model = cls(settings, vocabulary, tokenizer, language, vision.requires_grad_(False))
        model._move_small_parts(place)
        return model.eval()

    @classmethod
    def from_pretrained(  # type: ignore[override]  # LexVLA chooses by its options
        cls,
        path: str | Path | None = None,
        *,
        revision: str | None = None,
        device: str | torch.device = "cpu",
        dtype: str | torch.dtype | None = None,
        quantization: Quantization | None = None,
        merge_lora: bool = False,
        text_model: str | None = None,
        vision_model: str | None = None,
        token: str | None = None,
    ) -> Self:
        """Load a saved model, or without a path the one that ships with the package.

        Args:
            path: A folder of `save_pretrained`, or a hub id.
            revision: Branch, tag or commit of a hub id.
            device: Device of the model.
            dtype: Type of all weights; by default that of the backbones when they were assembled,
                and float32 for trained parts.
            quantization: ``none``, ``int8`` or ``nf4``; by default as the model was assembled.
            merge_lora: Merge LoRA into the language model: faster, equal up to rounding.
            text_model: Path of the language model, if it was moved.
            vision_model: Path of the vision model, if it was moved.
            token: Hub token for gated models; by default the one huggingface_hub finds.

        Raises:
            ModelError: The model is incomplete or damaged, or a backbone cannot be loaded.
            OptionalDependencyError: PEFT, bitsandbytes or timm is missing.
            UnsupportedError: The device, or quantisation on it, is not available; or LoRA is to be
                merged into quantised weights.
        """
        folder = model_folder.find_folder(path, revision, token)
        config = saving.read_config(folder)
        if quantization is not None:
            config.quantization = quantization
            config.check()
        if merge_lora and config.quantization != "none":
            rule = "LoRA cannot be merged into quantised weights"
            raise UnsupportedError(f"{rule}: use merge_lora=False or quantization='none'")
        vocabulary = model_folder.read_vocabulary(folder, config.vocabulary_sha256)
        tokenizer = saving.read_tokenizer(folder)
        place, kind = backbones.as_device(device), backbones.as_dtype(dtype)
        names = (
            saving.moved(config.text_model, text_model, "text_model"),
            saving.moved(config.vision_model, vision_model, "vision_model"),
        )
        language, vision = saving.read_towers(folder, config, names, place, kind, token)
        if merge_lora and config.lora_rank:
            language = language.merge_and_unload()
            config.lora_rank, config.text_model, config.text_revision = 0, None, None
        file = model_folder.VOCABULARY_FILE
        try:  # add the file to the error
            _check_vocabulary(vocabulary, tokenizer, config.text_config.vocab_size)
            file = model_folder.CONFIG_FILE
            with torch.random.fork_rng(
                devices=[]
            ):  # new layers draw random numbers before they are loaded
                model = cls(config, vocabulary, tokenizer, language, vision)
        except ModelError as error:
            raise ModelError(f"{folder / file}: {error}") from error
        saving.read_weights(folder, config, saving.small_parts(model))
        for name, part in model.named_parameters():
            trained = not name.startswith(saving.TOWERS) or "lora_" in name
            if kind is not None and trained:
                part.data = part.data.to(kind)
        model._move_small_parts(place)
        return model.eval()

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Write all but the frozen backbones to a folder; `lexvla.saving` lists the files.

        Raises:
            ModelError: The weights cannot be written, such as on a full disk; or a weight beside
                LoRA is trained.
        """
        folder, parts = Path(save_directory), saving.small_parts(self)
        towers = self.text_tower.language_model, self.image_tower.vision_model
        try:
            saving.write_model(folder, self.config, self.vocabulary, self.tokenizer, towers, parts)
        except SafetensorError as error:
            raise ModelError(f"{folder}: the weights cannot be written ({error})") from error
        if not (card := folder / "README.md").exists():
            trained = sum(part.numel() for part in self.parameters() if part.requires_grad)
            card.write_text(model_card(self.config, self.vocabulary, towers, trained), "utf-8")

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | None = None,
        revision: str | None = None,
        commit_message: str = "Upload LexVLA model",
    ) -> str:
        """Upload the model and its card to a hub repository, and return the commit's URL.

        Args:
            repo_id: The repository, created if it does not exist.
            private: Whether a new repository is private.
            token: Hub token with write access; by default the one huggingface_hub finds.
            revision: Branch to commit to.
            commit_message: First line of the commit message.
        """
        api = HfApi(token=token)
        made = api.create_repo(repo_id, private=private, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            commit = api.upload_folder(
                repo_id=made.repo_id,
                folder_path=folder,
                revision=revision,
                commit_message=commit_message,
            )
        return str(commit)


class _TextParts:
    """What the batches of texts of one call share."""

    def __init__(self, of: TorchLexVLA) -> None:
        self._of = of
        self.cache = PrefixCache()

    @cached_property
    def codebook(self) -> Tensor:
        """The rows of the text codebook."""
        return self._of.text_codebook()


def _check_vocabulary(
    vocabulary: Vocabulary, tokenizer: PreTrainedTokenizerBase, size: int
) -> None:
    ids = vocabulary.token_ids
    if ids is None:
        raise ModelError("the vocabulary of a model needs the token id of each term")
    if not ids:
        raise ModelError("the vocabulary of a model needs at least one term")
    if not 0 <= min(ids) <= max(ids) < size:
        raise ModelError("the vocabulary holds token ids that the language model does not have")
    if tokenizer.convert_ids_to_tokens(list(ids)) != list(vocabulary.terms):
        raise ModelError("the vocabulary's terms are not the tokenizer's pieces")
