"""``python -m lexvla``: the command `lexvla`."""

from __future__ import annotations

import sys


def main() -> int:
    """Run one command and return its exit code."""
    # Only here, as the command is of a package that builds on this one.
    from lexvla_search.cli import main as command

    return command()


if __name__ == "__main__":
    sys.exit(main())
