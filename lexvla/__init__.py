"""LexVLA: images and texts as weighted words."""

from lexvla.lazy_exports import lazy_exports

# The names are in `__init__.pyi`. Loaded on demand, so that importing the package is quick.
__getattr__, __dir__, __all__ = lazy_exports(__name__)
