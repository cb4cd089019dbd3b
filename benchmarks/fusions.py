"""Compare fusions on the bundled emoji, found by their pixels through an index.

    python benchmarks/fusions.py [--model M] [--index DIR] [--json]

Queries are labels, for their one drawing, and tags, for all drawings with the tag, as in
``benchmarks/noto.py``, except that ties are ordered by id. Fusions are compared on the candidates
that each leg brings; searches are timed in that index, and in one of six copies of its drawings.
Needs the extra ``evaluation``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from noto_figures import tag_relevance

from lexvla import LexVLA
from lexvla.data.demo_corpus import DemoItem, load_demo_corpus
from lexvla.errors import InputError
from lexvla_indexer import Document, Index, open_index
from lexvla_indexer.legs import Leg
from lexvla_search import Fusion, Query, ReciprocalRank, Searcher, Weighted
from lexvla_search.evaluation.measures import measure

LABEL_MEASURES, TAG_MEASURES = ["R@1", "R@5", "R@10"], ["nDCG@10"]
TIMED = 200  # queries
COPIES = 6  # of the drawings: over 10,000
BOTH: dict[Leg, float] = {"lexical": 1.0, "dense": 1.0}
FUSIONS: dict[str, Fusion] = {
    # A leg's own order, as the fusion of it alone.
    "lexical": ReciprocalRank(weights={"lexical": 1.0}),
    "dense": ReciprocalRank(weights={"dense": 1.0}),
    "codes": ReciprocalRank(weights={"codes": 1.0}),
    "rrf": ReciprocalRank(60, BOTH),
    "rrf, constant 10": ReciprocalRank(10, BOTH),
    "weighted, raw": Weighted(BOTH, "raw"),
    "weighted, zscore": Weighted(BOTH, "zscore"),
    "weighted, minmax": Weighted(BOTH, "minmax"),
    "minmax with codes": Weighted(None, "minmax"),
    "raw, codes a quarter": Weighted({**BOTH, "codes": 0.25}, "raw"),
}

Qrels = Mapping[str, Mapping[str, int]]


@contextmanager
def indexed(items: list[DemoItem], model: LexVLA, address: str | None) -> Iterator[Index]:
    """Yield an open index of the drawings: a given one, or one made for this run."""
    if address is not None:
        with open_index(address) as index:
            yield index
        return
    with (
        tempfile.TemporaryDirectory() as folder,
        open_index(f"{folder}/noto.lex", create=True, vocabulary=model.vocabulary) as index,
    ):
        for start in range(0, len(items), 64):
            part = items[start : start + 64]
            images = model.encode_image([item.image for item in part])
            index.add([Document(item.id) for item in part], images)
        index.commit()
        yield index


@contextmanager
def copied(index: Index, items: list[DemoItem]) -> Iterator[Index]:
    """Yield an open index of several copies of the drawings."""
    vectors = index.vectors([item.id for item in items])
    with (
        tempfile.TemporaryDirectory() as folder,
        open_index(f"{folder}/copies.lex", create=True, vocabulary=index.vocabulary) as copies,
    ):
        for copy in range(COPIES):
            copies.add([Document(f"{item.id}-{copy}") for item in items], vectors)
        copies.commit()
        yield copies


def fusions_of(searcher: Searcher) -> dict[str, Fusion]:
    """Return the fusions to compare: with the model's own, if it has one."""
    own = searcher.default
    return FUSIONS if own.weights is None else {**FUSIONS, "the model's own": own}


def compare(
    searcher: Searcher, queries: Mapping[str, str], qrels: Qrels, measures: list[str]
) -> dict[str, dict[str, float]]:
    """Return the measures by fusion."""
    fusions = fusions_of(searcher)
    runs: dict[str, dict[str, dict[str, float]]] = {name: {} for name in fusions}
    for query, text in queries.items():
        try:
            answers = searcher.leg_rankings(Query(text=text))
        except InputError:  # no word that the model knows: unanswered, and counts 0
            continue
        for name, fusion in fusions.items():
            ranked = [one.id for one in fusion.fuse(answers)]
            # Places as scores: tools read scores as float32, in which some would be equal.
            runs[name][query] = {one: float(-place) for place, one in enumerate(ranked)}
    return {name: dict(measure(run, qrels, measures).mean) for name, run in runs.items()}


def milliseconds(searcher: Searcher, texts: list[str]) -> dict[str, float]:
    """Return the median time of a search by fusion, without encoding the query."""
    fusions = fusions_of(searcher)
    times: dict[str, list[float]] = {name: [] for name in fusions}
    # In turns, so that whatever else the machine does meets all of them alike.
    for text in texts:
        for name, fusion in fusions.items():
            answer = searcher.answer(Query(text=text, fusion=fusion))
            times[name].append(1000 * answer.search_seconds)
    return {name: statistics.median(own) for name, own in times.items()}


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", metavar="M", help="a saved model; else the default one")
    parser.add_argument("--index", metavar="DIR", help="the index of lexvla demo, by that model")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    args = parser.parse_args()
    items, model = load_demo_corpus("emoji"), LexVLA.from_pretrained(args.model)
    tags, relevant = tag_relevance(items)
    labels = {item.id: item.label for item in items}
    own = {item.id: {item.id: 1} for item in items}
    bearers = {
        tag: {items[i].id: 1 for i in row.nonzero()[0]}
        for tag, row in zip(tags, relevant, strict=True)
    }
    with indexed(items, model, args.index) as index:
        searcher = Searcher(model, index)
        figures = compare(searcher, labels, own, LABEL_MEASURES)
        by_tag = compare(searcher, {tag: tag for tag in tags}, bearers, TAG_MEASURES)
        times = milliseconds(searcher, list(labels.values())[:TIMED])
        with copied(index, items) as copies:
            more = milliseconds(Searcher(model, copies), list(labels.values())[:TIMED])
    many = f"ms of {COPIES * len(items):,}"
    for name, row in figures.items():
        row |= {"tags nDCG@10": by_tag[name]["nDCG@10"], "ms": times[name], many: more[name]}
    if args.json:
        json.dump({"model": model.name, "figures": figures}, sys.stdout, indent=2)
        print()
        return
    columns = [*LABEL_MEASURES, "tags nDCG@10", "ms", many]
    print(f"{'':20}" + "".join(f"{column:>14}" for column in columns))
    for name, row in figures.items():
        print(f"{name:20}" + "".join(f"{row[column]:14.4f}" for column in columns))


if __name__ == "__main__":
    main()
