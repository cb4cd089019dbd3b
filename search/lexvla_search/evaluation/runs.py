"""Runs of a searcher over many queries, by several legs and fusions."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice, product
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from lexvla.encoder import Encoder
from lexvla.encoding import Encoding
from lexvla.errors import GatheredInputError, InputError
from lexvla.images import ImageSource, open_image
from lexvla_indexer.base import Index
from lexvla_indexer.legs import Leg
from lexvla_search.evaluation.batches import keep_heaviest
from lexvla_search.evaluation.trec import Qrels, Read, Run, falling
from lexvla_search.fusion import FUSIONS, LEGS, FusionName
from lexvla_search.query import Query
from lexvla_search.searcher import Searcher
from lexvla_search.typed_words import say_unknown

__all__ = [
    "KEPT",
    "Beforehand",
    "Retrieved",
    "System",
    "cut_queries",
    "group_queries",
    "mismatches",
    "retrieve",
    "systems",
    "without",
]

KEPT = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


@dataclass(frozen=True)
class System:
    """Which legs to search by, and how to fuse their rankings.

    Attributes:
        legs: ``None`` for all that query and index have.
        fusion: A name of `lexvla_search.fusion.FUSIONS`, or ``None`` for the searcher's own choice.
    """

    legs: tuple[Leg, ...] | None = None
    fusion: FusionName | None = None

    @property
    def name(self) -> str:
        """The name, such as ``lexical+dense rrf``."""
        parts = ("+".join(self.legs or ()), self.fusion or "")
        return " ".join(part for part in parts if part) or "default"

    @property
    def tag(self) -> str:
        """The name in characters that are safe in file names and runs."""
        return self.name.replace(" ", "-")


class Beforehand:
    """Encode queries in batches, each once: several systems ask the same queries."""

    def __init__(self, model: Encoder, batch_size: int = 64) -> None:
        self._model = model
        self._batch_size = batch_size
        self._rows: dict[Any, Encoding] = {}
        self.name, self.vocabulary = model.name, model.vocabulary

    def encode_text(self, texts: Sequence[str]) -> Encoding:
        """Return one row for each text."""
        return self._encode(self._model.encode_text, texts, texts)

    def encode_image(self, images: Sequence[ImageSource]) -> Encoding:
        """Return one row for each image."""
        opened = [open_image(image) for image in images]
        keys = [(image.size, hashlib.sha256(image.tobytes()).digest()) for image in opened]
        return self._encode(self._model.encode_image, opened, keys)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def _encode(
        self, encode: Callable[..., Encoding], items: Sequence[Any], keys: Sequence[Any]
    ) -> Encoding:
        pairs = zip(keys, items, strict=True)
        new = {key: item for key, item in pairs if key not in self._rows}
        for at in range(0, len(new), self._batch_size):
            part = [*new][at : at + self._batch_size]
            for key, row in zip(part, encode([new[key] for key in part]), strict=True):
                self._rows[key] = row
        return Encoding.concat([self._rows[key] for key in keys])


class Retrieved(NamedTuple):
    """A run, and why some queries have no hits.

    Attributes:
        run: Scores that fall strictly in the order of the hits; a query without hits has none.
        unanswered: By query without hits: the reason, or an empty text if nothing matched.
    """

    run: Run
    unanswered: dict[str, str]


def systems(legs: Sequence[str] = (), fusions: Sequence[str] = ()) -> list[System]:
    """Return every combination once. A leg alone needs no fusion, so it is one system.

    Each of `legs` is a comma-separated list such as ``lexical,dense``. Fusions are names of
    `lexvla_search.fusion.FUSIONS`, where a leg's name means that leg alone.
    """
    sets: list[tuple[Leg, ...] | None] = []
    for text in legs:
        names = text.split(",")
        for name in names:
            if name not in LEGS:
                raise InputError(name, f"a leg must be one of {', '.join(LEGS)}")
        sets.append(tuple(leg for leg in LEGS if leg in names))
    for name in fusions:
        if name not in FUSIONS:
            raise InputError(name, f"a fusion must be one of {', '.join(FUSIONS)}")
    found = []
    fusing: list[FusionName | None] = [name for name in fusions if name in FUSIONS] or [None]
    for chosen, fusion in product(sets or [None], fusing):
        if fusion in LEGS:
            found.append(System((fusion,)))
        elif chosen is not None and len(chosen) == 1:
            found.append(System(chosen))
        else:
            found.append(System(chosen, fusion))
    return list(dict.fromkeys(found))


def mismatches(
    queries: Read[Query], qrels: Read[dict[str, int]], index: Index
) -> list[tuple[str, InputError]]:
    """Return where judgements, queries and index do not belong together: what it is, and the place.

    `UnsupportedError` if the index cannot tell which ids it has.
    """
    documents = list(dict.fromkeys(document for _, document in qrels.where))
    known = index.fingerprints(documents)
    found = []
    for (query, document), where in qrels.where.items():
        if query not in queries.values:
            error = InputError(where, f"there is no query {query!r}")
            found.append(("judgements of queries that are not asked", error))
        if document not in known:
            error = InputError(where, f"the index has no document {document!r}")
            found.append(("judgements of documents that the index does not have", error))
    for query, where in queries.where.items():
        if not any(relevance > 0 for relevance in qrels.values.get(query, {}).values()):
            rule = f"the judgements have no relevant document for the query {query!r}"
            found.append(("queries without a relevant document", InputError(where, rule)))
    return found


def retrieve(
    searcher: Searcher,
    queries: Mapping[str, Query],
    depth: int,
    system: System = System(),
    ignore_identical_ids: bool = False,
    show_progress_bar: bool | None = False,
) -> Retrieved:
    """Ask all queries for `depth` hits each, not counting ignored ones.

    A query without a word that the model knows is not answered. Scores are made to fall strictly,
    so that equal ones stay ordered by id; see `lexvla_search.evaluation.trec.falling`. Unreadable
    images of queries are raised together, as a `GatheredInputError`. ``show_progress_bar=None``
    shows it if stderr is a terminal.
    """
    run: Run = {}
    unanswered: dict[str, str] = {}
    errors: list[InputError] = []
    off = None if show_progress_bar is None else not show_progress_bar
    for name, query in tqdm(queries.items(), desc=system.name, unit=" queries", disable=off):
        k = depth + ignore_identical_ids
        asked = replace(query, legs=system.legs, fusion=system.fusion, k=k)
        try:
            answer = searcher.answer(asked)
        except InputError as error:
            errors += _unreadable(query, error)
            unanswered[name] = f"{error.item!r} {error.rule}"
            continue
        scores = {hit.id: hit.score for hit in answer.hits if hit.score is not None}
        if ignore_identical_ids:
            scores = without(scores, name)
        if scores:
            run[name] = falling(islice(scores.items(), depth))
        else:
            unanswered[name] = say_unknown(answer.unknown) if answer.unknown else ""
    if errors:
        raise GatheredInputError(errors)
    return Retrieved(run, unanswered)


def cut_queries(
    searcher: Searcher,
    queries: Mapping[str, Query],
    depth: int,
    kept: Sequence[int] = KEPT,
    ignore_identical_ids: bool = False,
) -> dict[int, tuple[float, Run]]:
    """Search by words alone, with only the heaviest words of each query.

    Bans and requirements do not hold; filters do. Of the numbers in `kept` above the longest
    query's, only the first is tried. Returns, by number, the mean number of words left and the run.
    """
    rows = {}
    for name, query in queries.items():
        try:
            encoded = searcher.encode(query)
        except InputError:
            continue
        if encoded.words:
            rows[name] = encoded.encoding
    most = max((row.lexical.nnz for row in rows.values()), default=0)
    last = next((k for k in kept if k >= most), kept[-1])
    found = {}
    for words in (k for k in kept if k <= last):
        run: Run = {}
        total = 0
        for name, row in rows.items():
            cut = replace(row, lexical=keep_heaviest(row.lexical, words), codes=None, dense=None)
            total += cut.lexical.nnz
            if cut.lexical.nnz:
                chosen = queries[name].filter
                k = depth + ignore_identical_ids
                (hits,) = searcher.index.search(cut, k, "lexical", filter=chosen)
                scores = dict(zip(hits.ids, hits.scores.tolist(), strict=True))
                if ignore_identical_ids:
                    scores = without(scores, name)
                run[name] = falling(islice(scores.items(), depth))
        found[words] = total / max(1, len(rows)), run
    return found


def without(scores: Mapping[str, float], name: str) -> dict[str, float]:
    """Return the scores of all documents but one, in the same order."""
    return {document: score for document, score in scores.items() if document != name}


def group_queries(qrels: Qrels, index: Index, field: str) -> dict[str, list[str]]:
    """Group queries by a metadata field of their relevant documents.

    A query whose relevant documents have several values is in the group of each. `InputError` if
    no relevant document has the field.
    """
    relevant = {
        query: [name for name, relevance in judged.items() if relevance > 0]
        for query, judged in qrels.items()
    }
    names = list(dict.fromkeys(name for row in relevant.values() for name in row))
    values = {
        document.id: _values(document.metadata.get(field))
        for document in index.documents(list(index.fingerprints(names)))
    }
    groups: dict[str, list[str]] = {}
    for query, row in relevant.items():
        for value in dict.fromkeys(value for name in row for value in values.get(name, ())):
            groups.setdefault(value, []).append(query)
    if not groups:
        raise InputError(field, "no relevant document has this metadata field")
    return dict(sorted(groups.items()))


def _values(held: object) -> Iterable[str]:
    if held is None:
        return ()
    return held if isinstance(held, list) else (str(held),)


def _unreadable(query: Query, error: InputError) -> list[InputError]:
    """Return the error if the image is at fault: the run would be wrong without it."""
    if not isinstance(query.image, str | Path):
        return []
    try:
        open_image(query.image)
    except InputError:
        return [error]
    return []
