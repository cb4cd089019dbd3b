"""A small deterministic encoder of colour words, so that search is tested without a model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from scipy import sparse

from lexvla.encoding import Encoding
from lexvla.images import ImageSource, open_image
from lexvla.known_words import KnownWords
from lexvla.vocabulary import Vocabulary
from lexvla_indexer import Document, open_index
from lexvla_indexer.base import Index

WORDS = ("red", "green", "blue", "yellow", "white", "black")
COLOURS = np.array(
    [[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [1, 1, 1], [0, 0, 0]], dtype=np.float32
)
GRID = (4, 4)


class FakeEncoder:
    """Read colour words from texts by spelling and from images by the nearest colour."""

    def __init__(self, name: str = "fake", words: tuple[str, ...] = WORDS) -> None:
        self.name = name
        self.vocabulary = Vocabulary([f"\u2581{word}" for word in words])
        self.known_words = KnownWords(words)
        self.patch_grid = GRID

    def encode_text(self, texts: list[str]) -> Encoding:
        rows = np.zeros((len(texts), len(self.vocabulary)), dtype=np.float32)
        for row, text in zip(rows, texts, strict=True):
            for word in text.lower().split():
                column = self.vocabulary.find(word)
                if column is not None:
                    row[column] += 1
        return Encoding(sparse.csr_array(unit(rows)))

    def encode_image(self, images: list[ImageSource]) -> Encoding:
        activations = np.stack([self._activations(image) for image in images])
        rows = sparse.csr_array(unit(activations.max(axis=1)))
        rows.sort_indices()
        best = activations.argmax(axis=1).astype(np.int16)
        at = np.repeat(np.arange(len(images)), np.diff(rows.indptr))
        return Encoding(rows, patches=best[at, rows.indices])

    def _activations(self, image: ImageSource) -> np.ndarray:
        """Return (patches, words), at least 0."""
        small = open_image(image).resize(GRID[::-1], Image.Resampling.BOX)
        pixels = np.asarray(small, dtype=np.float32).reshape(-1, 3) / 255
        distance = np.linalg.norm(pixels[:, None] - COLOURS[: len(self.vocabulary)], axis=2)
        return np.maximum(0, 1 - distance)


class MappingEncoder(FakeEncoder):
    """The same with a full map for each word, and an end of long texts, as a real model has."""

    def unread(self, texts: list[str]) -> list[str]:
        return [text[1000:] for text in texts]

    def heatmap(self, image: ImageSource, word: str) -> np.ndarray:
        column = self.vocabulary.find(word)
        assert column is not None
        return self.heatmaps(image, [column])[0]

    def heatmaps(self, image: ImageSource, columns: list[int]) -> np.ndarray:
        return self._activations(image).T[columns].reshape(-1, *GRID)


def unit(rows: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return (rows / np.where(norms == 0, 1, norms)).astype(np.float32)


def spot(colour: str, at: tuple[int, int], ground: str = "black") -> Image.Image:
    """Return a 64-pixel picture with one patch (row, column) of a colour."""
    image = Image.new("RGB", (64, 64), ground)
    row, column = at
    image.paste(Image.new("RGB", (16, 16), colour), (column * 16, row * 16))
    return image


PICTURES = {
    "apple": spot("red", (1, 2)),
    "lime": spot("#00ff00", (0, 0)),
    "flag": Image.merge("RGB", spot("red", (3, 3), "blue").split()),
    "snow": Image.new("RGB", (64, 64), "white"),
}


def save_pictures(folder: Path) -> Path:
    """Write the pictures as PNG files and return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, picture in PICTURES.items():
        picture.save(folder / f"{name}.png")
    return folder


def build_index(address: Path, folder: Path, encoder: FakeEncoder) -> Index:
    """Return an open index of the pictures, by their names."""
    save_pictures(folder)
    documents = [
        Document(name, uri=str(folder / f"{name}.png"), metadata={"label": f"a {name}"})
        for name in PICTURES
    ]
    index = open_index(str(address), create=True, vocabulary=encoder.vocabulary, model=encoder.name)
    index.add(documents, encoder.encode_image(list(PICTURES.values())))
    index.commit()
    return index
