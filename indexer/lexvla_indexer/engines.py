"""Engines by address: the one place that knows which engine an address means.

A new engine is a folder beside the others with an `Index` of its own (docs/architecture.md), an
address here, a name in ``__init__.pyi``, a check in the command ``doctor`` and an extra in
``pyproject.toml``; ``tests/test_parity.py`` holds it to the others.
"""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

from lexvla.errors import InputError, UnsupportedError
from lexvla.vocabulary import Vocabulary
from lexvla_indexer.base import Index
from lexvla_indexer.embedded import EmbeddedIndex

__all__ = ["open_index"]

_LUCENE, _ELASTIC, _OPENSEARCH = "lucene:", "elasticsearch+", "opensearch+"
_SERVER = re.compile(r"(elasticsearch|opensearch):")
_OTHER_ENGINE = re.compile(r"[a-z][a-z0-9+.-]*://")


def open_index(
    address: str | Path,
    create: bool = False,
    vocabulary: Vocabulary | None = None,
    model: str | None = None,
    rebuild: bool = False,
) -> Index:
    """Open an index.

    Args:
        address: The path of a directory: the embedded engine; ``lucene:`` and a path: Lucene;
            ``elasticsearch+http(s)://host:9200/name``: Elasticsearch, which may be a user's own
            index, to search, that ``lexvla attach`` has filled;
            ``opensearch+http(s)://host:9200/name``: OpenSearch.
        create: Make the index if there is none, and lock it for writing.
        vocabulary: The terms of the lexical columns. A new index keeps it; an old one must have
            the same.
        model: The name of the model that the vectors come from; kept by a new index.
        rebuild: Fill a new index behind the same name; see `ElasticIndex`.

    Raises:
        EngineUnavailableError: The engine cannot be started or reached.
        IndexCorruptError: The index is damaged.
        IndexLockedError: ``create`` is set and another writer has the index.
        IndexMissingError: There is no index, and ``create`` is not set.
        IndexVersionError: A newer program wrote the index.
        InputError: The address cannot be read.
        OptionalDependencyError: The engine needs a package that is not installed.
        UnsupportedError: This version has no such engine, or the engine cannot rebuild.
        VocabularyMismatchError: The index has another vocabulary.
    """
    if server := _SERVER.match(str(address)):  # not quoted: it may hold credentials
        rule = f"the address of an index on a server starts with {server[1]}+http:// or +https://"
        raise InputError(server[0], rule)
    if str(address).startswith(_ELASTIC):
        from lexvla_indexer.elastic import AttachedError, AttachedIndex, ElasticIndex

        with suppress(AttachedError):
            return ElasticIndex(str(address), create, vocabulary, model, rebuild)
        return AttachedIndex(str(address), create, vocabulary, rebuild)
    if str(address).startswith(_OPENSEARCH):
        from lexvla_indexer.opensearch import OpenSearchIndex

        return OpenSearchIndex(str(address), create, vocabulary, model, rebuild)
    if rebuild:
        raise UnsupportedError("only an index on a server is rebuilt behind its name")
    if scheme := _OTHER_ENGINE.match(str(address)):
        engine = f"this version has no engine for addresses that start with {scheme[0]}"
        raise UnsupportedError(f"{engine}; see docs/indexes.md")
    if str(address).startswith(_LUCENE):
        from lexvla_indexer.lucene import LuceneIndex

        path = str(address).removeprefix(_LUCENE)
        if not path:
            raise UnsupportedError("lucene: needs the path of a directory")
        return LuceneIndex(path, create, vocabulary, model)
    return EmbeddedIndex(address, create, vocabulary, model)
