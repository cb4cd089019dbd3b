"""The figures of the demo corpus, on four pictures where they are known."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

import pytest
from PIL import Image

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
