"""Train a LexVLA of any size on image-text pairs, by the losses of four papers."""

from __future__ import annotations

import json
import logging
import math
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor
from tqdm import tqdm

from lexvla.codebook import code_counts, count_dead_codes
from lexvla.data.loader import Batch, PairLoader
from lexvla.data.pairs import ShardedSource
from lexvla.errors import InputError, ModelError
from lexvla.features import Features
from lexvla.preprocessing import to_pixels
from lexvla.training.checkpoint import differences, load_checkpoint, save_checkpoint
from lexvla.training.clusters import initialise_codes, recluster_proxies, reseed_codes
from lexvla.training.gathering import gather_rows, share_state
from lexvla.training.gradient_cache import cached_backward
from lexvla.training.health import check_health, signs
from lexvla.training.objective import Objective, TeacherView, dense
from lexvla.training.pair_recipe import PairRecipe
from lexvla.training.sources import classes_of, open_source, parents_of
from lexvla.training.start import parameter_groups, start_model
from lexvla.training.teacher import FeatureQueue, Teacher
from lexvla.training.views import random_view

__all__ = ["PairTrainer"]

logger = logging.getLogger(__name__)
LOCALS = ("locals", "mask")


class PairTrainer:
    """Hold all that a run changes; several processes by ``accelerate launch``.

    All that is random in a step follows from the seed, the step and the process alone, so a run
    that was killed and resumed is the same run.

    Raises:
        InputError: The recipe or its data cannot be used.
        ModelError: A model cannot be loaded.
    """

    def __init__(self, recipe: PairRecipe) -> None:
        run, loss = recipe.train, recipe.loss
        self.recipe = recipe
        if run.threads:
            torch.set_num_threads(run.threads)
        torch.manual_seed(run.seed)
        # Its own mixed precision is one for the whole life of a process, not one a run.
        self.accelerator = Accelerator(mixed_precision="no", cpu=run.device == "cpu")
        self.device = self.accelerator.device
        self.world = self.accelerator.num_processes
        self.model = start_model(recipe, self.device)
        source = open_source(recipe.data)
        classes = classes_of(source) if loss.proxy else []
        self.labels = {name: number for number, name in enumerate(classes)}
        parents = None
        if loss.proxy and loss.tree and not isinstance(source, ShardedSource):
            parents = parents_of(source, classes)
        self.loader = PairLoader(
            source,
            recipe.data.batch_size,
            seed=run.seed,
            drop_last=True,
            workers=recipe.data.workers,
            rank=self.accelerator.process_index,
            world_size=self.world,
            require_labels=loss.proxy > 0,
            skipped_path=Path(recipe.output) / "skipped.jsonl",
        )
        self.batches: Any = self.loader.forever()
        width = self.model.config.dense_width
        self.objective = Objective(loss, width, len(classes), parents).to(self.device)
        self.teacher: Teacher | None = None
        self.queues: tuple[FeatureQueue, FeatureQueue] | None = None
        if loss.needs_teacher:
            self._check_queue()
            self.teacher = Teacher(self.model, loss.teacher_decay)
            self.queues = (
                FeatureQueue(loss.queue, width, run.seed, self.device),
                FeatureQueue(loss.queue, width, run.seed + 1, self.device),
            )
        self.counts = torch.zeros(self.model.config.codebook_size, dtype=torch.long)
        self.counts = self.counts.to(self.device)
        optimizer = torch.optim.AdamW(
            parameter_groups(self.model, self.objective, run), betas=(0.9, 0.98)
        )
        self.rates = [group["lr"] for group in optimizer.param_groups]
        # Codes are used by the loss, not by the forward pass, where DDP would wait for them.
        self.model._ddp_params_and_buffers_to_ignore = ["codebook.codes"]
        self.wrapped, self.optimizer = self.accelerator.prepare(self.model, optimizer)
        self.step = 0
        self.pool = ThreadPoolExecutor(max(1, recipe.data.workers))
        self.output = Path(recipe.output)
        self.output.mkdir(parents=True, exist_ok=True)

    def _check_queue(self) -> None:
        loss, batch = self.recipe.loss, self.recipe.data.batch_size * self.world
        if loss.queue < batch:
            raise InputError(
                "[loss] queue", f"must hold a batch of all processes, which is {batch}"
            )
        rows, codes = 2 * self._filled(loss.codis_from), self.model.config.codebook_size
        if loss.codis and loss.codis_from and rows < codes:
            rule = f"is too early: the queues hold {rows} vectors then, for {codes} codes"
            raise InputError("[loss] codis_from", rule)

    def run(self) -> Path:
        """Take the remaining steps, save the model and return its folder."""
        run, main = self.recipe.train, self.accelerator.is_main_process
        writer = self._tensorboard() if run.tensorboard and main else None
        path = self.output / "log.jsonl"
        # Steps that were taken after the checkpoint are taken, and logged, again.
        old = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
        off = None if main else True
        bar = tqdm(total=run.steps, initial=self.step, disable=off, unit="step")
        with path.open("w" if main else "a", encoding="utf-8") as log, bar:
            if main:
                log.writelines(old[: self.step])
            while self.step < run.steps:
                start = time.monotonic()
                parts = self.train_step()
                self.step += 1
                check_health(self.step, parts)
                parts["seconds"] = time.monotonic() - start
                bar.update()
                bar.set_postfix(
                    {k: f"{parts[k]:.3g}" for k in ("loss", "words", "dead") if k in parts}
                )
                if main:
                    log.write(json.dumps({"step": self.step, **parts}) + "\n")
                if writer is not None:
                    for name, value in parts.items():
                        writer.add_scalar(name, value, self.step)
                if self.step % run.save_every == 0:
                    log.flush()
                    self.save_checkpoint()
        self.batches.close()
        self.pool.shutdown()
        folder = self.output / "model"
        if main:
            self.model.eval().save_pretrained(folder)
        self.accelerator.wait_for_everyone()
        return folder

    def _tensorboard(self) -> Any:
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(str(self.output))

    def train_step(self) -> dict[str, float]:
        """Take one optimiser step and return the parts of its loss, and signs of health."""
        run = self.recipe.train
        self.wrapped.train()
        factor = min((self.step + 1) / max(1, run.warmup), 1.0)
        factor *= 0.5 + 0.5 * math.cos(math.pi * self.step / run.steps)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
        if self.teacher is not None:
            self.teacher.update(self.model)
        totals: dict[str, float] = {}
        for micro in range(run.accumulate):
            last = micro + 1 == run.accumulate
            for name, value in self._micro_step(micro, last).items():
                totals[name] = totals.get(name, 0.0) + value / run.accumulate
        self._share_gradients()
        trained = [p for group in self.optimizer.param_groups for p in group["params"]]
        totals["gradient"] = float(self.accelerator.clip_grad_norm_(trained, run.clip))
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.objective.clamp()
        if self.model.codebook is not None and self.recipe.loss.codis:
            self.model.codebook.renormalise()
            if self.step >= self.recipe.loss.codis_from:
                totals["dead"] = float(count_dead_codes(self.counts))
        self._tend_clusters()
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
                    reseed_codes(codebook, self.counts, rows, self.optimizer.optimizer, seed)
                share_state([codebook.codes.data])
        proxies = self.objective.proxies
        if proxies is None or proxies.given or len(proxies.levels) == 1:
            return
        if taken % loss.recluster_every == 0 and taken <= self.recipe.train.steps // 2:
            recluster_proxies(proxies, self.optimizer.optimizer, seed)
            share_state(list(proxies.state_dict().values()))

    def _filled(self, steps: int) -> int:
        """Return how many rows of a queue hold vectors of items after some steps."""
        rows = steps * self.recipe.train.accumulate * self.recipe.data.batch_size * self.world
        return min(rows, self.recipe.loss.queue)

    def _micro_step(self, micro: int, last: bool) -> dict[str, float]:
        """Let one batch add its gradient."""
        run, loss = self.recipe.train, self.recipe.loss
        batch = next(self.batches)
        ids = self.model.prompt_ids(batch.texts)
        pixels = self._pixels(batch, micro, view=0)
        seen = self._look(batch, ids, micro)
        labels = None
        if loss.proxy:
            numbers = torch.tensor([self.labels[str(name)] for name in batch.labels])
            labels = gather_rows(numbers.to(self.device))
        codes = self.model.codebook.codes if loss.codis and self.model.codebook else None
        if self.step < loss.codis_from:
            codes = None
        parts: dict[str, float] = {}

        def forward(number: int, span: slice) -> list[Tensor]:
            # The same dropout in both passes of the gradient cache, and after a resumption.
            torch.manual_seed(self._seed(micro, number, 7))
            with self._autocast():
                features = self.wrapped(pixels[span], ids[span], dense=loss.needs_dense)
            return [part for each in features for part in each[:2] if part is not None]

        def value(columns: list[Tensor]) -> Tensor:
            both = [gather_rows(column) for column in columns]
            half = len(both) // 2
            image, text = Features(*both[:half]), Features(*both[half:])
            terms = self.objective(image, text, self.step, codes, seen, labels)
            total = torch.stack(list(terms.values())).sum()
            parts.update({name: float(term.detach()) for name, term in terms.items()})
            parts.update(loss=float(total.detach()), **signs(image.lexical))
            return total / run.accumulate

        size = math.ceil(len(batch) / run.parts)
        spans = [slice(start, start + size) for start in range(0, len(batch), size)]
        with nullcontext() if last else self._no_sync():
            if len(spans) == 1:
                self.accelerator.backward(value(forward(0, spans[0])))
            else:
                steps = [partial(forward, n, span) for n, span in enumerate(spans)]
                cached_backward(steps, value, self.accelerator.backward, self._no_sync)
        if seen is not None and self.queues is not None:
            for queue, each in zip(self.queues, (seen.image, seen.text), strict=True):
                queue.push(dense(each))
            if codes is not None:
                both = torch.cat([dense(seen.image), dense(seen.text)])
                self.counts += code_counts(both, codes)
        return parts

    def _pixels(self, batch: Batch, micro: int, view: int) -> Tensor:
        """Return one random view of each image, the same whenever this step is taken."""
        config, run = self.model.config, self.recipe.train

        def make(number: int) -> np.ndarray:
            rng = np.random.default_rng([self._seed(micro, view, 13), number])
            return random_view(batch.images[number], config.image_side, run.crop, run.jitter, rng)

        views = list(self.pool.map(make, range(len(batch))))
        return to_pixels(views, config.image_mean, config.image_std).to(self.device)

    def _look(self, batch: Batch, ids: list[list[int]], micro: int) -> TeacherView | None:
        """Return what the teacher sees of another view, by parts, and gathered."""
        if self.teacher is None or self.queues is None:
            return None
        pixels = self._pixels(batch, micro, view=1)
        local = self.recipe.loss.tcl_local > 0
        torch.manual_seed(self._seed(micro, 0, 17))
        with self._autocast():
            seen = self.teacher(self.model, pixels, ids, dense=True, locals=local)
        if local and self.world > 1:  # texts of other processes may be longer
            pad = self.accelerator.pad_across_processes
            padded = {name: pad(getattr(seen[1], name), 1) for name in LOCALS}
            seen = (seen[0], seen[1]._replace(**{**padded, "mask": padded["mask"].bool()}))
        image, text = (
            each._replace(**{k: gather_rows(v) for k, v in each._asdict().items() if v is not None})
            for each in seen
        )
        return TeacherView(image, text, *(queue.newest() for queue in self.queues))

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
        """Average what DDP does not see; it is equal everywhere but for rounding."""
        if self.world == 1:
            return
        weights = list(self.objective.parameters())
        if self.model.codebook is not None:
            weights.append(self.model.codebook.codes)
        for weight in weights:
            if weight.grad is not None:
                weight.grad = self.accelerator.reduce(weight.grad, "mean")

    def state(self) -> dict[str, Any]:
        """Return all that a resumed run needs."""
        trained = {n: p.detach() for n, p in self.model.named_parameters() if p.requires_grad}
        return {
            "recipe": self.recipe.to_dict(),
            "step": self.step,
            "model": trained,
            "objective": self.objective.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "teacher": None if self.teacher is None else self.teacher.state_dict(),
            "queues": [queue.state_dict() for queue in self.queues or ()],
            "counts": self.counts,
            "loaders": gather_object([self.loader.state_dict()]),
        }

    def save_checkpoint(self) -> None:
        """Write the state; an earlier checkpoint stays until the new one is whole.

        Raises:
            ModelError: It cannot be written.
        """
        state = self.state()
        if self.accelerator.is_main_process:
            save_checkpoint(self.output / "checkpoint.pt", state)
        self.accelerator.wait_for_everyone()

    def resume(self) -> None:
        """Go on from the last checkpoint; without one, start anew.

        Raises:
            ModelError: The checkpoint is damaged, or of another recipe or number of processes.
            InputError: The data are not those of the checkpoint.
        """
        path = self.output / "checkpoint.pt"
        if not path.exists():
            logger.info("no checkpoint in %s: starting anew", self.output)
            return
        state = load_checkpoint(path)
        changed = list(differences(state["recipe"], self.recipe.to_dict()))
        if changed:
            raise ModelError(f"{path}: made with other settings: {'; '.join(changed)}")
        if len(state["loaders"]) != self.world:
            rule = f"made by {len(state['loaders'])} processes, and there are {self.world}"
            raise ModelError(f"{path}: {rule}")
        self.step = state["step"]
        weights = dict(self.model.named_parameters())
        with torch.no_grad():
            for name, weight in state["model"].items():
                weights[name].copy_(weight)
        self.objective.load_state_dict(state["objective"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.teacher is not None:
            self.teacher.load_state_dict(state["teacher"])
        for queue, saved in zip(self.queues or (), state["queues"], strict=True):
            queue.load_state_dict(saved)
        self.counts.copy_(state["counts"])
        self.loader.load_state_dict(state["loaders"][self.accelerator.process_index])
