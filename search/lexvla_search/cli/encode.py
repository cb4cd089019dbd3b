"""``lexvla encode``."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from operator import itemgetter
from pathlib import Path
from typing import Any, get_args

from lexvla.errors import InputError
from lexvla_indexer.encoded import encode_source
from lexvla_indexer.exports.base import ExportLeg, Format, Names, Row
from lexvla_indexer.exports.exporting import export_source
from lexvla_indexer.exports.formats import FORMATS, open_format
from lexvla_indexer.hugging_face_source import DatasetChoice
from lexvla_search.cli.arguments import (
    JsonOptions,
    ModelOptions,
    not_empty,
    option,
    positional,
    positive,
    refuse_options,
)
from lexvla_search.cli.console import UsageError, note, one_line, print_columns, print_json
from lexvla_search.cli.source import (
    SOURCE,
    ReadingOptions,
    SourceOptions,
    counts,
    details,
    exit_code,
    in_words,
)
from lexvla_search.encoded_query import encode_query
from lexvla_search.evaluation.trec import read_queries
from lexvla_search.pyserini import QUERY_SCALE, write_topics
from lexvla_search.query import Query
from lexvla_search.typed_words import say_unknown

_VECTORS, _LINES, _QUERIES = ".npz", ".jsonl", ".tsv"
_ALL = (1, 1)
_OTHERS = "for other engines"
_NAMES = {"index_name": "index", "lexical_field": "lexical", "dense_field": "dense"}  # of `Names`

# Options that say which items to encode, and how to read them.
_OF_ITEMS = (
    *("shard", "text_field", *(each.name for each in fields(DatasetChoice))),
    *(each.name for each in fields(ReadingOptions)),
)


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

    source: str | None = positional(
        f"{SOURCE}, or queries (.tsv)", metavar="SOURCE", type=not_empty, nargs="?"
    )
    out: str | None = option(
        "a .npz or .jsonl file, or see --format", type=not_empty, metavar="FILE"
    )
    shard: tuple[int, int] = option(
        "only part I of N, such as 1/4", type=_shard, default=_ALL, metavar="I/N"
    )
    format: str | None = option(
        "write what this engine loads, or the query that it answers", choices=FORMATS, group=_OTHERS
    )
    query: str | None = option(
        "print this text's words, or in a --format the request for them",
        type=not_empty,
        metavar="TEXT",
        group=_OTHERS,
    )
    index_name: str | None = option(
        f"name of the index, collection, table or class, where a format has it ({Names.index})",
        metavar="NAME",
        group=_OTHERS,
    )
    lexical_field: str | None = option(
        f"name of the words' field ({Names.lexical})", metavar="NAME", group=_OTHERS
    )
    dense_field: str | None = option(
        f"name of the dense vectors' field ({Names.dense})", metavar="NAME", group=_OTHERS
    )
    leg: ExportLeg | None = option(
        "what a --query asks by (lexical)", choices=get_args(ExportLeg), group=_OTHERS
    )
    k: int | None = option(
        "how many hits a --query asks for (10)", type=positive, metavar="N", group=_OTHERS
    )

    def form(self) -> Format | None:
        """Return the format, if one was given, or raise `UsageError`."""
        asked = "-k" if self.k else "--leg" if self.leg else ""
        named = [name for name in _NAMES if getattr(self, name) is not None]
        if asked and (self.query is None or self.format is None):
            raise UsageError(f"{asked} goes with --query and --format")
        if self.format is None:
            if named:
                raise UsageError(f"--{named[0].replace('_', '-')} goes with --format")
            return None
        names = {name: getattr(self, option) for option, name in _NAMES.items() if option in named}
        try:
            return open_format(self.format, Names(**names))
        except InputError as error:
            raise UsageError(str(error)) from error


def run(options: Options) -> int:
    """Write the vectors of a source, or of a part of it, to a file, or print a query."""
    form = options.form()
    if options.query is not None:
        return _print_query(options, options.query, form)
    if options.source is None or options.out is None:
        raise UsageError("give a SOURCE and --out FILE, or --query TEXT")
    source, out = options.source, Path(options.out)
    if form is None and out.suffix not in (_VECTORS, _LINES):
        rule = f"must name a file that ends in {_VECTORS} or {_LINES}, or go with --format"
        raise UsageError(f"--out {rule}")
    if out.is_dir():
        raise UsageError(f"--out must name a file, and {out} is a folder")
    if Path(source).suffix.lower() == _QUERIES:
        if form is not None:
            raise UsageError(f"--format does not go with queries ({_QUERIES}); see --query")
        out.parent.mkdir(parents=True, exist_ok=True)
        return _encode_queries(options, source, out)
    out.parent.mkdir(parents=True, exist_ok=True)
    opened = options.open(source)
    model = options.load_model()
    # Not the ending of the vectors themselves: some tools read all such files of a folder.
    rejects = ".rejected" if out.suffix == _LINES else ".rejected.jsonl"
    settings: Any = {
        "rejects_path": out.with_name(f"{out.name}{rejects}"),
        "batch_size": options.batch_size,
        "shard": options.shard,
        "reading": options.reading,
    }
    facts: dict[str, Any] = {}
    if form is not None:
        widths, report = export_source(opened, model, out, form, **settings)
        facts = asdict(widths)
    else:
        encoded, report = encode_source(opened, model, **settings)
        if out.suffix == _VECTORS:
            encoded.save(out)
        else:
            encoded.save_collection(out)
    numbers = counts(report, "of other shards")
    if options.json:
        print_json({"out": str(out), **facts, **numbers, **details(report)})
    else:
        print(
            f"{in_words(report, 'of other shards')}; the vectors are in {out}{_in_numbers(facts)}"
        )
    failure = ""
    # An empty shard is not a failure; one whose items were all rejected is.
    if not report.added and (report.rejected or not report.skipped):
        failure = f"nothing in {source} could be encoded"
    return exit_code(report, options.strict, failure)


def _in_numbers(facts: Mapping[str, Any]) -> str:
    """Say how wide vectors are: their fields are created so."""
    said = [f"{name} {width}" for name, width in facts.items() if width is not None]
    return f" (widths: {', '.join(said)})" if said else ""


def _print_query(options: Options, text: str, form: Format | None) -> int:
    if options.source is not None or options.out is not None:
        raise UsageError("--query goes without SOURCE and --out")
    refuse_options(options, (*_OF_ITEMS, "strict"), "--query")
    if options.json and form is not None:
        raise UsageError("--json does not go with --query and --format")
    model = options.load_model()
    encoded = encode_query(Query(text=text), model)
    if encoded.unknown:
        note(f"lexvla: {say_unknown(encoded.unknown)}")
    if not encoded.words:
        raise InputError(text, "the model knows no word of it")
    (row,) = Row.of(encoded.encoding, model.vocabulary)
    if form is not None:
        print(form.query(row, options.leg or "lexical", options.k or 10))
        return 0
    words = [
        (weight, model.vocabulary.word(column), term, column)
        for weight, term, column in zip(row.weights, row.terms, row.columns, strict=True)
    ]
    words.sort(key=itemgetter(0), reverse=True)
    if options.json:
        names = "weight", "word", "term", "column"
        print_json(
            {"query": text, "words": [dict(zip(names, each, strict=True)) for each in words]}
        )
    else:
        print_columns(
            (one_line(word), f"{w:.4f}", f"column {column}") for w, word, _, column in words
        )
    return 0


def _encode_queries(options: Options, source: str, out: Path) -> int:
    if out.suffix != _LINES:
        raise UsageError(f"--out must name a file that ends in {_LINES} for queries")
    refuse_options(options, _OF_ITEMS, f"queries ({_QUERIES})")
    queries = read_queries(source)
    wordless = write_topics(out, queries, options.load_model())
    if options.json:
        numbers = {"queries": len(queries), "wordless": wordless}
        print_json({"out": str(out), **numbers, "scale": QUERY_SCALE})
    else:
        lost = f", {wordless:,} wordless" if wordless else ""
        print(f"{len(queries):,} queries{lost}; the topics are in {out}")
    return 1 if options.strict and wordless else 0
