"""``lexvla delete``."""

from __future__ import annotations

from dataclasses import dataclass

from lexvla.errors import InputError
from lexvla_indexer import open_index
from lexvla_search.cli.arguments import IndexOptions, JsonOptions, positional
from lexvla_search.cli.console import note, print_json


@dataclass(frozen=True)
class Options(IndexOptions, JsonOptions):
    """Which items to delete."""

    ids: list[str] = positional("the items' ids", metavar="ID", nargs="+")


def run(options: Options) -> int:
    """Delete items by id. Fail if one of them was not there, after deleting the others."""
    ids = list(dict.fromkeys(options.ids))
    with open_index(options.index) as target:
        known = target.fingerprints(ids)
        missing = [name for name in ids if name not in known]
        deleted = target.delete(ids)
        target.commit()
        count = target.count()
    if options.json:
        print_json({"deleted": deleted, "missing": missing, "documents": count})
    else:
        print(f"{deleted:,} deleted; {count:,} in the index")
    for name in missing:
        note(f"lexvla: error: {InputError(name, 'the index has no such id')}")
    return 1 if missing else 0
