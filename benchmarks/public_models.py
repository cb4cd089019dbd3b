"""Measure words from a public model against the same model's dense vectors.

    python benchmarks/public_models.py --model runs/small-clip [--choose] [--words FILE]

Documents are the demo's drawings, found by their pixels; queries are their labels and tags. With
``--choose`` they are the drawings that `small_clip.py` left out, to choose settings with. Each row
is exact, over all documents; an item ranks behind all others with its score.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from noto_figures import tag_relevance
from small_clip import held_out, read_drawings

from lexvla import LexVLA
from lexvla.data.demo_corpus import DemoItem, load_demo_corpus
from lexvla_search.evaluation.retrieval import ndcg_at_k, recall_at_k

KS = (1, 5, 10)
CALIBRATED = 600  # training drawings that the image side's means are taken from
WEIGHTS = (2.0, 5.0, 10.0, 20.0)  # of the dense leg beside the words' 1, to choose from


def corpus(choose: bool, folder: Path) -> list[DemoItem]:
    """Return the demo's drawings, or those that training left out."""
    if not choose:
        return list(load_demo_corpus("emoji"))
    images, labels, tags = held_out(folder)
    items = []
    for number, (image, label, own) in enumerate(zip(images, labels, tags, strict=True)):
        item = DemoItem(str(number), label, tuple(own), "", "", b"")
        vars(item)["image"] = image
        items.append(item)
    return items


def legs(model: Any, items: Sequence[DemoItem], tags: Sequence[str]) -> dict[str, Any]:
    """Encode documents, labels and tags."""
    return {
        "images": model.encode_image([item.image for item in items]),
        "labels": model.encode_text([item.label for item in items]),
        "tags": model.encode_text(tags),
    }


def table(found: dict[str, Any], relevant: np.ndarray, weights: Sequence[float]) -> None:
    """Print R@k of labels and nDCG@10 of tags by words, dense vectors, and both."""
    images, labels, tags = found["images"], found["labels"], found["tags"]
    by_words, by_dense = (
        [(one.lexical @ images.lexical.T).toarray() for one in (labels, tags)],
        [one.dense @ images.dense.T for one in (labels, tags)],
    )
    systems = {"dense": by_dense, "words": by_words}
    for weight in weights:
        both = [w + weight * d for w, d in zip(by_words, by_dense, strict=True)]
        systems[f"words + {weight:g} dense"] = both
    print("| system | " + " | ".join(f"R@{k}" for k in KS) + " | tags nDCG@10 | of dense R@10 |")
    print("|---|" + "---:|" * (len(KS) + 2))
    base = recall_at_k(by_dense[0], range(len(images)), KS)
    for name, (label, tag) in systems.items():
        recall = recall_at_k(label, range(len(images)), KS)
        cells = [f"{100 * recall[k]:.1f}" for k in KS]
        cells += [f"{ndcg_at_k(tag, relevant, 10):.3f}", f"{100 * recall[10] / base[10]:.0f}%"]
        print(f"| {name} | " + " | ".join(cells) + " |")


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", required=True, metavar="M")
    parser.add_argument("--choose", action="store_true", help="drawings to choose settings with")
    parser.add_argument("--data", type=Path, default=Path("data/emoji"))
    parser.add_argument("--words", metavar="FILE", help="vocabulary; else the one that ships")
    parser.add_argument("--penalty", type=float, nargs="*", default=[0.2])
    parser.add_argument("--limit", type=int, nargs="*", default=[32], help="words of an item")
    parser.add_argument("--dense", type=float, nargs="*", default=[10.0], help="its weight")
    parser.add_argument("--photographs", action="store_true", help="keep the means of these")
    args = parser.parse_args()
    items = corpus(args.choose, args.data)
    tags, relevant = tag_relevance(items)
    print(f"{len(items):,} drawings and labels, {len(tags)} tags\n")
    for penalty in args.penalty:
        for limit in args.limit:
            model: Any = LexVLA.from_pretrained(
                args.model, vocabulary=args.words, penalty=penalty, max_active_dims=limit
            )
            if not args.photographs:
                model.calibrate(_drawings(args.data))
            started = time.perf_counter()
            with torch.inference_mode():
                found = legs(model, items, tags)
            seconds = time.perf_counter() - started
            print(
                f"### penalty {penalty}, at most {limit} words, {len(model.vocabulary):,} terms\n"
            )
            table(found, relevant, args.dense)
            counts = [found[each].lexical.nnz / len(found[each]) for each in ("images", "labels")]
            cosine = model.reconstruction(found["images"]).mean()
            print(f"\nactive words: {counts[0]:.1f} an image, {counts[1]:.1f} a label;", end=" ")
            print(f"reconstruction of images {cosine:.3f}; {seconds:.0f} s\n")
            sys.stdout.flush()


def _drawings(folder: Path) -> list[Any]:
    from PIL import Image

    pixels, _, _, held = read_drawings(folder)
    places = np.random.default_rng(1).permutation(np.flatnonzero(~held))[:CALIBRATED]
    white = Image.new("RGBA", pixels.shape[1:3], "white")
    made = (Image.fromarray(pixels[at], "RGBA") for at in places)
    return [Image.alpha_composite(white, one).convert("RGB") for one in made]


if __name__ == "__main__":
    main()
