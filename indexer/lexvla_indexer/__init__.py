"""Indexes of weighted words: engines, addresses, and the way of items into them."""

from lexvla.lazy_exports import lazy_exports

# The names are in `__init__.pyi`. Loaded on demand: numpy and scipy are slow to import.
__getattr__, __dir__, __all__ = lazy_exports(__name__)
