"""Options and reports that ``lexvla index`` and ``lexvla encode`` share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from lexvla.image_formats import MAX_PIXELS
from lexvla_indexer.hugging_face_source import DatasetChoice
from lexvla_indexer.item_source import ItemSource
from lexvla_indexer.reading import DEFAULT_EXCLUDES, Reading
from lexvla_indexer.report import Reject, Report
from lexvla_indexer.sources import open_item_source
from lexvla_search.cli.arguments import flag, not_empty, option, positive
from lexvla_search.cli.console import INTERRUPTED, note, one_line

PARTS, RULES = 5, 3  # shown of each count, and of what was rejected

SOURCE = (
    "a folder of images, a manifest (.jsonl, .csv, .parquet), .tar shards (path or pattern), "
    "a collection in BEIR's layout, ir_datasets:NAME, or hf:NAME"
)
OF_DATASETS = "of a Hugging Face dataset (hf:NAME or hf:FOLDER)"


@dataclass(frozen=True)
class BatchOptions:
    """How large images and batches may be."""

    max_pixels: int = option(
        f"largest width x height of an image ({MAX_PIXELS:,})",
        type=positive,
        default=MAX_PIXELS,
        metavar="N",
    )
    batch_size: int = option("items in one pass (64)", type=positive, default=64, metavar="N")


@dataclass(frozen=True)
class StrictOptions:
    """What is a failure."""

    strict: bool = flag("fail if any item was left out")


@dataclass(frozen=True)
class ReadingOptions(BatchOptions):
    """How to read the files of a source."""

    exclude: list[str] = option(
        "leave out files and folders that match, as in .gitignore; may be given several times",
        action="append",
        default=[],
        type=not_empty,
        metavar="PATTERN",
    )
    no_default_excludes: bool = flag(f"read these too: {' '.join(DEFAULT_EXCLUDES)}")
    no_exif: bool = flag("do not store the metadata of image files (EXIF, IPTC, XMP)")

    @property
    def reading(self) -> Reading:
        """How to read the files."""
        return Reading(
            tuple(self.exclude), not self.no_default_excludes, self.max_pixels, not self.no_exif
        )


@dataclass(frozen=True)
class SourceOptions(ReadingOptions, StrictOptions):
    """What to take of a source."""

    text_field: str | None = option(
        "which field is the text, or several: title+text, or a line each: text,metadata.title",
        type=not_empty,
        metavar="F",
    )
    split: str | None = option("which split (train)", group=OF_DATASETS, metavar="NAME")
    config: str | None = option("which configuration", group=OF_DATASETS, metavar="NAME")
    image_field: str | None = option("the column of images (image)", group=OF_DATASETS, metavar="F")
    id_field: str | None = option("the column of ids (id)", group=OF_DATASETS, metavar="F")

    def open(self, source: str) -> ItemSource:
        """Open the source that these options tell of."""
        asked = {each.name: getattr(self, each.name) for each in fields(DatasetChoice)}
        choice = DatasetChoice(**{name: value for name, value in asked.items() if value})
        return open_item_source(source, self.text_field, self.reading, choice)


def counts(report: Report, skipped: str) -> dict[str, int]:
    """Return the counts of a report; `skipped` is the label for skipped items."""
    return {
        "added": report.added,
        skipped: report.skipped,
        "updated": report.updated,
        "replaced": report.replaced,
        "moved": report.moved,
        "pruned": report.pruned,
        "rejected": len(report.rejected),
        "ignored": sum(report.ignored.values()),
        "excluded": sum(report.excluded.values()),
        "wordless": report.empty,
        "texts cut": report.cut,
        "with losses": len(report.losses),
    }


def in_words(report: Report, skipped: str) -> str:
    """Return the counts of a report as one line, without zeros."""
    parts = {"ignored": report.ignored, "excluded": report.excluded}
    return ", ".join(
        f"{n:,} {name}{_in_parts(parts.get(name, {}))}"
        for name, n in counts(report, skipped).items()
        if n or name == "added"
    )


def _in_parts(numbers: Mapping[str, int]) -> str:
    most = sorted(numbers.items(), key=lambda part: (-part[1], part[0]))
    more = len(most) - PARTS
    said = [f"{n:,} {name or 'without a suffix'}" for name, n in most[:PARTS]]
    said += [f"{sum(n for _, n in most[PARTS:]):,} others"] if more > 0 else []
    return f" ({', '.join(said)})" if said else ""


def details(report: Report) -> dict[str, Any]:
    """Return where rejected items are listed, and what the counts consist of, for JSON."""
    listed = report.rejects_path if report.rejected else None
    return {
        "rejects_file": None if listed is None else str(listed),
        "ignored_by_suffix": report.ignored,
        "excluded_by_pattern": report.excluded,
        "absorbed": report.absorbed,
        "moved_from": report.moved_from or None,
        "losses": [asdict(loss) for loss in report.losses],
    }


def _grouped(faults: Iterable[tuple[str, str]]) -> list[str]:
    """Return the commonest rules, each with the first item that breaks it."""
    items: dict[str, list[str]] = {}
    for item, rule in faults:
        items.setdefault(rule, []).append(item)
    most = sorted(items.items(), key=lambda group: -len(group[1]))[:RULES]
    return [
        f"{names[0]}{f' and {len(names) - 1:,} more' if names[1:] else ''}: {rule}"
        for rule, names in most
    ]


def _placed(reject: Reject) -> str:
    """Return an item with where it is, unless that says no more than its name does."""
    is_known = not reject.where or reject.where.endswith(reject.item)
    return repr(reject.item) + ("" if is_known else f" ({one_line(reject.where, 1000)})")


def exit_code(
    report: Report,
    strict: bool,
    failure: str,
    listed: str = "no file, as the index has no directory",
) -> int:
    """Report what was left out, and return the exit code.

    A refused prune is a failure; with `strict`, leaving anything out is too. `failure` says why
    the command failed as a whole; it is empty if it did not. `listed` says what lists the rejected
    items if no file does.
    """
    if report.moved_from:
        note(f"lexvla: {report.moved_from} is gone, and this folder has its files: it has moved")
    for folder in report.absorbed:
        note(f"lexvla: {folder} was indexed by itself, and is a part of this folder now")
    if report.replaced:
        note("lexvla: documents of another source had the same ids, and were replaced")
    for said in _grouped((_placed(each), each.rule) for each in report.rejected):
        note(f"lexvla: rejected {said}")
    if report.rejected:
        note(f"lexvla: the rejected items are listed in {report.rejects_path or listed}")
    for said in _grouped((repr(each.item), each.lost) for each in report.losses):
        note(f"lexvla: read {said}")
    if report.cut:
        note("lexvla: texts cut: the model does not read their ends; shorten or split them")
    if report.prune_refused:
        note(f"lexvla: error: pruned nothing: {report.prune_refused}")
    if report.interrupted:
        done = f"interrupted after {report.interrupted}; what was done is in the index"
        note(f"lexvla: {done}, and the same command goes on from there")
        return INTERRUPTED
    if failure:
        note(f"lexvla: error: {failure}")
    return 1 if failure or report.prune_refused or (strict and report.rejected) else 0
