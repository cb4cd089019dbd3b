"""What a training run is made of, read from a TOML file."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field, fields
from itertools import pairwise
from pathlib import Path
from typing import Any

from lexvla.errors import InputError

__all__ = ["Recipe"]

_TYPES: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "float": (int, float),
    "bool": (bool,),
}
# Counts and divisors.
_ABOVE_ZERO = (
    "save_every",
    "width",
    "vision_layers",
    "text_layers",
    "heads",
    "patch_size",
    "pieces_below_words",
    "steps",
    "items_per_step",
    "threads",
    "temperature",
    "warmup",
    "overuse_ramp",
)


@dataclass(frozen=True)
class Recipe:
    """Settings of a run that trains a small LexVLA from random weights on drawings.

    Paths are relative to the working directory.
    """

    # data
    drawings: str
    styles: list[str]

    # output
    output: str = "runs/emoji"
    save_every: int = 250  # steps

    # model
    width: int = 192  # of both towers, and the lexical width
    vision_layers: int = 6
    text_layers: int = 3
    heads: int = 3
    patch_size: int = 8  # px
    # px of the views, smaller ones first; the last is the finished model's
    sides: list[int] = field(default_factory=lambda: [32, 48, 64])
    # share of the steps at which each side takes over
    sides_from: list[float] = field(default_factory=lambda: [0.0, 0.35, 0.85])
    pieces_below_words: int = 800
    drop_path: float = 0.1
    dropout: float = 0.1

    # run
    steps: int = 4200
    items_per_step: int = 128  # each with two drawings and two texts
    seed: int = 0
    threads: int = 2
    bfloat16: bool = True
    augmentation: float = 1.0
    average_decay: float = 0.998  # of the averaged weights, which are what is saved

    # optimisers
    muon_rate: float = 0.005
    adam_rate: float = 0.004
    weight_decay: float = 0.05
    warmup: int = 60  # steps
    clip: float = 1.0

    # losses
    temperature: float = 0.07
    own_words_weight: float = 1.0
    text_to_image_weight: float = 1.0
    image_to_text_weight: float = 1.0
    image_to_image_weight: float = 0.5
    contrast_from: int = 40  # step at which the contrast begins
    memory_weight: float = 0.5
    memory_from: int = 600  # step at which the contrast with all remembered items begins
    overuse_image: float = 5e-4  # LexVLA's lambda_I
    overuse_text: float = 1e-3  # LexVLA's lambda_T
    overuse_ramp: int = 2000  # steps, quadratic

    @classmethod
    def load(cls, path: str | Path) -> Recipe:
        """Read a recipe.

        Raises:
            InputError: The file cannot be read, or holds an unknown key or a value of a wrong type.
        """
        try:
            values: dict[str, Any] = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise InputError(str(path), f"no readable recipe ({error})") from error
        known = {each.name: str(each.type) for each in fields(cls)}
        for key, value in values.items():
            if key not in known:
                raise InputError(str(path), f"unknown key {key!r}")
            if not _is_of_type(value, known[key]):
                raise InputError(str(path), f"{key} must be of type {known[key]}")
        missing = [key for key in ("drawings", "styles") if key not in values]
        if missing:
            raise InputError(str(path), f"lacks {', '.join(missing)}")
        recipe = cls(**values)
        recipe._check(str(path))
        return recipe

    def _check(self, name: str) -> None:
        for key in _ABOVE_ZERO:
            if getattr(self, key) <= 0:
                raise InputError(name, f"{key} must be above zero")
        if not self.styles or not self.sides:
            raise InputError(name, "styles and sides must not be empty")
        rising = all(a <= b for a, b in pairwise(self.sides_from))
        if len(self.sides) != len(self.sides_from) or self.sides_from[0] != 0 or not rising:
            raise InputError(
                name, "sides and sides_from must pair up, and the latter rise from 0.0"
            )
        if any(side < 1 or side % self.patch_size for side in self.sides):
            raise InputError(name, f"sides must be multiples of {self.patch_size}")
        if self.width % (2 * self.heads):
            raise InputError(name, "width must be a multiple of twice the heads")


def _is_of_type(value: Any, name: str) -> bool:
    if name.startswith("list["):
        inner = name.removeprefix("list[").removesuffix("]")
        return isinstance(value, list) and all(_is_of_type(each, inner) for each in value)
    # True and False are integers to Python, and not to the one who writes a recipe.
    return type(value) in _TYPES[name]
