"""The arguments of ``lexvla search``, ``explain`` and ``fit-fusion``."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable

__all__ = ["add_fitting", "add_hits", "add_query"]

_FUSIONS = ("rrf", "weighted", "lexical", "codes", "dense")


def add_query(parser: argparse.ArgumentParser) -> None:
    """Add what makes a query."""
    parser.add_argument("text", metavar="TEXT", nargs="?", help="what to look for")
    parser.add_argument("--image", metavar="FILE", help="look for images like this one")
    parser.add_argument(
        "--region", type=_region, metavar="X,Y,W,H", help="... like this part of it, in pixels"
    )
    _add_words(parser, "--term", _weighted, "WORD=W", "put a word into the query as it is")
    _add_words(parser, "--boost", _weighted, "WORD=F", "multiply a word's weight in the query")
    _add_words(parser, "--ban", str, "WORD", "no hits that show this word; it leaves the query")
    _add_words(parser, "--require", str, "WORD", "only hits that show this word")
    parser.add_argument("--filter", metavar="F", help="such as 'year>=2020 and tag=cat'")
    parser.add_argument(
        "--legs",
        type=_listed,
        metavar="L,L",
        help="of lexical, codes, dense; else all there are but codes",
    )
    parser.add_argument("--fusion", choices=_FUSIONS, help="how to make one list of the legs'")
    parser.add_argument(
        "--weights", type=_weights, metavar="L=W,..", help="such as lexical=0.7,dense=0.3"
    )
    parser.add_argument(
        "--no-model", action="store_true", help="load none: plain words, each of weight 1"
    )


def add_hits(parser: argparse.ArgumentParser, positive: Callable[[str], int]) -> None:
    """Add which of the hits to return."""
    parser.add_argument("-k", type=positive, default=10, metavar="N", help="how many hits")
    parser.add_argument("--offset", type=_offset, default=0, metavar="N", help="leave out so many")
    parser.add_argument("--min-score", type=_number, metavar="S", help="leave out lower scores")
    parser.add_argument("--explain", action="store_true", help="show the parts of each score")
    parser.add_argument(
        "--show-query",
        action="store_true",
        help="print what Elasticsearch is asked, and do not ask",
    )


def add_fitting(parser: argparse.ArgumentParser) -> None:
    """Add what a fusion is learned from."""
    parser.add_argument(
        "--queries", required=True, metavar="FILE", help="lines of id, tab and text, or JSONL"
    )
    parser.add_argument(
        "--qrels", required=True, metavar="FILE", help="judgements in TREC's form, by query id"
    )
    parser.add_argument("--measure", default="nDCG@10", metavar="M", help="what to raise (nDCG@10)")
    parser.add_argument("--dry-run", action="store_true", help="do not store what was found")


def _add_words(
    parser: argparse.ArgumentParser,
    name: str,
    kind: Callable[[str], object],
    metavar: str,
    what: str,
) -> None:
    parser.add_argument(name, action="append", default=[], type=kind, metavar=metavar, help=what)


def _weighted(text: str) -> tuple[str, float]:
    word, sign, weight = text.rpartition("=")
    if not sign or not word.strip():
        raise argparse.ArgumentTypeError(f"{text!r} is no word with a weight, such as red=2")
    return word, _number(weight)


def _weights(text: str) -> dict[str, float]:
    return dict(_weighted(part) for part in _listed(text))


def _listed(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(","))


def _region(text: str) -> tuple[float, ...]:
    values = tuple(_number(part) for part in text.split(","))
    if len(values) != 4:
        raise argparse.ArgumentTypeError(f"{text!r} is no x,y,width,height")
    return values


def _offset(text: str) -> int:
    if not (text.isascii() and text.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least 0")
    return int(text)


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r} is no finite number")
    return value
