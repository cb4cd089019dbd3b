"""``lexvla evaluate``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

from lexvla.errors import GatheredInputError, InputError, UnsupportedError
from lexvla_indexer import open_index
from lexvla_indexer.base import Index
from lexvla_indexer.ir_datasets_source import IR_DATASETS
from lexvla_search.cli.arguments import (
    IndexOptions,
    JsonOptions,
    ModelOptions,
    flag,
    not_empty,
    option,
    plot_file,
    positional,
    positive,
)
from lexvla_search.cli.console import UsageError, note, print_json, print_numbers
from lexvla_search.evaluation.collection import SPLIT, read_collection
from lexvla_search.evaluation.figures import check_plot
from lexvla_search.evaluation.measures import MEASURES, deepest, parse_measures
from lexvla_search.evaluation.provenance import provenance, run_tag
from lexvla_search.evaluation.runs import System, mismatches, systems
from lexvla_search.evaluation.search import TIES, SearchFigures, evaluate_search
from lexvla_search.evaluation.significance import TESTS, Test
from lexvla_search.evaluation.trec import (
    Read,
    Run,
    read_qrels_lines,
    read_queries_lines,
    read_run,
    unwritable,
)
from lexvla_search.fusion import MAX_HITS
from lexvla_search.query import Query

# What decides which queries and hits count, for the JSON.
_PROTOCOL = ("collection", "split", "queries", "qrels", "complete", "ignore_identical_ids")

_T = TypeVar("_T")


@dataclass(frozen=True)
class Options(IndexOptions, ModelOptions, JsonOptions):
    """What to measure, how, and what to write."""

    collection: str | None = positional(
        "a collection in BEIR's layout, or ir_datasets:NAME, in place of --queries and --qrels",
        metavar="COLLECTION",
        nargs="?",
        type=not_empty,
    )
    queries: str | None = option(
        "queries: lines of id, tab, text; or .jsonl; or a folder of images", metavar="Q"
    )
    qrels: str | None = option("judgements of TREC or BEIR", metavar="R")
    split: str | None = option("which of a collection's judgements (test)", metavar="NAME")
    ignore_identical_ids: bool = flag("leave out hits with the query's own id, as BEIR does")
    measures: list[str] | None = option(
        "what to measure, such as 'R@1 nDCG@10 RR'", nargs="+", metavar="M"
    )
    legs: list[str] | None = option(
        "one system each, such as lexical lexical,dense", nargs="+", metavar="L"
    )
    fusion: list[str] | None = option(
        "one system each: weighted, minmax, zscore, rrf, or a leg's name", nargs="+", metavar="F"
    )
    depth: int = option("hits of each query (100)", type=positive, default=100, metavar="N")
    run: str | None = option("write the run; with several systems, one file each", metavar="FILE")
    baseline: str | None = option("test each system against this run", metavar="FILE")
    test: Test = option(f"which significance test ({TESTS[0]})", choices=TESTS, default=TESTS[0])
    per_query: str | None = option("write every value as .tsv", metavar="FILE")
    group: str | None = option("R@1 by a field of the relevant documents", metavar="FIELD")
    complete: bool = flag("count judged queries that are not asked as 0, as trec_eval -c does")
    strict: bool = flag("fail if queries, judgements and index do not belong together")
    plot: str | None = option("draw recall, as .png or .svg", type=plot_file, metavar="FILE")


class _Inputs(NamedTuple):
    queries: Read[Query]
    qrels: Read[dict[str, int]]
    baseline: Run | None


def run(options: Options) -> int:
    """Print the measures of each system, and write the files that were requested."""
    chosen, measures, depth = _plan(options)
    inputs = _read(options)
    with open_index(options.index) as index:
        _check(options, inputs, index)
        judged = inputs.qrels.values
        if not options.complete:
            judged = {query: own for query, own in judged.items() if query in inputs.queries.values}
        if not judged:
            source = str(options.collection or options.qrels)
            raise InputError(source, "has no judgement of any of the queries")
        model = options.load_model()
        figures = evaluate_search(
            model,
            index,
            inputs.queries.values,
            judged,
            chosen,
            measures,
            depth,
            inputs.baseline,
            options.test,
            options.group,
            options.ignore_identical_ids,
            cut=options.plot is not None,
            show_progress_bar=None,
        )
        made_by = provenance(model, index)
    runs: dict[str, str] = {}
    if options.run:
        runs = figures.write_runs(options.run, lambda system: run_tag(model, system))
    if options.per_query:
        figures.write_per_query(options.per_query)
    if options.plot:
        figures.plot(options.plot)
    if options.json:
        data = figures.to_dict()
        for system in data["systems"]:
            system["run"] = runs.get(system["name"])
        protocol = {name: getattr(options, name) for name in _PROTOCOL}
        if options.collection and not options.collection.startswith(IR_DATASETS):
            protocol["split"] = options.split or SPLIT
        told = {"index": options.index, "provenance": made_by, "protocol": protocol}
        print_json({**told, **data})
        return 0
    without = "; hits with the query's own id are left out" if options.ignore_identical_ids else ""
    print(
        f"{options.index}: {figures.queries:,} queries, {depth:,} hits of each; {TIES}{without}\n"
    )
    print_numbers(
        [
            ("", *measures),
            *((name, *(f"{one.mean[m]:.4f}" for m in measures)) for name, one in figures.rows),
        ]
    )
    _print_significance(figures)
    _print_groups(figures)
    _note_unanswered(figures)
    for path in (*runs.values(), options.per_query, options.plot):
        if path:
            note(f"lexvla: wrote {path}")
    return 0


def _plan(options: Options) -> tuple[list[System], list[str], int]:
    try:
        chosen = systems(options.legs or (), options.fusion or ())
        measures = parse_measures(options.measures or MEASURES)
    except InputError as error:
        raise UsageError(str(error)) from error
    if options.collection is None and not (options.queries and options.qrels):
        raise UsageError("needs either a COLLECTION or both --queries and --qrels")
    if options.collection is not None and (options.queries or options.qrels):
        raise UsageError("a COLLECTION has queries and judgements of its own")
    if options.split and options.collection is None:
        raise UsageError("--split goes with a COLLECTION")
    depth = max(options.depth, deepest(measures))
    if depth + options.ignore_identical_ids > MAX_HITS:
        raise UsageError(f"searches reach {MAX_HITS:,} hits deep, not {depth:,}")
    if options.plot:
        check_plot(options.plot)  # before the searches
    for path in (options.run, options.per_query):
        if path and not Path(path).absolute().parent.is_dir():
            raise InputError(path, "its folder does not exist")
    return chosen, measures, depth


def _read(options: Options) -> _Inputs:
    """Read all files and report their errors together."""
    errors: list[InputError] = []

    def gather(read: Callable[..., _T], *source: str | None) -> _T | None:
        try:
            return read(*source)
        except GatheredInputError as error:
            errors.extend(error.errors)
        except InputError as error:
            errors.append(error)
        return None

    if options.collection is not None:
        queries, qrels = gather(read_collection, options.collection, options.split) or (None, None)
    else:
        queries = gather(read_queries_lines, options.queries)
        qrels = gather(read_qrels_lines, options.qrels)
    baseline = gather(read_run, options.baseline) if options.baseline else None
    if options.run and queries is not None and qrels is not None:  # before the searches
        judged = (document for _, document in qrels.where)
        errors += unwritable(options.run, queries.values, judged)
    if errors or queries is None or qrels is None:
        raise GatheredInputError(errors)
    return _Inputs(queries, qrels, baseline)


def _check(options: Options, inputs: _Inputs, index: Index) -> None:
    """Count what does not belong together, or with --strict raise it as GatheredInputError."""
    try:
        found = mismatches(inputs.queries, inputs.qrels, index)
    except UnsupportedError as error:
        note(f"lexvla: cannot check whether the index has the judged documents: {error}")
        return
    if found and options.strict:
        raise GatheredInputError([error for _, error in found])
    by_kind: dict[str, list[InputError]] = {}
    for kind, one in found:
        by_kind.setdefault(kind, []).append(one)
    for kind, errors in by_kind.items():
        note(f"lexvla: {kind}: {len(errors):,}; the first is {errors[0]}")


def _print_significance(figures: SearchFigures) -> None:
    if figures.baseline is None:
        return
    how = "paired t-test" if figures.test == "t" else "paired randomisation test"
    print(f"\nminus the baseline; p of a two-sided {how}, and Holm's correction over the systems\n")
    rows: list[tuple[str, ...]] = [("", "measure", "difference", "p", "Holm")]
    for name, by_system in figures.significance.items():
        for system, one in by_system.items():
            rows.append(
                (system, name, f"{one.difference:+.4f}", f"{one.p:.4g}", f"{one.corrected:.4g}")
            )
    print_numbers(rows)


def _print_groups(figures: SearchFigures) -> None:
    if not figures.groups:
        return
    print("\nR@1 by group\n")
    rows: list[tuple[str, ...]] = [("", "queries", *figures.by_group)]
    for name, members in figures.groups.items():
        values = (f"{row[name]:.4f}" for row in figures.by_group.values())
        rows.append((name, f"{len(members):,}", *values))
    print_numbers(rows)


def _note_unanswered(figures: SearchFigures) -> None:
    for system, one in figures.found.items():
        if one.unanswered:
            first, reason = next(iter(one.unanswered.items()))
            why = f" ({reason})" if reason else ""
            many = f"{len(one.unanswered):,} of {figures.queries:,} queries have no hits"
            note(f"lexvla: {system.name}: {many} and count 0; the first is {first!r}{why}")
