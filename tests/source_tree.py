"""The three packages of this clone, for programs that tests start."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# By import name.
FOLDERS = {
    "lexvla": ROOT / "lexvla",
    "lexvla_indexer": ROOT / "indexer" / "lexvla_indexer",
    "lexvla_search": ROOT / "search" / "lexvla_search",
}
PYTHONPATH = os.pathsep.join(str(folder.parent) for folder in FOLDERS.values())
