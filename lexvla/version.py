"""The version of the installed program."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

__all__ = ["program_version"]


def program_version() -> str:
    """Return the version, or ``unknown`` when run from a checkout that is not installed."""
    try:
        return version("lexvla")
    except PackageNotFoundError:
        return "unknown"
