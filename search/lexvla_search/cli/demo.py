"""``lexvla demo``: build an index of the bundled images and run a few queries."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lexvla.data.demo_corpus import PHOTOGRAPHS, extract_demo_corpus, load_demo_corpus
from lexvla.errors import (
    IndexCorruptError,
    IndexMissingError,
    IndexVersionError,
    LexVLAError,
    VocabularyMismatchError,
)
from lexvla_indexer import open_index
from lexvla_indexer.base import Index, check_match
from lexvla_search.cli.arguments import JsonOptions, ModelOptions, flag, not_empty, option
from lexvla_search.cli.console import UsageError, note, print_columns, print_json
from lexvla_search.cli.query import located
from lexvla_search.cli.search import hit_rows
from lexvla_search.query import Query
from lexvla_search.searcher import Searcher

if TYPE_CHECKING:
    from lexvla import LexVLA

QUERIES = (
    "red heart",
    "animal that lives in the sea",
    "musical instrument",
    "smiling cat",
    "photo of a cat",
    "cup of coffee",
    "rocket",
)
# Searched among the 11 photographs only, not the 1,906 emoji.
OF_PHOTOGRAPHS = frozenset({"photo of a cat", "cup of coffee", "rocket"})
_FILTER = "group=photographs"
_HITS = 5


@dataclass(frozen=True)
class Options(ModelOptions, JsonOptions):
    """Where the demo keeps its index, and whether to open its page."""

    index: str | None = option("keep the demo's index here", type=not_empty, metavar="DIR")
    serve: bool = flag("open the page on it")


def run(options: Options) -> int:
    """Build the demo's index if there is none, and print explained hits."""
    home = _cache_home() / "demo.lex" if options.index is None else Path(options.index)
    if options.index is not None and ":" in options.index:
        raise UsageError("the demo keeps its index in a folder, not behind another address")
    model = options.load_model()
    _prepare(home, model, may_replace=options.index is None)
    if options.serve:
        return _serve(home, options)
    with open_index(str(home)) as source:
        searcher = Searcher(model, source)
        answers = {
            text: located(
                searcher.search(Query(text=text, filter=_filter(text)), k=_HITS, explain=True),
                source,
            )
            for text in QUERIES
        }
    if options.json:
        results = [
            {
                "query": {"text": text, "image": None, "filter": _filter(text)},
                "hits": [hit.to_dict() for hit in hits],
            }
            for text, hits in answers.items()
        ]
        print_json({"index": str(home), "model": model.name, "results": results})
        return 0
    rows = {text: hit_rows(hits) for text, hits in answers.items()}
    for text, lines in _aligned_together(rows).items():
        print(f"{text}   (--filter {_FILTER})" if _filter(text) else text)
        print_columns(lines, indent="  ")
        print()
    _print_what_next(home, first=next((hits[0].id for hits in answers.values() if hits), "2764"))
    return 0


def _filter(text: str) -> str | None:
    return _FILTER if text in OF_PHOTOGRAPHS else None


def _serve(home: Path, options: Options) -> int:
    from lexvla_search.api.settings import Settings
    from lexvla_search.cli.serve import serve

    settings = Settings(str(home), images=(home.with_name(home.name + ".images"),))
    return serve(settings, model=options.model, device=options.device)


def _cache_home() -> Path:
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG standard says to ignore relative paths.
    root = Path(base) if Path(base).is_absolute() else Path.home() / ".cache"
    return root / "lexvla"


def _prepare(home: Path, model: LexVLA, may_replace: bool) -> None:
    """Make sure ``home`` holds a complete index of this model; one that is already there stays."""
    images = home.with_name(home.name + ".images")
    items = load_demo_corpus()
    wanted, photographs = len(items), sum(item.group == PHOTOGRAPHS for item in items)
    if home.exists() and any(home.iterdir()):
        if not may_replace and not (images / "manifest.jsonl").is_file():
            raise UsageError(f"{home} exists and is not an index of the demo; name another folder")
        try:
            with open_index(str(home)) as source:
                check_match(model, source)
                # More is fine: people add documents of their own.
                if source.count() >= wanted and images.is_dir():
                    return
        except (
            VocabularyMismatchError,
            IndexCorruptError,
            IndexMissingError,
            IndexVersionError,
        ) as error:
            if not may_replace:
                raise
            note(f"lexvla: building the demo's index anew: {error}")
            shutil.rmtree(home)
    what = f"{wanted - photographs:,} emoji and {photographs:,} photographs"
    note(f"lexvla: indexing {what} into {home}, once; about a minute")
    home.parent.mkdir(parents=True, exist_ok=True)
    manifest = extract_demo_corpus(images)
    with open_index(
        str(home), create=True, vocabulary=model.vocabulary, model=model.name
    ) as target:
        _fill(target, manifest, model, wanted)


def _fill(target: Index, manifest: Path, model: LexVLA, wanted: int) -> None:
    from lexvla_indexer.pipeline import index_source

    report = index_source(manifest, target, model)
    if target.count() < wanted:
        reason = f"; the first: {report.rejected[0]}" if report.rejected else ""
        raise LexVLAError(f"only {target.count():,} of {wanted:,} images were indexed{reason}")


def _aligned_together(
    tables: dict[str, list[tuple[str, ...]]],
) -> dict[str, list[tuple[str, ...]]]:
    # Pad labels and ids alike in all tables, so that they line up down the page.
    widths = [
        max((len(row[i]) for rows in tables.values() for row in rows), default=0) for i in range(4)
    ]
    return {
        text: [(*(row[i].ljust(widths[i]) for i in range(4)), row[4]) for row in rows]
        for text, rows in tables.items()
    }


def _command() -> str:
    if shutil.which("lexvla"):
        return "lexvla"
    if Path(sys.argv[0]).name == "__main__.py":
        return f"{shlex.quote(sys.executable)} -m lexvla_search"
    return shlex.quote(sys.argv[0])  # as it was typed: its folder is not on the PATH


def _print_what_next(home: Path, first: str) -> None:
    where = shlex.quote(str(home))
    lexvla = _command()
    print("Each hit: rank, score (with its relevance, if the model knows it), name, id, the words")
    print("that it shares with the query with what each adds to the score, and [dense], what the")
    print("nearness of the dense vectors adds. Next:")
    query = shlex.quote(QUERIES[0])
    index = "" if home == _cache_home() / "demo.lex" else f" --index {where}"
    print(f"  {lexvla} search 'crying cat' --index {where} --explain --json")
    print(f"  {lexvla} search heart --index {where} --require blue --ban red")
    print(f"  {lexvla} explain {first} {query} --index {where} --picture why.png")
    print(f"  {lexvla} demo --serve{index}   # the page, at http://127.0.0.1:8080/")
    print(f"The index is in {home}")
