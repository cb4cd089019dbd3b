"""Image-text pairs and the protocols of their sources."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, Protocol, runtime_checkable

from lexvla.errors import InputError

__all__ = [
    "IndexedSource",
    "Pair",
    "PairList",
    "Record",
    "ShardedSource",
    "Skipped",
    "as_class_path",
    "as_label",
    "as_texts",
    "bad_record",
    "fingerprint_of",
    "matching",
]


@dataclass(frozen=True)
class Pair:
    """An image with its texts.

    Attributes:
        id: Unique in its source.
        image: The encoded file or its path.
        texts: One or more captions, none blank.
        label: The class, if there are classes.
        class_path: The class and its ancestors, widest first, such as ("food", "fruit").
    """

    id: str
    image: bytes | Path = field(repr=False)
    texts: tuple[str, ...]
    label: str | None = None
    class_path: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.id.strip():
            raise InputError("<pair>", "has no id")
        if not self.texts or not all(text.strip() for text in self.texts):
            raise InputError(self.id, "has no text")
        try:
            "\n".join((self.id, *self.texts, self.label or "", *self.class_path)).encode()
        except UnicodeEncodeError as error:  # no tokenizer takes it
            raise InputError(self.id, "holds half of a character") from error


Record = Callable[[], Pair]
"""Reads a pair when called; a bad one raises `InputError` then."""


class Skipped(NamedTuple):
    """Why a record was left out, and in which epoch; -1 for when the source was opened."""

    id: str
    rule: str
    epoch: int = -1


class IndexedSource(Protocol):
    """A source with random access; must be thread-safe."""

    @property
    def name(self) -> str:
        """Return the source's name in errors."""

    @property
    def fingerprint(self) -> str:
        """Return a hash that changes with the records or their order."""

    @property
    def rejects(self) -> Sequence[Skipped]:
        """Return the records left out when the source was opened."""

    def __len__(self) -> int: ...

    def __getitem__(self, number: int, /) -> Pair:
        """Return a pair; a bad one raises `InputError`."""

    def classes(self) -> set[str | None]:
        """Return the labels; ``None`` is among them if a record has none."""


@runtime_checkable
class ShardedSource(Protocol):
    """A source that is read shard by shard, each from its beginning."""

    @property
    def name(self) -> str:
        """Return the source's name in errors."""

    @property
    def fingerprint(self) -> str:
        """Return a hash that changes with the shards or their order."""

    @property
    def shards(self) -> int:
        """Return how many shards there are."""

    def read_shard(self, number: int) -> Iterator[Record]:
        """Yield a shard's records, bad ones too, in the same order every time."""


class PairList:
    """The pairs of a caption file, without those whose image is missing.

    Args:
        name: The path of the file, for errors.
        pairs: Pairs with unique ids.
    """

    def __init__(self, name: str, pairs: Iterable[Pair]) -> None:
        self.name = name
        self.rejects: list[Skipped] = []
        self._pairs: list[Pair] = []
        for pair in pairs:
            if isinstance(pair.image, Path) and not _is_file(pair.image):
                self.rejects.append(Skipped(pair.id, f"no such file: {pair.image}"))
            else:
                self._pairs.append(pair)
        if not self._pairs and not self.rejects:
            raise InputError(name, "has no records")
        if not self._pairs:
            first = self.rejects[0]
            rule = f"all {len(self.rejects)} images are missing; the first, {first.id}"
            raise InputError(name, f"{rule}: {first.rule}")
        self.fingerprint = fingerprint_of(
            part for pair in self._pairs for part in (pair.id, *pair.texts, str(pair.label))
        )

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, number: int) -> Pair:
        return self._pairs[number]

    def classes(self) -> set[str | None]:
        """Return the labels; ``None`` is among them if a record has none."""
        return {pair.label for pair in self._pairs}


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name too long, or no permission
        return False


def bad_record(error: InputError) -> Record:
    """Return a record that raises the error when it is read."""

    def read() -> NoReturn:
        raise error

    return read


def matching(pattern: str) -> list[Path]:
    """Return the paths that a pattern with ``*``, ``?`` or ``[...]`` matches, sorted."""
    root = Path(pattern).anchor
    try:
        return sorted(Path(root).glob(pattern[len(root) :]))
    except (ValueError, NotImplementedError) as error:
        raise InputError(pattern, f"is not a valid path or pattern ({error})") from error


def fingerprint_of(parts: Iterable[str]) -> str:
    """Return a short hash of texts in their order."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode() + b"\0")
    return digest.hexdigest()[:32]


def as_texts(value: Any, name: str) -> tuple[str, ...]:
    """Return captions from a text or a list of texts."""
    texts = [value] if isinstance(value, str) else [] if value is None else value
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
        raise InputError(name, "the text must be a string or a list of strings")
    if not texts or not all(text.strip() for text in texts):
        raise InputError(name, "has no text")
    return tuple(text.strip() for text in texts)


def as_label(value: Any, name: str) -> str | None:
    """Return a label, or None for a blank one."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise InputError(name, "the label must be a string or an integer")
    return str(value).strip() or None


def as_class_path(value: Any, name: str) -> tuple[str, ...]:
    """Return the classes of ``"food/fruit"`` or ``["food", "fruit"]``."""
    names = value.split("/") if isinstance(value, str) else [] if value is None else value
    if not isinstance(names, list | tuple) or not all(isinstance(each, str) for each in names):
        raise InputError(name, "class_path must be a string or a list of strings")
    return tuple(each.strip() for each in names if each.strip())
