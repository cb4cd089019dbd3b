"""``lexvla detach``."""

from __future__ import annotations

from dataclasses import dataclass

from lexvla_indexer.elastic.connection import connect
from lexvla_indexer.elastic.filling import detach
from lexvla_search.cli.arguments import JsonOptions, not_empty, positional
from lexvla_search.cli.attach import ADDRESS, own_index
from lexvla_search.cli.console import print_json


@dataclass(frozen=True)
class Options(JsonOptions):
    """Which index to leave."""

    address: str = positional(ADDRESS, metavar="ADDRESS", type=not_empty)


def run(options: Options) -> int:
    """Take our fields out of the documents of an attached index."""
    address = own_index(options.address)
    with connect(address) as client:
        count = detach(client, address)
    if options.json:
        print_json({"index": options.address, "emptied": count})
    else:
        kept = "the mapping keeps the names of the fields, which a server cannot remove"
        print(f"took LexVLA's fields out of {count:,} documents; {kept}")
    return 0
