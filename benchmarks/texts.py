"""Measure what texts beside drawings add to searches, by the weight of the leg ``text``.

    python benchmarks/texts.py [--model M] [--json]

Of the bundled emoji, all or every other one have their label as text. Queries are tags, for all
drawings with the tag; nDCG@10, an unanswered query counts 0. Needs the extra ``evaluation``.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile

from noto_figures import tag_relevance

from lexvla import LexVLA
from lexvla.data.demo_corpus import load_demo_corpus
from lexvla_indexer import Document, open_index
from lexvla_indexer.legs import Leg
from lexvla_search import Query, Searcher, Weighted
from lexvla_search.evaluation.measures import measure

MEASURE = "nDCG@10"
BOTH: dict[Leg, float] = {"lexical": 1.0, "dense": 1.0}
WEIGHTS: dict[str, dict[Leg, float]] = {
    "text alone": {"text": 1.0},
    "words and dense": BOTH,
    **{f"and text x {weight:g}": {**BOTH, "text": weight} for weight in (0.25, 0.5, 1.0, 2.0)},
}


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", metavar="M", help="a saved model; else the default one")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    args = parser.parse_args()
    items, model = load_demo_corpus("emoji"), LexVLA.from_pretrained(args.model)
    tags, relevant = tag_relevance(items)
    bearers = {
        tag: {items[i].id: 1 for i in row.nonzero()[0]}
        for tag, row in zip(tags, relevant, strict=True)
    }
    vectors = model.encode_image([item.image for item in items])
    figures: dict[str, dict[str, float]] = {name: {} for name in WEIGHTS}
    for share, every in (("half", 2), ("all", 1)):
        with (
            tempfile.TemporaryDirectory() as folder,
            open_index(f"{folder}/i.lex", create=True, vocabulary=model.vocabulary) as index,
        ):
            texts = [item.label if i % every == 0 else "" for i, item in enumerate(items)]
            documents = [
                Document(item.id, text=text) for item, text in zip(items, texts, strict=True)
            ]
            index.add(documents, vectors)
            index.commit()
            searcher = Searcher(model, index)
            for name, weights in WEIGHTS.items():
                run = {}
                for tag in tags:
                    hits = searcher.search(Query(text=tag, fusion=Weighted(weights)), k=10)
                    run[tag] = {hit.id: -float(hit.rank or 0) for hit in hits}
                figures[name][share] = measure(run, bearers, [MEASURE]).mean[MEASURE]
    if args.json:
        json.dump({"model": model.name, "measure": MEASURE, "figures": figures}, sys.stdout)
        print()
        return
    print(f"{MEASURE + ' with texts of':20}{'half':>10}{'all':>10}")
    for name, row in figures.items():
        print(f"{name:20}{row['half']:10.4f}{row['all']:10.4f}")


if __name__ == "__main__":
    main()
