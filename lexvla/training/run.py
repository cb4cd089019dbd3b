"""Run a recipe, whichever of the two kinds it is."""

from __future__ import annotations

import tomllib
from pathlib import Path

from lexvla.training.pair_recipe import PairRecipe
from lexvla.training.pair_trainer import PairTrainer
from lexvla.training.trainer import train as train_on_drawings

__all__ = ["train"]


def train(recipe_path: str | Path, resume: bool = False) -> Path:
    """Run a recipe to its end and return the folder of the finished model.

    Args:
        recipe_path: A TOML file: with a section ``[data]`` a `PairRecipe`, else a `Recipe`, which
            trains a small model on drawings.
        resume: Go on from the last checkpoint in the recipe's output folder.

    Raises:
        InputError: The recipe or its data cannot be used.
        ModelError: A model cannot be loaded, the vectors collapsed, or a loss is not finite.
    """
    try:
        pairs = "data" in tomllib.loads(Path(recipe_path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError):
        pairs = False  # read once more below, which says what is wrong
    if not pairs:
        return train_on_drawings(recipe_path, resume)
    trainer = PairTrainer(PairRecipe.load(recipe_path))
    if resume:
        trainer.resume()
    return trainer.run()
