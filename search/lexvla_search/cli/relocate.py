"""``lexvla relocate``."""

from __future__ import annotations

import os
from dataclasses import dataclass

from lexvla_indexer import open_index
from lexvla_indexer.relocating import relocate
from lexvla_search.cli.arguments import IndexOptions, JsonOptions, not_empty, option
from lexvla_search.cli.console import print_json


@dataclass(frozen=True)
class Options(IndexOptions, JsonOptions):
    """Which folder moved, and where to."""

    root: str = option("where the folder lies now", type=not_empty, required=True, metavar="DIR")
    old: str | None = option(
        "where it lay, if the index has several folders", type=not_empty, metavar="DIR"
    )


def run(options: Options) -> int:
    """Note where a folder of an index lies now; its items are found there, and keep their ids."""
    with open_index(options.index) as target:
        was = relocate(target, options.root, options.old)
    now = os.path.realpath(options.root)
    if options.json:
        print_json({"index": options.index, "old": was, "root": now})
    elif was == now:
        print(f"{now} is where the index looks for it already")
    else:
        print(f"{was} is {now} now; nothing was encoded")
    return 0
