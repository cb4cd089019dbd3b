"""One commit of an index, open to answer one thread, until it moves on to the newest."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar
from weakref import WeakValueDictionary

import numpy as np
from scipy import sparse

from lexvla.encoding import Encoding
from lexvla.errors import IndexCorruptError, OptionalDependencyError, UnknownDocumentError
from lexvla_indexer.accuracy import DEPTH, SAMPLED_QUERIES, SAMPLED_ROWS, overlap, spread
from lexvla_indexer.base import Fetched, Results, Scored
from lexvla_indexer.bm25 import word_weights
from lexvla_indexer.columns import Column, count_facet, in_order, position_of
from lexvla_indexer.document import Document
from lexvla_indexer.durable import total_bytes
from lexvla_indexer.embedded.batches import Batch
from lexvla_indexer.embedded.commit_columns import CommitColumns, first_rows
from lexvla_indexer.embedded.layout import Store
from lexvla_indexer.embedded.manifest import FORMAT_VERSION, Manifest, Place, State
from lexvla_indexer.embedded.postings import THREADS
from lexvla_indexer.embedded.segment import Segment
from lexvla_indexer.embedded.sparse_leg import SparseLeg
from lexvla_indexer.embedded.weighted_sum import Floors, best_by_sum
from lexvla_indexer.facets import Facet, FacetCounts
from lexvla_indexer.filters import Filter
from lexvla_indexer.legs import Leg, VectorLeg, check_asked, stack
from lexvla_indexer.listing import Listed, Order, Position
from lexvla_indexer.scope import EVERYTHING, Scope
from lexvla_indexer.text_words import text_words

__all__ = ["Masks", "Reader", "SegmentCache", "Snapshot"]

T = TypeVar("T")

_Found = list[tuple[int, np.ndarray, np.ndarray]]  # number, scores and rows of some segments
Masks = Mapping[int, np.ndarray | None]  # by segment: which rows may be found; None for all


@dataclass(frozen=True)
class Snapshot:
    """Hold one commit: its state, its segments, and which of their rows are not deleted."""

    state: State
    segments: dict[int, Segment]
    live: Masks

    def count(self) -> int:
        """Return the number of documents."""
        deleted = sum(map(len, self.state.tombstones.values()))
        return sum(entry.rows for entry in self.state.segments.values()) - deleted

    def search(
        self, queries: Encoding, k: int, leg: VectorLeg, masks: Masks, exact: bool | None
    ) -> list[Results]:
        """Return the k best documents of all segments for each query; see `EmbeddedIndex.search`.

        ``masks`` says which rows may be found.
        """
        matrix = getattr(queries, leg)
        if leg == "dense":
            return self._search_dense(matrix, k, masks, bool(exact))
        count = len(queries)
        if count == 1:
            asked = [(number, self.segments[number].sparse[leg], matrix) for number in self._order]
            return [self._search_one(asked, k, masks, exact is not False)]
        batch, threads = Batch.of(matrix), min(count, THREADS)

        def answers(numbers: np.ndarray) -> list[Results]:
            found: list[_Found] = [[] for _ in numbers]
            for segment in self._order:
                own = self.segments[segment].sparse[leg]
                floors = np.array([_least(each, k) for each in found])
                asked = batch, numbers, k, masks[segment], exact is not False, floors
                for each, answer in zip(found, own.top_batch(*asked), strict=True):
                    each.append((segment, *answer))
            return [self._results(each, k) for each in found]

        shares = batch.shares(threads)
        with ThreadPoolExecutor(max(threads - 1, 1)) as pool:
            later = [pool.submit(answers, share) for share in shares[1:]]
            made = [answers(share) for share in shares[:1]] + [each.result() for each in later]
        results = [Results([], np.empty(0))] * count
        for share, own in zip(shares, made, strict=True):
            for number, result in zip(share.tolist(), own, strict=True):
                results[number] = result
        return results

    def search_text(self, text: str, k: int, masks: Masks) -> Results:
        """Return the k best documents of all segments; see `Index.search_text`."""
        rows = self.text_rows(text)
        asked = [(n, self.segments[n].sparse["text"], rows[n]) for n in self._order if n in rows]
        return self._search_one(asked, k, masks, True)

    def _search_one(
        self, asked: Sequence[tuple[int, SparseLeg, Any]], k: int, masks: Masks, exact: bool
    ) -> Results:
        """Return the best documents for one query: its row of each segment's leg."""
        found: _Found = []
        for number, leg, query in asked:
            best = leg.top(query, k, masks[number], exact, THREADS, _least(found, k))
            found.append((number, *best))
        return self._results(found, k)

    @cached_property
    def _order(self) -> list[int]:
        """The segments, the largest first: it is most likely to have the best rows."""
        return sorted(self.segments, key=lambda number: -self.segments[number].count)

    def text_weights(self, text: str) -> dict[str, float]:
        """Return the weights of a query's words, ascending, of which some document has each."""
        words = sorted(set(text_words(text)))
        frequencies = [sum(self._frequency(word, n) for n in self.segments) for word in words]
        weights = word_weights(self.documents_with_text, np.array(frequencies, np.int64))
        return {
            word: weight for word, weight in zip(words, weights.tolist(), strict=True) if weight
        }

    def text_rows(self, text: str) -> dict[int, sparse.csr_array]:
        """Return these weights as a row for each segment that has one of the words."""
        weights, made = self.text_weights(text), {}
        for number, segment in self.segments.items():
            if segment.words is None:
                continue
            found = [(segment.words.find(word), weight) for word, weight in weights.items()]
            there = [(column, weight) for column, weight in found if column is not None]
            if there:
                columns = np.array([column for column, _ in there], np.int32)
                parts = np.array([weight for _, weight in there]), columns, [0, len(there)]
                made[number] = sparse.csr_array(parts, shape=(1, len(segment.words)))
        return made

    def _frequency(self, word: str, number: int) -> int:
        """Return how many documents of a segment have a word."""
        segment, live = self.segments[number], self.live[number]
        column = None if segment.words is None else segment.words.find(word)
        if column is None:
            return 0
        if live is None:
            return segment.sparse["text"].frequency(column)
        return int(np.count_nonzero(live[segment.sparse["text"].rows_of(column)]))

    @cached_property
    def documents_with_text(self) -> int:
        """The number of documents whose texts have words."""
        count = 0
        for number, segment in self.segments.items():
            if "text" in segment.sparse:
                has_words, live = segment.sparse["text"].lengths > 0, self.live[number]
                count += int(np.count_nonzero(has_words if live is None else has_words & live))
        return count

    def search_legs(
        self,
        query: Encoding,
        weights: Mapping[Leg, float],
        k: int,
        depth: int,
        masks: Masks,
        text: str,
    ) -> Scored:
        """Return the best documents of all segments; see `Index.search_legs`."""
        ids: list[str] = []
        scores: dict[Leg, list[np.ndarray]] = {leg: [np.empty(0)] for leg in weights}
        words = self.text_rows(text) if "text" in weights else {}
        asked: dict[Leg, Any] = {leg: getattr(query, leg) for leg in weights if leg != "text"}
        if "dense" in asked:
            asked["dense"] = asked["dense"][0]
        for number in self._order:
            segment = self.segments[number]
            own = asked | ({"text": words[number]} if number in words else {})
            weighed = {leg: weight for leg, weight in weights.items() if leg in own}
            if not weighed:
                continue
            floors = None
            if ids:
                before = {leg: np.concatenate(parts) for leg, parts in scores.items()}
                floors = Floors.of(weights, before, k, depth)
            rows, found = best_by_sum(segment, own, weighed, k, depth, masks[number], floors)
            ids += segment.ids(rows)
            for leg, parts in scores.items():
                parts.append(found.get(leg, np.zeros(len(rows))))
        return Scored(ids, {leg: np.concatenate(own) for leg, own in scores.items()})

    def _search_dense(
        self, vectors: np.ndarray, k: int, masks: Masks, exact: bool
    ) -> list[Results]:
        found: list[_Found] = [[] for _ in range(len(vectors))]
        for number, segment in self.segments.items():
            if segment.dense is not None:
                answers = segment.dense.top_batch(vectors, k, masks[number], exact)
                for own, answer in zip(found, answers, strict=True):
                    own.append((number, *answer))
        return [self._results(own, k) for own in found]

    def _results(self, found: _Found, k: int) -> Results:
        """Merge the answers of segments: each its number, scores and rows, best first."""
        if len(found) == 1:
            ((number, scores, rows),) = found
            return Results(self.segments[number].ids(rows), scores)
        least = _least(found, k)
        hits = []
        for number, scores, rows in found:
            near = scores[scores >= least]
            ids = self.segments[number].ids(rows[: len(near)])
            hits += list(zip(near.tolist(), ids, strict=True))
        hits = sorted(hits, key=lambda hit: (-hit[0], hit[1]))[:k]
        return Results([name for _, name in hits], np.array([score for score, _ in hits]))


def _least(found: _Found, k: int) -> float:
    """Return the score of the k-th best found, or 0 for fewer: a lower one is not of the k best."""
    scores = [own for _, own, _ in found]
    if sum(map(len, scores)) < k:
        return 0.0
    return float(np.partition(np.concatenate(scores), -k)[-k])


class SegmentCache:
    """Open each segment once for all threads, for as long as any of them uses it."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._open: WeakValueDictionary[int, Segment] = WeakValueDictionary()

    def get(self, state: State) -> dict[int, Segment]:
        """Return the segments of a commit; a damaged one raises IndexCorruptError."""
        segments = {}
        with self._lock:
            for number, entry in state.segments.items():
                segment = self._open.get(number)
                if segment is None:
                    segment = self._store.segment(number, entry, state.widths)
                    self._open[number] = segment
                segments[number] = segment
        return segments


class Reader:
    """Answer from one commit of an index, until `refresh`. For one thread."""

    def __init__(self, store: Store, cache: SegmentCache, columns: CommitColumns) -> None:
        self._store = store
        self._cache = cache
        self._columns = columns
        self.manifest: Manifest = store.manifest(writable=False)
        self._snapshot: Snapshot | None = None
        # A search over several legs uses the same filter for each.
        self._chosen: tuple[tuple[int, str], Masks] | None = None

    def __del__(self) -> None:
        if hasattr(self, "manifest"):  # its thread has ended
            self.manifest.close()

    @property
    def snapshot(self) -> Snapshot:
        """The commit of the last `refresh`."""
        return self._snapshot or self.refresh()

    def refresh(self) -> Snapshot:
        """Move to the newest commit; a damaged one raises IndexCorruptError."""
        manifest = self.manifest
        while self._snapshot is None or manifest.refresh() != self._snapshot.state.commit:
            state = manifest.state()
            try:
                segments = self._cache.get(state)
            except IndexCorruptError:
                # A writer may have merged segments meanwhile, and removed their files.
                if manifest.refresh() == state.commit:
                    self._snapshot = None
                    raise
                continue
            live = {n: _live(e.rows, state.tombstones.get(n)) for n, e in state.segments.items()}
            self._snapshot = Snapshot(state, segments, live)
        return self._snapshot

    def search(
        self,
        queries: Encoding,
        k: int,
        leg: VectorLeg,
        filter: str | None,  # noqa: A002 - the public word for it
        exact: bool | None = None,
    ) -> list[Results]:
        """Return the k best documents for each query; see `EmbeddedIndex.search`."""
        snapshot = self.snapshot
        check_asked(queries, k, leg, snapshot.state.widths, self._store.path)
        return snapshot.search(queries, k, leg, self._masks(filter), exact)

    def search_text(self, text: str, k: int, filter: str | None) -> Results:  # noqa: A002
        """Return the k best documents by their texts; see `Index.search_text`."""
        return self.snapshot.search_text(text, k, self._masks(filter))

    def has_text(self) -> bool:
        """Return whether a document's text has words."""
        return self.snapshot.documents_with_text > 0

    def search_legs(
        self,
        query: Encoding,
        weights: Mapping[Leg, float],
        k: int,
        depth: int,
        filter: str | None,  # noqa: A002 - the public word for it
        text: str,
    ) -> Scored:
        """Return the best documents by the legs' weighted sum; see `Index.search_legs`."""
        snapshot = self.snapshot
        for leg in weights:
            if leg != "text":
                check_asked(query, k, leg, snapshot.state.widths, self._store.path)
        return snapshot.search_legs(query, weights, k, depth, self._masks(filter), text)

    def fetch(self, ids: Sequence[str]) -> Fetched:
        """Return documents with their stored vectors."""
        found = self._found(ids, self.manifest.find)
        places = {name: place for name, (_, place) in found.items()}
        return Fetched([found[name][0] for name in ids], self._stored(ids, places))

    def documents(self, ids: Sequence[str]) -> list[Document]:
        """Return only the documents."""
        found = self._found(ids, self.manifest.documents)
        return [found[name] for name in ids]

    def vectors(self, ids: Sequence[str]) -> Encoding:
        """Return only the documents' stored vectors."""
        return self._stored(ids, self._found(ids, self.manifest.places))

    def text_parts(self, text: str, ids: Sequence[str]) -> list[dict[str, float]]:
        """Return what each shared word adds to each document's score; see `Index.text_parts`."""
        places, weights = self._found(ids, self.manifest.places), self.snapshot.text_weights(text)
        parts: dict[str, dict[str, float]] = {}
        for number, own in _by_segment(ids, places).items():
            names = [ids[position] for position in own]
            rows = np.array([places[name].row for name in names])
            held = self._segment(number, rows, names).text(rows)
            words, impacts = held.words, held.impacts
            for row, name in enumerate(names):
                span = slice(*impacts.indptr[row : row + 2].tolist())
                shared = (words[column] for column in impacts.indices[span].tolist())
                pairs = zip(shared, impacts.data[span].tolist(), strict=True)
                parts[name] = {w: impact * weights[w] for w, impact in pairs if w in weights}
        return [parts[name] for name in ids]

    def count(self, scope: Scope = EVERYTHING) -> int:
        """Return the number of documents in a scope."""
        if scope.is_everything:
            return self.snapshot.count()
        return int(np.count_nonzero(self._chosen_rows(scope)))

    def list_documents(
        self, scope: Scope, sort: Sequence[Order], limit: int, after: Position | None
    ) -> Listed:
        """Return documents in order; see `Index.list_documents`."""
        self.manifest.check_known((order.field for order in sort), "sort by")
        rows = np.flatnonzero(self._chosen_rows(scope))
        ids, columns = self._columns_of([order.field for order in sort])
        by = [(c, order.descending) for c, order in zip(columns, sort, strict=True)]
        found = in_order(rows, ids, by, limit, after).tolist()
        names = [str(ids.key_at(row, False)) for row in found]
        positions = [position_of(row, ids, by) for row in found]
        return Listed(self.documents(names), positions)

    def facets(self, facets: Sequence[Facet], scope: Scope) -> dict[str, FacetCounts]:
        """Count values; see `Index.facets`."""
        self.manifest.check_known((facet.field for facet in facets), "count by")
        chosen = self._chosen_rows(scope)
        _, columns = self._columns_of([facet.field for facet in facets])
        pairs = zip(facets, columns, strict=True)
        return {facet.field: count_facet(facet, column, chosen) for facet, column in pairs}

    def _columns_of(self, fields: Sequence[str]) -> tuple[Column, list[Column]]:
        return self._columns.get(self.manifest, self.snapshot.state, fields)

    def _chosen_rows(self, scope: Scope) -> np.ndarray:
        """Return a mask over the rows of all segments, numbered on."""
        state, masks = self.snapshot.state, self._masks(scope.filter)
        parts = [
            np.ones(entry.rows, bool) if (mask := masks[number]) is None else mask
            for number, entry in state.segments.items()
        ]
        chosen = np.concatenate([np.zeros(0, bool), *parts])
        starts = first_rows(state)
        if scope.only is not None:
            only = np.zeros(len(chosen), bool)
            only[self._rows_of(scope.only, starts)] = True
            chosen &= only
        chosen[self._rows_of(scope.but, starts)] = False
        return chosen

    def _rows_of(self, ids: Collection[str], starts: Mapping[int, int]) -> list[int]:
        places = self.manifest.places(ids).values() if ids else []
        return [starts[place.segment] + place.row for place in places]

    def info(self) -> dict[str, Any]:
        """Describe the commit.

        Accuracy is measured over 1,000 rows, evenly spaced in each segment; 20 of them are queries.
        ``quantization`` has for each sparse leg ``bits``; ``rows``, how many were sampled;
        ``mean_error`` and ``max_error`` of a weight; and ``overlap@10``, the mean share of the 10
        best documents by exact scores that are among the 10 best by integers alone.

        ``dense_search``, if there is a dense leg, has ``listed_rows``, how many rows are searched
        by inverted lists rather than by a scan; ``lists``, how many there are in all segments;
        ``nprobe``, how many of them a search reads at least; and ``recall@10`` of such searches, a
        scan counted as 1, or ``None`` if faiss is missing.
        """
        snapshot = self.snapshot
        state, documents = snapshot.state, snapshot.count()
        words = sum(s.active_words(snapshot.live[n]) for n, s in snapshot.segments.items())
        legs: list[VectorLeg] = [leg for leg in ("lexical", "codes") if leg in state.widths]
        found: dict[str, Any] = {
            "engine": "embedded",
            "documents": documents,
            "segments": len(state.segments),
            "deleted_rows": sum(map(len, state.tombstones.values())),
            "bytes": total_bytes(self._store.path),
            "mean_active_words": words / documents if documents else 0.0,
            "documents_with_text": snapshot.documents_with_text,
            "legs": state.widths,
            "quantization": {leg: _sparse_accuracy(snapshot, leg) for leg in legs},
        }
        if "dense" in state.widths:
            found["dense_search"] = _dense_accuracy(snapshot)
        return found | {
            "commit": state.commit,
            "format_version": FORMAT_VERSION,
            "writer_version": state.writer_version,
        }

    def _masks(self, text: str | None) -> Masks:
        if text is None:
            return self.snapshot.live
        state = self.snapshot.state
        key = (state.commit, text)
        if self._chosen is None or self._chosen[0] != key:
            self._chosen = key, self.manifest.select(Filter.parse(text), state.segments)
        return self._chosen[1]

    def _found(
        self, ids: Sequence[str], ask: Callable[[Sequence[str]], dict[str, T]]
    ) -> dict[str, T]:
        """Return what the manifest says about these ids as of the snapshot."""
        if self._snapshot is None:
            self.refresh()
        found = ask(ids)
        for name in ids:
            if name not in found:
                raise UnknownDocumentError(name)
        return found

    def _stored(self, ids: Sequence[str], places: Mapping[str, Place]) -> Encoding:
        parts, order = [], []
        for number, own in _by_segment(ids, places).items():
            names = [ids[position] for position in own]
            rows = np.array([places[name].row for name in names])
            parts.append(self._segment(number, rows, names).encoding(rows))
            order += own
        # From one segment, they are in order.
        return parts[0] if len(parts) == 1 else stack(parts)[np.argsort(order)]

    def _segment(self, number: int, rows: np.ndarray, names: Sequence[str]) -> Segment:
        """Return a segment, after checking that some rows are those of these ids."""
        segment = self.snapshot.segments.get(number)
        there = segment is not None and 0 <= rows.min() <= rows.max() < segment.count
        if segment is None or not there or segment.ids(rows) != names:
            rule = f"manifest.sqlite and segment {number} do not match"
            raise IndexCorruptError(f"{self._store.path}: damaged: {rule}")
        return segment


def _by_segment(ids: Sequence[str], places: Mapping[str, Place]) -> dict[int, list[int]]:
    """Return which of the ids lie in each segment."""
    positions: dict[int, list[int]] = {}
    for position, name in enumerate(ids):
        positions.setdefault(places[name].segment, []).append(position)
    return positions


def _live(rows: int, deleted: np.ndarray | None) -> np.ndarray | None:
    if deleted is None:
        return None
    mask = np.ones(rows, np.bool_)
    mask[deleted] = False
    return mask


def _dense_accuracy(snapshot: Snapshot) -> dict[str, Any]:
    listed, lists, nprobe, missed = 0, 0, 0, 0.0
    recall: float | None = 1.0
    for segment in snapshot.segments.values():
        if segment.dense is None or segment.dense.lists is None:
            continue
        listed += segment.count
        lists += segment.dense.lists.lists
        nprobe += min(segment.dense.lists.nprobe, segment.dense.lists.lists)
        try:
            missed += (1 - segment.dense.recall(DEPTH, SAMPLED_QUERIES)) * segment.count
        except OptionalDependencyError:
            recall = None
    if listed and recall is not None:
        recall = 1 - missed / sum(entry.rows for entry in snapshot.state.segments.values())
    return {"listed_rows": listed, "lists": lists, "nprobe": nprobe, f"recall@{DEPTH}": recall}


def _sparse_accuracy(snapshot: Snapshot, leg: VectorLeg) -> dict[str, Any]:
    documents = max(snapshot.count(), 1)
    sampled, total, weights, worst, bits = 0, 0.0, 0, 0.0, set()
    best: list[list[str]] = []
    near: list[list[str]] = []
    for number, segment in snapshot.segments.items():
        live = snapshot.live[number]
        rows = np.arange(segment.count) if live is None else np.flatnonzero(live)
        share = len(rows) / documents
        chosen = spread(rows, int(np.ceil(SAMPLED_ROWS * share)))
        stored, _ = segment.sparse[leg].take(chosen)
        quantizer = segment.sparse[leg].quantizer
        error = quantizer.error(stored)
        bits.add(quantizer.bits)
        sampled += len(chosen)
        total += error["mean"] * stored.nnz
        weights += stored.nnz
        worst = max(worst, error["max"])
        asked = spread(rows, int(np.ceil(SAMPLED_QUERIES * share)))
        queries = segment.encoding(asked)
        for answers, exact in ((best, True), (near, False)):
            results = snapshot.search(queries, DEPTH, leg, snapshot.live, exact)
            answers += [found.ids for found in results]
    return {
        "bits": max(bits, default=8),
        "rows": sampled,
        "mean_error": total / max(weights, 1),
        "max_error": worst,
        f"overlap@{DEPTH}": overlap(best, near),
    }
