"""Measure a model on the bundled emoji, compared with chance and BM25.

    python benchmarks/noto.py [--model M] [--json]

Images are found by their pixels only; BM25 reads the tags that people gave each emoji instead, so
it shows what good written words achieve. No word is in over half of the tag lists, so no idf of
BM25Okapi is negative, where rank_bm25 departs from the formula; an item that scores 0 counts as not
retrieved. An item ranks behind all others with its score.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Sequence

import numpy as np
from noto_figures import KS, NotoFigures, evaluate_noto
from rank_bm25 import BM25Okapi

from lexvla import LexVLA
from lexvla.data.demo_corpus import DemoItem, load_demo_corpus
from lexvla_search.evaluation import recall_at_k


def bm25_label_to_tags(items: Sequence[DemoItem]) -> dict[int, float]:
    """Return R@k of each item by BM25 of its label over all items' tags."""
    engine = BM25Okapi([_words(" ".join(item.tags)) for item in items])
    scores = np.array([engine.get_scores(_words(item.label)) for item in items])
    scores[scores <= 0] = -np.inf
    return recall_at_k(scores, range(len(items)), KS)


def print_figures(figures: NotoFigures, bm25: dict[int, float], seconds: float) -> None:
    """Print all figures as a table."""
    print(f"model {figures.model}: {figures.items:,} emoji by their pixels, {seconds:.0f} s\n")
    print(f"{'':34}" + "".join(f"{f'R@{k}':>8}" for k in KS))
    rows = {
        "label -> image": figures.label_to_image,
        "image -> label": figures.image_to_label,
        "label -> image, words and dense": figures.fused_label_to_image,
        "image -> label, words and dense": figures.fused_image_to_label,
        "label -> image, dense": figures.dense_label_to_image,
        "label -> image, codes": figures.codes_label_to_image,
        "label -> image, all three": figures.summed_label_to_image,
        "chance": figures.chance_recall,
        "BM25, label -> people's tags": bm25,
    }
    for name, values in rows.items():
        if values is None:  # the model has no dense vectors, or no codes
            continue
        print(f"{name:34}" + "".join(f"{values[k]:8.3f}" for k in KS))
    print(f"\n{'':34}{'nDCG@10':>8}{'P@10':>8}")
    name = f"tag -> images, {figures.tags:,} tags"
    print(f"{name:34}{figures.tag_ndcg:8.3f}{figures.tag_precision:8.3f}")
    print(f"{'chance':34}{figures.chance_tag_ndcg:8.3f}{figures.chance_tag_precision:8.3f}")
    print(f"\n{'label -> image by words, typed as':34}{'R@1':>8}{'points':>8}")
    for name, recall in figures.phrasings.items():
        print(f"{name:34}{recall:8.3f}{figures.phrasing_points[name]:+8.1f}")
    print(f"\nactive words: {figures.words_per_text:.1f} a label", end=", ")
    print(f"{figures.words_per_image:.1f} an image")
    if figures.unused_codes is not None:
        print(f"codes that no image and no label keeps: {100 * figures.unused_codes:.1f}%")


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", metavar="M", help="a saved model; else the default one")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    args = parser.parse_args()
    items = load_demo_corpus("emoji")
    model = LexVLA.from_pretrained(args.model)
    started = time.perf_counter()
    figures = evaluate_noto(model, items)
    seconds = time.perf_counter() - started
    bm25 = bm25_label_to_tags(items)
    if args.json:
        data = {**figures.to_dict(), "bm25_label_to_tags": bm25, "seconds": seconds}
        json.dump(data, sys.stdout, indent=2)
        print()
    else:
        print_figures(figures, bm25, seconds)


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


if __name__ == "__main__":
    main()
