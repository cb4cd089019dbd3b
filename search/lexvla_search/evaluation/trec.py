"""TREC's files of queries, relevance judgements (qrels) and runs, read and written.

Fields are separated by white space, or by single tabs if ids hold spaces. Windows line ends, a
byte order mark and blank lines are accepted. All errors of a file are raised together, as one
`GatheredInputError` that names file and lines; a file that is missing or empty is an `InputError`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np

from lexvla.errors import FilterSyntaxError, GatheredInputError, InputError
from lexvla_indexer.document import check_id
from lexvla_indexer.item_source import UnlistedItem
from lexvla_indexer.sources import open_item_source
from lexvla_search.query import Query

__all__ = [
    "Qrels",
    "Read",
    "Run",
    "falling",
    "read_qrels",
    "read_qrels_lines",
    "read_queries",
    "read_queries_lines",
    "read_run",
    "unwritable",
    "write_run",
]

Qrels = dict[str, dict[str, int]]
Run = dict[str, dict[str, float]]

_FLOAT32_MAX = float(np.finfo(np.float32).max)
# What a query file may set; the rest of `Query` is for `lexvla evaluate`.
_ASKED = ("text", "image", "region", "terms", "similar", "boost", "ban", "require", "filter")
_SUFFIXES = (".jsonl", ".ndjson")
_TREC_FIELDS = ("query", "iteration", "document", "relevance")
_BEIR_HEADER = ["query-id", "corpus-id", "score"]

_T = TypeVar("_T")


class Read(NamedTuple, Generic[_T]):
    """Values by id, and where each stands, such as ``qrels.txt:12``.

    `where` has the same keys; of qrels, pairs of query and document.
    """

    values: dict[str, _T]
    where: dict[Any, str]


def read_queries(path: str | Path) -> dict[str, Query]:
    """Read queries by id, in the order of the file.

    A ``.jsonl`` file has an object on a line: ``id`` and what `Query` has of text, image (a path
    from the file's folder), region, terms, boost, ban, require and filter; or ``_id`` and text, as
    in BEIR's collections. A folder is one of images: each is a query, and its id is the path under
    the folder. Any other file has lines of an id, a tab and a text.
    """
    return read_queries_lines(path).values


def read_queries_lines(path: str | Path) -> Read[Query]:
    """Read queries and where each stands; see `read_queries`."""
    path = Path(path)
    if path.is_dir():
        entries = _image_queries(path)
    elif path.suffix.lower() in _SUFFIXES:
        entries = _parsed(path, lambda line: _json_query(line, path.parent))
    else:
        entries = _parsed(path, _tsv_query)
    found: Read[Query] = Read({}, {})
    errors: list[InputError] = []
    for where, entry in entries:
        if isinstance(entry, InputError):
            errors.append(entry)
            continue
        name, query = entry
        if name in found.values:
            rule = f"the query {name!r} was there before, at {found.where[name]}"
            errors.append(InputError(where, rule))
            continue
        found.values[name] = query
        found.where[name] = where
    _raise_all(errors)
    if not found.values:
        raise InputError(str(path), "has no queries")
    return found


def read_qrels(path: str | Path) -> Qrels:
    """Read judgements: lines of query, iteration (not used), document and relevance.

    In BEIR's files, whose first line is ``query-id corpus-id score``, lines have no iteration.
    Relevance is a whole number; above 0 is relevant.
    """
    return read_qrels_lines(path).values


def read_qrels_lines(path: str | Path) -> Read[dict[str, int]]:
    """Read judgements and where each pair of query and document stands; see `read_qrels`."""
    return _read_pairs(Path(path), _Judgements().read, "judgements")


def read_run(path: str | Path) -> Run:
    """Read a run: lines of query, ``Q0``, document, rank (not used), score and tag."""
    # Runs have millions of lines, so their positions are not kept.
    return _read_pairs(Path(path), _retrieved, "lines", places=False).values


def write_run(path: str | Path, run: Mapping[str, Mapping[str, float]], tag: str) -> None:
    """Write a run that every tool puts in one order: by score, equal ones by id ascending.

    Tools read scores as float32 and order equal ones in ways of their own, so a score that does
    not fall below the one before it is written as the next lower float32. The tag names the
    system; it and the ids must not have white space.
    """
    errors = unwritable(path, run, (document for row in run.values() for document in row), tag)
    lines: list[str] = []
    for query, scores in run.items():
        for document, score in scores.items():
            if not abs(score) <= _FLOAT32_MAX:
                rule = f"the score of {document!r} for {query!r} is {score}, not a finite float32"
                errors.append(InputError(str(path), rule))
        if errors:
            continue
        ordered = sorted(scores.items(), key=lambda pair: (-pair[1], pair[0]))
        for rank, (document, score) in enumerate(falling(ordered).items(), start=1):
            lines.append(f"{query} Q0 {document} {rank} {score:.9g} {tag}\n")
    _raise_all(errors)
    Path(path).write_text("".join(lines), encoding="utf-8", newline="\n")


def unwritable(
    path: str | Path, queries: Iterable[str], documents: Iterable[str], tag: str = "run"
) -> list[InputError]:
    """Return an error for each kind of name, of those here, that a run cannot hold."""
    errors = []
    for what, names in (("query id", queries), ("document id", documents), ("tag", [tag])):
        wrong = [name for name in dict.fromkeys(names) if name.split() != [name]]
        if wrong:
            more = f" (and {len(wrong) - 1:,} more)" if len(wrong) > 1 else ""
            rule = f"{wrong[0]!r}{more} is empty or has white space, which a run cannot hold"
            errors.append(InputError(str(path), f"the {what} {rule}"))
    return errors


def falling(hits: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Return hits, best first, with scores that fall strictly, even as float32.

    A score that does not lie below the one before it becomes the next lower float32. So the order
    of equal scores survives tools that have their own, such as trec_eval: by id descending.

    Example:
        >>> falling([("a", 2.0), ("b", 1.0), ("c", 1.0)])
        {'a': 2.0, 'b': 1.0, 'c': 0.9999999403953552}
    """
    lowest, last = np.float32(-np.inf), np.float32(np.inf)
    scores = {}
    for name, score in hits:
        exact = np.float32(score)
        last = exact if exact < last else np.nextafter(last, lowest)
        scores[name] = float(last)
    return scores


def _read_pairs(
    path: Path, parse: Callable[[str], tuple[str, str, _T] | None], what: str, places: bool = True
) -> Read[dict[str, _T]]:
    found: Read[dict[str, _T]] = Read({}, {})
    errors: list[InputError] = []
    for where, entry in _parsed(path, parse):
        if isinstance(entry, InputError):
            errors.append(entry)
            continue
        if entry is None:
            continue
        query, document, value = entry
        row = found.values.setdefault(query, {})
        if document in row:
            before = found.where.get((query, document))
            rule = f"{document!r} was there before for query {query!r}"
            errors.append(InputError(where, f"{rule}, at {before}" if before else rule))
            continue
        row[document] = value
        if places:
            found.where[query, document] = where
    _raise_all(errors)
    if not found.values:
        raise InputError(str(path), f"has no {what}")
    return found


def _parsed(path: Path, parse: Callable[[str], _T]) -> Iterator[tuple[str, _T | InputError]]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(str(path), f"cannot be read ({error.strerror})") from error
    for number, line in enumerate(content.split(b"\n"), start=1):
        where = f"{path}:{number}"
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8").removesuffix("\r")
            if text.strip():
                yield where, parse(text)
        except UnicodeDecodeError:
            yield where, InputError(where, "is not UTF-8 text")
        except (InputError, FilterSyntaxError) as error:
            yield where, InputError(where, str(error))


def _split(line: str, names: Sequence[str]) -> list[str]:
    parts = [part.strip() for part in line.split("\t")]
    if len(parts) != len(names):
        parts = line.split()
    if len(parts) != len(names) or not all(parts):
        form = ", ".join(names)
        rule = f"must have {len(names)} fields ({form}), not {len(line.split())}"
        raise InputError(line, f"{rule}; where ids hold spaces, tabs must separate the fields")
    return parts


class _Judgements:
    """Read lines of judgements, the first of which tells BEIR's from TREC's."""

    _names: Sequence[str] = ()

    def read(self, line: str) -> tuple[str, str, int] | None:
        if not self._names:
            is_beir = line.split() == _BEIR_HEADER
            self._names = ("query", "document", "relevance") if is_beir else _TREC_FIELDS
            if is_beir:
                return None
        query, *_, document, relevance = _split(line, self._names)
        try:
            return query, document, int(relevance)
        except ValueError as error:
            raise InputError(relevance, "the relevance must be a whole number") from error


def _retrieved(line: str) -> tuple[str, str, float]:
    names = ("query", "Q0", "document", "rank", "score", "tag")
    query, _, document, _, written, _ = _split(line, names)
    try:
        score = float(written)
    except ValueError:
        score = math.nan
    if not math.isfinite(score):
        raise InputError(written, "the score must be a finite number")
    return query, document, score


def _tsv_query(line: str) -> tuple[str, Query]:
    name, tab, text = line.partition("\t")
    if not tab:
        raise InputError(line, "must be an id, a tab and a text")
    name = _checked(name.strip())
    return name, _scored(name, Query(text=" ".join(text.split())))


def _json_query(line: str, folder: Path) -> tuple[str, Query]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(line, f"is not JSON ({error})") from error
    if not isinstance(record, dict):
        raise InputError(line, "must be a JSON object")
    if "_id" in record:  # a line of BEIR's queries.jsonl, whose metadata ask nothing
        record = {"id": record["_id"], "text": record.get("text")}
    name = _checked(record.pop("id", None))
    if unknown := sorted(record.keys() - set(_ASKED)):
        known = ", ".join(sorted(_ASKED))
        raise InputError(name, f"has unknown fields: {', '.join(unknown)}; there are: id, {known}")
    if "image" in record:
        if not isinstance(record["image"], str):
            raise InputError(name, "the image must be a path")
        record["image"] = folder / record["image"]
    if isinstance(record.get("region"), list):
        record["region"] = tuple(record["region"])
    return name, _scored(name, Query(**record))


def _scored(name: str, query: Query) -> Query:
    if not query.is_scored:
        raise InputError(name, "a query must have a text, an image, terms or similar items")
    return query


def _image_queries(folder: Path) -> Iterator[tuple[str, tuple[str, Query] | InputError]]:
    for item in open_item_source(folder).entries():
        if isinstance(item, UnlistedItem):
            where = item.reject.where
            yield where, InputError(where, item.reject.rule)
        else:
            yield item.where, (item.document.id, Query(image=item.image))


def _checked(name: object) -> str:
    if name is None:
        raise InputError("the line", "has no id")
    return check_id(name)


def _raise_all(errors: Sequence[InputError]) -> None:
    if errors:
        raise GatheredInputError(errors)
