"""``lexvla export``."""

from __future__ import annotations

from dataclasses import dataclass

from lexvla.errors import OptionalDependencyError
from lexvla_search.cli.arguments import JsonOptions, not_empty, option, positional
from lexvla_search.cli.console import print_json


@dataclass(frozen=True)
class Options(JsonOptions):
    """What to export, and where to."""

    model: str = positional("a saved model", metavar="MODEL")
    out: str = option(
        "folder for it and its graphs, which may be its own",
        type=not_empty,
        required=True,
        metavar="DIR",
    )


def run(options: Options) -> int:
    """Write a model with ONNX graphs, which run without torch."""
    try:
        from lexvla.onnx_export import export_model
    except ModuleNotFoundError as error:
        raise OptionalDependencyError(error.name or "a package", "export") from error
    export_model(options.model, options.out)
    if options.json:
        print_json({"model": options.out})
    else:
        print(f"the model is in {options.out}")
    return 0
