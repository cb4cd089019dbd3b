"""The training objective: a weighted sum of losses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from lexvla.codebook import ipot, sinkhorn
from lexvla.errors import ModelError
from lexvla.losses import (
    TCL_LIMITS,
    HierarchicalProxy,
    InfoNCE,
    codis_loss,
    cross_modal_loss,
    flops_penalty,
    intra_modal_loss,
    local_loss,
    overuse_penalty,
    own_words_loss,
    pool_patches,
    ramped_alpha,
    shares,
)
from lexvla.torch_model import Features
from lexvla.training.item_memory import ItemMemory

__all__ = ["Losses", "Objective", "Targets", "TeacherView", "dense"]


@dataclass(frozen=True)
class Losses:
    """Weights and settings of the losses; a term of weight 0 is not computed.

    Attributes:
        lexical: Symmetric InfoNCE of lexical vectors (LexVLA eq. 5).
        own_words: The words of a pair's texts above zero, all others below; what a model of random
            weights needs to begin.
        item_words: Cosine of a text and the words of the items that it means, where those are
            known before the first step.
        image_pairs: Contrast of images with others of the same item, for data with labels.
        memory: Contrast with an `ItemMemory` of all items, for data with up to thousands of labels.
        memory_from: Step at which the memory term begins.
        penalty: ``overuse`` (LexVLA eq. 7) or ``flops`` (eq. 6).
        penalty_image: Weight of the penalty on images, LexVLA's lambda_I.
        penalty_text: The same for texts, lambda_T.
        penalty_ramp: Steps of its quadratic ramp.
        dense: Symmetric InfoNCE of dense vectors.
        codis: Codebook loss; needs a model with codes (CODIS).
        codis_from: Step at which the codes are set to clusters of the queues and the term begins;
            0 starts with random codes.
        reseed_every: Steps between replacements of unused codes; 0 for never.
        assignment: ``sinkhorn`` or ``ipot``.
        tcl_cross: Cross-modal alignment with the teacher's soft targets (TCL, CMA).
        tcl_intra: Intra-modal contrast (IMC).
        tcl_local: Local mutual information (LMI).
        alpha: Share of the teacher in CMA's targets.
        alpha_ramp: Steps of alpha's linear ramp.
        proxy: Proxy loss of dense vectors, for data with labels.
        coarse: Weight of the coarse level in it (HPL); 0 for flat proxies.
        tree: Whether coarse classes are those of the data instead of clusters of proxies.
        recluster_every: Steps between clusterings, in the first half of the run.
        distil: The mean of lexical and dense similarity teaches both (arXiv 2508.16707).
        temperature: Initial temperature of all contrasts.
        teacher_decay: Decay of the teacher's moving average.
        queue: Size of the queues.
    """

    lexical: float = 1.0
    own_words: float = 0.0
    item_words: float = 0.0
    image_pairs: float = 0.0
    memory: float = 0.0
    memory_from: int = 500
    penalty: Literal["overuse", "flops"] = "overuse"
    penalty_image: float = 5e-4
    penalty_text: float = 1e-3
    penalty_ramp: int = 2000
    dense: float = 0.0
    codis: float = 0.0
    codis_from: int = 0
    reseed_every: int = 0
    assignment: Literal["sinkhorn", "ipot"] = "sinkhorn"
    tcl_cross: float = 0.0
    tcl_intra: float = 0.0
    tcl_local: float = 0.0
    alpha: float = 0.4
    alpha_ramp: int = 1000
    proxy: float = 0.0
    coarse: float = 0.1
    tree: bool = False
    recluster_every: int = 200
    distil: float = 0.0
    temperature: float = 0.07
    teacher_decay: float = 0.995
    queue: int = 65536

    @property
    def needs_teacher(self) -> bool:
        """Whether a term uses the teacher's features."""
        return any((self.codis, self.tcl_cross, self.tcl_intra, self.tcl_local))

    @property
    def needs_image_words(self) -> bool:
        """Whether a term uses the words of images."""
        own = (self.lexical, self.own_words, self.image_pairs, self.memory)
        return any((*own, self.penalty_image, self.distil))

    @property
    def needs_relevance(self) -> bool:
        """Whether a term uses the relevance of texts to items."""
        return self.memory > 0

    @property
    def needs_items(self) -> bool:
        """Whether a term uses the item or class of each pair."""
        return any((self.proxy, self.image_pairs, self.memory))

    @property
    def needs_dense(self) -> bool:
        """Whether a term uses dense vectors."""
        return self.needs_teacher or any((self.dense, self.proxy, self.distil))


@dataclass(frozen=True)
class TeacherView:
    """The teacher's features of the batch, and its queues (Q, w) of earlier batches.

    ``items`` (Q,) long are the items of the queues' rows, -1 for none.
    """

    image: Features
    text: Features
    image_queue: Tensor
    text_queue: Tensor
    items: Tensor | None = None


class Targets(NamedTuple):
    """Labels of a batch; see `lexvla.training.feed.Draw` for the fields."""

    items: Tensor | None = None
    relevance: Tensor | None = None
    image_words: Tensor | None = None
    text_words: Tensor | None = None

    @property
    def positives(self) -> Tensor | None:
        """(N, N) relevance of each text to the images; None for its own image only."""
        if self.items is None or self.relevance is None:
            return None
        return self.relevance[:, self.items]

    @property
    def same(self) -> Tensor | None:
        """(N, N) bool, whether rows are of the same item."""
        return None if self.items is None else self.items[:, None] == self.items


NOTHING = Targets()


class Objective(nn.Module):
    """Compute the weighted terms of a global batch; holds temperatures and proxies.

    Args:
        losses: Weights and settings.
        width: Width of dense vectors.
        classes: Number of classes, if there are labels.
        parents: Parents of the classes in a given tree; by default the tree is clustered.
    """

    def __init__(
        self,
        losses: Losses,
        width: int = 0,
        classes: int = 0,
        parents: Sequence[Sequence[int]] | None = None,
    ) -> None:
        super().__init__()
        self.losses = losses
        self.lexical = InfoNCE(losses.temperature)
        self.dense = InfoNCE(losses.temperature)
        self.pairs = InfoNCE(losses.temperature)
        self.teacher = InfoNCE(losses.temperature, TCL_LIMITS)
        self.proxies: HierarchicalProxy | None = None
        if losses.proxy:
            if classes < 2:
                raise ValueError(f"the proxy loss needs at least 2 classes, not {classes}")
            weights = (1.0, losses.coarse) if losses.coarse else (1.0,)
            given = parents if losses.coarse else None
            # A given tree is used for few classes too; clusters of few mean little.
            least = 32 if given is None else 2
            self.proxies = HierarchicalProxy(
                classes, width, weights=weights, parents=given, least_classes=least
            )

    def clamp(self) -> None:
        """Bring the temperatures back within their limits, after a step."""
        for contrast in (self.lexical, self.dense, self.pairs, self.teacher):
            contrast.clamp_temperature()

    def forward(
        self,
        image: Features,
        text: Features,
        step: int,
        codes: Tensor | None = None,
        teacher: TeacherView | None = None,
        targets: Targets = NOTHING,
        memory: ItemMemory | None = None,
    ) -> dict[str, Tensor]:
        """Return the terms by name; the loss is their sum.

        Args:
            image: The student's features of the N images of all processes.
            text: Features of their texts; row i belongs to image i.
            step: Number of the step, for the ramps.
            codes: (K, w) codes, for CODIS.
            teacher: The teacher's view, for CODIS and TCL.
            targets: Labels, for the terms that need items or words.
            memory: Memory of all items, for the memory term.
        """
        parts = self._words(image, text, step, targets, memory)
        return parts | self.meaning(image, text, step, codes, teacher, targets, memory)

    def _words(
        self,
        image: Features,
        text: Features,
        step: int,
        targets: Targets,
        memory: ItemMemory | None,
    ) -> dict[str, Tensor]:
        """Return the terms of lexical vectors."""
        losses = self.losses
        parts = self._own_words(image, text, targets)
        words = image.lexical @ text.lexical.T
        positives = targets.positives
        turned = None if positives is None else positives.T
        if losses.lexical:
            parts["lexical"] = losses.lexical * self.lexical.symmetric(words, turned)
        if losses.image_pairs and targets.same is not None:
            parts["image_pairs"] = losses.image_pairs * self._image_pairs(image, targets.same)
        known = targets.items is not None and targets.relevance is not None
        if losses.memory and memory is not None and known:
            sides = image.lexical, text.lexical
            term = self._memory(*sides, targets, memory, self.lexical)
            parts["memory"] = losses.memory * term
        ramp = min(step / max(1, losses.penalty_ramp), 1.0) ** 2
        penalty = overuse_penalty if losses.penalty == "overuse" else flops_penalty
        for name, weight, vectors in (
            ("penalty_image", losses.penalty_image, image.lexical),
            ("penalty_text", losses.penalty_text, text.lexical),
        ):
            if weight:
                parts[name] = ramp * weight * penalty(vectors)
        return parts

    def meaning(
        self,
        image: Features,
        text: Features,
        step: int,
        codes: Tensor | None,
        teacher: TeacherView | None,
        targets: Targets,
        memory: ItemMemory | None,
    ) -> dict[str, Tensor]:
        """Return the terms of dense vectors and codes; the arguments are those of `forward`."""
        losses = self.losses
        parts: dict[str, Tensor] = {}
        if image.dense is None or text.dense is None:
            return parts
        positives = targets.positives
        turned = None if positives is None else positives.T
        known = targets.items is not None and targets.relevance is not None
        meaning = image.dense @ text.dense.T
        if losses.dense:
            parts["dense"] = losses.dense * self.dense.symmetric(meaning, turned)
        if losses.memory and losses.dense and memory is not None and memory.dense and known:
            term = self._memory(image.dense, text.dense, targets, memory.dense, self.dense)
            parts["memory_dense"] = losses.dense * losses.memory * term
        if losses.distil:
            parts["distil"] = losses.distil * self._distil(image.lexical @ text.lexical.T, meaning)
        if self.proxies is not None and targets.items is not None:
            both = torch.cat([image.dense, text.dense])
            parts["proxy"] = losses.proxy * self.proxies(both, targets.items.repeat(2))
        if teacher is not None:
            parts |= self._taught(image, text, step, codes, teacher, targets)
        return parts

    def texts_alone(
        self, text: Features, targets: Targets, memory: ItemMemory
    ) -> dict[str, Tensor]:
        """Return the terms of texts alone: their words, and the items that they mean.

        Args:
            text: Of N texts, with logits.
            targets: Their words, and how their meaning is shared out.
            memory: Of all items' words, as texts and as their images show them.
        """
        losses, parts = self.losses, {}
        if losses.own_words and targets.text_words is not None and text.logits is not None:
            parts["text_words"] = self.other_texts(text.logits, targets.text_words)
        if losses.item_words and targets.relevance is not None:
            meant = targets.relevance @ memory.texts.to(targets.relevance.dtype)
            near = functional.cosine_similarity(text.lexical, meant, dim=1)
            parts["item_words"] = losses.item_words * (1 - near).mean()
        parts |= self._remembered(text.lexical, memory, targets, self.lexical, losses.lexical, "")
        if memory.dense is not None and text.dense is not None:
            told = (memory.dense, targets, self.dense, losses.dense, "_dense")
            parts |= self._remembered(text.dense, *told)
        return parts

    def _remembered(
        self,
        texts: Tensor,
        memory: ItemMemory,
        targets: Targets,
        contrast: InfoNCE,
        weight: float,
        kind: str,
    ) -> dict[str, Tensor]:
        """Let each text find the images that it means, and each item's images their texts."""
        found = texts.to(memory.images.dtype) @ memory.images.T
        scale = self.losses.memory * (weight if kind else 1.0)
        parts = {f"memory{kind}": scale * contrast(found, targets.relevance)}
        if weight and targets.items is not None and targets.positives is not None:
            images = memory.images[targets.items].float()
            term = contrast(images @ texts.T, shares(targets.positives.T))
            parts["dense" if kind else "lexical"] = weight * term
        return parts

    def other_texts(self, logits: Tensor, words: Tensor) -> Tensor:
        """Return the term of texts without an image, given their (N, V) words."""
        return self.losses.own_words / 2 * own_words_loss(logits, words)

    def _own_words(self, image: Features, text: Features, targets: Targets) -> dict[str, Tensor]:
        """Return the terms of both sides, each with half the weight."""
        weight = self.losses.own_words / 2
        return {
            name: weight * own_words_loss(side.logits, words)
            for name, side, words in (
                ("image_words", image, targets.image_words),
                ("text_words", text, targets.text_words),
            )
            if weight and words is not None and side.logits is not None
        }

    def _image_pairs(self, image: Features, same: Tensor) -> Tensor:
        """Contrast each image with the others of its item (SupCon)."""
        itself = torch.eye(len(same), dtype=torch.bool, device=same.device)
        # Finite, because it is multiplied by a target of 0.
        alike = (image.lexical @ image.lexical.T).masked_fill(itself, -100)
        return self.pairs(alike, shares(same & ~itself))

    def _memory(
        self, image: Tensor, text: Tensor, targets: Targets, memory: ItemMemory, contrast: InfoNCE
    ) -> Tensor:
        """Contrast images with all items' texts, and texts with all items' images.

        The own item's vector is the remembered one too: a fresh one would stand out.
        """
        kind = memory.texts.dtype
        to_texts = contrast(image.to(kind) @ memory.texts.T, targets.items)
        to_images = contrast(text.to(kind) @ memory.images.T, targets.relevance)
        return to_texts + to_images

    def _distil(self, words: Tensor, meaning: Tensor) -> Tensor:
        """Distil the fused score into each of its two parts, in both directions."""
        legs = words / self.lexical.temperature, meaning / self.dense.temperature
        fused = ((legs[0] + legs[1]) / 2).detach()  # a sum would sharpen legs that agree
        terms = [
            functional.cross_entropy(leg, target.softmax(dim=1))
            for own in legs
            for leg, target in ((own, fused), (own.T, fused.T))
        ]
        return torch.stack(terms).mean()

    def _taught(
        self,
        image: Features,
        text: Features,
        step: int,
        codes: Tensor | None,
        seen: TeacherView,
        targets: Targets,
    ) -> dict[str, Tensor]:
        losses, parts = self.losses, {}
        temperature = self.teacher.temperature
        i, t, i_seen, t_seen = (dense(each) for each in (image, text, seen.image, seen.text))
        if losses.codis and codes is not None:
            solver = sinkhorn if losses.assignment == "sinkhorn" else lambda s: ipot(1 - s)
            codis = codis_loss(
                i, t, i_seen, t_seen, codes, temperature, seen.image_queue, seen.text_queue, solver
            )
            parts["codis"] = losses.codis * torch.stack(list(codis)).sum()
        image_keys = torch.cat([i_seen, seen.image_queue])
        text_keys = torch.cat([t_seen, seen.text_queue])
        same = None  # keys of the own item are not negatives (TCL's fine-tuning)
        if targets.relevance is not None and targets.items is not None and seen.items is not None:
            same = targets.items[:, None] == torch.cat([targets.items, seen.items])
        if losses.tcl_cross:
            alpha = ramped_alpha(step, losses.alpha_ramp, losses.alpha)
            terms = (
                cross_modal_loss(i, i_seen, text_keys, temperature, alpha, same),
                cross_modal_loss(t, t_seen, image_keys, temperature, alpha, same),
            )
            parts["tcl_cross"] = losses.tcl_cross * torch.stack(terms).mean()
        if losses.tcl_intra:
            terms = (
                intra_modal_loss(i, image_keys, temperature, same),
                intra_modal_loss(t, text_keys, temperature, same),
            )
            parts["tcl_intra"] = losses.tcl_intra * torch.stack(terms).mean()
        if losses.tcl_local and seen.image.locals is not None and seen.text.locals is not None:
            terms = (
                local_loss(i, pool_patches(seen.image.locals), temperature),
                local_loss(t, seen.text.locals, temperature, seen.text.mask),
            )
            parts["tcl_local"] = losses.tcl_local * torch.stack(terms).mean()
        return parts


def dense(features: Features) -> Tensor:
    """Return the dense vectors, which must have been computed."""
    if features.dense is None:
        raise ModelError("the teacher's terms need dense vectors")
    return features.dense
