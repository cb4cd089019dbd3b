"""``lexvla compact``."""

from __future__ import annotations

from dataclasses import dataclass

from lexvla_indexer import open_index
from lexvla_search.cli.arguments import IndexOptions, JsonOptions
from lexvla_search.cli.console import print_facts, print_json


@dataclass(frozen=True)
class Options(IndexOptions, JsonOptions):
    """Which index to compact."""


def run(options: Options) -> int:
    """Merge an index's parts into one, without the deleted items."""
    with open_index(options.index) as target:
        target.compact()
        facts = target.info()
    (print_json if options.json else print_facts)(facts)
    return 0
