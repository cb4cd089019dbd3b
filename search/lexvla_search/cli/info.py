"""``lexvla info``."""

from __future__ import annotations

from dataclasses import dataclass

from lexvla_indexer import open_index
from lexvla_search.cli.arguments import IndexOptions, JsonOptions, flag
from lexvla_search.cli.console import note, print_facts, print_json


@dataclass(frozen=True)
class Options(IndexOptions, JsonOptions):
    """Which index to describe, and whether to check it."""

    verify: bool = flag("read all files, and name damaged ones")


def run(options: Options) -> int:
    """Print what an index holds. With --verify, fail if anything in it is damaged."""
    with open_index(options.index) as source:
        damage = source.verify() if options.verify else []
        facts = {} if damage else source.info()
    if options.verify:
        facts["damage"] = damage if options.json else len(damage)
    (print_json if options.json else print_facts)(facts)
    for line in damage:
        note(f"lexvla: error: {line}")
    return 1 if damage else 0
