"""``lexvla rollback``."""

from __future__ import annotations

from dataclasses import dataclass

from lexvla_indexer import open_index
from lexvla_search.cli.arguments import IndexOptions, JsonOptions, not_empty, option
from lexvla_search.cli.console import print_json


@dataclass(frozen=True)
class Options(IndexOptions, JsonOptions):
    """Which index to take back, and to which."""

    to: str | None = option(
        "the kept index to go to (default: the one before)", type=not_empty, metavar="NAME"
    )


def run(options: Options) -> int:
    """Let searches find the index from before a rebuild."""
    with open_index(options.index) as target:
        name = target.rollback(options.to)
        count = target.count()
    if options.json:
        print_json({"index": options.index, "now": name, "documents": count})
    else:
        print(f"{options.index} is now {name}; {count:,} in the index")
    return 0
