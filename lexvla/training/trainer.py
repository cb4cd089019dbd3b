"""Train a small LexVLA on drawings: two views and two texts of each item, against all items."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import Dinov2Config, LlamaConfig

from lexvla.config import PROMPT, LexVLAConfig
from lexvla.data.emoji import EmojiDrawings, content_columns
from lexvla.data.emoji_phrases import STOP_WORDS
from lexvla.errors import InputError, ModelError
from lexvla.lexical_head import lexical_vector
from lexvla.losses import InfoNCE, overuse_penalty, own_words_loss
from lexvla.model import LexVLA
from lexvla.training.augment import augment
from lexvla.training.checkpoint import load_checkpoint, save_checkpoint
from lexvla.training.recipe import Recipe
from lexvla.training.tokenizer import build_vocabulary, train_tokenizer

__all__ = ["Trainer", "train"]

logger = logging.getLogger(__name__)


def train(recipe_path: str | Path, resume: bool = False) -> Path:
    """Run a recipe to its end and return the folder of the finished model.

    Args:
        recipe_path: A TOML file; see `Recipe`.
        resume: Go on from the last checkpoint in the recipe's output folder.

    Raises:
        InputError: The recipe or its data cannot be used.
        ModelError: The vectors collapsed, or a loss is not finite.
    """
    trainer = Trainer(Recipe.load(recipe_path))
    if resume:
        trainer.resume()
    trainer.run()
    return trainer.save()


class Trainer:
    """Hold all that a run changes: model, averaged weights, optimisers and the item memory.

    All that is random in a step follows from the seed and the step's number alone, so a resumed
    run is the same run.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        torch.set_num_threads(recipe.threads)
        torch.manual_seed(recipe.seed)
        self.drawings = EmojiDrawings(recipe.drawings, recipe.styles)
        if recipe.items_per_step > len(self.drawings.items):
            rule = f"has {len(self.drawings.items)} items, and a step takes {recipe.items_per_step}"
            raise InputError(recipe.drawings, rule)
        self.model = build_model(recipe, self.drawings)
        vocabulary = self.model.vocabulary
        words = torch.from_numpy(self.drawings.word_weights(vocabulary))
        self.words = words
        self.has_word = (words > 0).bfloat16()  # 0 and 1: exact in 16 bits, sums too
        self.contrasts = nn.ModuleDict(
            {name: InfoNCE(recipe.temperature) for name in ("text", "image", "pair")}
        )
        # A running vector of every item's label and of its drawings, so that a step's items are
        # compared with the whole collection and not only with one another.
        count = len(self.drawings.items)
        dtype = torch.bfloat16 if recipe.bfloat16 else torch.float32
        self.memory = torch.zeros(2, count, len(vocabulary), dtype=dtype)
        self.average = {k: v.detach().clone() for k, v in self.model.state_dict().items()}
        self.optimizers = list(self._optimizers())
        self.rates = [[g["lr"] for g in o.param_groups] for o in self.optimizers]
        self.step = 0
        self.output = Path(recipe.output)
        self.output.mkdir(parents=True, exist_ok=True)

    def run(self) -> None:
        """Take the remaining steps, with a checkpoint every ``save_every``."""
        recipe = self.recipe
        path = self.output / "log.jsonl"
        # Steps that were taken after the checkpoint are taken, and logged, again.
        old = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
        bar = tqdm(total=recipe.steps, initial=self.step, disable=None, unit="step")
        with path.open("w", encoding="utf-8") as log, bar:
            log.writelines(old[: self.step])
            while self.step < recipe.steps:
                start = time.monotonic()
                parts = self.train_step()
                parts["seconds"] = time.monotonic() - start
                self.step += 1
                bar.update()
                bar.set_postfix({k: f"{parts[k]:.2f}" for k in ("loss", "words")})
                log.write(json.dumps({"step": self.step, **parts}) + "\n")
                if not math.isfinite(parts["loss"]):
                    raise ModelError(f"step {self.step}: the loss is {parts['loss']}")
                if self.step > 500 and parts["words"] < 1:
                    raise ModelError(f"step {self.step}: image vectors have no active word left")
                if self.step % recipe.save_every == 0:
                    log.flush()
                    save_checkpoint(self.output / "checkpoint.pt", self.state())

    def train_step(self) -> dict[str, float]:
        """Take one step and return the parts of its loss."""
        recipe, model = self.recipe, self.model
        rng = np.random.default_rng([recipe.seed, self.step])
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        torch.manual_seed(int(rng.integers(2**62)))  # dropout
        model.train()
        items = rng.choice(len(self.drawings.items), recipe.items_per_step, replace=False)
        chosen = torch.from_numpy(items)
        rows = self.drawings.sample_drawings(items, rng).reshape(-1)
        stage = sum(self.progress >= start for start in recipe.sides_from) - 1
        pixels = torch.from_numpy(self.drawings.pixels[rows])
        pixels = augment(pixels, recipe.sides[stage], recipe.augmentation, generator)
        labels = [self.drawings.items[i].label for i in items]
        others = [self.drawings.sample_text(self.drawings.items[i], rng) for i in items]

        with self._autocast():
            image_logits, _ = model.image_logits(pixels)
            text_logits = model.text_logits(labels + others)
        images, texts = lexical_vector(image_logits), lexical_vector(text_logits)
        label_vectors = texts[: len(items)]
        own = self._own_words(labels + others)
        # A label stands for its item, with all the item's words; another text for its own words.
        words = torch.cat([self.words[chosen], own[len(items) :]])
        parts = {
            "image_words": own_words_loss(image_logits, self.words[chosen].repeat(2, 1)),
            "text_words": own_words_loss(text_logits, words),
        }
        parts = {name: recipe.own_words_weight * part / 2 for name, part in parts.items()}
        ramp = min(self.step / recipe.overuse_ramp, 1) ** 2
        parts["overuse"] = ramp * (
            recipe.overuse_image * overuse_penalty(images)
            + recipe.overuse_text * overuse_penalty(texts)
        )
        targets = self._targets(own, chosen)
        if self.step >= recipe.contrast_from:
            parts |= self._contrast(images, texts, targets[:, chosen])
        if self.step >= recipe.memory_from:
            parts |= self._memory_contrast(images, texts, targets, chosen)
        loss = torch.stack(list(parts.values())).sum()
        self._update(loss)
        self._remember(chosen, label_vectors.detach(), images.detach())
        active = (images.detach() > images.shape[1] ** -0.5).sum(1).float().mean()
        values = {name: float(part.detach()) for name, part in parts.items()}
        return {"loss": float(loss.detach()), "words": float(active), **values}

    def _autocast(self) -> torch.autocast:
        return torch.autocast("cpu", torch.bfloat16, enabled=self.recipe.bfloat16)

    @property
    def progress(self) -> float:
        """Return the share of the run that is done."""
        return self.step / self.recipe.steps

    def _contrast(self, images: Tensor, texts: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Compare the step's images, labels and other texts with one another."""
        recipe = self.recipe
        count = targets.shape[1]
        itself = torch.arange(count)
        targets = targets / targets.sum(dim=1, keepdim=True)
        with self._autocast():
            cross = texts @ images.T  # (2n, 2n): labels and others by first and second drawings
            pair = images[:count] @ images[count:].T
        text, image = self.contrasts["text"], self.contrasts["image"]
        to_image = [text(half, targets) for half in cross.split(count, dim=1)]
        to_text = [image(half.T, itself) for half in cross[:count].split(count, dim=1)]
        pairs = [self.contrasts["pair"](half, itself) for half in (pair, pair.T)]
        return {
            "text_to_image": recipe.text_to_image_weight * sum(to_image) / 2,
            "image_to_text": recipe.image_to_text_weight * sum(to_text) / 2,
            "image_to_image": recipe.image_to_image_weight * sum(pairs) / 2,
        }

    def _memory_contrast(
        self, images: Tensor, texts: Tensor, targets: Tensor, chosen: Tensor
    ) -> dict[str, Tensor]:
        """Compare the step's vectors with what is remembered of every item.

        The own item's vector too is the remembered one: were it fresh, that alone would tell it
        from the others.
        """
        with self._autocast():
            to_labels = images @ self.memory[0].T
            to_images = texts @ self.memory[1].T
        weight = self.recipe.memory_weight
        return {
            "memory_image": weight * self.contrasts["image"](to_labels, chosen.repeat(2)),
            "memory_text": weight * self.contrasts["text"](to_images, targets),
        }

    @torch.no_grad()
    def _remember(self, chosen: Tensor, labels: Tensor, images: Tensor) -> None:
        """Move the memory of the step's items half way to their fresh vectors."""
        for side, fresh in enumerate((labels, images.unflatten(0, (2, -1)).mean(0))):
            mixed = self.memory[side, chosen].float() + nn.functional.normalize(fresh, dim=1)
            self.memory[side, chosen] = nn.functional.normalize(mixed, dim=1).to(self.memory.dtype)

    def _own_words(self, texts: list[str]) -> Tensor:
        """Return (texts, V) float32: 1 for each word of a text that the vocabulary has."""
        own = torch.zeros(len(texts), self.words.shape[1])
        for row, text in enumerate(texts):
            own[row, content_columns(text, self.model.vocabulary)] = 1
        return own

    def _targets(self, own: Tensor, chosen: Tensor) -> Tensor:
        """Share each text's target out over the items that bear all of its words.

        A label means its own item first: four fifths go there.
        """
        own = own.to(self.has_word.dtype)
        borne = (own @ self.has_word.T >= own.sum(1, keepdim=True)).float()
        itself = nn.functional.one_hot(chosen.repeat(2), len(self.has_word)).float()
        borne = torch.maximum(borne, itself)
        shared = borne / borne.sum(1, keepdim=True)
        labels = len(chosen)
        shared[:labels] = 0.8 * itself[:labels] + 0.2 * shared[:labels]
        return shared

    def _update(self, loss: Tensor) -> None:
        recipe = self.recipe
        warm = min((self.step + 1) / recipe.warmup, 1)
        factor = warm * (0.5 + 0.5 * math.cos(math.pi * self.progress))
        for optimizer, rates in zip(self.optimizers, self.rates, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor
            optimizer.zero_grad()
        loss.backward()
        parameters = [*self.model.parameters(), *self.contrasts.parameters()]
        nn.utils.clip_grad_norm_(parameters, recipe.clip)
        for optimizer in self.optimizers:
            optimizer.step()
        decay = min(recipe.average_decay, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for name, value in self.model.state_dict().items():
                self.average[name].lerp_(value, 1 - decay)

    def _optimizers(self) -> Iterator[torch.optim.Optimizer]:
        """Give the matrices inside the towers to Muon, and all else to AdamW."""
        recipe = self.recipe
        matrices, tables, rest = [], [], []
        for name, parameter in self.model.named_parameters():
            if not parameter.requires_grad:
                continue
            if "codebook" in name or "embed_tokens" in name or "lm_head" in name:
                tables.append(parameter)
            elif parameter.ndim == 2 and "token" not in name:
                matrices.append(parameter)
            else:
                rest.append(parameter)
        rest += self.contrasts.parameters()
        yield torch.optim.Muon(
            matrices,
            lr=recipe.muon_rate,
            weight_decay=recipe.weight_decay,
            adjust_lr_fn="match_rms_adamw",
        )
        groups = [
            {"params": tables, "weight_decay": recipe.weight_decay},
            {"params": rest, "weight_decay": 0.0},
        ]
        yield torch.optim.AdamW(groups, lr=recipe.adam_rate, betas=(0.9, 0.98))

    def state(self) -> dict[str, Any]:
        """Return all that a resumed run needs."""
        return {
            "recipe": asdict(self.recipe),
            "step": self.step,
            "model": self.model.state_dict(),
            "average": self.average,
            "contrasts": self.contrasts.state_dict(),
            "memory": self.memory,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }

    def resume(self) -> None:
        """Go on from the last checkpoint; without one, start anew.

        Raises:
            ModelError: The checkpoint is damaged or of another recipe.
        """
        path = self.output / "checkpoint.pt"
        if not path.exists():
            logger.info("no checkpoint in %s: starting anew", self.output)
            return
        state = load_checkpoint(path)
        changed = [k for k, v in asdict(self.recipe).items() if state["recipe"].get(k) != v]
        if changed:
            raise ModelError(f"{path}: made with other settings of {', '.join(changed)}")
        self.step = state["step"]
        self.model.load_state_dict(state["model"])
        self.average = state["average"]
        self.contrasts.load_state_dict(state["contrasts"])
        self.memory = state["memory"]
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)

    def save(self) -> Path:
        """Write the averaged weights as a model in 16-bit floats and return its folder."""
        folder = self.output / "model"
        model = LexVLA(self.model.config, self.model.vocabulary, self.model.tokenizer)
        model.load_state_dict(self.average)
        model.half().save_pretrained(folder)
        return folder


def build_model(recipe: Recipe, drawings: EmojiDrawings, **config: Any) -> LexVLA:
    """Build an untrained model with a tokenizer and vocabulary made from the captions.

    Args:
        recipe: Gives the sizes.
        drawings: Give the captions.
        config: Other fields of `LexVLAConfig`; without them there are no dense vectors or codes.
    """
    captions = drawings.captions()
    tokenizer = train_tokenizer([*captions, PROMPT], recipe.pieces_below_words)
    vocabulary = build_vocabulary(tokenizer, captions, STOP_WORDS)
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.width,
        intermediate_size=recipe.width * 8 // 3,
        num_hidden_layers=recipe.text_layers,
        num_attention_heads=recipe.heads,
        max_position_embeddings=256,
        initializer_range=0.05,
        attention_dropout=recipe.dropout,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=False,
        attn_implementation="eager",  # on CPUs the fused kernel's backward pass is far slower
    )
    vision = Dinov2Config(
        hidden_size=recipe.width,
        num_hidden_layers=recipe.vision_layers,
        num_attention_heads=recipe.heads,
        image_size=recipe.sides[-1],
        patch_size=recipe.patch_size,
        drop_path_rate=recipe.drop_path,
        hidden_dropout_prob=0.0,
        use_mask_token=False,
        attn_implementation="eager",
    )
    config = LexVLAConfig(
        text_config=text,
        vision_config=vision,
        adapter_heads=recipe.heads,
        adapter_width=3 * recipe.width,
        vocabulary_chunk=512,
        require_known_word=True,
        model_name="lexvla-emoji",
        **{"dense_width": 0, "codebook_size": 0, **config},
    )
    return LexVLA(config, vocabulary, tokenizer)
