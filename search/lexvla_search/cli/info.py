"""``lexvla info``."""

from __future__ import annotations

from dataclasses import dataclass

from lexvla_indexer import open_index
from lexvla_indexer.roots import Roots
from lexvla_search.cli.arguments import IndexOptions, JsonOptions, flag
from lexvla_search.cli.console import note, print_facts, print_json


@dataclass(frozen=True)
class Options(IndexOptions, JsonOptions):
    """Which index to describe, and whether to check it."""

    verify: bool = flag("read all files, and name damaged ones")


def _places(roots: Roots) -> list[tuple[str, str]]:
    """Return where each source lies, and what its ids start with besides paths."""
    return sorted((place.path, roots.prefix(key)) for key, place in roots.items())


def run(options: Options) -> int:
    """Print what an index holds. With --verify, fail if anything in it is damaged."""
    with open_index(options.index) as source:
        damage = source.verify() if options.verify else []
        facts = {} if damage else source.info()
        places = [] if damage else _places(Roots(source))
    if places and options.json:
        facts["sources"] = [{"path": path, "ids_start_with": start} for path, start in places]
    elif places:
        starts = (f" (ids start with {start})" if start else "" for _, start in places)
        facts["sources"] = ", ".join(p + s for (p, _), s in zip(places, starts, strict=True))
    if options.verify:
        facts["damage"] = damage if options.json else len(damage)
    (print_json if options.json else print_facts)(facts)
    for line in damage:
        note(f"lexvla: error: {line}")
    return 1 if damage else 0
