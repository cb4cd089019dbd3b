"""Indexes of weighted words: engines, addresses, and the way of items into them."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lexvla_indexer.address import open_index
    from lexvla_indexer.base import Document, Fetched, Index, Results
    from lexvla_indexer.elastic import ElasticIndex
    from lexvla_indexer.embedded import EmbeddedIndex
    from lexvla_indexer.filters import Filter
    from lexvla_indexer.lucene import LuceneIndex
    from lexvla_indexer.pipeline import Reject, Report, index_source

__all__ = [
    "Document",
    "ElasticIndex",
    "EmbeddedIndex",
    "Fetched",
    "Filter",
    "Index",
    "LuceneIndex",
    "Reject",
    "Report",
    "Results",
    "index_source",
    "open_index",
]

_MODULES = {
    "Document": "lexvla_indexer.base",
    "ElasticIndex": "lexvla_indexer.elastic",
    "EmbeddedIndex": "lexvla_indexer.embedded",
    "Fetched": "lexvla_indexer.base",
    "Filter": "lexvla_indexer.filters",
    "Index": "lexvla_indexer.base",
    "LuceneIndex": "lexvla_indexer.lucene",
    "Reject": "lexvla_indexer.pipeline",
    "Report": "lexvla_indexer.pipeline",
    "Results": "lexvla_indexer.base",
    "index_source": "lexvla_indexer.pipeline",
    "open_index": "lexvla_indexer.address",
}


def __getattr__(name: str) -> object:
    """Load a public name when it is first asked for: numpy and scipy take their time."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)
