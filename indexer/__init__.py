"""Indexes of weighted words: engines, addresses, and the way of items into them."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from indexer.address import open_index
    from indexer.base import Document, Fetched, Index, Results
    from indexer.elastic import ElasticIndex
    from indexer.embedded import EmbeddedIndex
    from indexer.filters import Filter
    from indexer.lucene import LuceneIndex
    from indexer.pipeline import Reject, Report, index_source

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
    "Document": "indexer.base",
    "ElasticIndex": "indexer.elastic",
    "EmbeddedIndex": "indexer.embedded",
    "Fetched": "indexer.base",
    "Filter": "indexer.filters",
    "Index": "indexer.base",
    "LuceneIndex": "indexer.lucene",
    "Reject": "indexer.pipeline",
    "Report": "indexer.pipeline",
    "Results": "indexer.base",
    "index_source": "indexer.pipeline",
    "open_index": "indexer.address",
}


def __getattr__(name: str) -> object:
    """Load a public name when it is first asked for: numpy and scipy take their time."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)
