"""``python -m lexvla_search``: the command `lexvla`."""

import sys

from lexvla_search.cli import main

if __name__ == "__main__":
    sys.exit(main())
