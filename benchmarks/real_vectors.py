"""Vectors of the default model to time engines with: encoded views, multiplied, and queries.

    python benchmarks/real_vectors.py

encodes what is missing (8,000 views; minutes, then kept in data/vectors) and prints how far the
multiplied vectors are like encoded ones.

Half of the views are of the demo's drawings, half of photographs: cut-outs of things on white and
in scenery (`photographs.py` downloads them). Each is another random crop, with other brightness,
contrast and colour. More documents than views are made by disturbing views: a copy lacks about
one word in ten, has one in ten of the words of another view of its kind, and its weights have
log-normal noise. Queries are views that no document is made from, labels, and labels with tags.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from photograph_figures import Photograph, in_scenery, on_white, read_photographs, read_scenery
from photographs import DATA, STAMPS, WALLPAPERS, get_packages
from PIL import Image
from scipy import sparse

from lexvla import LexVLA
from lexvla.data.demo_corpus import DemoItem, load_demo_corpus
from lexvla.training.augment import random_view
from lexvla_indexer.embedded.bitmaps import GROUP

KEPT = DATA.parent / "vectors"
VIEWS = 8_000
ASKED = 400  # queries of each kind
DRAWING_SIDE, PHOTOGRAPH_SIDE = 64, 256
CROP, JITTER = 0.5, 0.3
SHARE_ON_WHITE = 0.5
SHARE, NOISE = 0.1, 0.3
_BATCH = 100


class RealVectors(NamedTuple):
    """Documents, and queries by kind: float32 unit rows.

    Attributes:
        stored: The documents; the first `VIEWS` are encoded views, the rest disturbed ones.
        queries: By kind: ``texts`` (labels with tags), ``labels`` and ``images``.
    """

    stored: sparse.csr_array
    queries: dict[str, sparse.csr_array]


def real_vectors(count: int) -> RealVectors:
    """Return ``count`` documents, and all queries; encode what has not been encoded yet."""
    encoder = Encoder()
    views = encoder.views(VIEWS, seed=0)
    queries = {
        "texts": encoder.texts(tags=True),
        "labels": encoder.texts(tags=False),
        "images": encoder.views(ASKED, seed=1),
    }
    rng = np.random.default_rng(0)
    parts = [views]
    while sum(part.shape[0] for part in parts) < count:
        parts.append(disturbed(rng, views))
    return RealVectors(sparse.csr_array(sparse.vstack(parts, format="csr")[:count]), queries)


def disturbed(rng: np.random.Generator, views: sparse.csr_array) -> sparse.csr_array:
    """Return as many unit rows, each like a view. Views of even and odd numbers are two kinds."""
    pairs = len(range(0, views.shape[0], 2))
    others = np.empty(views.shape[0], np.int64)
    others[0::2] = 2 * rng.permutation(pairs)
    others[1::2] = 2 * rng.permutation(views.shape[0] - pairs) + 1
    mixed = _thinned(rng, views, 1 - SHARE) + _thinned(rng, views[others], SHARE)
    mixed = sparse.csr_array(mixed)
    mixed.sum_duplicates()
    mixed.data *= np.exp(NOISE * rng.standard_normal(mixed.nnz, np.float32))
    return _unit_rows(mixed)


def _thinned(rng: np.random.Generator, rows: sparse.csr_array, kept: float) -> sparse.csr_array:
    """Return rows with a share of their words."""
    chosen = rng.random(rows.nnz) < kept
    starts = np.concatenate([[0], np.cumsum(chosen)])[rows.indptr].astype(rows.indptr.dtype)
    return sparse.csr_array((rows.data[chosen], rows.indices[chosen], starts), shape=rows.shape)


def _unit_rows(rows: sparse.csr_array) -> sparse.csr_array:
    owners = np.repeat(np.arange(rows.shape[0]), np.diff(rows.indptr))
    lengths = np.sqrt(np.bincount(owners, rows.data.astype(np.float64) ** 2, rows.shape[0]))
    rows.data = (rows.data / lengths[owners]).astype(np.float32)
    return rows


class Encoder:
    """Encode views and texts with the default model, once: results are kept in ``folder``."""

    def __init__(self, folder: Path = KEPT) -> None:
        self._folder = folder

    @cached_property
    def _model(self) -> LexVLA:
        return LexVLA.from_pretrained()

    @cached_property
    def _drawings(self) -> list[DemoItem]:
        return load_demo_corpus("emoji")

    @cached_property
    def _photographs(self) -> tuple[list[Photograph], list[Image.Image]]:
        get_packages(DATA)
        return read_photographs(DATA / STAMPS), read_scenery(DATA / WALLPAPERS)

    def views(self, count: int, seed: int) -> sparse.csr_array:
        """Return views of drawings and of photographs in turn; those of other seeds differ."""
        return self._once(f"views-{count}-{seed}", self._view_images(count, seed), "encode_image")

    def texts(self, tags: bool) -> sparse.csr_array:
        """Return `ASKED` labels of drawings and captions of photographs, without empty vectors."""
        rng = np.random.default_rng(2)
        drawings = [self._drawings[i] for i in rng.permutation(len(self._drawings))]
        found = [" ".join([item.label, *item.tags] if tags else [item.label]) for item in drawings]
        if not tags:
            captions = sorted({photograph.caption for photograph in self._photographs[0]})
            found[: ASKED // 2] = rng.permutation(captions)[: ASKED // 2].tolist()
        kind = "texts" if tags else "labels"
        rows = self._once(f"{kind}-{ASKED}", iter(found[:ASKED]), "encode_text")
        return rows[np.diff(rows.indptr) > 0]

    def _view_images(self, count: int, seed: int) -> Iterator[Image.Image]:
        for number in range(count):
            rng = np.random.default_rng([seed, number])
            if number % 2 == 0:
                drawing = self._drawings[rng.integers(len(self._drawings))]
                view = random_view(drawing.image, DRAWING_SIDE, CROP, JITTER, rng)
            else:
                photographs, scenes = self._photographs
                cutout = photographs[rng.integers(len(photographs))].cutout
                if rng.random() < SHARE_ON_WHITE:
                    picture = on_white(cutout)
                else:
                    picture = in_scenery(cutout, scenes, str(rng.integers(1 << 32)))
                view = random_view(picture.image, PHOTOGRAPH_SIDE, CROP, JITTER, rng)
            yield Image.fromarray(view)

    def _once(self, name: str, inputs: Iterator[Any], method: str) -> sparse.csr_array:
        """Return what was kept under a name, or encode it and keep it."""
        file = self._folder / f"{name}.npz"
        if not file.exists():
            parts = []
            while batch := list(islice(inputs, _BATCH)):
                parts.append(getattr(self._model, method)(batch).lexical)
                print(f"{name}: {sum(part.shape[0] for part in parts):,}", file=sys.stderr)
            self._folder.mkdir(parents=True, exist_ok=True)
            new = file.with_suffix(".new.npz")
            sparse.save_npz(new, sparse.vstack(parts, format="csr"))
            new.replace(file)
        # An encoder drops the smallest weights; the searcher normalises the rest.
        return _unit_rows(sparse.csr_array(sparse.load_npz(file)))


def likeness(rows: sparse.csr_array, queries: sparse.csr_array) -> dict[str, float]:
    """Return what the time of a search depends on: figures of rows, and of queries on them."""
    frequencies = np.bincount(rows.indices, minlength=rows.shape[1]) / rows.shape[0]
    found = {"words a row": rows.nnz / rows.shape[0]}
    for share in (0.03, 0.06, 0.12):
        often = frequencies >= share
        found[f"words in {share:.0%} of the rows or more"] = float(often.sum())
        part = frequencies[often].sum() / frequencies.sum()
        found[f"... their part of all postings, {share:.0%}, in %"] = 100 * float(part)
    touched, needed, columns = [], [], rows.tocsc()
    for number in range(queries.shape[0]):
        query = queries[number : number + 1]
        own = columns[:, query.indices].toarray() * query.data
        scores = own.sum(axis=1)
        bounds = (
            own[: len(own) // GROUP * GROUP].reshape(-1, GROUP, own.shape[1]).max(axis=1).sum(1)
        )
        touched.append(float(frequencies[query.indices].sum()))
        needed.append(float((bounds >= np.partition(scores, -10)[-10]).mean()))
    found["postings of a query, a row"] = float(np.mean(touched))
    found[f"groups of {GROUP} rows that may hold one of the ten best, %"] = 100 * float(
        np.mean(needed)
    )
    return found


def main() -> None:
    """Print the likeness of encoded views and of disturbed ones."""
    vectors = real_vectors(2 * VIEWS)
    for kind, queries in vectors.queries.items():
        encoded, made = (
            likeness(vectors.stored[first : first + VIEWS], queries[:100]) for first in (0, VIEWS)
        )
        print(f"| {kind}: {queries.nnz / queries.shape[0]:.1f} words | encoded | disturbed |")
        print("|---|--:|--:|")
        for name, value in encoded.items():
            print(f"| {name} | {value:.2f} | {made[name]:.2f} |")


if __name__ == "__main__":
    main()
