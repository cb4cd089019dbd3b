"""Recipes of training runs, as TOML files."""

from __future__ import annotations

import inspect
import tomllib
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from lexvla.config import LexVLAConfig
from lexvla.errors import InputError
from lexvla.torch_model import TorchLexVLA
from lexvla.training.objective import Losses
from lexvla.training.untrained import untrained_model

__all__ = ["Data", "Recipe", "Run"]

KINDS = ("captions", "drawings", "karpathy", "hugging_face", "webdataset")
NAMED = ("model_name", "knowledge")  # of a model that is trained further too
Section = TypeVar("Section")


@dataclass(frozen=True)
class Data:
    """The training data.

    Attributes:
        kind: ``captions``, ``karpathy``, ``hugging_face``, ``webdataset``, or ``drawings`` for
            emoji, each of which takes two rows of a batch.
        path: A file, folder, name or pattern; see `lexvla.data`.
        batch_size: Pairs of a process in one contrast.
        workers: Decoding threads.
        options: Other arguments of the source, such as ``split``.
        views: For drawings, a frozen vision model and a memory of concepts: cached views of each
            drawing; 0 draws new ones at every step, through the whole model.
        patches: Random patches of a cached view that a step uses; 0 for all.
        folds: Groups of styles, each left out of the memory that its own drawings are compared
            with; other styles are groups of their own.
        class_share: Share of a batch for the vision model's classes.
        noun_rows: Nouns without an image in each step.
    """

    kind: str
    path: str
    batch_size: int = 64
    workers: int = 4
    options: dict[str, Any] = field(default_factory=dict)
    views: int = 0
    patches: int = 0
    folds: list[list[str]] = field(default_factory=list)
    class_share: float = 0.0
    noun_rows: int = 0


@dataclass(frozen=True)
class Run:
    """The training loop.

    Attributes:
        steps: Optimiser steps.
        rate: Peak learning rate (LexVLA: 5e-4).
        lora_rate: That of LoRA, if another.
        muon_rate: That of the matrices inside towers and adapter, if those go to Muon instead of
            AdamW: for models that are trained as a whole.
        weight_decay: Of matrices; vectors and temperatures have none.
        warmup: Steps of the linear warm-up; a cosine to 0 follows. By default 500, or a tenth of
            the steps if that is less.
        text_first: Steps in which texts alone learn, from what a memory of concepts says of
            items.
        clip: Largest norm of the gradient.
        accumulate: Batches, each with its own contrast, that a step sums.
        parts: Parts of a batch for gradient caching: one contrast in the memory of a part.
        bfloat16: Whether to use autocast to bfloat16.
        crop: Smallest share of an image in a view.
        jitter: Strength of random brightness, contrast and colour; for drawings, of all changes.
        sides: Sides of the views in pixels, by default the model's; small ones first save time.
        sides_from: Share of the steps at which each side begins.
        average: Decay of a moving average of the weights, which is saved instead; 0 for none.
        half: Whether to save the model in 16-bit floats.
        save_every: Steps between checkpoints.
        seed: Seed of all randomness.
        device: ``cpu``; by default what accelerate finds.
        threads: CPU threads of torch; 0 for torch's default.
        tensorboard: Whether to write TensorBoard logs too.
    """

    steps: int
    rate: float = 5e-4
    lora_rate: float | None = None
    muon_rate: float | None = None
    weight_decay: float = 0.0
    warmup: int | None = None
    text_first: int = 0
    clip: float = 1.0
    accumulate: int = 1
    parts: int = 1
    bfloat16: bool = True
    crop: float = 0.9
    jitter: float = 0.0
    sides: list[int] = field(default_factory=list)
    sides_from: list[float] = field(default_factory=list)
    average: float = 0.0
    half: bool = False
    save_every: int = 500
    seed: int = 0
    device: Literal["", "cpu"] = ""
    threads: int = 0
    tensorboard: bool = False

    @property
    def warmup_steps(self) -> int:
        """Steps of the warm-up."""
        return min(500, self.steps // 10) if self.warmup is None else self.warmup


@dataclass(frozen=True)
class Recipe:
    """A training run.

    Attributes:
        output: Folder of log, checkpoint and finished model.
        model: ``start``, a saved model; or ``text_model`` and ``vision_model`` with other arguments
            of `LexVLA.from_backbones`; or arguments of `untrained_model`.
        data: The training data.
        loss: Weights and settings of the losses.
        train: The training loop.
    """

    output: str
    model: dict[str, Any]
    data: Data
    loss: Losses
    train: Run

    @classmethod
    def load(cls, path: str | Path) -> Recipe:
        """Read a recipe; an invalid one raises `InputError`."""
        name = str(path)
        try:
            values = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise InputError(name, f"the recipe cannot be read ({error})") from error
        unknown = sorted(values.keys() - {each.name for each in fields(cls)})
        if unknown:
            raise InputError(name, f"unknown key {unknown[0]!r}")
        for key, kind in (("output", str), ("model", dict)):
            if key in values and not isinstance(values[key], kind):
                raise InputError(name, f"{key} must be {kind.__name__}, not {values[key]!r}")
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
        """Return plain values for a checkpoint."""
        return asdict(self)

    def _check(self, name: str) -> None:
        data, loss, train = self.data, self.loss, self.train
        rules = {
            f"[data] kind must be one of {', '.join(KINDS)}": data.kind in KINDS,
            "[data] batch_size must be at least 2: a pair needs another to be contrasted with": (
                data.batch_size >= 2
            ),
            "[train] steps, save_every, accumulate and parts must be at least 1": (
                min(train.steps, train.save_every, train.accumulate, train.parts) >= 1
            ),
            "[train] parts must not be more than the batch": train.parts <= data.batch_size,
            "[train] parts must be 1 with [data] noun_rows": train.parts == 1 or not data.noun_rows,
            "[data] noun_rows need [loss] own_words": loss.own_words > 0 or not data.noun_rows,
            "[data] views, patches and noun_rows must not be below 0": (
                min(data.views, data.patches, data.noun_rows) >= 0
            ),
            "[train] text_first must not be below 0, and needs [data] views and [loss] memory": (
                train.text_first == 0
                or (train.text_first > 0 and data.views > 0 and loss.memory > 0)
            ),
            "[loss] item_words need [data] views and [loss] memory": (
                loss.item_words == 0 or (data.views > 0 and loss.memory > 0)
            ),
            "[loss] codis_from must leave text_first time to end and the queue time to fill": (
                not (train.text_first and loss.codis)
                or (loss.codis_from - train.text_first) * data.batch_size >= loss.queue
            ),
            "[data] views, patches, folds, class_share and noun_rows are for drawings": (
                data.kind == "drawings"
                or not any((data.views, data.patches, data.folds, data.class_share, data.noun_rows))
            ),
            "[data] class_share must be from 0, below 1": 0 <= data.class_share < 1,
            "[train] rate and clip must be above 0": train.rate > 0 and train.clip > 0,
            "[train] crop must be above 0 and at most 1": 0 < train.crop <= 1,
            "[train] jitter must be from 0 to 1": 0 <= train.jitter <= 1,
            "[train] average must be from 0, below 1": 0 <= train.average < 1,
            "[train] lora_rate and muon_rate must be above 0": all(
                rate is None or rate > 0 for rate in (train.lora_rate, train.muon_rate)
            ),
            "[train] weight_decay and seed must not be below 0": (
                train.weight_decay >= 0 and train.seed >= 0
            ),
            "[train] sides and sides_from must pair up, and the latter rise from 0.0": (
                len(train.sides) == len(train.sides_from)
                and train.sides_from == sorted(train.sides_from)
                and train.sides_from[:1] in ([], [0.0])
            ),
            "[train] sides must be above 0": all(side > 0 for side in train.sides),
            "[train] warmup and threads, and [data] workers, must not be below 0": (
                min(train.warmup_steps, train.threads, data.workers) >= 0
            ),
            "[loss] alpha and teacher_decay must be from 0 to 1": (
                0 <= loss.alpha <= 1 and 0 <= loss.teacher_decay <= 1
            ),
            "[loss] temperature must be above 0": loss.temperature > 0,
            "[loss] recluster_every must be at least 1": loss.recluster_every >= 1,
            "[loss] counts of steps must not be below 0": (
                min(loss.penalty_ramp, loss.alpha_ramp, loss.codis_from, loss.reseed_every) >= 0
                and loss.memory_from >= 0
            ),
            "[loss] weights must not be below 0": all(
                value >= 0 for value in asdict(loss).values() if isinstance(value, float)
            ),
            "[loss] queue must hold a batch": (
                not loss.needs_teacher or loss.queue >= data.batch_size
            ),
            "[loss] all weights are 0": (
                max(loss.lexical, loss.own_words, loss.memory, loss.image_pairs) > 0
                or loss.needs_dense
            ),
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
    if get_origin(kind) is list:
        return f"a list of {_named(get_args(kind)[0])}"
    if choices := get_args(kind):
        return " or ".join(repr(c) if isinstance(c, str) else _named(c) for c in choices)
    return str(getattr(kind, "__name__", kind))


def _fits(value: Any, kind: Any) -> bool:
    if get_origin(kind) is dict:
        return isinstance(value, dict)
    if get_origin(kind) is list:
        return isinstance(value, list) and all(_fits(each, get_args(kind)[0]) for each in value)
    if choices := get_args(kind):  # a Literal, or a type or None
        return any(value == c if isinstance(c, str) else _fits(value, c) for c in choices)
    if kind is float:
        return type(value) in (int, float)
    return type(value) is kind  # True and False are not numbers in a recipe


def _model(values: dict[str, Any], name: str) -> dict[str, Any]:
    if "start" in values:
        # Not dtype: small steps are lost in 16 bits; [train] bfloat16 is for computing.
        known = set(inspect.signature(TorchLexVLA.from_pretrained).parameters)
        known = (known | {"start", *NAMED}) - {"dtype"}
    else:
        build = untrained_model if "width" in values else TorchLexVLA.from_backbones
        known = set(inspect.signature(build).parameters)
        known |= set(inspect.signature(LexVLAConfig.__init__).parameters)
        if "width" not in values and not {"text_model", "vision_model"} <= values.keys():
            raise InputError(name, "[model] needs text_model and vision_model, or start, or width")
        if "width" in values:  # a named tower is not saved with the model
            known -= {"text_model"}
    known -= {"self", "config", "kwargs", "path", "device", "captions", "other_texts"}
    if unknown := sorted(values.keys() - known):
        raise InputError(name, f"[model] unknown key {unknown[0]!r}")
    return values
