"""The commands that take a source in: into an index, or into a file of vectors."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from lexvla_indexer import open_index
from lexvla_indexer.encoded import Encoded, encode_source, index_encoded, read_origins
from lexvla_indexer.impacts import ImpactQuantizer
from lexvla_indexer.pipeline import index_source
from lexvla_indexer.report import Report
from lexvla_indexer.sources import open_item_source
from lexvla_search import commands
from lexvla_search.console import UsageError, note, print_json

__all__ = ["encode", "index"]

_VECTORS, _LINES, _QUERIES = ".npz", ".jsonl", ".tsv"
_SCALE = 100  # of the weights in lines for Anserini


def index(args: argparse.Namespace) -> int:
    """Put a source, or files of vectors, into an index."""
    if (args.source is None) == (args.from_encoded is None):
        raise UsageError("needs either a SOURCE or --from-encoded FILE...")
    if args.from_encoded is None:
        open_item_source(args.source, args.text_field)  # before an empty index is made for nothing
        model = commands.load_model(args.model, args.device, True)
        vocabulary, name = model.vocabulary, model.name
    else:
        for option in ("model", "text_field", "prune"):
            if getattr(args, option):
                raise UsageError(f"--{option.replace('_', '-')} does not go with --from-encoded")
        origin = read_origins(args.from_encoded)
        vocabulary, name = origin.vocabulary, origin.model
    with open_index(
        args.index, create=True, vocabulary=vocabulary, model=name, rebuild=args.rebuild
    ) as target:
        if args.from_encoded is None:
            report = index_source(
                args.source,
                target,
                model,
                batch_size=args.batch_size,
                resume=args.resume,
                text_field=args.text_field,
                prune=args.prune,
            )
        else:
            report = index_encoded(args.from_encoded, target, resume=args.resume)
        code = _code(report, args, "added")
        if args.rebuild and code == 0:
            target.publish()
        count = target.count()
    counts = _counts(report, "unchanged")
    if args.json:
        print_json({"index": args.index, **counts, **_rejects(report), "documents": count})
    else:
        print(f"{_shown(counts)}; {count:,} in the index")
    return code


def encode(args: argparse.Namespace) -> int:
    """Write the vectors of a source, or of a part of it, to a file."""
    out = Path(args.out)
    if out.suffix not in (_VECTORS, _LINES):
        raise UsageError(f"--out must name a file that ends in {_VECTORS} or {_LINES}")
    if Path(args.source).suffix.lower() == _QUERIES:
        return _encode_queries(args, out)
    open_item_source(args.source, args.text_field)
    model = commands.load_model(args.model, args.device)
    # Anserini takes every .json and .jsonl of a folder for vectors.
    rejects = ".rejected" if out.suffix == _LINES else ".rejected.jsonl"
    encoded, report = encode_source(
        args.source,
        model,
        out.with_name(f"{out.name}{rejects}"),
        batch_size=args.batch_size,
        shard=args.shard,
        text_field=args.text_field,
    )
    if out.suffix == _VECTORS:
        encoded.save(out)
    else:
        _save_lines(encoded, out)
    counts = _counts(report, "of other shards")
    if args.json:
        print_json({"out": str(out), **counts, **_rejects(report)})
    else:
        print(f"{_shown(counts)}; the vectors are in {out}")
    return _code(report, args, "encoded")


def _save_lines(encoded: Encoded, out: Path) -> None:
    """Write what Anserini reads, and beside it what an index of it needs to be understood."""
    new = out.with_name(f"{out.name}.part")
    documents, vocabulary = encoded.documents, encoded.origin.vocabulary
    ids, texts = [each.id for each in documents], [each.text for each in documents]
    encoded.encoding.to_jsonl(new, ids, vocabulary, _SCALE, texts)
    vocabulary.save(out.with_name(f"{out.name}.vocabulary"))
    quantizer = ImpactQuantizer.of_scale(_SCALE, encoded.encoding.lexical)
    ImpactQuantizer.save(out.with_name(f"{out.name}.quantization"), {"lexical": quantizer})
    new.replace(out)


def _encode_queries(args: argparse.Namespace, out: Path) -> int:
    from lexvla_search.evaluation.trec import read_queries
    from lexvla_search.pyserini import QUERY_SCALE, write_topics

    if out.suffix != _LINES:
        raise UsageError(f"--out must name a file that ends in {_LINES} for queries")
    if args.text_field or args.shard != (1, 1):
        raise UsageError(f"--text-field and --shard do not go with queries ({_QUERIES})")
    queries = read_queries(args.source)
    model = commands.load_model(args.model, args.device)
    wordless = write_topics(out, queries, model)
    if args.json:
        counts = {"queries": len(queries), "wordless": wordless}
        print_json({"out": str(out), **counts, "scale": QUERY_SCALE})
    else:
        lost = f", {wordless:,} wordless" if wordless else ""
        print(f"{len(queries):,} queries{lost}; the topics are in {out}")
    return 1 if args.strict and wordless else 0


def _counts(report: Report, skipped: str) -> dict[str, int]:
    return {
        "added": report.added,
        skipped: report.skipped,
        "pruned": report.pruned,
        "rejected": len(report.rejected),
        "ignored": report.ignored,
        "wordless": report.empty,
    }


def _shown(counts: dict[str, int]) -> str:
    return ", ".join(f"{n:,} {name}" for name, n in counts.items() if n or name == "added")


def _rejects(report: Report) -> dict[str, Any]:
    listed = report.rejects_path if report.rejected else None
    return {"rejects_file": None if listed is None else str(listed)}


def _code(report: Report, args: argparse.Namespace, done: str) -> int:
    """Tell people what was left out, and return the exit code."""
    if report.rejected:
        first = report.rejected[0]
        where = report.rejects_path or "no file, as the index has no directory"
        note(f"lexvla: rejected {first.item!r}: {first.rule}; all are in {where}")
    if report.prune_refused:
        note(f"lexvla: pruned nothing, as the listing is not full: {report.prune_refused}")
    # An empty shard is no failure; one of which every item was rejected is.
    left = report.rejected if args.command == "encode" else []
    if not report.added and (left or not report.skipped):
        source = args.source or " ".join(args.from_encoded)
        note(f"lexvla: error: nothing in {source} could be {done}")
        return 1
    return 1 if args.strict and (report.rejected or report.prune_refused) else 0
