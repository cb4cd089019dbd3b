"""``lexvla encode``."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, fields
from pathlib import Path

from lexvla_indexer.encoded import encode_source
from lexvla_indexer.hugging_face_source import DatasetChoice
from lexvla_search.cli.arguments import (
    JsonOptions,
    ModelOptions,
    not_empty,
    option,
    positional,
)
from lexvla_search.cli.console import UsageError, print_json
from lexvla_search.cli.source import (
    SOURCE,
    SourceOptions,
    counts,
    details,
    exit_code,
    in_words,
)
from lexvla_search.evaluation.trec import read_queries
from lexvla_search.pyserini import QUERY_SCALE, write_topics

_VECTORS, _LINES, _QUERIES = ".npz", ".jsonl", ".tsv"
_ALL = (1, 1)


def _shard(text: str) -> tuple[int, int]:
    number, _, of = text.partition("/")
    if not (number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of)):
        raise argparse.ArgumentTypeError(
            f"must be a part I/N with I from 1 to N, such as 1/4, not {text!r}"
        )
    return int(number), int(of)


@dataclass(frozen=True)
class Options(SourceOptions, ModelOptions, JsonOptions):
    """What to encode, and where to."""

    source: str = positional(f"{SOURCE}, or queries (.tsv)", metavar="SOURCE", type=not_empty)
    out: str = option("a .npz or .jsonl file", type=not_empty, required=True, metavar="FILE")
    shard: tuple[int, int] = option(
        "only part I of N, such as 1/4", type=_shard, default=_ALL, metavar="I/N"
    )


def run(options: Options) -> int:
    """Write the vectors of a source, or of a part of it, to a file."""
    out = Path(options.out)
    if out.suffix not in (_VECTORS, _LINES):
        raise UsageError(f"--out must name a file that ends in {_VECTORS} or {_LINES}")
    out.parent.mkdir(parents=True, exist_ok=True)
    if Path(options.source).suffix.lower() == _QUERIES:
        return _encode_queries(options, out)
    opened = options.open(options.source)
    model = options.load_model()
    # Anserini reads every .json and .jsonl file of a folder as vectors.
    rejects = ".rejected" if out.suffix == _LINES else ".rejected.jsonl"
    encoded, report = encode_source(
        opened,
        model,
        out.with_name(f"{out.name}{rejects}"),
        batch_size=options.batch_size,
        shard=options.shard,
        reading=options.reading,
    )
    if out.suffix == _VECTORS:
        encoded.save(out)
    else:
        encoded.save_collection(out)
    numbers = counts(report, "of other shards")
    if options.json:
        print_json({"out": str(out), **numbers, **details(report)})
    else:
        print(f"{in_words(report, 'of other shards')}; the vectors are in {out}")
    failure = ""
    # An empty shard is not a failure; one whose items were all rejected is.
    if not report.added and (report.rejected or not report.skipped):
        failure = f"nothing in {options.source} could be encoded"
    return exit_code(report, options.strict, failure)


def _encode_queries(options: Options, out: Path) -> int:
    if out.suffix != _LINES:
        raise UsageError(f"--out must name a file that ends in {_LINES} for queries")
    for name in ("text_field", *(each.name for each in fields(DatasetChoice))):
        if getattr(options, name):
            raise UsageError(f"--{name.replace('_', '-')} does not go with queries ({_QUERIES})")
    if options.shard != _ALL:
        raise UsageError(f"--shard does not go with queries ({_QUERIES})")
    queries = read_queries(options.source)
    wordless = write_topics(out, queries, options.load_model())
    if options.json:
        numbers = {"queries": len(queries), "wordless": wordless}
        print_json({"out": str(out), **numbers, "scale": QUERY_SCALE})
    else:
        lost = f", {wordless:,} wordless" if wordless else ""
        print(f"{len(queries):,} queries{lost}; the topics are in {out}")
    return 1 if options.strict and wordless else 0
