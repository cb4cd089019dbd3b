"""Options and reports that ``lexvla index`` and ``lexvla encode`` share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lexvla_indexer.report import Report
from lexvla_search.cli.arguments import flag, not_empty, option, positive
from lexvla_search.cli.console import INTERRUPTED, note

SOURCE = "a folder of images, a manifest (.jsonl, .csv, .parquet), or .tar shards (path or pattern)"


@dataclass(frozen=True)
class SourceOptions:
    """How to read a source."""

    text_field: str | None = option(
        "which field is the text, or several: text,metadata.title", type=not_empty, metavar="F"
    )
    batch_size: int = option("items in one pass (64)", type=positive, default=64, metavar="N")
    strict: bool = flag("fail if any item was left out")


def counts(report: Report, skipped: str) -> dict[str, int]:
    """Return the counts of a report; `skipped` is the label for skipped items."""
    return {
        "added": report.added,
        skipped: report.skipped,
        "updated": report.updated,
        "moved": report.moved,
        "pruned": report.pruned,
        "rejected": len(report.rejected),
        "ignored": report.ignored,
        "wordless": report.empty,
    }


def in_words(numbers: dict[str, int]) -> str:
    """Return counts as one line, without zeros."""
    return ", ".join(f"{n:,} {name}" for name, n in numbers.items() if n or name == "added")


def rejects_file(report: Report) -> dict[str, Any]:
    """Return where rejected items are listed, for JSON."""
    listed = report.rejects_path if report.rejected else None
    return {"rejects_file": None if listed is None else str(listed)}


def exit_code(report: Report, strict: bool, failure: str) -> int:
    """Report what was left out, and return the exit code.

    A refused prune is a failure; with `strict`, leaving anything out is too. `failure` says why
    the command failed as a whole; it is empty if it did not.
    """
    if report.rejected:
        first = report.rejected[0]
        where = report.rejects_path or "no file, as the index has no directory"
        note(f"lexvla: rejected {first.item!r}: {first.rule}; all are in {where}")
    if report.prune_refused:
        note(f"lexvla: error: pruned nothing: {report.prune_refused}")
    if report.interrupted:
        done = f"interrupted after {report.interrupted}; what was done is in the index"
        note(f"lexvla: {done}, and the same command goes on from there")
        return INTERRUPTED
    if failure:
        note(f"lexvla: error: {failure}")
    return 1 if failure or report.prune_refused or (strict and report.rejected) else 0
