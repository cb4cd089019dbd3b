"""Measure how integer weights change search: the table of docs/pyserini.md.

    python benchmarks/quantization.py

The default model is measured on the Noto drawings that ship with LexVLA, which it was not trained
on. Except in the first row, weights of queries are integers, as for Pyserini; below the second,
weights of drawings too. Scores are summed exactly; an item ranks behind
all others with its score.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import numpy as np
from noto_figures import tag_relevance
from scipy import sparse

from lexvla import Encoding, LexVLA
from lexvla.data.demo_corpus import load_demo_corpus
from lexvla_indexer.impacts import ImpactQuantizer
from lexvla_search.evaluation.retrieval import ndcg_at_k, recall_at_k
from lexvla_search.pyserini import QUERY_SCALE

BITS = (8, 7, 6, 5, 4, 3, 2, 1)
SCALES = (255, 100, 50, 20, 10)
KS = (1, 5, 10)
BATCH = 64


def encode_texts(model: LexVLA, texts: list[str]) -> sparse.csr_array:
    """Return a row for each text."""
    batches = (texts[at : at + BATCH] for at in range(0, len(texts), BATCH))
    return Encoding.concat([model.encode_text(batch) for batch in batches]).lexical


def settings(images: sparse.csr_array) -> Iterator[tuple[str, sparse.csr_array]]:
    """Yield each way to round the weights to integers."""
    for bits in BITS:
        yield f"{bits} bits", ImpactQuantizer.fit(images, bits=bits).quantize(images)
    for scale in SCALES:
        yield f"times {scale}", ImpactQuantizer.of_scale(scale, images).quantize(images)


def integers(rows: sparse.csr_array) -> sparse.csr_array:
    """Return queries as from `lexvla_search.pyserini.LexVLAQueryEncoder`."""
    whole = rows.astype(np.float64)
    whole.data = np.maximum(np.rint(whole.data * QUERY_SCALE), 1)
    return whole


def main() -> int:
    """Print the table."""
    model, items = LexVLA.from_pretrained(None), load_demo_corpus("emoji")
    batches = (items[at : at + BATCH] for at in range(0, len(items), BATCH))
    images = Encoding.concat(
        [model.encode_image([item.image for item in batch]) for batch in batches]
    ).lexical
    tags, relevant = tag_relevance(items)
    labels, named = encode_texts(model, [item.label for item in items]), encode_texts(model, tags)
    print(f"{model.name}, {len(items):,} drawings, {len(tags)} tags, greatest {images.data.max()}")

    def row(name: str, rows: sparse.csr_array, *queries: sparse.csr_array) -> None:
        by_label, by_tag = (sparse.csr_array(q.astype(np.float64) @ rows.T) for q in queries)
        recall = recall_at_k(by_label, range(len(items)), KS)
        shown = " | ".join(f"{recall[k]:.2%}" for k in KS)
        print(f"| {name} | {shown} | {ndcg_at_k(by_tag, relevant, 10):.2%} |", flush=True)

    row("floats", images.astype(np.float64), labels, named)
    asked = integers(labels), integers(named)
    row("queries as whole numbers", images.astype(np.float64), *asked)
    for name, rows in settings(images):
        row(name, rows.astype(np.float64), *asked)
    return 0


if __name__ == "__main__":
    sys.exit(main())
