"""Load the public names of a package when they are first used."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import sys
from collections.abc import Callable

__all__ = ["lazy_exports"]


def lazy_exports(
    package: str,
) -> tuple[Callable[[str], object], Callable[[], list[str]], list[str]]:
    """Return the ``__getattr__``, ``__dir__`` and ``__all__`` of a package.

    The names are the ``from module import name as name`` lines of the ``__init__.pyi`` beside the
    package's ``__init__.py``, so that type checkers and Python read the same list. The stub must
    be installed with the package; a zip of it will do.

    Args:
        package: The package's ``__name__``.
    """
    stub = pkgutil.get_data(package, "__init__.pyi") or b""
    modules = {
        alias.asname: str(node.module)
        for node in ast.parse(stub).body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.asname
    }

    def load(name: str) -> object:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(modules[name]), name)

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *modules})

    return load, names, sorted(modules)
