"""``lexvla info``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from lexvla.errors import UnsupportedError
from lexvla_indexer import open_index
from lexvla_indexer.base import Index
from lexvla_indexer.roots import Roots
from lexvla_search.cli.arguments import IndexOptions, JsonOptions, ModelOptions, flag, option
from lexvla_search.cli.console import note, print_facts, print_json
from lexvla_search.searcher import Searcher

_SAMPLE = 1000  # documents, the first in the order of ids


@dataclass(frozen=True)
class Options(IndexOptions, ModelOptions, JsonOptions):
    """Which index to describe, whether to check it, and whose words to compare with vectors."""

    model: str | None = option(
        "the index's dual encoder: print how well its words describe images", metavar="M"
    )
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
        if options.model and not damage:
            facts["reconstruction"] = _reconstruction(source, options.load_model())
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


def _reconstruction(source: Index, model: Any) -> dict[str, Any]:
    """Return the mean cosine of stored images' vectors and the sums of their words."""
    Searcher(model, source)  # refuses a model that did not make these vectors
    if not hasattr(model, "reconstruction"):
        rule = "only a dual encoder such as CLIP forms words by reconstructing vectors"
        raise UnsupportedError(f"{model.name}: {rule}; leave --model out")
    documents = source.list_documents(limit=_SAMPLE).documents
    found = source.vectors([document.id for document in documents])
    rows = np.repeat(np.arange(len(found)), np.diff(found.lexical.indptr))
    places = np.full(len(rows), -1) if found.patches is None else found.patches
    images = np.unique(rows[places >= 0])  # texts' words have no patch
    if not len(images):
        return {"images": 0}
    return {"images": len(images), "cosine": float(model.reconstruction(found[images]).mean())}
