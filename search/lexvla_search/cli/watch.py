"""``lexvla watch``."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from lexvla.errors import InputError
from lexvla_indexer import open_index
from lexvla_indexer.watching import MOST_SECONDS, watch_folder
from lexvla_search.cli.arguments import (
    IndexOptions,
    ModelOptions,
    flag,
    not_empty,
    option,
    positional,
)
from lexvla_search.cli.console import INTERRUPTED, note
from lexvla_search.cli.query import finite
from lexvla_search.cli.source import ReadingOptions, exit_code, in_words
from lexvla_search.cli.stopping import stopping


def _seconds(text: str) -> float:
    value = finite(text)
    if not 0 <= value <= MOST_SECONDS:
        rule = f"must be seconds from 0 to {MOST_SECONDS:g}"
        raise argparse.ArgumentTypeError(f"{rule}, not {text!r}")
    return value


@dataclass(frozen=True)
class Options(ReadingOptions, IndexOptions, ModelOptions):
    """Which folder to follow, and how soon."""

    folder: str = positional("a folder of images", metavar="FOLDER", type=not_empty)
    quiet: float = option(
        "index changes after S seconds without another (2)", type=_seconds, default=2.0, metavar="S"
    )
    prune_anyway: bool = flag("delete what is gone, however much it is")


def run(options: Options) -> int:
    """Index a folder and follow its changes until Ctrl-C."""
    if not Path(options.folder).is_dir():  # before the model is loaded
        raise InputError(options.folder, "is not a folder")
    model = options.load_model(introduce=True)
    with stopping() as stop:
        for report in watch_folder(
            options.folder,
            lambda: open_index(
                options.index, create=True, vocabulary=model.vocabulary, model=model.name
            ),
            model,
            stop,
            quiet_seconds=options.quiet,
            batch_size=options.batch_size,
            prune_anyway=options.prune_anyway,
            reading=options.reading,
        ):
            print(in_words(report, "unchanged"), flush=True)
            exit_code(report, strict=False, failure="")  # tells what was left out
    note(f"lexvla: {options.folder} is not watched any more")
    return INTERRUPTED
