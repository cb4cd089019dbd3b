"""The data sources of recipes."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from lexvla.data.captions import read_captions
from lexvla.data.emoji import EmojiDrawings
from lexvla.data.hf_datasets import Columns, load_hugging_face
from lexvla.data.karpathy import read_karpathy
from lexvla.data.pairs import IndexedSource, Pair, ShardedSource
from lexvla.data.webdataset_shards import WebDatasetShards
from lexvla.errors import InputError
from lexvla.losses import class_levels
from lexvla.training.recipe import Data

__all__ = ["Source", "captions_of", "classes_of", "open_source", "parents_of"]

Source = IndexedSource | ShardedSource | EmojiDrawings

_OPENERS: dict[str, Callable[..., Source]] = {
    "captions": read_captions,
    "drawings": EmojiDrawings,
    "karpathy": read_karpathy,
    "hugging_face": load_hugging_face,
    "webdataset": WebDatasetShards,
}


def open_source(data: Data) -> Source:
    """Open the source of a recipe."""
    options = dict(data.options)
    try:
        if isinstance(options.get("columns"), dict):
            options["columns"] = Columns(**options["columns"])
        source = _OPENERS[data.kind](data.path, **options)
    except (TypeError, ValueError) as error:
        raise InputError(data.path, f"[data.options] {error}") from error
    if isinstance(source, EmojiDrawings) and not source.items:
        raise InputError(data.path, "[data.options] styles must name a drawing set")
    return source


def captions_of(source: Source) -> list[str]:
    """Return all texts of a source, for a tokenizer."""
    if isinstance(source, EmojiDrawings):
        return source.captions()
    if isinstance(source, ShardedSource):
        rule = "is read in shards, but an untrained model needs all texts beforehand"
        raise InputError(source.name, rule)
    return [text for pair in good_pairs(source) for text in pair.texts]


def good_pairs(source: IndexedSource) -> Iterator[Pair]:
    """Yield the records that can be read; the loader reports the others."""
    for number in range(len(source)):
        try:
            yield source[number]
        except InputError:
            continue


def classes_of(source: IndexedSource | ShardedSource) -> list[str]:
    """Return the sorted classes of a source."""
    if isinstance(source, ShardedSource):
        raise InputError(
            source.name, "is read in shards, but the proxy loss needs all classes beforehand"
        )
    return sorted(label for label in source.classes() if label is not None)


def parents_of(source: IndexedSource, classes: list[str]) -> list[list[int]]:
    """Return the parent of each class from the data's class paths; skip bad records."""
    parents: dict[str, str] = {}
    for pair in good_pairs(source):
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
