"""Kill writers and ingests of an embedded index at random moments, and look for losses.

    python benchmarks/kills.py --kills 400 --seed 1

A writer makes 45 commits that are known beforehand: it adds, replaces, deletes, merges and
compacts, and is killed (``SIGKILL``) after a random time. Then the index must open and hold one
whole commit, not an earlier one than after the last kill: ids, scores of all legs, vectors and
checksums. The next writer goes on from there. In the end the compacted index must equal, file for
file, one that was made of the same documents at once. One kill in five hits an ingest of a folder
of 150 pictures, which must end as one that was never killed.

What a killed process has written is in the system's memory and is not lost; a power cut is
another matter, and not tried here.
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
    """Return a page of Markdown: how many kills fell where, and what was lost."""
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
    """Print where the kills fell, and the losses. End with 1 if there are any."""
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
