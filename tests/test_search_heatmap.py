"""The glow is where the patch is."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from lexvla.errors import InputError, UnsupportedError
from lexvla_search.explanation import Explanation, TermMatch
from lexvla_search.heatmap import heatmap, match_map, patch_map, word_map
from search_fakes import GRID, FakeEncoder, MappingEncoder, spot


def warmth(picture: Image.Image) -> np.ndarray:
    pixels = np.asarray(picture, dtype=float)
    return pixels[..., 0] - pixels[..., 2]


def match(word: str, product: float, patch: int | None) -> TermMatch:
    return TermMatch(f"\u2581{word}", word, 1.0, product, product, patch)


def test_weights_of_one_patch_add_up() -> None:
    weights = patch_map([(0, 1.0), (5, 0.5), (5, 0.25)], (2, 3))
    assert weights.tolist() == [[1.0, 0, 0], [0, 0, 0.75]]
    with pytest.raises(ValueError, match="patch 6 lies outside a grid of 2 x 3"):
        patch_map([(6, 1.0)], (2, 3))


@pytest.mark.parametrize("ground", ["white", "black", "grey"])
@pytest.mark.parametrize("patch", [0, 6, 15])
def test_the_patch_glows(ground: str, patch: int) -> None:
    picture = heatmap(Image.new("RGB", (64, 64), ground), patch_map([(patch, 0.3)], GRID))
    assert picture.size == (384, 384)
    glow = warmth(picture).reshape(4, 96, 4, 96).mean(axis=(1, 3))
    assert glow.argmax() == patch
    far = 15 if patch < 8 else 0
    assert abs(glow.ravel()[far]) < 1
    assert glow.ravel()[patch] > 60


def test_a_stronger_patch_glows_more() -> None:
    picture = heatmap(Image.new("RGB", (64, 64), "grey"), patch_map([(0, 1.0), (15, 0.5)], GRID))
    glow = warmth(picture).reshape(4, 96, 4, 96).mean(axis=(1, 3))
    assert glow[0, 0] > glow[3, 3] > 10


def test_the_map_is_stretched_over_the_whole_image() -> None:
    picture = heatmap(Image.new("RGB", (800, 200), "grey"), patch_map([(3, 1.0)], GRID))
    assert picture.size == (800, 200)
    glow = warmth(picture).reshape(4, 50, 4, 200).mean(axis=(1, 3))
    assert np.unravel_index(glow.argmax(), GRID) == (0, 3)


def test_size_is_kept_within_bounds() -> None:
    flat = np.ones(GRID)
    assert heatmap(Image.new("RGB", (4000, 2), "grey"), flat).size == (1024, 1)
    assert heatmap(Image.new("L", (1, 1)), flat).size == (384, 384)


def test_the_caption_gets_a_strip_below() -> None:
    image = Image.new("RGB", (64, 64), "white")
    plain = heatmap(image, np.eye(4))
    one = heatmap(image, np.eye(4), caption="red 0.402")
    many = heatmap(image, np.eye(4), caption="  ".join(f"word{i} 0.100" for i in range(12)))
    assert one.width == plain.width
    assert plain.height < one.height < many.height
    assert (np.asarray(one)[: plain.height] == np.asarray(plain)).all()
    assert np.asarray(one)[plain.height :].max() > 200  # letters


def test_no_weight_no_glow() -> None:
    picture = heatmap(Image.new("RGB", (64, 64), "white"), np.zeros(GRID))
    assert np.ptp(np.asarray(picture)) == 0


@pytest.mark.parametrize("bad", [np.array([[np.nan]]), np.array([[-1.0]]), np.ones(3), [[]]])
def test_bad_weights(bad: np.ndarray) -> None:
    with pytest.raises(ValueError, match="weights must"):
        heatmap(Image.new("RGB", (8, 8)), bad)


def test_matches_without_a_model_map_lie_on_their_patches() -> None:
    explanation = Explanation((match("red", 0.4, 6), match("blue", 0.1, 0)), 0.5)
    weights = match_map(FakeEncoder(), spot("red", (1, 2)), explanation)
    assert weights[1, 2] == 0.4
    assert weights[0, 0] == 0.1
    assert weights.sum() == 0.5


def test_matches_with_a_model_map_weigh_by_product() -> None:
    explanation = Explanation((match("red", 0.4, 6), match("black", 0.1, 0)), 0.5)
    weights = match_map(MappingEncoder(), spot("red", (1, 2)), explanation)
    assert weights.shape == GRID
    assert weights[1, 2] == pytest.approx(0.4)
    assert weights[0, 0] == pytest.approx(0.1)


class OnePassEncoder(FakeEncoder):
    """The maps of all words by one pass, counted."""

    passes = 0

    def heatmaps(self, image: Image.Image, columns: list[int]) -> np.ndarray:
        self.passes += 1
        return self._activations(image).T[columns].reshape(-1, *GRID)


def test_one_pass_maps_all_words() -> None:
    encoder, image = OnePassEncoder(), spot("red", (1, 2))
    explanation = Explanation((match("red", 0.4, 6), match("black", 0.1, 0)), 0.5)
    weights = match_map(encoder, image, explanation)
    assert encoder.passes == 1
    assert np.allclose(weights, match_map(MappingEncoder(), image, explanation))
    one = word_map(encoder, image, "red", encoder.encode_image([image]))
    assert np.unravel_index(one.argmax(), GRID) == (1, 2)
    assert encoder.passes == 2


def test_many_words_are_all_mapped() -> None:
    # The strongest words say nothing of where; the last one does.
    many = (*(match("green", 0.5, 0) for _ in range(20)), match("red", 0.1, 6))
    weights = match_map(OnePassEncoder(), spot("red", (1, 2), "blue"), Explanation(many, 10.1))
    assert np.unravel_index(weights.argmax(), GRID) == (1, 2)
    assert weights.max() == pytest.approx(0.1)


def test_one_word() -> None:
    image = spot("red", (1, 2))
    for encoder in (FakeEncoder(), MappingEncoder()):
        weights = word_map(encoder, image, "red", encoder.encode_image([image]))
        assert np.unravel_index(weights.argmax(), GRID) == (1, 2)


def test_no_place_is_an_error() -> None:
    encoder = FakeEncoder()
    image = spot("red", (1, 2))
    with pytest.raises(InputError, match="no matched word has a place"):
        match_map(encoder, image, Explanation((match("red", 0.4, None),), 0.4))
    with pytest.raises(InputError, match="no matched word has a place"):
        match_map(MappingEncoder(), image, Explanation((), 0.0))
    with pytest.raises(InputError, match="the vocabulary has no such word"):
        word_map(encoder, image, "zebra", encoder.encode_image([image]))
    with pytest.raises(InputError, match="the word has no place"):
        word_map(encoder, image, "green", encoder.encode_image([image]))
    encoder.patch_grid = None
    with pytest.raises(UnsupportedError, match="does not say where its patches lie"):
        match_map(encoder, image, Explanation((match("red", 0.4, 6),), 0.4))
