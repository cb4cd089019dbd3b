"""The figures of the demo corpus, on four pictures where they are known."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import dataclass, replace

import numpy as np
import pytest
from PIL import Image
from scipy import sparse

from lexvla.encoding import Encoding
from lexvla.images import ImageSource
from lexvla.text_normalisation import normalise_text
from search_fakes import FakeEncoder
from source_tree import ROOT

BENCHMARKS = ROOT / "benchmarks"
if not BENCHMARKS.is_dir():
    pytest.skip("needs a clone: benchmarks are in no distribution", allow_module_level=True)
sys.path.insert(0, str(BENCHMARKS))

from noto_figures import PHRASINGS, evaluate_noto, tag_relevance  # noqa: E402 - needs the path above


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


def test_phrasings_of_a_label() -> None:
    found = {name: write("one man’s straw hat") for name, write in PHRASINGS.items()}
    assert found == {
        "photo of X": "photo of one man’s straw hat",
        "a photo of a X.": "a photo of a one man’s straw hat.",
        "picture of two Xs": "picture of two one man’s straw hats",
        "Xs": "one man’s straw hats",
        "UPPER CASE": "ONE MAN’S STRAW HAT",
        "Title Case": "One Man’s Straw Hat",
        "curly quotes": "“one man’s straw hat”",
        "curly apostrophes": "one man’s straw hat",
        "straight apostrophes": "one man's straw hat",
        "zero-width spaces": "one \u200bma\u200bn’s \u200bstraw \u200bhat",
        "soft hyphen": "one ma\u00adn’s straw hat",
    }
    assert PHRASINGS["curly apostrophes"]("man's hat") == "man’s hat"


class PlainEncoder(FakeEncoder):
    """Read words whatever is typed around them."""

    def encode_text(self, texts: list[str]) -> Encoding:
        return super().encode_text([normalise_text(text).strip("\"'.") for text in texts])


def test_figures_of_phrasings() -> None:
    """The fake knows words by `Vocabulary.find`: no plurals, and no marks around them."""
    figures = evaluate_noto(FakeEncoder(), ITEMS)
    found = {name for name, recall in figures.phrasings.items() if recall == 0.5}
    assert found == {
        "plain",
        "photo of X",
        "UPPER CASE",
        "Title Case",
        "curly apostrophes",
        "straight apostrophes",
        "zero-width spaces",
        "soft hyphen",
    }
    assert {figures.phrasings[name] for name in figures.phrasings.keys() - found} == {0.0}
    assert list(figures.phrasings) == ["plain", *PHRASINGS]
    points = figures.phrasing_points
    assert points.keys() == figures.phrasings.keys()
    assert (points["plain"], points["photo of X"], points["curly quotes"]) == (0.0, 0.0, -50.0)
    data = json.loads(json.dumps(figures.to_dict()))
    assert (data["phrasings"]["Xs"], data["phrasing_points"]["Xs"]) == (0.0, -50.0)


def test_a_model_that_normalises_loses_by_plurals_alone() -> None:
    points = evaluate_noto(PlainEncoder(), ITEMS).phrasing_points
    assert {name for name, lost in points.items() if lost} == {"picture of two Xs", "Xs"}


def test_codes_and_dense_vectors_by_themselves_and_in_the_sum() -> None:
    """Dense vectors mistake the first two items for each other, codes do not tell the last two."""

    class AllLegs(FakeEncoder):
        def encode_text(self, texts: list[str]) -> Encoding:
            return self._placed(super().encode_text(texts), [0, 1, 2, 3])

        def encode_image(self, images: list[ImageSource]) -> Encoding:
            return self._placed(super().encode_image(images), [1, 0, 2, 3])

        def _placed(self, encoding: Encoding, places: list[int]) -> Encoding:
            count = len(encoding)
            dense = np.eye(4, dtype=np.float32)[places][:count]
            codes = np.eye(3, dtype=np.float32)[[0, 1, 2, 2]][:count]
            return replace(encoding, dense=dense, codes=sparse.csr_array(codes))

    figures = evaluate_noto(AllLegs(), ITEMS)
    assert figures.dense_label_to_image == {1: 0.5, 5: 1.0, 10: 1.0}
    assert figures.codes_label_to_image == {1: 0.5, 5: 1.0, 10: 1.0}
    assert figures.fused_label_to_image == {1: 0.5, 5: 1.0, 10: 1.0}
    assert figures.summed_label_to_image == {1: 1.0, 5: 1.0, 10: 1.0}
    assert figures.unused_codes == 0
    plain = evaluate_noto(FakeEncoder(), ITEMS)
    assert plain.unused_codes is None
    assert plain.dense_label_to_image is None
    assert plain.codes_label_to_image is None
    assert plain.summed_label_to_image is None
