"""The figures of the demo corpus, on four pictures where they are known."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
from PIL import Image

from lexvla.encoding import Encoding
from lexvla.images import ImageSource
from search.evaluation import evaluate_noto
from search.evaluation.noto import tag_relevance
from search_fakes import FakeEncoder


@dataclass
class Item:
    label: str
    tags: tuple[str, ...]
    colour: str

    @property
    def image(self) -> Image.Image:
        return Image.new("RGB", (8, 8), self.colour)


# The tags are colour words too; only "blue" is borne by three items, one of them not blue.
ITEMS = [
    Item("red", ("once",), "red"),
    Item("green", ("blue",), "#00ff00"),
    Item("blue", ("blue", "blue"), "blue"),
    Item("blue", ("blue", "once too"), "blue"),
]


def test_figures() -> None:
    figures = evaluate_noto(FakeEncoder(), ITEMS)
    # The two blue items tie with each other, so neither is first.
    assert figures.label_to_image == {1: 0.5, 5: 1.0, 10: 1.0}
    assert figures.image_to_label == {1: 0.5, 5: 1.0, 10: 1.0}
    assert (figures.items, figures.tags) == (4, 1)
    assert (figures.words_per_text, figures.words_per_image) == (1.0, 1.0)
    # "blue" finds two of its three bearers, and the third not at all.
    assert figures.tag_precision == pytest.approx(0.2)
    ideal = 1 + 1 / math.log2(3) + 1 / math.log2(4)
    assert figures.tag_ndcg == pytest.approx((1 + 1 / math.log2(3)) / ideal)
    assert figures.chance_recall == {1: 0.25, 5: 1.0, 10: 1.0}
    assert figures.chance_tag_precision == 0.75
    four_places = ideal + 1 / math.log2(5)
    assert figures.chance_tag_ndcg == pytest.approx(0.75 * four_places / ideal)
    assert json.loads(json.dumps(figures.to_dict()))["label_to_image"]["1"] == 0.5


def test_tags_of_three_to_sixty_items() -> None:
    items = [Item(str(i), ("all",) if i < 61 else ("few",), "red") for i in range(63)]
    assert tag_relevance(items)[0] == []
    tags, relevant = tag_relevance([*items[1:], Item("one more", ("few",), "red")])
    assert tags == ["all", "few"]
    assert relevant.sum(axis=1).tolist() == [60, 3]


def test_dense_vectors_break_ties_of_words() -> None:
    """An item's place in the list is its dense vector: text and image of one item agree."""

    class BothLegs(FakeEncoder):
        def encode_text(self, texts: list[str]) -> Encoding:
            return self._placed(super().encode_text(texts), len(texts))

        def encode_image(self, images: list[ImageSource]) -> Encoding:
            return self._placed(super().encode_image(images), len(images))

        def _placed(self, encoding: Encoding, count: int) -> Encoding:
            return replace(encoding, dense=np.eye(count, 4, dtype=np.float32))

    figures = evaluate_noto(BothLegs(), ITEMS)
    assert figures.label_to_image[1] == 0.5
    assert figures.fused_label_to_image == {1: 1.0, 5: 1.0, 10: 1.0}
    assert figures.fused_image_to_label == {1: 1.0, 5: 1.0, 10: 1.0}
    assert evaluate_noto(FakeEncoder(), ITEMS).fused_label_to_image is None
