"""``lexvla fit-fusion``."""

from __future__ import annotations

from dataclasses import dataclass

from lexvla_indexer import open_index
from lexvla_search.cli.arguments import IndexOptions, JsonOptions, ModelOptions, flag, option
from lexvla_search.cli.console import note, print_json
from lexvla_search.evaluation.trec import read_qrels, read_queries
from lexvla_search.fitting import fit_fusion, save_fusion
from lexvla_search.searcher import Searcher


@dataclass(frozen=True)
class Options(IndexOptions, ModelOptions, JsonOptions):
    """What to learn a fusion from."""

    queries: str = option("lines of id, tab, text; or .jsonl", required=True, metavar="FILE")
    qrels: str = option("TREC judgements, by query id", required=True, metavar="FILE")
    measure: str = option("what to maximise (nDCG@10)", default="nDCG@10", metavar="M")
    dry_run: bool = flag("do not store the fusion with the index")


def run(options: Options) -> int:
    """Learn how to weight an index's legs, keep that with the index, and print the gain."""
    queries, qrels = read_queries(options.queries), read_qrels(options.qrels)
    with open_index(options.index) as source:
        searcher = Searcher(options.load_model(), source)
        fitted = fit_fusion(searcher, queries, qrels, options.measure, show_progress_bar=None)
        if not options.dry_run:
            save_fusion(source, fitted.fusion, fitted.to_dict())
    if options.json:
        print_json({"index": options.index, "stored": not options.dry_run, **fitted.to_dict()})
        return 0
    print(fitted)
    if not options.dry_run:
        note(f"lexvla: searches of {options.index} that name no fusion now use this one")
    return 0
