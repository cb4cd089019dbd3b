"""``lexvla search``."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from lexvla_indexer import open_index
from lexvla_search.cli.arguments import IndexOptions, JsonOptions, flag, option, positive
from lexvla_search.cli.console import UsageError, note, one_line, print_columns, print_json
from lexvla_search.cli.query import QueryOptions, described, finite, located, score_of
from lexvla_search.fusion import GOOD_MATCH
from lexvla_search.query import Query
from lexvla_search.searcher import Hit, Searcher
from lexvla_search.shown_query import shown_query
from lexvla_search.typed_words import say_unknown

NO_GOOD_MATCH = f"no hit matches well (relevance below {GOOD_MATCH})"
HIT_WORDS = 4  # of one hit in a list
TABLE_ROWS = 20  # of each hit; `explain` and --json show all


def _offset(text: str) -> int:
    if not (text.isascii() and text.isdecimal()):
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 0, not {text!r}")
    return int(text)


@dataclass(frozen=True)
class Options(QueryOptions, IndexOptions, JsonOptions):
    """What to look for, and which hits to return."""

    k: int = option("how many hits (10)", type=positive, default=10, metavar="N")
    offset: int = option("skip the first N hits", type=_offset, default=0, metavar="N")
    min_score: float | None = option("leave out lower scores", type=finite, metavar="S")
    min_relevance: float | None = option(
        "leave out lower relevances, such as 0.5", type=finite, metavar="R"
    )
    explain: bool = flag("show the parts of each score")
    show_query: bool = flag("print the request to Elasticsearch without sending it")
    named: bool = flag("... with a clause of its own for each word")


def run(options: Options) -> int:
    """Print the best hits of a query."""
    query = options.query(
        k=options.k,
        offset=options.offset,
        min_score=options.min_score,
        min_relevance=options.min_relevance,
    )
    if options.named and not options.show_query:
        raise UsageError("--named goes with --show-query")
    with open_index(options.index) as source:
        searcher = Searcher(options.encoder(), source)
        if options.show_query:
            return _show_query(options, query, searcher)
        # People always see the strongest words; JSON has the explanation on request.
        answer = searcher.answer(query, explain=options.explain or not options.json)
        hits = located(answer.hits, source)
    if options.json:
        hit_data = [hit.to_dict() for hit in hits]
        found = {"good_match": answer.good_match, "hits": hit_data}
        print_json({"query": described(query, answer), **found})
        return 0
    if answer.unknown:
        note(f"lexvla: {say_unknown(answer.unknown)}")
    if answer.good_match is False:
        note(f"lexvla: {NO_GOOD_MATCH}")
    elif not hits:
        note("lexvla: no hits")
    if options.explain:
        for hit in hits:
            print(f"{hit.rank}. {one_line(hit.label)}  {hit.id}  {score_of(hit)}")
            print(hit.explanation.table(TABLE_ROWS) if hit.explanation else "", end="\n\n")
    else:
        print_columns(hit_rows(hits))
    return 0


def hit_rows(hits: list[Hit]) -> list[tuple[str, ...]]:
    """Return hits as table rows: rank, score and relevance, label, id, strongest words."""
    digits = max((len(str(hit.rank)) for hit in hits), default=1)
    return [
        (
            f"{hit.rank:>{digits}}",
            f"{hit.score:.3f}"
            + ("" if hit.relevance is None else f"  {100 * hit.relevance:3.0f}%"),
            one_line(hit.label),
            hit.id,
            hit.explanation.summary(HIT_WORDS) if hit.explanation else "",
        )
        for hit in hits
    ]


def _show_query(options: Options, query: Query, searcher: Searcher) -> int:
    """Print the request of each leg, and what comes after the answers."""
    shown = shown_query(searcher, query, options.named)
    if options.json:
        print_json({"index": options.index, "requests": shown.requests, "steps": shown.steps})
        return 0
    for step in shown.steps:
        print(f"# {step}")
    print(searcher.index.show(shown.requests, options.named))
    return 0
