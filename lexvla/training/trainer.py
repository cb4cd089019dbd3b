"""The training loop for models of any size and the losses of four papers."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from lexvla.codebook import Codebook, code_counts, count_dead_codes
from lexvla.errors import InputError, ModelError
from lexvla.image_tower import CachedCells
from lexvla.lexical_head import lexical_vector
from lexvla.losses import HierarchicalProxy
from lexvla.torch_model import Features
from lexvla.training.checkpoint import differences, load_checkpoint, save_checkpoint
from lexvla.training.feed import Draw
from lexvla.training.gathering import gather_rows, share_state
from lexvla.training.gradient_cache import cached_backward
from lexvla.training.item_memory import ItemMemory
from lexvla.training.objective import Objective, Targets, TeacherView, dense
from lexvla.training.recipe import Recipe
from lexvla.training.run_folder import CHECKPOINT, claimed, keep_unfinished
from lexvla.training.run_log import RunLog
from lexvla.training.sources import open_source
from lexvla.training.start import open_feed, optimizers, start_model
from lexvla.training.teacher import FeatureQueue, Teacher

__all__ = ["Trainer", "train"]

_FROM = 500  # steps after which vectors are checked for collapse
_ALIKE = 0.9995  # untrained vectors come near 0.998
logger = logging.getLogger(__name__)
LOCALS = ("locals", "mask")


def train(recipe_path: str | Path, resume: bool = False) -> Path:
    """Run a recipe to its end and return the folder of the finished model.

    Args:
        recipe_path: A TOML file; see `Recipe`.
        resume: Continue from the last checkpoint in the recipe's output folder.

    Raises:
        InputError: The recipe or its data are invalid; or another run is writing to the output
            folder, or has left an unfinished run there that is not to be resumed.
        ModelError: The vectors have collapsed, or a loss is not finite.
    """
    trainer = Trainer(Recipe.load(recipe_path))
    with claimed(trainer.output) if trainer.accelerator.is_main_process else nullcontext():
        if resume:
            trainer.resume()
        else:
            keep_unfinished(trainer.output)
        return trainer.run()


class Trainer:
    """The state of a run; start several processes by ``accelerate launch``.

    Randomness in a step depends on the seed, the step and the process only, so a resumed run equals
    an uninterrupted one.
    """

    def __init__(self, recipe: Recipe) -> None:
        run, loss = recipe.train, recipe.loss
        self.recipe = recipe
        if run.threads:
            torch.set_num_threads(run.threads)
        torch.manual_seed(run.seed)
        # Accelerate's mixed precision would be fixed for the life of the process, not of a run.
        self.accelerator = Accelerator(mixed_precision="no", cpu=run.device == "cpu")
        self.device = self.accelerator.device
        self.world = self.accelerator.num_processes
        source = open_source(recipe.data)
        self.model = start_model(recipe, source, self.device)
        rank = self.accelerator.process_index
        self.feed = open_feed(source, recipe, self.model, rank, self.world)
        classes = self.feed.classes
        width = self.model.config.dense_width
        self.objective = Objective(loss, width, len(classes), self.feed.parents).to(self.device)
        self.teacher: Teacher | None = None
        self.queues: tuple[FeatureQueue, FeatureQueue] | None = None
        if loss.needs_teacher:
            self._check_queue()
            self.teacher = Teacher(self.model, loss.teacher_decay)
            self.queues = (
                FeatureQueue(loss.queue, width, run.seed, self.device),
                FeatureQueue(loss.queue, width, run.seed + 1, self.device),
            )
        self.average = Teacher(self.model, run.average) if run.average else None
        self.memory: ItemMemory | None = None
        if loss.memory:
            kind = torch.bfloat16 if run.bfloat16 else torch.float32
            words = len(self.model.vocabulary)
            dense_width = width if loss.dense else 0
            self.memory = ItemMemory(len(classes), words, kind, self.device, dense_width)
        self.counts = torch.zeros(self.model.config.codebook_size, dtype=torch.long)
        self.counts = self.counts.to(self.device)
        made = optimizers(self.model, self.objective, run)
        self.rates = [[group["lr"] for group in each.param_groups] for each in made]
        # The loss uses codes, not the forward pass, and DDP would wait for their gradient.
        self.model._ddp_params_and_buffers_to_ignore = ["codebook.codes"]
        self.wrapped, *self.optimizers = self.accelerator.prepare(self.model, *made)
        self.step = 0
        self.output = Path(recipe.output)
        self.output.mkdir(parents=True, exist_ok=True)

    def _check_queue(self) -> None:
        loss, batch = self.recipe.loss, self.recipe.data.batch_size * self.world
        if loss.queue < batch:
            raise InputError("[loss] queue", f"must hold a batch of all processes, {batch}")
        rows, codes = 2 * self._filled(loss.codis_from), self.model.config.codebook_size
        if loss.codis and loss.codis_from and rows < codes:
            rule = f"is too early: the queues then hold {rows} vectors for {codes} codes"
            raise InputError("[loss] codis_from", rule)

    def run(self) -> Path:
        """Take the remaining steps, save the model and return its folder."""
        run, main = self.recipe.train, self.accelerator.is_main_process
        if self.step == 0:
            self.prepare()
        with RunLog(self.output, self.step, run.steps, not main, run.tensorboard) as log:
            while self.step < run.steps:
                start = time.monotonic()
                parts = self.train_step()
                self.step += 1
                check_health(self.step, parts)
                log.add(self.step, {**parts, "seconds": time.monotonic() - start})
                if self.step % run.save_every == 0 or self.step == run.steps:
                    log.flush()
                    self.save_checkpoint()
        self.feed.close()
        folder = self.output / "model"
        if main:
            self._save(folder)
        self.accelerator.wait_for_everyone()
        return folder

    def prepare(self) -> None:
        """Remember the items' words, and what the model says of them, where the feed knows."""
        if self.memory is not None:
            known = self.feed.item_vectors(self.model, self.recipe.train.seed)
            if known is not None:
                self.memory.texts.copy_(known.texts)
                self.memory.images.copy_(known.images)
                if self.memory.dense is not None and known.dense is not None:
                    self.memory.dense.images.copy_(known.dense)

    def _save(self, folder: Path) -> None:
        if self.average is not None:
            weights = dict(self.model.named_parameters())
            with torch.no_grad():
                for name, weight in self.average.weights.items():
                    weights[name].copy_(weight)
        if self.model.codebook is not None:
            self.model.codebook.renormalise()  # the mean of unit vectors is shorter
        model = self.model.eval()
        if self.recipe.train.half:
            model = model.half()
        model.save_pretrained(folder)

    def train_step(self) -> dict[str, float]:
        """Take an optimiser step and return the parts of its loss and signs of health."""
        run = self.recipe.train
        self.wrapped.train()
        factor = min((self.step + 1) / max(1, run.warmup_steps), 1.0)
        factor *= 0.5 + 0.5 * math.cos(math.pi * self.step / run.steps)
        for optimizer, rates in zip(self.optimizers, self.rates, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor
        if self.teacher is not None:
            self.teacher.update(self.model)
        totals: dict[str, float] = {}
        for micro in range(run.accumulate):
            last = micro + 1 == run.accumulate
            for name, value in self._micro_step(micro, last).items():
                totals[name] = totals.get(name, 0.0) + value / run.accumulate
        self._share_gradients()
        groups = [group for optimizer in self.optimizers for group in optimizer.param_groups]
        trained = [weight for group in groups for weight in group["params"]]
        totals["gradient"] = float(self.accelerator.clip_grad_norm_(trained, run.clip))
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self.objective.clamp()
        if self.model.codebook is not None and self.recipe.loss.codis:
            self.model.codebook.renormalise()
            if self.step >= self.recipe.loss.codis_from:
                totals["dead"] = float(count_dead_codes(self.counts))
        self._tend_clusters()
        if self.average is not None:
            self.average.update(self.model, self.step)
        return totals

    def _tend_clusters(self) -> None:
        loss, taken = self.recipe.loss, self.step + 1
        seed = self.recipe.train.seed * 1_000_003 + taken  # the same in all processes
        codebook, queues = self.model.codebook, self.queues
        if loss.codis and codebook is not None and queues is not None:
            first = taken == loss.codis_from
            again = loss.reseed_every and taken > loss.codis_from and not taken % loss.reseed_every
            if first or again:
                rows = torch.cat([queue.newest()[: self._filled(taken)] for queue in queues])
                if first:
                    initialise_codes(codebook, rows, seed)
                else:
                    reseed_codes(codebook, self.counts, rows, self._adam, seed)
                share_state([codebook.codes.data])
        proxies = self.objective.proxies
        if proxies is None or proxies.given or len(proxies.levels) == 1:
            return
        if taken % loss.recluster_every == 0 and taken <= self.recipe.train.steps // 2:
            recluster_proxies(proxies, self._adam, seed)
            share_state(list(proxies.state_dict().values()))

    @property
    def _adam(self) -> torch.optim.Optimizer:
        """The optimizer of codes and proxies."""
        own: torch.optim.Optimizer = self.optimizers[0].optimizer
        return own

    def _filled(self, steps: int) -> int:
        """Return how many rows of a queue are filled after some steps."""
        rows = steps * self.recipe.train.accumulate * self.recipe.data.batch_size * self.world
        return min(rows, self.recipe.loss.queue)

    def _micro_step(self, micro: int, last: bool) -> dict[str, float]:
        """Add the gradient of a batch."""
        run, loss = self.recipe.train, self.recipe.loss
        draw = self.feed.draw(self._seed(micro, 1))
        if self.step < run.text_first:
            return self._text_step(draw, micro)
        count = len(draw.texts)
        ids = self.model.prompt_ids([*draw.texts, *draw.other_texts])
        pixels = self._pixels(draw, micro, view=0)
        seen = self._look(draw, ids[:count], micro)
        known = (draw.items, draw.relevance, draw.image_words, draw.text_words)
        targets = Targets(*(x if x is None else gather_rows(x.to(self.device)) for x in known))
        memory = self.memory if self._words_stay or self.step >= loss.memory_from else None
        codes = self.model.codebook.codes if loss.codis and self.model.codebook else None
        if self.step < loss.codis_from:
            codes = None
        parts: dict[str, float] = {}
        names: list[str] = []  # of the features that the terms ask for
        other_words = draw.other_words if draw.other_texts else None
        fresh: list[Features] = []  # of images and texts

        def forward(number: int, span: slice) -> list[Tensor]:
            # The same dropout in both passes of the gradient cache, and after resuming.
            torch.manual_seed(self._seed(micro, number, 7))
            images = pixels[span]
            with self._autocast():
                features = self.wrapped(
                    images,
                    ids[span],
                    dense=loss.needs_dense,
                    logits=loss.own_words > 0,
                    image_words=not self._words_stay or loss.distil > 0,
                )
            parts = [each._asdict() for each in features]
            names[:] = [name for name, part in parts[0].items() if part is not None]
            columns = [part[name][: len(images)] for part in parts for name in names]
            # Texts without an image come last; only their words' logits are needed.
            return [*columns, parts[1]["logits"][count:]] if other_words is not None else columns

        def value(columns: list[Tensor]) -> Tensor:
            both = [gather_rows(column) for column in columns]
            image = Features(**dict(zip(names, both, strict=False)))
            text = Features(**dict(zip(names, both[len(names) : 2 * len(names)], strict=True)))
            rest = (self.step, codes, seen, targets, memory)
            if self._words_stay and memory is not None:
                # Their dense vectors have other terms, with those of images.
                words = text._replace(dense=None)
                terms = self.objective.texts_alone(words, targets, memory)
                terms |= self.objective.meaning(image, text, *rest)
            else:
                terms = self.objective(image, text, *rest)
            if other_words is not None:
                wanted = gather_rows(other_words.to(self.device))
                terms["other_texts"] = self.objective.other_texts(both[-1], wanted)
            fresh[:] = image, text
            total = torch.stack(list(terms.values())).sum()
            parts.update({name: float(term.detach()) for name, term in terms.items()})
            parts.update(loss=float(total.detach()))
            parts.update(signs(text.lexical if self._words_stay else image.lexical))
            return total / run.accumulate

        size = math.ceil(len(ids) / run.parts)
        spans = [slice(start, start + size) for start in range(0, len(ids), size)]
        with nullcontext() if last else self._no_sync():
            if len(spans) == 1:
                self.accelerator.backward(value(forward(0, spans[0])))
            else:
                steps = [partial(forward, n, span) for n, span in enumerate(spans)]
                cached_backward(steps, value, self.accelerator.backward, self._no_sync)
        if self.memory and targets.items is not None and targets.relevance is not None:
            image, text = fresh
            self.memory.remember(targets.items, targets.relevance, image, text, self._words_stay)
        if seen is not None and self.queues is not None:
            for queue, each in zip(self.queues, (seen.image, seen.text), strict=True):
                queue.push(dense(each), targets.items)
            if codes is not None:
                both = torch.cat([dense(seen.image), dense(seen.text)])
                self.counts += code_counts(both, codes)
        return parts

    @property
    def _words_stay(self) -> bool:
        """Tell whether the words of items and images are fixed, and texts learn to say them."""
        return not self.model.image_codebook.requires_grad and self.memory is not None

    def _text_step(self, draw: Draw, micro: int) -> dict[str, float]:
        """Add the gradient of the texts of a batch, compared with remembered images."""
        memory = self.memory
        if memory is None or draw.items is None or draw.relevance is None:
            raise InputError("[train] text_first", "needs items and their memory")
        ids = self.model.prompt_ids([*draw.texts, *draw.other_texts])
        count = len(draw.texts)
        torch.manual_seed(self._seed(micro, 0, 7))
        with self._autocast():
            logits, states = self.model.words_of_texts(ids)
            head = self.model.text_dense_head
            meaning = head(states[:count]) if memory.dense is not None and head else None
        text = Features(lexical_vector(logits[:count]), meaning, logits=logits[:count])
        targets = Targets(draw.items, draw.relevance, draw.image_words, draw.text_words)
        terms = self.objective.texts_alone(text, targets, memory)
        if draw.other_words is not None and draw.other_texts:
            terms["other_texts"] = self.objective.other_texts(logits[count:], draw.other_words)
        total = torch.stack(list(terms.values())).sum()
        self.accelerator.backward(total / self.recipe.train.accumulate)
        memory.remember(draw.items, draw.relevance, None, text, self._words_stay)
        parts = {name: float(term.detach()) for name, term in terms.items()}
        return {**parts, "loss": float(total.detach()), **signs(text.lexical)}

    def _pixels(self, draw: Draw, micro: int, view: int) -> Tensor | CachedCells:
        """Return a random view of each image, the same whenever this step is taken."""
        run = self.recipe.train
        side = self.model.config.image_side
        for pixels, start in zip(run.sides, run.sides_from, strict=True):
            if self.step >= start * run.steps:
                side = pixels
        return draw.images(self._seed(micro, view, 13), side).to(self.device)

    def _look(self, draw: Draw, ids: list[list[int]], micro: int) -> TeacherView | None:
        """Return the teacher's gathered features of another view."""
        if self.teacher is None or self.queues is None or self._too_early():
            return None
        pixels = self._pixels(draw, micro, view=1)
        local = self.recipe.loss.tcl_local > 0
        torch.manual_seed(self._seed(micro, 0, 17))
        with self._autocast():
            wanted = {"dense": True, "locals": local, "image_words": False}
            seen = self.teacher(self.model, pixels, ids, **wanted)
        if local and self.world > 1:  # texts of other processes may be longer
            pad = self.accelerator.pad_across_processes
            padded = {name: pad(getattr(seen[1], name), 1) for name in LOCALS}
            seen = (seen[0], seen[1]._replace(**{**padded, "mask": padded["mask"].bool()}))
        image, text = (
            each._replace(**{k: gather_rows(v) for k, v in each._asdict().items() if v is not None})
            for each in seen
        )
        image_queue, text_queue = self.queues
        items = image_queue.newest_items()
        return TeacherView(image, text, image_queue.newest(), text_queue.newest(), items)

    def _too_early(self) -> bool:
        """Tell whether only CODIS needs the teacher, and its queues need not fill yet."""
        loss, rows = self.recipe.loss, self.recipe.data.batch_size * self.world
        if loss.tcl_cross or loss.tcl_intra or loss.tcl_local:
            return False
        steps = math.ceil(loss.queue / (rows * self.recipe.train.accumulate))
        return self.step < loss.codis_from - steps

    def _seed(self, *numbers: int) -> int:
        words = [self.recipe.train.seed, self.step, self.accelerator.process_index, *numbers]
        return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> 1)

    def _autocast(self) -> torch.autocast:
        enabled = self.recipe.train.bfloat16
        return torch.autocast(self.device.type, torch.bfloat16, enabled=enabled)

    def _no_sync(self) -> AbstractContextManager[Any]:
        context: AbstractContextManager[Any] = self.accelerator.no_sync(self.wrapped)
        return context

    def _share_gradients(self) -> None:
        """Average gradients that DDP does not see; they differ only by rounding."""
        if self.world == 1:
            return
        weights = list(self.objective.parameters())
        if self.model.codebook is not None:
            weights.append(self.model.codebook.codes)
        for weight in weights:
            if weight.grad is not None:
                weight.grad = self.accelerator.reduce(weight.grad, "mean")

    def state(self) -> dict[str, Any]:
        """Return the state for resuming."""
        trained = {n: p.detach() for n, p in self.model.named_parameters() if p.requires_grad}
        return {
            "recipe": self.recipe.to_dict(),
            "step": self.step,
            "model": trained,
            "buffers": dict(self.model.named_buffers()),  # statistics of batch norms
            "objective": self.objective.state_dict(),
            "optimizers": [each.state_dict() for each in self.optimizers],
            "teacher": None if self.teacher is None else self.teacher.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "memory": None if self.memory is None else self.memory.state_dict(),
            "queues": [queue.state_dict() for queue in self.queues or ()],
            "counts": self.counts,
            "feeds": gather_object([self.feed.state_dict()]),
        }

    def save_checkpoint(self) -> None:
        """Write the state; an earlier checkpoint stays until the new one is complete."""
        state = self.state()
        if self.accelerator.is_main_process:
            save_checkpoint(self.output / CHECKPOINT, state)
        self.accelerator.wait_for_everyone()

    def resume(self) -> None:
        """Continue from the last checkpoint, if there is one.

        Raises:
            ModelError: The checkpoint is damaged, or of another recipe or number of processes.
            InputError: The data have changed.
        """
        path = self.output / CHECKPOINT
        if not path.exists():
            logger.warning("no checkpoint in %s: starting from the beginning", self.output)
            return
        state = load_checkpoint(path)
        changed = list(differences(state["recipe"], self.recipe.to_dict()))
        if changed:
            raise ModelError(f"{path}: made with other settings: {'; '.join(changed)}")
        if len(state["feeds"]) != self.world:
            rule = f"made by {len(state['feeds'])} processes, and there are {self.world}"
            raise ModelError(f"{path}: {rule}")
        self.step = state["step"]
        held = dict(self.model.named_parameters()) | dict(self.model.named_buffers())
        with torch.no_grad():
            for name, values in (state["model"] | state["buffers"]).items():
                held[name].copy_(values)
        self.objective.load_state_dict(state["objective"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        for copy, name in (
            (self.teacher, "teacher"),
            (self.average, "average"),
            (self.memory, "memory"),
        ):
            if copy is not None:
                copy.load_state_dict(state[name])
        for queue, saved in zip(self.queues or (), state["queues"], strict=True):
            queue.load_state_dict(saved)
        self.counts.copy_(state["counts"])
        self.feed.load_state_dict(state["feeds"][self.accelerator.process_index])


def signs(vectors: Tensor) -> dict[str, float]:
    """Return the active words of (N, V) unit vectors (``words``) and their mean's norm (``alike``).

    ``alike`` is 1 if all vectors are equal.
    """
    vectors = vectors.detach()
    active = (vectors > vectors.shape[1] ** -0.5).sum(1).float().mean()
    return {"words": float(active), "alike": float(vectors.mean(0).norm())}


def check_health(step: int, parts: Mapping[str, float]) -> None:
    """Raise `ModelError` if the loss is not finite or the vectors have collapsed.

    ``parts`` holds ``loss``, the norm ``gradient``, and the result of `signs`.
    """
    if not math.isfinite(parts["loss"]) or not math.isfinite(parts["gradient"]):
        rule = f"the loss is {parts['loss']} and the gradient {parts['gradient']}"
        raise ModelError(f"step {step}: {rule}; try a lower rate or a longer warmup")
    if step > _FROM and parts["words"] < 1:
        raise ModelError(f"step {step}: vectors have no active word left; try a lower penalty")
    if step > _FROM and parts["alike"] > _ALIKE:
        raise ModelError(f"step {step}: all images have the same vector; try a lower rate")


@torch.no_grad()
def forget(optimizer: torch.optim.Optimizer, weight: Tensor, rows: Tensor) -> None:
    """Clear the optimiser's moments of rows that were replaced."""
    for moment in optimizer.state.get(weight, {}).values():
        if isinstance(moment, Tensor) and moment.shape == weight.shape:
            moment[rows] = 0


def initialise_codes(codebook: Codebook, rows: Tensor, seed: int) -> None:
    """Set the codes to cluster centres of (n, width) teacher vectors."""
    place = rows.device
    codebook.cpu().initialise(rows.cpu(), torch.Generator().manual_seed(seed))
    codebook.to(place)


def reseed_codes(
    codebook: Codebook, counts: Tensor, rows: Tensor, optimizer: torch.optim.Optimizer, seed: int
) -> None:
    """Replace unused codes by some of the rows, and reset the counts."""
    generator = torch.Generator(rows.device).manual_seed(seed)
    forget(optimizer, codebook.codes, codebook.reseed(counts, rows, generator))
    counts.zero_()


def recluster_proxies(
    proxies: HierarchicalProxy, optimizer: torch.optim.Optimizer, seed: int
) -> None:
    """Recluster proxies without a given tree (HPL)."""
    device = proxies.parents(0).device
    moved = proxies.recluster(torch.Generator(device).manual_seed(seed))
    for level, rows in zip(list(proxies.levels)[1:], moved, strict=True):
        forget(optimizer, level.get_parameter("proxies"), rows)
