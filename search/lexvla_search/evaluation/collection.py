"""Test collections: queries and judgements of BEIR's layout, or by a name of ir_datasets."""

from __future__ import annotations

from collections.abc import Container, Iterable
from pathlib import Path
from typing import NamedTuple, TypeVar

from lexvla.errors import InputError
from lexvla_indexer.ir_datasets_source import IR_DATASETS, load_ir_dataset
from lexvla_indexer.sources import BEIR_QUERIES, is_beir
from lexvla_search.evaluation.trec import Read, read_qrels_lines, read_queries_lines
from lexvla_search.query import Query

__all__ = ["SPLIT", "Collection", "read_collection"]

SPLIT = "test"

_T = TypeVar("_T")


class Collection(NamedTuple):
    """The judgements of a test collection, and those of its queries that they judge."""

    queries: Read[Query]
    qrels: Read[dict[str, int]]


def read_collection(source: str, split: str | None = None) -> Collection:
    """Read a folder in BEIR's layout, or ``ir_datasets:NAME``.

    ``split`` names the judgements of a folder, by default `SPLIT`.

    Raises:
        InputError: There is no such collection or split, or one of its files breaks a rule.
        OptionalDependencyError: ir_datasets is not installed.
    """
    if source.startswith(IR_DATASETS):
        if split is not None:
            raise InputError(source, "names its split itself, so no other can be chosen")
        return _of_ir_datasets(source)
    folder = Path(source)
    if not is_beir(folder):
        rule = "must be a folder with corpus.jsonl, queries.jsonl and qrels/, or ir_datasets:NAME"
        raise InputError(source, rule)
    judged = folder / "qrels" / f"{split or SPLIT}.tsv"
    if not judged.is_file():
        there = ", ".join(sorted(path.stem for path in judged.parent.glob("*.tsv"))) or "none"
        raise InputError(source, f"has no split {split or SPLIT!r}; it has {there}")
    qrels = read_qrels_lines(judged)
    return Collection(_of(read_queries_lines(folder / BEIR_QUERIES), qrels.values), qrels)


def _of(queries: Read[_T], names: Container[str]) -> Read[_T]:
    kept: Iterable[str] = [name for name in queries.values if name in names]
    return Read(
        {name: queries.values[name] for name in kept}, {name: queries.where[name] for name in kept}
    )


def _of_ir_datasets(address: str) -> Collection:
    dataset = load_ir_dataset(address, "queries", "qrels")
    if not hasattr(dataset.queries_cls(), "default_text"):
        raise InputError(address, "does not say which field of its queries is the text")
    qrels: Read[dict[str, int]] = Read({}, {})
    for number, each in enumerate(dataset.qrels_iter(), start=1):
        qrels.values.setdefault(each.query_id, {})[each.doc_id] = int(each.relevance)
        qrels.where[each.query_id, each.doc_id] = f"{address}, judgement {number}"
    queries: Read[Query] = Read({}, {})
    for number, each in enumerate(dataset.queries_iter(), start=1):
        if each.query_id in qrels.values:
            queries.values[each.query_id] = Query(text=each.default_text())
            queries.where[each.query_id] = f"{address}, query {number}"
    return Collection(queries, qrels)
