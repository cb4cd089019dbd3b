"""The arguments of ``lexvla evaluate`` and ``lexvla crossmodal``."""

from __future__ import annotations

import argparse
from collections.abc import Callable

__all__ = ["add_crossmodal", "add_evaluate"]

TESTS = ("randomisation", "t")
PROTOCOLS = ("flickr30k", "coco", "cub", "cars", "sop", "inshop", "inat", "folders")


def add_evaluate(parser: argparse.ArgumentParser, positive: Callable[[str], int]) -> None:
    """Add what is `lexvla evaluate`'s own; the index and the model are added by the caller."""
    queries = "id, tab, text on a line; or .jsonl; or a folder of images"
    parser.add_argument("--queries", required=True, metavar="Q", help=queries)
    parser.add_argument("--qrels", required=True, metavar="R", help="TREC judgements")
    parser.add_argument("--measures", nargs="+", metavar="M", help="such as 'R@1 nDCG@10 RR'")
    parser.add_argument(
        "--legs", nargs="+", metavar="L", help="a system each, such as lexical lexical,dense"
    )
    parser.add_argument(
        "--fusion", nargs="+", metavar="F", help="a system each: rrf, weighted, or a leg's name"
    )
    parser.add_argument("--depth", type=positive, default=100, metavar="N", help="hits of a query")
    parser.add_argument("--run", metavar="FILE", help="write the run; one a system if several")
    parser.add_argument("--baseline", metavar="FILE", help="test each system against this run")
    parser.add_argument(
        "--test", choices=TESTS, default=TESTS[0], help="how to test; the first is the default"
    )
    parser.add_argument("--per-query", metavar="FILE", help="write every value as .tsv")
    parser.add_argument("--group", metavar="FIELD", help="R@1 by a field of the right documents")
    parser.add_argument("--plot", metavar="FILE", help="draw recall, as .png or .svg")


def add_crossmodal(parser: argparse.ArgumentParser, positive: Callable[[str], int]) -> None:
    """Add what is `lexvla crossmodal`'s own; the model is added by the caller."""
    parser.add_argument("protocol", choices=PROTOCOLS, help="which data; see docs/reproduce.md")
    parser.add_argument("data", metavar="DATA", help="its file or folder, as it is published")
    parser.add_argument("--images", metavar="DIR", help="the folder of the images, if elsewhere")
    parser.add_argument("--split", default="test", help="of Karpathy's files (default: test)")
    parser.add_argument(
        "--zero-shot", action="store_true", help="classify by class names, not image to image"
    )
    parser.add_argument(
        "--prompt", default="{}", metavar="P", help="around a class name, such as 'a photo of a {}'"
    )
    parser.add_argument(
        "--leg",
        choices=("lexical", "dense", "both"),
        default="lexical",
        help="compare by words (the default), by dense vectors, or by the sum of both",
    )
    parser.add_argument("--active", type=positive, metavar="N", help="keep N words of each vector")
    parser.add_argument("--batch-size", type=positive, default=64, metavar="N")
    parser.add_argument(
        "--export", metavar="DIR", help="write captions for lexvla index and evaluate, and no more"
    )
    parser.add_argument(
        "--any-count", action="store_true", help="do not insist on the published counts"
    )
