"""Measure what a relevance is worth on images that the default model was not trained on.

    python benchmarks/relevance.py [--model M]

Of the ten best hits of each query of words and dense vectors, those with a relevance above 0.5 are
counted, and the share of them that is right. A drawing is right if its label and tags have all
words of the query, a photograph if it has the same caption. Nouns are WordNet's that no drawing is
labelled with: all of their hits count wrong, though some drawings show such things. Below a
relevance of the best hit, people are told that none matches well: the last column but one.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from noto_figures import tag_relevance
from photograph_figures import on_white, read_photographs
from photographs import DATA, STAMPS, get_packages
from scipy import special

from lexvla import LexVLA
from lexvla.data.demo_corpus import load_demo_corpus
from lexvla.encoding import Encoding
from lexvla.training.feed import own_words
from lexvla_search.evaluation.batches import encode_in_batches
from lexvla_search.fusion import GOOD_MATCH

HITS = 10  # of a query
NOUNS = Path(__file__).resolve().parent.parent / "data" / "words" / "nouns.jsonl"


def relevance(model: LexVLA, texts: Sequence[str], images: Encoding) -> np.ndarray:
    """Return the (texts, images) relevance of the default search."""
    asked = encode_in_batches(model.encode_text, texts)
    weights, line = model.config.score_weights, model.config.relevance
    if weights is None or line is None or asked.dense is None or images.dense is None:
        raise SystemExit("the scores of this model are not calibrated")
    scores = weights["lexical"] * (asked.lexical @ images.lexical.T).toarray()
    scores += weights["dense"] * (asked.dense @ images.dense.T).clip(0)
    return special.expit(line[0] * scores + line[1])


def report(name: str, values: np.ndarray, right: np.ndarray) -> None:
    """Print one row."""
    best = np.argsort(-values, axis=1)[:, :HITS]
    shown, hits = (np.take_along_axis(each, best, 1) for each in (values, right))
    sure, first = shown > 0.5, shown[:, 0]
    share = f"{100 * hits[sure].mean():.1f} %" if sure.any() else "-"
    print(
        f"{name:22}{len(values):8,}{sure.sum():10,}{share:>10}"
        f"{100 * (first > 0.5).mean():16.1f} %{100 * (first < GOOD_MATCH).mean():13.1f} %"
        f"{np.median(first):12.2f}"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model")
    asked = parser.parse_args()
    model = LexVLA.from_pretrained(asked.model) if asked.model else LexVLA.from_pretrained()
    items = load_demo_corpus("emoji")
    drawings = encode_in_batches(model.encode_image, [item.image for item in items])
    get_packages(DATA)
    stamps = read_photographs(DATA / STAMPS)
    pictures = [on_white(stamp.cutout).image for stamp in stamps]
    photographs = encode_in_batches(model.encode_image, pictures)
    print(
        f"{'queries':22}{'':>8}{'hits > 0.5':>10}{'right':>10}"
        f"{'best hit > 0.5':>18}{f'best < {GOOD_MATCH}':>15}{'median best':>12}"
    )
    labels = [item.label for item in items]
    written = own_words([" ".join((item.label, *item.tags)) for item in items], model.vocabulary)
    tags, _ = tag_relevance(items)
    for name, texts in (("labels, drawings", labels), ("tags, drawings", tags)):
        words = own_words(texts, model.vocabulary)
        count = words.sum(1, keepdim=True)
        right = ((words @ written.T >= count) & (count > 0)).numpy()
        report(name, relevance(model, texts, drawings), right)
    captions = [stamp.caption for stamp in stamps]
    same = np.array([[a == b for b in captions] for a in captions])
    report("captions, photographs", relevance(model, captions, photographs), same)
    if NOUNS.exists():
        nouns = [json.loads(line) for line in NOUNS.read_text(encoding="utf-8").splitlines()]
        texts = [noun["text"] for noun in nouns[::10]]
        for name, images in (("nouns, drawings", drawings), ("nouns, photographs", photographs)):
            values = relevance(model, texts, images)
            report(name, values, np.zeros(values.shape, bool))


if __name__ == "__main__":
    main()
