"""Measures of retrieval and of patches, TREC's files, and the figures that models reach."""

from lexvla.lazy_exports import lazy_exports

# The names are in `__init__.pyi`. Loaded on demand: fitting needs the measures alone.
__getattr__, __dir__, __all__ = lazy_exports(__name__)
