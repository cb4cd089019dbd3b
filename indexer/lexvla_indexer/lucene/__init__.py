"""Lucene's own index format, through the classes of Anserini that Pyserini brings."""

from lexvla_indexer.lucene.engine import LuceneIndex
from lexvla_indexer.lucene.jvm import pyserini_imports

__all__ = ["LuceneIndex", "pyserini_imports"]
