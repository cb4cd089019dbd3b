"""From queries to explained answers: queries, the searcher, explanations and heat maps."""

from lexvla.lazy_exports import lazy_exports

# The names are in `__init__.pyi`. Loaded on demand: the command line's --help needs no numpy.
__getattr__, __dir__, __all__ = lazy_exports(__name__)
