"""``lexvla evaluate``: what an index is worth for queries whose answers are known."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from lexvla.errors import GatheredInputError, InputError, UnsupportedError
from lexvla_indexer import open_index
from lexvla_search.commands import load_model
from lexvla_search.console import UsageError, note, print_json, print_numbers
from lexvla_search.evaluation.figures import plot_evaluation
from lexvla_search.evaluation.measures import (
    MEASURES,
    Measured,
    deepest,
    measure,
    parse_measures,
    recall_curve,
)
from lexvla_search.evaluation.runs import (
    Beforehand,
    Retrieved,
    System,
    check_judgements,
    cut_queries,
    group_queries,
    retrieve,
    systems,
)
from lexvla_search.evaluation.significance import Comparison, compare
from lexvla_search.evaluation.trec import (
    Qrels,
    Read,
    Run,
    read_qrels_lines,
    read_queries_lines,
    read_run,
    write_run,
)
from lexvla_search.fusion import MAX_HITS
from lexvla_search.query import Query
from lexvla_search.searcher import Searcher
from lexvla_search.studies import check_plot

__all__ = ["evaluate"]

TIES = "equal scores stand by id"
_CUT_MEASURES = ("R@1", "R@5", "R@10")
_T = TypeVar("_T")


class _Inputs(NamedTuple):
    queries: Read[Query]
    qrels: Read[dict[str, int]]
    baseline: Run | None


def evaluate(args: argparse.Namespace) -> int:
    """Print the measures of each system, and write what was asked for."""
    chosen, measures, depth = _plan(args)
    inputs = _read(args)
    qrels = inputs.qrels.values
    curves: dict[str, list[float]] = {}
    by_words: dict[str, dict[float, float]] = {}
    with open_index(args.index) as index:
        try:
            check_judgements(inputs.queries, inputs.qrels, index)
        except UnsupportedError as error:
            note(f"lexvla: whether the index has the judged documents is not known: {error}")
        groups = group_queries(qrels, index, args.group) if args.group else {}
        encoder = Beforehand(load_model(args.model, args.device))
        texts = [
            query.text for query in inputs.queries.values.values() if query.text and query.has_text
        ]
        if texts:
            encoder.encode_text(texts)
        searcher = Searcher(encoder, index)
        found = {
            system: retrieve(searcher, inputs.queries.values, depth, system, None)
            for system in chosen
        }
        if args.plot:
            by_words = _by_words(searcher, inputs.queries.values, qrels)
    needed = [*measures, *(["R@1"] if groups and "R@1" not in measures else [])]
    measured = {system.name: measure(one.run, qrels, needed) for system, one in found.items()}
    baseline = None if inputs.baseline is None else measure(inputs.baseline, qrels, needed)
    significance = _significance(measured, baseline, measures, args.test)
    by_group = _by_group(measured, groups)
    files = _write_runs(args.run, found)
    if args.per_query:
        _write_per_query(args.per_query, measured, baseline, measures)
    if args.plot:
        curves = {system.name: recall_curve(one.run, qrels, depth) for system, one in found.items()}
        plot_evaluation(args.plot, curves, by_words, by_group or None)
    if args.json:
        print_json(
            {
                "index": args.index,
                "queries": len(inputs.queries.values),
                "depth": depth,
                "ties": TIES,
                "systems": [
                    {
                        "name": system.name,
                        "measures": {name: measured[system.name].mean[name] for name in measures},
                        "unanswered": one.unanswered,
                        "run": files.get(system.name),
                    }
                    for system, one in found.items()
                ],
                "baseline": baseline and {name: baseline.mean[name] for name in measures},
                "test": args.test if baseline else None,
                "significance": {
                    name: {system: one._asdict() for system, one in row.items()}
                    for name, row in significance.items()
                },
                "groups": {
                    name: {
                        "queries": len(members),
                        "R@1": {system: values[name] for system, values in by_group.items()},
                    }
                    for name, members in groups.items()
                },
                "by_words": {
                    name: [{"words": words, "value": value} for words, value in points.items()]
                    for name, points in by_words.items()
                },
            }
        )
        return 0
    _print(args, inputs, measured, baseline, measures, depth)
    _print_significance(significance, args.test)
    _print_groups(groups, by_group)
    _note_unanswered(found, len(inputs.queries.values))
    for path in (*files.values(), args.per_query, args.plot):
        if path:
            note(f"lexvla: wrote {path}")
    return 0


def _plan(args: argparse.Namespace) -> tuple[list[System], list[str], int]:
    try:
        chosen = systems(args.legs or (), args.fusion or ())
        measures = parse_measures(args.measures or MEASURES)
    except InputError as error:
        raise UsageError(str(error)) from error
    depth = max(args.depth, deepest(measures))
    if depth > MAX_HITS:
        raise UsageError(f"searches reach {MAX_HITS:,} hits deep, not {depth:,}")
    if args.plot:
        check_plot(Path(args.plot))  # before the searches
    for path in (args.run, args.per_query):
        if path and not Path(path).absolute().parent.is_dir():
            raise InputError(path, "its folder does not exist")
    return chosen, measures, depth


def _read(args: argparse.Namespace) -> _Inputs:
    """Read all files, so that what is wrong with any of them is told together."""
    errors: list[InputError] = []

    def gather(read: Callable[[str], _T], path: str) -> _T | None:
        try:
            return read(path)
        except GatheredInputError as error:
            errors.extend(error.errors)
        except InputError as error:
            errors.append(error)
        return None

    queries = gather(read_queries_lines, args.queries)
    qrels = gather(read_qrels_lines, args.qrels)
    baseline = gather(read_run, args.baseline) if args.baseline else None
    if errors or queries is None or qrels is None:
        raise GatheredInputError(errors)
    return _Inputs(queries, qrels, baseline)


def _significance(
    measured: Mapping[str, Measured],
    baseline: Measured | None,
    measures: list[str],
    test: Any,
) -> dict[str, dict[str, Comparison]]:
    if baseline is None:
        return {}
    return {
        name: compare(
            {system: one.per_query[name] for system, one in measured.items()},
            baseline.per_query[name],
            test,
        )
        for name in measures
    }


def _by_group(
    measured: Mapping[str, Measured], groups: Mapping[str, list[str]]
) -> dict[str, dict[str, float]]:
    if not groups:
        return {}
    return {
        system: {
            name: sum(one.per_query["R@1"][query] for query in members) / len(members)
            for name, members in groups.items()
        }
        for system, one in measured.items()
    }


def _by_words(
    searcher: Searcher, queries: Mapping[str, Query], qrels: Qrels
) -> dict[str, dict[float, float]]:
    found: dict[str, dict[float, float]] = {name: {} for name in _CUT_MEASURES}
    for words, run in cut_queries(searcher, queries, 10).values():
        for name, value in measure(run, qrels, _CUT_MEASURES).mean.items():
            found[name][words] = value
    return found


def _write_runs(path: str | None, found: Mapping[System, Retrieved]) -> dict[str, str]:
    """Write one run to the path, or several beside it, with their names before the suffix."""
    if path is None:
        return {}
    files = {}
    for system, one in found.items():
        whole = Path(path)
        if len(found) > 1:
            whole = whole.with_name(f"{whole.stem}.{system.tag}{whole.suffix}")
        write_run(whole, one.run, f"lexvla-{system.tag}")
        files[system.name] = str(whole)
    return files


def _write_per_query(
    path: str, measured: Mapping[str, Measured], baseline: Measured | None, measures: list[str]
) -> None:
    lines = ["query\tsystem\tmeasure\tvalue\n"]
    for system, one in [*measured.items(), *([("baseline", baseline)] if baseline else [])]:
        for name in measures:
            rows = one.per_query[name].items()
            lines += [f"{query}\t{system}\t{name}\t{value!r}\n" for query, value in rows]
    Path(path).write_text("".join(lines), encoding="utf-8", newline="\n")


def _print(
    args: argparse.Namespace,
    inputs: _Inputs,
    measured: Mapping[str, Measured],
    baseline: Measured | None,
    measures: list[str],
    depth: int,
) -> None:
    count = len(inputs.queries.values)
    print(f"{args.index}: {count:,} queries, {depth:,} hits of each; {TIES}\n")
    rows: list[tuple[str, ...]] = [("", *measures)]
    for system, one in [*measured.items(), *([("baseline", baseline)] if baseline else [])]:
        rows.append((system, *(f"{one.mean[name]:.4f}" for name in measures)))
    print_numbers(rows)


def _print_significance(found: Mapping[str, Mapping[str, Comparison]], test: str) -> None:
    if not found:
        return
    how = "paired t-test" if test == "t" else "paired randomisation test"
    print(f"\nless the baseline; p by a {how}, two-sided, and by Holm over the systems\n")
    rows: list[tuple[str, ...]] = [("", "measure", "difference", "p", "Holm")]
    for name, systems_of in found.items():
        for system, one in systems_of.items():
            rows.append(
                (system, name, f"{one.difference:+.4f}", f"{one.p:.4g}", f"{one.corrected:.4g}")
            )
    print_numbers(rows)


def _print_groups(
    groups: Mapping[str, list[str]], by_group: Mapping[str, Mapping[str, float]]
) -> None:
    if not groups:
        return
    print("\nR@1 by group\n")
    rows: list[tuple[str, ...]] = [("", "queries", *by_group)]
    for name, members in groups.items():
        values = (f"{row[name]:.4f}" for row in by_group.values())
        rows.append((name, f"{len(members):,}", *values))
    print_numbers(rows)


def _note_unanswered(found: Mapping[System, Retrieved], count: int) -> None:
    for system, one in found.items():
        if one.unanswered:
            first, reason = next(iter(one.unanswered.items()))
            why = f" ({reason})" if reason else ""
            many = f"{len(one.unanswered):,} of {count:,} queries have no hits and count 0"
            note(f"lexvla: {system.name}: {many}; the first is {first!r}{why}")
