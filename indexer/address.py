"""Index addresses: the one place that knows which engine an address means."""

from __future__ import annotations

import re
from pathlib import Path

from indexer.base import Index
from indexer.embedded import EmbeddedIndex
from lexvla.errors import UnsupportedError
from lexvla.vocabulary import Vocabulary

__all__ = ["open_index"]

_LUCENE = "lucene:"
_OTHER_ENGINE = re.compile(r"[a-z][a-z0-9+.-]*://")


def open_index(
    address: str | Path,
    create: bool = False,
    vocabulary: Vocabulary | None = None,
    model: str | None = None,
) -> Index:
    """Open an index.

    Args:
        address: The path of a directory: the embedded engine; ``lucene:`` and a path: Lucene.
        create: Make the index if there is none, and lock it for writing.
        vocabulary: The terms of the lexical columns. A new index keeps it; an old one must have
            the same.
        model: The name of the model that the vectors come from; kept by a new index.

    Raises:
        EngineUnavailableError: The engine cannot be started here.
        IndexCorruptError: There is no index, or it is damaged.
        IndexLockedError: ``create`` is set and another writer has the index.
        IndexVersionError: A newer program wrote the index.
        OptionalDependencyError: The engine needs a package that is not installed.
        UnsupportedError: The address names an engine that this version does not have.
        VocabularyMismatchError: The index has another vocabulary.
    """
    if scheme := _OTHER_ENGINE.match(str(address)):
        engine = f"this version has no engine for addresses that start with {scheme[0]}"
        raise UnsupportedError(f"{engine}; give the path of a directory, or lucene: and a path")
    if str(address).startswith(_LUCENE):
        from indexer.lucene import LuceneIndex

        path = str(address).removeprefix(_LUCENE)
        if not path:
            raise UnsupportedError("lucene: needs the path of a directory")
        return LuceneIndex(path, create, vocabulary, model)
    return EmbeddedIndex(address, create, vocabulary, model)
