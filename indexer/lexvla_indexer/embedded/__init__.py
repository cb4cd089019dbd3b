"""The default engine: an inverted index in memory-mapped files under one SQLite manifest."""

from lexvla_indexer.embedded.engine import EmbeddedIndex

__all__ = ["EmbeddedIndex"]
