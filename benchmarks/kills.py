"""Kill writers and ingests of an embedded index at random moments, and check for losses.

    python benchmarks/kills.py --kills 400 --seed 1

A writer makes 45 known commits: it adds, replaces, deletes, merges and compacts, and is killed
(``SIGKILL``) after a random time. The index must then open and hold a complete commit, not older
than after the last kill: ids, scores of all legs, vectors and checksums. The next writer continues
from there. Finally, the compacted index must equal, file by file, one made of the same documents at
once. One kill in five hits an ingest of a folder of 150 pictures, which must end as one that was
never killed.

What a killed process has written is in the page cache and is not lost; power cuts are not tested.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from kill_fakes import PHASES, Kills, kill, kill_ingests, kill_writers


def table(seed: int, *parts: Kills) -> str:
    """Return a Markdown page of where kills fell and what was lost."""
    phases = sum((part.phases for part in parts), parts[0].phases.__class__())
    losses = [loss for part in parts for loss in part.losses]
    lines = [
        f"Seed {seed}, {sum(part.runs for part in parts)} indexes written to their end.",
        "",
        "| the process was | kills |",
        "|---|---|",
        *(f"| {phase} | {phases[phase]} |" for phase in PHASES),
        f"| all | {phases.total()} |",
        "",
        f"losses: {len(losses)}",
        *losses,
    ]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print where kills fell, and losses; return 1 if there are any."""
    parser = argparse.ArgumentParser(description="Kill writers of an index, and look for losses.")
    parser.add_argument("--kills", type=int, default=400, metavar="N")
    parser.add_argument("--seed", type=int, default=1, metavar="S")
    args = parser.parse_args(arguments)
    ingests = args.kills // 5
    with tempfile.TemporaryDirectory() as home:
        parts = [
            kill(Path(home), args.seed, wanted, work=work)
            for work, wanted in ((kill_writers, args.kills - ingests), (kill_ingests, ingests))
        ]
    print(table(args.seed, *parts))
    if any(part.losses for part in parts):
        sys.exit(1)


if __name__ == "__main__":
    main()
