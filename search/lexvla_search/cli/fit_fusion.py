"""``lexvla fit-fusion``."""

from __future__ import annotations

from dataclasses import dataclass

from lexvla.errors import UnsupportedError
from lexvla_indexer import open_index
from lexvla_search.cli.arguments import IndexOptions, JsonOptions, ModelOptions, flag, option
from lexvla_search.cli.console import UsageError, note, print_json
from lexvla_search.evaluation.trec import read_qrels, read_queries
from lexvla_search.fitting import NOTE, fit_fusion, save_fusion
from lexvla_search.searcher import Searcher


@dataclass(frozen=True)
class Options(IndexOptions, ModelOptions, JsonOptions):
    """What to learn a fusion from."""

    queries: str | None = option("queries: lines of id, tab, text; or .jsonl", metavar="FILE")
    qrels: str | None = option("TREC judgements, by query id", metavar="FILE")
    measure: str = option("what to maximise (nDCG@10)", default="nDCG@10", metavar="M")
    dry_run: bool = flag("do not store the fusion with the index")
    reset: bool = flag("remove the stored fusion, and fit none")


def run(options: Options) -> int:
    """Learn how to weight an index's legs, keep that with the index, and print the gain."""
    if options.reset:
        return _reset(options)
    if options.queries is None or options.qrels is None:
        raise UsageError("--queries and --qrels are needed, or --reset")
    queries, qrels = read_queries(options.queries), read_qrels(options.qrels)
    with open_index(options.index) as source:
        if not (source.is_writable or options.dry_run):
            rule = "a fusion cannot be kept with an index that LexVLA only searches"
            raise UnsupportedError(f"{source}: {rule}; --dry-run only shows it")
        searcher = Searcher(options.load_model(), source)
        fitted = fit_fusion(searcher, queries, qrels, options.measure, show_progress_bar=None)
        is_stored = fitted.gain > 0 and not options.dry_run
        if is_stored:
            save_fusion(source, fitted.fusion, fitted.to_dict())
    if options.json:
        print_json({"index": options.index, "stored": is_stored, **fitted.to_dict()})
        return 0
    print(fitted)
    if is_stored:
        note(f"lexvla: searches of {options.index} that name no fusion now use this one")
    elif fitted.gain <= 0:
        note("lexvla: not stored, as it is no better than the default")
    return 0


def _reset(options: Options) -> int:
    with open_index(options.index) as source:
        was_stored = source.read_note(NOTE) is not None
        save_fusion(source, None)
    if options.json:
        print_json({"index": options.index, "reset": was_stored})
    else:
        said = "now use the model's" if was_stored else "used the model's already"
        note(f"lexvla: searches of {options.index} that name no fusion {said}")
    return 0
