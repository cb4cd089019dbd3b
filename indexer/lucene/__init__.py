"""Lucene's own index format, through the classes of Anserini that Pyserini brings."""

from indexer.lucene.engine import LuceneIndex
from indexer.lucene.jvm import pyserini_imports

__all__ = ["LuceneIndex", "pyserini_imports"]
