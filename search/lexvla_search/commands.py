"""The commands that look after an index, or train a model.

Each takes parsed arguments and returns an exit code.
"""

from __future__ import annotations

import argparse
import importlib.metadata
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from lexvla.errors import (
    InputError,
    LexVLAError,
    OptionalDependencyError,
)
from lexvla_indexer import open_index
from lexvla_search.console import note, print_columns, print_json

if TYPE_CHECKING:
    from lexvla import LexVLA

__all__ = [
    "compact",
    "delete",
    "info",
    "load_model",
    "train",
    "version",
]


def version() -> str:
    """Return the installed version."""
    try:
        return importlib.metadata.version("lexvla")
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


def load_model(path: str | None, device: str = "cpu", introduce: bool = False) -> LexVLA:
    """Load a saved model, or the default one, onto a device.

    Args:
        path: Its folder or hub id; ``None`` for the default one.
        device: Where it is put.
        introduce: Whether to tell people what it knows, if it says.

    Raises:
        UnsupportedError: torch has no such device here.
        LexVLAError: A package that models need is missing or broken.
        ModelError: There is no whole model at the path.
    """
    try:
        from lexvla import LexVLA
    except ImportError as error:
        raise LexVLAError(f"models cannot be loaded ({error}); see: lexvla doctor") from error
    model = LexVLA.from_pretrained(path, device=device)
    if introduce and model.config.knowledge:
        note(f"lexvla: {model.config.model_name} {model.config.knowledge}")
    return model


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
