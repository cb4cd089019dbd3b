"""The commands over an index and a model. Each takes parsed arguments and returns an exit code."""

from __future__ import annotations

import argparse
import importlib.metadata
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from PIL import Image

from indexer import open_index
from indexer.base import Index
from lexvla.errors import (
    InputError,
    LexVLAError,
    OptionalDependencyError,
)
from lexvla.images import open_image
from search.console import UsageError, note, print_columns, print_json
from search.explanation import Explanation
from search.heatmap import heatmap, match_map, word_map
from search.query import Query
from search.searcher import Hit, Searcher

if TYPE_CHECKING:
    from lexvla import LexVLA

__all__ = [
    "compact",
    "delete",
    "explain",
    "info",
    "load_model",
    "search",
    "train",
    "version",
]

LABEL_WIDTH = 36
TABLE_ROWS = 20  # of one hit among several; `explain` and --json give all


def version() -> str:
    """Return the installed version."""
    try:
        return importlib.metadata.version("lexvla")
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


def load_model(path: str | None, device: str = "cpu") -> LexVLA:
    """Load a saved model, or the default one, onto a device.

    Raises:
        UnsupportedError: torch has no such device here.
        LexVLAError: A package that models need is missing or broken.
        ModelError: There is no whole model at the path.
    """
    try:
        from lexvla import LexVLA
    except ImportError as error:
        raise LexVLAError(f"models cannot be loaded ({error}); see: lexvla doctor") from error
    return LexVLA.from_pretrained(path, device=device)


def search(args: argparse.Namespace) -> int:
    """Print the best hits of a query."""
    query = _query(args)
    with open_index(args.index) as source:
        searcher = Searcher(load_model(args.model, args.device), source)
        # People always see the strongest words; programs get the explanation when they ask.
        hits = searcher.search(query, k=args.k, explain=args.explain or not args.json)
    if args.json:
        print_json({"query": _described(args), "hits": [hit.to_dict() for hit in hits]})
        return 0
    if not hits:
        note("lexvla: no hits")
    if args.explain:
        for hit in hits:
            print(f"{hit.rank}. {_one_line(hit.label)}  {hit.id}  score {hit.score:.4f}")
            print(hit.explanation.table(TABLE_ROWS) if hit.explanation else "", end="\n\n")
    else:
        print_columns(hit_rows(hits))
    return 0


def explain(args: argparse.Namespace) -> int:
    """Print one item's score in full, and draw where its words were read from."""
    query = _query(args)
    if args.word and not args.heatmap:
        raise UsageError("--word needs --heatmap")
    with open_index(args.index) as source:
        model = load_model(args.model, args.device)
        hit = Searcher(model, source).explain(query, args.id)
        if args.heatmap:
            _draw(model, source, hit, args.word).save(args.heatmap, format="PNG")
    if args.json:
        print_json({"query": _described(args), "hit": hit.to_dict(), "heatmap": args.heatmap})
        return 0
    place = "not among the best" if hit.rank is None else f"rank {hit.rank}"
    print(f"{_one_line(hit.label)}  {hit.id}  score {hit.score:.4f}  {place}")
    print(hit.explanation)
    if args.heatmap:
        note(f"lexvla: drew {args.heatmap}")
    return 0


def delete(args: argparse.Namespace) -> int:
    """Delete items by id. Fail if one of them was not there, after deleting the others."""
    ids = list(dict.fromkeys(args.ids))
    with open_index(args.index) as target:
        known = target.fingerprints(ids)
        missing = [name for name in ids if name not in known]
        deleted = target.delete(ids)
        target.commit()
        count = target.count()
    if args.json:
        print_json({"deleted": deleted, "missing": missing, "documents": count})
    else:
        print(f"{deleted:,} deleted; {count:,} in the index")
    for name in missing:
        note(f"lexvla: error: {InputError(name, 'the index has no such id')}")
    return 1 if missing else 0


def compact(args: argparse.Namespace) -> int:
    """Merge an index's parts into one, without the deleted items."""
    with open_index(args.index) as target:
        target.compact()
        facts = target.info()
    if args.json:
        print_json(facts)
    else:
        _print_facts(facts)
    return 0


def info(args: argparse.Namespace) -> int:
    """Print what an index is. With --verify, fail if anything in it is damaged."""
    with open_index(args.index) as source:
        damage = source.verify() if args.verify else []
        facts = {} if damage else source.info()
    if args.verify:
        facts["damage"] = damage if args.json else len(damage)
    if args.json:
        print_json(facts)
    else:
        _print_facts(facts)
    for line in damage:
        note(f"lexvla: error: {line}")
    return 1 if damage else 0


def train(args: argparse.Namespace) -> int:
    """Train a model by a recipe."""
    try:
        from lexvla.training.trainer import train as run

        folder = run(args.recipe, resume=args.resume)
    except ModuleNotFoundError as error:
        raise OptionalDependencyError(error.name or "a package", "train") from error
    if args.json:
        print_json({"model": str(folder)})
    else:
        print(f"the model is in {folder}")
    return 0


def hit_rows(hits: list[Hit]) -> list[tuple[str, ...]]:
    """Return hits as rows of a table: rank, score, label, id and the strongest words."""
    digits = len(str(len(hits)))
    return [
        (
            f"{hit.rank:>{digits}}",
            f"{hit.score:.3f}",
            _one_line(hit.label),
            hit.id,
            hit.explanation.summary() if hit.explanation else "",
        )
        for hit in hits
    ]


def _one_line(label: str) -> str:
    # A document's text may be long, and hold line breaks or codes that steer a terminal.
    plain = re.sub(r"[\s\x00-\x1f\x7f-\x9f]+", " ", label).strip()
    return plain if len(plain) <= LABEL_WIDTH else plain[: LABEL_WIDTH - 1] + "\u2026"


def _query(args: argparse.Namespace) -> Query:
    try:
        return Query(text=args.text, image=args.image, filter=args.filter)
    except InputError as error:
        raise UsageError(str(error)) from error


def _described(args: argparse.Namespace) -> dict[str, Any]:
    return {"text": args.text, "image": args.image, "filter": args.filter}


def _draw(model: LexVLA, source: Index, hit: Hit, word: str | None) -> Image.Image:
    if not hit.document.uri:
        raise InputError(hit.id, "the index does not know where this item's image is")
    image = open_image(hit.document.uri)
    if word is not None:
        weights = word_map(model, image, word, source.fetch([hit.id]).encoding)
        return heatmap(image, weights, caption=word)
    explanation = hit.explanation or Explanation((), 0.0)
    return heatmap(image, match_map(model, image, explanation), explanation.summary(top=6))


def _print_facts(facts: dict[str, Any]) -> None:
    rows = []
    for name, value in _flat(facts):
        rows.append((name, f"{value:,}" if type(value) is int else str(value)))
    print_columns(rows)


def _flat(facts: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in facts.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
