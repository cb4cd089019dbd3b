"""Measure how alike stored vectors of changed pictures are, to choose what counts as a copy.

    python benchmarks/copies.py

Cosines of the default model's dense vectors: of the demo's photographs with a changed copy of each,
and with each other; and the share of its drawings that another one is as like as a copy.
"""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
from PIL import Image

from lexvla import LexVLA
from lexvla.data.demo_corpus import load_demo_corpus
from lexvla_search.copies import ALIKE


def compressed(image: Image.Image, quality: int) -> Image.Image:
    """Return an image as JPEG leaves it."""
    data = io.BytesIO()
    image.save(data, "JPEG", quality=quality)
    return Image.open(data)


def scaled(image: Image.Image, share: float) -> Image.Image:
    """Return an image with sides of this share."""
    return image.resize((round(image.width * share), round(image.height * share)))


def cropped(image: Image.Image, share: float) -> Image.Image:
    """Return an image without this share of its sides, half of it at each end."""
    x, y = round(image.width * share / 2), round(image.height * share / 2)
    return image.crop((x, y, image.width - x, image.height - y))


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "JPEG of quality 50": lambda image: compressed(image, 50),
    "half its sides": lambda image: scaled(image, 0.5),
    "cropped by a twentieth": lambda image: cropped(image, 0.05),
    "a quarter of its sides, JPEG of quality 70": lambda image: compressed(scaled(image, 0.25), 70),
}


def main() -> None:
    """Run from the command line."""
    model = LexVLA.from_pretrained()

    def vectors(images: list[Image.Image]) -> np.ndarray:
        dense = model.encode_image(images).dense
        if dense is None:
            raise SystemExit("this model has no dense vectors")
        return dense.astype(np.float64)

    photographs = [item.image for item in load_demo_corpus("photographs")]
    own = vectors(photographs)
    print(f"a copy is alike from a cosine of {ALIKE} on; of {len(own)} photographs and a copy each")
    print(f"{'the copy':44}{'lowest':>8}{'alike':>8}")
    for name, change in CHANGES.items():
        cosines = (own * vectors([change(image) for image in photographs])).sum(axis=1)
        print(f"{name:44}{cosines.min():8.3f}{(cosines >= ALIKE).sum():8}")
    between = own @ own.T - 2 * np.eye(len(own))
    print(f"highest of two photographs: {between.max():.3f}")
    drawings = vectors([item.image for item in load_demo_corpus("emoji")])
    nearest = (drawings @ drawings.T - 2 * np.eye(len(drawings))).max(axis=1)
    for least in (ALIKE, 0.98, 0.99):
        share = 100 * (nearest >= least).mean()
        print(f"of {len(drawings):,} drawings, {share:.1f} % have another one from {least} on")


if __name__ == "__main__":
    main()
