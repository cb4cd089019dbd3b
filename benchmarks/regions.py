"""Find a drawing by a box around it in a scene, encoded with its surroundings or cut out.

    python benchmarks/regions.py [--model M] [--scenes N] [--json]

Scenes are those of `lexvla_search.evaluation.scenes`: grids of 2 x 2 and 3 x 3 drawings. A box is
the drawing's cell, or an inaccurate one with each edge off by up to a quarter of the side. Each box
is searched among all 1,906 drawings; the right one ranks behind
all others with its score.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image

from lexvla import LexVLA
from lexvla.data.demo_corpus import load_demo_corpus
from lexvla.encoding import Encoding
from lexvla_search.evaluation.patchdis import BACKGROUND
from lexvla_search.evaluation.scenes import DemoScenes

CARELESS = 0.25  # of a cell's side
DEPTHS = (1, 5)
Box = tuple[int, int, int, int]


def boxes(
    scenes: DemoScenes, careless: float, seed: int = 1
) -> Iterator[tuple[Image.Image, Box, int]]:
    """Yield scenes with a box, (x, y, width, height), and the number of its drawing."""
    random = np.random.default_rng(seed)
    for scene, mask in scenes:
        side = scene.width // scenes.across
        for top in range(0, scene.height, side):
            for left in range(0, scene.width, side):
                cell = mask[top : top + side, left : left + side]
                own = cell[cell != BACKGROUND]
                if not own.size:
                    continue
                off = random.uniform(-careless, careless, 4) * side
                x0, y0 = max(0, left + off[0]), max(0, top + off[1])
                x1 = min(scene.width, left + side + off[2])
                y1 = min(scene.height, top + side + off[3])
                box = (round(x0), round(y0), round(x1) - round(x0), round(y1) - round(y0))
                yield scene, box, int(own[0])


def recalls(scores: np.ndarray, own: np.ndarray) -> list[float]:
    """Return R@1 and R@5.

    Args:
        scores: (queries, drawings) float.
        own: (queries) int, the right column of each.
    """
    right = scores[np.arange(len(own)), own][:, None]
    ranks = (scores >= right).sum(1)  # a tie is a loss
    return [float((ranks <= depth).mean()) for depth in DEPTHS]


def measured(queries: Encoding, items: Encoding, own: np.ndarray) -> dict[str, list[float]]:
    """Return the recalls of words, of dense vectors, and of their equal mixture."""
    words = (queries.lexical @ items.lexical.T).toarray()
    found = {"lexical": recalls(words, own)}
    if queries.dense is not None and items.dense is not None:
        dense = queries.dense @ items.dense.T
        found["dense"] = recalls(dense, own)
        found["both"] = recalls(_minmax(words) + _minmax(dense), own)
    return found


def _minmax(scores: np.ndarray) -> np.ndarray:
    low, high = scores.min(1, keepdims=True), scores.max(1, keepdims=True)
    return (scores - low) / np.where(high > low, high - low, 1)


def _cut(scene: Image.Image, box: Box) -> Image.Image:
    x, y, width, height = box
    return scene.crop((x, y, x + width, y + height))


def ways(model: LexVLA) -> dict[str, Callable[[list[Image.Image], list[Box]], Encoding]]:
    """Return the ways to encode a box."""
    return {
        "in its surroundings": model.encode_region,
        "cut out": lambda scenes, own: model.encode_image(list(map(_cut, scenes, own))),
    }


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", metavar="M", help="a saved model; else the default one")
    parser.add_argument("--scenes", metavar="N", type=int, default=200, help="of each kind")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    args = parser.parse_args()
    corpus, model = load_demo_corpus("emoji"), LexVLA.from_pretrained(args.model)
    items = model.encode_image([item.image for item in corpus])
    column = {item.id: i for i, item in enumerate(corpus)}
    rows = []
    for across in (2, 3):
        scenes = DemoScenes(corpus, args.scenes, across=across)
        for name, careless in (("exact", 0.0), ("careless", CARELESS)):
            pictures, found, places = zip(*boxes(scenes, careless), strict=True)
            own = np.array([column[scenes.items[place].id] for place in places])
            for way, encode in ways(model).items():
                values = measured(encode(list(pictures), list(found)), items, own)
                rows.append(
                    {"scene": across**2, "box": name, "read": way, "boxes": len(own)} | values
                )
    if args.json:
        json.dump(rows, sys.stdout, indent=2)
        print()
        return
    for row in rows:
        said = "  ".join(
            f"{leg} R@1 {row[leg][0]:.3f} R@5 {row[leg][1]:.3f}"
            for leg in ("lexical", "dense", "both")
            if leg in row
        )
        print(f"{row['scene']} drawings, {row['boxes']} {row['box']} boxes, {row['read']}: {said}")


if __name__ == "__main__":
    main()
