"""``lexvla search``."""

from __future__ import annotations

import argparse
import os
import re
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

from lexvla.errors import InputError
from lexvla_indexer import open_index
from lexvla_indexer.facets import Facet, FacetCounts, Range
from lexvla_indexer.filters import Value
from lexvla_search.cli.arguments import (
    IndexOptions,
    JsonOptions,
    flag,
    not_empty,
    option,
    positive,
    whole,
)
from lexvla_search.cli.console import UsageError, note, one_line, print_columns, print_json
from lexvla_search.cli.query import (
    QueryOptions,
    described,
    finite,
    located,
    score_of,
    tell_of_text,
)
from lexvla_search.fusion import GOOD_MATCH
from lexvla_search.query import Query
from lexvla_search.searcher import Answer, Hit, Searcher
from lexvla_search.shown_query import shown_query

if TYPE_CHECKING:
    from lexvla_search.cli.remote import RemoteAnswer

NO_GOOD_MATCH = f"no hit matches well (relevance below {GOOD_MATCH})"
HIT_WORDS = 4  # of one hit in a list
TABLE_ROWS = 20  # of each hit; `explain` and --json show all
_LIMITED = re.compile(r"(?P<field>.+?):(?P<limits>[-+.]?\d.*)", re.DOTALL)
_DATE = re.compile(r"\d{4}-\d\d.*")


def _facet(text: str) -> Facet:
    """Read a field, or one with limits, each the end of a range and the start of the next.

    Limits are numbers or dates, as in ``taken:2024-06-01,2024-07-01T12:00``. Where none come after
    a colon, it is part of the field's name, as in ``dc:title``.
    """
    parts = _LIMITED.fullmatch(text)
    try:
        if parts is None:
            return Facet(text)
        limits = parts["limits"].split(",")
        values = [limit if _DATE.fullmatch(limit) else _number(limit) for limit in limits]
        return Facet(parts["field"], ranges=list(pairwise([None, *values, None])))
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _number(text: str) -> int | float:
    value = finite(text)
    return int(value) if value.is_integer() else value


@dataclass(frozen=True)
class Options(QueryOptions, IndexOptions, JsonOptions):
    """What to look for, and which hits to return."""

    index: str = option("where the index is, such as photos.lex", type=not_empty, metavar="ADDRESS")
    server: str | None = option("... or ask a server of lexvla serve", metavar="URL")
    key: str | None = option(
        "the server's key (default: $LEXVLA_KEY)", default=os.environ.get("LEXVLA_KEY")
    )
    k: int = option("how many hits (10)", type=positive, default=10, metavar="N")
    offset: int = option("skip the first N hits", type=whole, default=0, metavar="N")
    min_score: float | None = option("leave out lower scores", type=finite, metavar="S")
    min_relevance: float | None = option(
        "leave out lower relevances, such as 0.5", type=finite, metavar="R"
    )
    sort: list[str] = option(
        "order by this field; --sort=-year is descending",
        action="append",
        default=[],
        metavar="FIELD",
    )
    facet: list[Facet] = option(
        "count this field's values, or those below, between and above limits: numbers or dates",
        action="append",
        default=[],
        type=_facet,
        metavar="FIELD[:A,B,..]",
    )
    after: str | None = option("continue after an answer, by its next", metavar="NEXT")
    group_copies: bool = flag("of near-identical items, show only the best")
    explain: bool = flag("show the parts of each score")
    show_query: bool = flag("print the requests to the server without sending them")
    named: bool = flag("... with a clause of its own for each word")


def run(options: Options) -> int:
    """Print the best hits of a query."""
    query = options.query(
        k=options.k,
        group_copies=options.group_copies,
        offset=options.offset,
        min_score=options.min_score,
        min_relevance=options.min_relevance,
        sort=options.sort,
        facets=options.facet,
        after=options.after,
    )
    if options.named and not options.show_query:
        raise UsageError("--named goes with --show-query")
    if options.server is not None:
        return _report(options, query, _ask(options, query))
    if not options.index:
        raise UsageError("give --index ADDRESS or --server URL")
    with open_index(options.index) as source:
        searcher = Searcher(options.encoder(), source)
        if options.show_query:
            return _show_query(options, query, searcher)
        # People always see the strongest words, if they are stored; JSON has them on request.
        shows_words = source.has_rows and not options.json
        answer = searcher.answer(query, explain=options.explain or shows_words)
        hits = located(answer.hits, source)
    return _report(options, query, replace(answer, hits=hits))


def _ask(options: Options, query: Query) -> RemoteAnswer:
    for name in ("index", "model", "no_model", "max_pixels", "show_query"):
        if getattr(options, name):
            raise UsageError(f"--{name.replace('_', '-')} does not go with --server")
    from lexvla_search.cli.remote import ask  # slow to import

    return ask(options.server or "", options.key, query, options.explain or not options.json)


def _report(options: Options, query: Query, answer: Answer | RemoteAnswer) -> int:
    hits = answer.hits
    if options.json:
        hit_data = [hit.to_dict() for hit in hits]
        found = {
            "good_match": answer.good_match,
            "hits": hit_data,
            "total": answer.total,
            "total_exact": answer.total_exact,
            "facets": answer.facets_to_dict(),
            "next": answer.next,
        }
        fusion = None if answer.fusion is None else str(answer.fusion)
        searched = {"legs": list(answer.legs), "fusion": fusion}
        print_json({"query": {**described(query, answer), **searched}, **found})
        return 0
    tell_of_text(answer.unknown, answer.unread)
    if answer.good_match is False:
        note(f"lexvla: {NO_GOOD_MATCH}")
    elif not hits:
        note("lexvla: no hits")
    if options.explain and query.is_scored:
        for hit in hits:
            print(f"{hit.rank}. {one_line(hit.label)}  {_named(hit)}  {score_of(hit)}")
            print(hit.explanation.table(TABLE_ROWS) if hit.explanation else "", end="\n\n")
    else:
        print_columns(hit_rows(hits))
    for field, counts in answer.facets.items():
        print(f"\n{one_line(field)}")
        print_columns(facet_rows(counts))
    if hits and (not query.is_scored or query.is_bounded or query.facets):
        note(f"lexvla: {'' if answer.total_exact else 'at least '}{answer.total:,} in all")
    if answer.next and (query.after or not query.is_scored):
        note(f"lexvla: for more: --after {answer.next}")
    return 0


def facet_rows(counts: FacetCounts) -> list[tuple[str, str]]:
    """Return a facet as table rows: what, and how many documents have it."""
    if counts.ranges is not None:
        rows = [(_said(each), f"{count:,}") for each, count in counts.ranges]
    else:
        rows = [(_shown(value), f"{count:,}") for value, count in counts.values]
        if counts.other:
            rows.append(("(other values)", f"{counts.other:,}"))
    if counts.missing:
        rows.append(("(no value)", f"{counts.missing:,}"))
    return [(f"  {what}", count) for what, count in rows]


def _said(each: Range) -> str:
    if each.low is None:
        return f"below {each.high}"
    return f"{each.low} or more" if each.high is None else f"{each.low} to below {each.high}"


def _shown(value: Value) -> str:
    return str(value).lower() if isinstance(value, bool) else one_line(str(value)) or '""'


def _named(hit: Hit) -> str:
    """Return a hit's id, and how many copies it stands for."""
    return hit.id + (f" +{len(hit.copies)} alike" if hit.copies else "")


def hit_rows(hits: list[Hit]) -> list[tuple[str, ...]]:
    """Return hits as table rows: rank, score and relevance, label, id, strongest words."""
    digits = max((len(str(hit.rank)) for hit in hits), default=1)
    return [
        (
            f"{hit.rank:>{digits}}",
            ("" if hit.score is None else f"{hit.score:.3f}")
            + ("" if hit.relevance is None else f"  {100 * hit.relevance:3.0f}%"),
            one_line(hit.label),
            _named(hit),
            hit.explanation.summary(HIT_WORDS) if hit.explanation else "",
        )
        for hit in hits
    ]


def _show_query(options: Options, query: Query, searcher: Searcher) -> int:
    """Print the request of each leg, and what comes after the answers."""
    if not query.is_scored:
        raise UsageError("--show-query shows how documents are scored, and this query scores none")
    shown = shown_query(searcher, query, options.named)
    if options.json:
        print_json({"index": options.index, "requests": shown.requests, "steps": shown.steps})
        return 0
    for step in shown.steps:
        print(f"# {step}")
    print(searcher.index.show(shown.requests, options.named))
    return 0
