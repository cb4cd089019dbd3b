"""Evaluate search in an index with queries whose relevant documents are known."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lexvla.encoder import Encoder
from lexvla_indexer.base import Index
from lexvla_search.evaluation.figures import plot_evaluation
from lexvla_search.evaluation.measures import Measured, measure, recall_curve
from lexvla_search.evaluation.runs import (
    Beforehand,
    Retrieved,
    System,
    cut_queries,
    group_queries,
    retrieve,
    without,
)
from lexvla_search.evaluation.significance import Comparison, Test, compare
from lexvla_search.evaluation.trec import Qrels, Run, write_run
from lexvla_search.query import Query
from lexvla_search.searcher import Searcher
from lexvla_search.typed_words import understood

__all__ = ["TIES", "SearchFigures", "evaluate_search"]

TIES = "equal scores are ordered by id"
_GROUP_MEASURE = "R@1"
_CUT_MEASURES = ("R@1", "R@5", "R@10")


@dataclass(frozen=True)
class SearchFigures:
    """What each system finds, and its measures.

    Attributes:
        depth: How many hits of each query were looked at.
        baseline: The measures of the baseline.
        test: How systems were compared with the baseline.
        groups: The ids of queries by group.
        by_words: By measure: its value by the mean number of words that a query keeps.
    """

    qrels: Qrels
    queries: int
    depth: int
    measures: Sequence[str]
    found: Mapping[System, Retrieved]
    measured: Mapping[str, Measured]
    baseline: Measured | None
    test: Test
    groups: Mapping[str, list[str]]
    by_words: Mapping[str, Mapping[float, float]]

    @property
    def rows(self) -> list[tuple[str, Measured]]:
        """The systems, then the baseline."""
        last = [] if self.baseline is None else [("baseline", self.baseline)]
        return [*self.measured.items(), *last]

    @cached_property
    def significance(self) -> dict[str, dict[str, Comparison]]:
        """By measure and system: the comparison with the baseline."""
        if self.baseline is None:
            return {}
        return {
            name: compare(
                {system: one.per_query[name] for system, one in self.measured.items()},
                self.baseline.per_query[name],
                self.test,
            )
            for name in self.measures
        }

    @cached_property
    def by_group(self) -> dict[str, dict[str, float]]:
        """By system and group: R@1."""
        if not self.groups:
            return {}
        return {
            system: {
                name: sum(one.per_query[_GROUP_MEASURE][query] for query in members) / len(members)
                for name, members in self.groups.items()
            }
            for system, one in self.measured.items()
        }

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "queries": self.queries,
            "depth": self.depth,
            "ties": TIES,
            "systems": [
                {
                    "name": system.name,
                    "measures": self._means(self.measured[system.name]),
                    "unanswered": one.unanswered,
                }
                for system, one in self.found.items()
            ],
            "baseline": self.baseline and self._means(self.baseline),
            "test": self.test if self.baseline else None,
            "significance": {
                name: {system: one._asdict() for system, one in row.items()}
                for name, row in self.significance.items()
            },
            "groups": {
                name: {
                    "queries": len(members),
                    _GROUP_MEASURE: {
                        system: values[name] for system, values in self.by_group.items()
                    },
                }
                for name, members in self.groups.items()
            },
            "by_words": {
                name: [{"words": words, "value": value} for words, value in points.items()]
                for name, points in self.by_words.items()
            },
        }

    def write_runs(self, path: str | Path, tag: Callable[[str], str]) -> dict[str, str]:
        """Write the systems' runs, and return the files by system; ``tag`` names a system in them.

        A single run is written to the path; of several, each file has the system's name before its
        suffix.
        """
        files = {}
        for system, one in self.found.items():
            file = Path(path)
            if len(self.found) > 1:
                file = file.with_name(f"{file.stem}.{system.tag}{file.suffix}")
            write_run(file, one.run, tag(system.tag))
            files[system.name] = str(file)
        return files

    def write_per_query(self, path: str | Path) -> None:
        """Write each measure of each query by each system as a line of a ``.tsv`` file."""
        lines = ["query\tsystem\tmeasure\tvalue\n"]
        for system, one in self.rows:
            for name in self.measures:
                values = one.per_query[name].items()
                lines += [f"{query}\t{system}\t{name}\t{value!r}\n" for query, value in values]
        Path(path).write_text("".join(lines), encoding="utf-8", newline="\n")

    def plot(self, path: str | Path) -> None:
        """Draw recall by depth and by words, and the groups."""
        curves = {
            system.name: recall_curve(one.run, self.qrels, self.depth)
            for system, one in self.found.items()
        }
        plot_evaluation(path, curves, self.by_words, self.by_group or None)

    def _means(self, measured: Measured) -> dict[str, float]:
        return {name: measured.mean[name] for name in self.measures}


def evaluate_search(
    model: Encoder,
    index: Index,
    queries: Mapping[str, Query],
    qrels: Qrels,
    systems: Sequence[System],
    measures: Sequence[str],
    depth: int,
    baseline: Run | None = None,
    test: Test = "randomisation",
    group: str | None = None,
    ignore_identical_ids: bool = False,
    cut: bool = False,
    show_progress_bar: bool | None = False,
) -> SearchFigures:
    """Ask an index all queries by each system, and measure the answers.

    `depth` is how many hits of each query to look at. Each system is compared with the baseline, if
    given. `group` is a metadata field of the relevant documents, by which to group the queries;
    `ignore_identical_ids` leaves out hits that have the query's own id, as BEIR's code does; `cut`
    also searches with only the heaviest words of each query. ``show_progress_bar=None`` shows
    the bar if stderr is a terminal.
    """
    groups = group_queries(qrels, index, group) if group else {}
    encoder = Beforehand(model)
    texts = [query.text for query in queries.values() if query.text and query.has_text]
    if read := [text for text, _ in (understood(text, model) for text in texts) if text]:
        encoder.encode_text(read)
    searcher = Searcher(encoder, index)
    found = {
        system: retrieve(searcher, queries, depth, system, ignore_identical_ids, show_progress_bar)
        for system in systems
    }
    if baseline is not None and ignore_identical_ids:
        baseline = {query: without(hits, query) for query, hits in baseline.items()}
    by_words = _by_words(searcher, queries, qrels, ignore_identical_ids) if cut else {}
    needed = list(dict.fromkeys([*measures, *([_GROUP_MEASURE] if groups else [])]))
    return SearchFigures(
        qrels,
        len(queries),
        depth,
        measures,
        found,
        {system.name: measure(one.run, qrels, needed) for system, one in found.items()},
        None if baseline is None else measure(baseline, qrels, needed),
        test,
        groups,
        by_words,
    )


def _by_words(
    searcher: Searcher, queries: Mapping[str, Query], qrels: Qrels, ignore_identical_ids: bool
) -> dict[str, dict[float, float]]:
    found: dict[str, dict[float, float]] = {name: {} for name in _CUT_MEASURES}
    runs = cut_queries(searcher, queries, 10, ignore_identical_ids=ignore_identical_ids)
    for words, run in runs.values():
        for name, value in measure(run, qrels, _CUT_MEASURES).mean.items():
            found[name][words] = value
    return found
