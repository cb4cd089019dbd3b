"""``lexvla train``."""

from __future__ import annotations

from dataclasses import dataclass

from lexvla.errors import OptionalDependencyError
from lexvla_search.cli.arguments import JsonOptions, flag, positional
from lexvla_search.cli.console import print_json


@dataclass(frozen=True)
class Options(JsonOptions):
    """What to train."""

    recipe: str = positional("a TOML file", metavar="RECIPE")
    resume: bool = flag("continue from the last checkpoint")


def run(options: Options) -> int:
    """Train a model by a recipe."""
    try:
        from lexvla.training.trainer import train

        folder = train(options.recipe, resume=options.resume)
    except ModuleNotFoundError as error:
        raise OptionalDependencyError(error.name or "a package", "train") from error
    if options.json:
        print_json({"model": str(folder)})
    else:
        print(f"the model is in {folder}")
    return 0
