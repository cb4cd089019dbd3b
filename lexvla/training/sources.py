"""Open the pairs that a recipe names."""

from __future__ import annotations

from collections.abc import Callable

from lexvla.data.captions import read_captions
from lexvla.data.hf_datasets import Columns, load_hugging_face
from lexvla.data.karpathy import read_karpathy
from lexvla.data.pairs import IndexedSource, ShardedSource
from lexvla.data.webdataset_shards import WebDatasetShards
from lexvla.errors import InputError
from lexvla.losses import class_levels
from lexvla.training.pair_recipe import Data

__all__ = ["classes_of", "open_source", "parents_of"]

_OPENERS: dict[str, Callable[..., IndexedSource | ShardedSource]] = {
    "captions": read_captions,
    "karpathy": read_karpathy,
    "hugging_face": load_hugging_face,
    "webdataset": WebDatasetShards,
}


def open_source(data: Data) -> IndexedSource | ShardedSource:
    """Open a source.

    Raises:
        InputError: It cannot be read, or an option is unknown or out of its range.
    """
    options = dict(data.options)
    try:
        if isinstance(options.get("columns"), dict):  # a table of the recipe
            options["columns"] = Columns(**options["columns"])
        return _OPENERS[data.kind](data.path, **options)
    except (TypeError, ValueError) as error:
        raise InputError(data.path, f"[data.options] {error}") from error


def classes_of(source: IndexedSource | ShardedSource) -> list[str]:
    """Return the sorted classes of a source.

    Raises:
        InputError: It is read shard by shard, so its classes are not known beforehand.
    """
    if isinstance(source, ShardedSource):
        raise InputError(source.name, "is read in shards, and the proxy loss must know all classes")
    return sorted(label for label in source.classes() if label is not None)


def parents_of(source: IndexedSource, classes: list[str]) -> list[list[int]]:
    """Return each class's parent, by the class paths of the data. Bad records are passed over.

    Raises:
        InputError: A class has no parent or several, or all have one.
    """
    parents: dict[str, str] = {}
    for number in range(len(source)):
        try:
            pair = source[number]
        except InputError:  # the loader skips it too, and says so
            continue
        if pair.label is None:
            continue
        path = pair.class_path
        above = path[: path.index(pair.label)] if pair.label in path else path
        if not above:
            continue
        if parents.setdefault(pair.label, above[-1]) != above[-1]:
            rule = f"the class {pair.label!r} lies under {parents[pair.label]!r} and {above[-1]!r}"
            raise InputError(source.name, rule)
    return class_levels(classes, parents)
