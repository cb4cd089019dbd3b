"""What a training run on image-text pairs is made of, read from a TOML file."""

from __future__ import annotations

import inspect
import tomllib
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from lexvla.config import LexVLAConfig
from lexvla.errors import InputError
from lexvla.model import LexVLA
from lexvla.training.objective import Losses

__all__ = ["Data", "PairRecipe", "Run"]

KINDS = ("captions", "karpathy", "hugging_face", "webdataset")
Section = TypeVar("Section")


@dataclass(frozen=True)
class Data:
    """Say where the pairs are.

    Attributes:
        kind: ``captions``, ``karpathy``, ``hugging_face`` or ``webdataset``.
        path: A file, folder, name or pattern; see `lexvla.data`.
        batch_size: Pairs of a process in one contrast.
        workers: Threads that decode.
        options: More arguments of the source, such as ``split``.
    """

    kind: str
    path: str
    batch_size: int = 64
    workers: int = 4
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """Say how long and how fast to train.

    Attributes:
        steps: Optimiser steps.
        rate: Peak learning rate (LexVLA: 5e-4).
        lora_rate: That of LoRA, if another.
        weight_decay: Of matrices; vectors and temperatures have none.
        warmup: Steps of the linear warm-up; a cosine to 0 follows.
        clip: Largest norm of the gradient.
        accumulate: Batches, each with a contrast of its own, that one step sums.
        parts: Parts in which a batch goes through the model, by gradient caching: a contrast over
            all of it in the memory of one.
        bfloat16: Whether to compute under autocast.
        crop: Smallest share of an image that a view shows.
        jitter: Strength of random brightness, contrast and colour.
        save_every: Steps between checkpoints.
        seed: All that is random follows from it.
        device: ``cpu``, or whatever accelerate finds.
        threads: Threads of torch on a CPU; 0 leaves them as they are.
        tensorboard: Whether to write TensorBoard's logs too.
    """

    steps: int
    rate: float = 5e-4
    lora_rate: float | None = None
    weight_decay: float = 0.0
    warmup: int = 500
    clip: float = 1.0
    accumulate: int = 1
    parts: int = 1
    bfloat16: bool = True
    crop: float = 0.9
    jitter: float = 0.0
    save_every: int = 500
    seed: int = 0
    device: str = ""
    threads: int = 0
    tensorboard: bool = False


@dataclass(frozen=True)
class PairRecipe:
    """Settings of a run on image-text pairs.

    Attributes:
        output: Folder of log, checkpoint and finished model.
        model: Either ``start``, a saved model to go on from, or ``text_model`` and
            ``vision_model`` with other arguments of `LexVLA.from_backbones`.
        data: The pairs.
        loss: Weights of the losses.
        train: The run.
    """

    output: str
    model: dict[str, Any]
    data: Data
    loss: Losses
    train: Run

    @classmethod
    def load(cls, path: str | Path) -> PairRecipe:
        """Read a recipe.

        Raises:
            InputError: The file cannot be read, or holds an unknown key or a value that is of the
                wrong type or out of its range.
        """
        name = str(path)
        try:
            values = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise InputError(name, f"no readable recipe ({error})") from error
        unknown = sorted(values.keys() - {each.name for each in fields(cls)})
        if unknown:
            raise InputError(name, f"unknown key {unknown[0]!r}")
        recipe = cls(
            output=values.get("output", f"runs/{Path(path).stem}"),
            model=_model(values.get("model", {}), name),
            data=_section(Data, values.get("data"), f"{name} [data]"),
            loss=_section(Losses, values.get("loss", {}), f"{name} [loss]"),
            train=_section(Run, values.get("train"), f"{name} [train]"),
        )
        recipe._check(name)
        return recipe

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as a checkpoint keeps them."""
        return asdict(self)

    def _check(self, name: str) -> None:
        data, loss, train = self.data, self.loss, self.train
        rules = {
            f"[data] kind must be one of {', '.join(KINDS)}": data.kind in KINDS,
            "[data] batch_size must be at least 2: one pair has nothing to be told from": (
                data.batch_size >= 2
            ),
            "[train] steps, save_every, accumulate and parts must be at least 1": (
                min(train.steps, train.save_every, train.accumulate, train.parts) >= 1
            ),
            "[train] parts must not be more than the batch": train.parts <= data.batch_size,
            "[train] rate and clip must be above 0": train.rate > 0 and train.clip > 0,
            "[train] crop must be above 0 and at most 1": 0 < train.crop <= 1,
            "[train] jitter must be from 0 to 1": 0 <= train.jitter <= 1,
            "[train] warmup and threads, and [data] workers, must not be below 0": (
                min(train.warmup, train.threads, data.workers) >= 0
            ),
            "[loss] alpha and teacher_decay must be from 0 to 1": (
                0 <= loss.alpha <= 1 and 0 <= loss.teacher_decay <= 1
            ),
            "[loss] temperature must be above 0": loss.temperature > 0,
            "[loss] recluster_every must be at least 1": loss.recluster_every >= 1,
            "[loss] counts of steps must not be below 0": (
                min(loss.penalty_ramp, loss.alpha_ramp, loss.codis_from, loss.reseed_every) >= 0
            ),
            "[loss] weights must not be below 0": all(
                value >= 0 for value in asdict(loss).values() if isinstance(value, float)
            ),
            "[loss] queue must hold a batch": (
                not loss.needs_teacher or loss.queue >= data.batch_size
            ),
            "[loss] all weights are 0": loss.lexical > 0 or loss.needs_dense,
        }
        for rule, kept in rules.items():
            if not kept:
                raise InputError(name, rule)


def _section(kind: type[Section], values: Any, name: str) -> Section:
    if not isinstance(values, dict):
        raise InputError(name, "is missing")
    types = get_type_hints(kind)
    for key, value in values.items():
        if key not in types:
            raise InputError(name, f"unknown key {key!r}")
        if not _fits(value, types[key]):
            raise InputError(name, f"{key} must be {_named(types[key])}, not {value!r}")
    try:
        return kind(**{k: float(v) if types[k] is float else v for k, v in values.items()})
    except TypeError as error:  # a key without a default
        raise InputError(name, str(error).partition("__init__() ")[2]) from error


def _named(kind: Any) -> str:
    if choices := get_args(kind):
        return " or ".join(repr(c) if isinstance(c, str) else _named(c) for c in choices)
    return str(getattr(kind, "__name__", kind))


def _fits(value: Any, kind: Any) -> bool:
    if get_origin(kind) is dict:
        return isinstance(value, dict)
    if choices := get_args(kind):  # a Literal, or a type or None
        return any(value == c if isinstance(c, str) else _fits(value, c) for c in choices)
    if kind is float:
        return type(value) in (int, float)
    return type(value) is kind  # True and False are no numbers to the one who writes a recipe


def _model(values: dict[str, Any], name: str) -> dict[str, Any]:
    if "start" in values:
        # Not dtype: a small step is lost in 16 bits; bfloat16 of [train] is for computing.
        known = {"start", *inspect.signature(LexVLA.from_pretrained).parameters} - {"dtype"}
    else:
        known = set(inspect.signature(LexVLA.from_backbones).parameters)
        known |= set(inspect.signature(LexVLAConfig.__init__).parameters)
        for key in ("text_model", "vision_model"):
            if key not in values:
                raise InputError(name, f"[model] needs {key}, or start")
    known -= {"self", "config", "kwargs", "path", "device"}
    if unknown := sorted(values.keys() - known):
        raise InputError(name, f"[model] unknown key {unknown[0]!r}")
    return values
