"""PatchDis on sets so small that the answer is worked out by hand."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image, ImageDraw

from lexvla.data.demo_corpus import DemoItem, load_demo_corpus
from lexvla.errors import InputError
from lexvla_search import cli
from lexvla_search.evaluation.patchdis import (
    choose_classes,
    count_overlap,
    evaluate_patchdis,
    mean_iou,
    patch_truth,
)
from lexvla_search.evaluation.scenes import DemoScenes
from patch_fakes import PatchFake
from search_fakes import GRID

Capture = pytest.CaptureFixture[str]


def tiled(colours: str) -> Image.Image:
    """Return a 64-pixel picture of 16 patches: r, g, b, y, w or k each."""
    names = dict(zip("rgbywk", ("red", "#0f0", "blue", "yellow", "white", "black"), strict=True))
    image = Image.new("RGB", (64, 64))
    for number, letter in enumerate(colours.replace(" ", "")):
        row, column = divmod(number, 4)
        image.paste(Image.new("RGB", (16, 16), names[letter]), (16 * column, 16 * row))
    return image


def mask_of(numbers: str) -> np.ndarray:
    """Return a 64-pixel mask of 16 patches: a class number each, or a dot for background."""
    grid = [-1 if letter == "." else int(letter) for letter in numbers.replace(" ", "")]
    return np.array(grid).reshape(GRID).repeat(16, axis=0).repeat(16, axis=1)


def test_truth_is_the_majority() -> None:
    mask = np.array([[0, 0, 1, 1], [0, 1, 1, -1], [2, 2, -1, -1], [3, 3, -1, 4]])
    # Of the four patches: three zeros; three ones; a tie of two and three; background.
    assert patch_truth(mask, (2, 2)).tolist() == [[0, 1], [-1, -1]]
    assert patch_truth(mask, (1, 1)).tolist() == [[-1]]
    assert patch_truth(mask, (4, 4)).tolist() == mask.tolist()


def test_a_pixel_is_of_the_patch_that_its_centre_lies_in() -> None:
    # Five columns over two patches: the middle one's centre lies on the border, and goes right.
    assert patch_truth(np.array([[0, 0, 1, 1, 0]]), (1, 2)).tolist() == [[0, 1]]
    # Two columns over four patches: two of them have the centre of none.
    assert patch_truth(np.array([[7, 7]]), (1, 4)).tolist() == [[-1, 7, -1, 7]]


@given(
    arrays(int, st.tuples(st.integers(1, 4), st.integers(1, 4)), elements=st.integers(-1, 3)),
    st.integers(1, 5),
)
def test_truth_of_a_mask_of_whole_patches_is_the_mask(grid: np.ndarray, size: int) -> None:
    mask = grid.repeat(size, axis=0).repeat(size, axis=1)
    assert (patch_truth(mask, grid.shape) == grid).all()


def test_ties_and_nothing_belong_to_no_class() -> None:
    scores = np.array([[0.0, 0, 0], [0.5, 0.5, 0.1], [0.1, 0.2, 0.3], [0.4, 0, 0.9]])
    assert choose_classes(scores).tolist() == [-1, -1, 2, 2]
    assert choose_classes(scores, np.array([0, 1])).tolist() == [-1, -1, 1, 0]
    assert choose_classes(scores, np.array([1])).tolist() == [-1, 1, 1, -1]
    assert choose_classes(scores, np.array([], dtype=int)).tolist() == [-1] * 4


def test_counts_and_their_mean() -> None:
    truth = np.array([0, 0, 0, 1, 1, -1, -1])
    predicted = np.array([0, 0, 1, 1, -1, 1, 2])
    counts = count_overlap(predicted, truth, 4)
    assert counts.tolist() == [[2, 1, 0, 0], [2, 2, 0, 0], [3, 2, 0, 0]]
    # 2 of 3, and 1 of 3; the classes that do not occur are not in the mean.
    assert mean_iou(counts) == pytest.approx((2 / 3 + 1 / 3) / 2)
    with pytest.raises(ValueError, match="no patch is of a class"):
        mean_iou(np.zeros((3, 2), dtype=int))


@given(
    arrays(int, 30, elements=st.integers(-1, 4)),
    arrays(int, 30, elements=st.integers(-1, 4)),
)
def test_the_order_of_patches_does_not_matter_and_truth_is_perfect(
    truth: np.ndarray, predicted: np.ndarray
) -> None:
    counts = count_overlap(predicted, truth, 5)
    assert (counts == count_overlap(predicted[::-1], truth[::-1], 5)).all()
    parts = count_overlap(predicted[:9], truth[:9], 5) + count_overlap(predicted[9:], truth[9:], 5)
    assert (counts == parts).all()
    if (truth >= 0).any():
        assert 0 <= mean_iou(counts) <= 1
        assert mean_iou(count_overlap(truth, truth, 5)) == 1


NAMES = ("red", "green", "blue", "yellow")
SCENES = [
    # All right but one patch of red, which is blue.
    (tiled("rrrb gggg kkkk kkkk"), mask_of("0000 1111 .... ....")),
    # Of blue, one patch is red and one black.
    (tiled("bbrk kkkk kkkk rrrr"), mask_of("2222 .... .... 0000")),
    # Nothing but background: not measured.
    (tiled("rrrr rrrr rrrr rrrr"), mask_of(".... .... .... ....")),
]


def test_a_set_with_a_known_answer() -> None:
    figures = evaluate_patchdis(PatchFake(), SCENES, NAMES, batch_size=1)
    assert (figures.images, figures.patches) == (2, 16)
    assert (figures.classes, figures.occurring, figures.wordless) == (4, 3, 0)
    # The blue patch of red is like neither class of its image, the black one is like none at all.
    assert figures.present.accuracy == 13 / 16
    assert figures.present.undecided == 2 / 16
    # Red: 7 of 8 and one of blue; green: 4 of 4; blue: 2 of 4.
    assert figures.present.miou == pytest.approx((7 / 9 + 1 + 2 / 4) / 3)
    # Among all classes, the blue patch of red is blue.
    assert figures.all.accuracy == 13 / 16
    assert figures.all.undecided == 1 / 16
    assert figures.all.miou == pytest.approx((7 / 9 + 1 + 2 / 5) / 3)
    assert json.loads(json.dumps(figures.to_dict()))["present"]["accuracy"] == 13 / 16


def test_batches_and_names_make_no_difference_here() -> None:
    one = evaluate_patchdis(PatchFake(), SCENES, NAMES, batch_size=1)
    many = evaluate_patchdis(PatchFake(), iter(SCENES), NAMES, names="text")
    assert many.names == "text"
    assert (many.present, many.all) == (one.present, one.all)


def test_chance_is_what_a_random_choice_gives() -> None:
    scenes = [SCENES[0]] * 200
    figures = evaluate_patchdis(PatchFake(), scenes, NAMES)
    # Two classes of 4 patches each: 2 right of 6 in the union. Among four: 1 of 4 + 2 - 1.
    assert figures.present.chance_accuracy == pytest.approx(1 / 2, abs=0.01)
    assert figures.present.chance_miou == pytest.approx(1 / 3, abs=0.01)
    assert figures.all.chance_accuracy == pytest.approx(1 / 4, abs=0.01)
    assert figures.all.chance_miou == pytest.approx(1 / 5, abs=0.01)
    again = evaluate_patchdis(PatchFake(), scenes, NAMES)
    assert again == figures


def test_a_name_without_a_word_is_never_chosen() -> None:
    figures = evaluate_patchdis(PatchFake(), SCENES[:1], ("zebra", "green"))
    assert figures.wordless == 1
    assert figures.all.miou == pytest.approx(1 / 2)


def test_bad_scenes() -> None:
    image, mask = SCENES[0]
    for scene, complaint in (
        ((image, mask[:-1]), "a mask of shape"),
        ((image, mask + 4), "class numbers outside of -1 to 3"),
        ((image, mask - 9), "class numbers outside of -1 to 3"),
    ):
        with pytest.raises(ValueError, match=complaint):
            evaluate_patchdis(PatchFake(), [scene], NAMES)
    with pytest.raises(InputError, match="no patch is of a class"):
        evaluate_patchdis(PatchFake(), SCENES[2:], NAMES)
    with pytest.raises(ValueError, match="batch_size"):
        evaluate_patchdis(PatchFake(), SCENES, NAMES, batch_size=0)


def drawing(name: str, colour: str) -> DemoItem:
    image = Image.new("RGBA", (64, 64))
    ImageDraw.Draw(image).rectangle((0, 0, 31, 63), fill=colour)
    file = io.BytesIO()
    image.save(file, "PNG")
    return DemoItem(name, name, (), "g", "s", file.getvalue())


def test_demo_scenes() -> None:
    colours = {"red": "red", "green": "#0f0", "blue": "blue", "yellow": "yellow"}
    items = [drawing(*pair) for pair in colours.items()]
    scenes = DemoScenes([drawing("two words", "red"), *items], count=3, seed=1)
    assert scenes.class_names == tuple(colours)
    assert len(scenes) == len(list(scenes)) == 3
    for (image, mask), (again, same) in zip(scenes, scenes, strict=True):
        assert image.tobytes() == again.tobytes()
        assert (mask == same).all()
        assert image.size == (128, 128)
        assert mask.shape == (128, 128)
        for row, column in ((0, 0), (0, 64), (64, 0), (64, 64)):
            number = mask[row, column]
            assert (mask[row : row + 64, column : column + 32] == number).all()
            assert (mask[row : row + 64, column + 32 : column + 64] == -1).all()
            colour = Image.new("RGB", (1, 1), items[number].label)
            pixel = image.getpixel((column + 3, row + 3))
            assert number == 1 or pixel == colour.getpixel((0, 0))
            assert image.getpixel((column + 40, row)) == (255, 255, 255)
        assert set(np.unique(mask)) == {-1, 0, 1, 2, 3}
    (alone, own) = next(iter(DemoScenes(items, across=1)))
    assert alone.size == (64, 64)
    assert len(np.unique(own)) == 2
    others = DemoScenes(items, count=3, seed=2)
    assert any((a[1] != b[1]).any() for a, b in zip(scenes, others, strict=True))
    with pytest.raises(ValueError, match="only 3 items"):
        DemoScenes(items[:3])
    figures = evaluate_patchdis(PatchFake(), scenes, scenes.class_names)
    assert figures.all.miou == 1
    assert figures.patches == 3 * 8


def test_classes_are_dealt_out_like_cards() -> None:
    scenes = DemoScenes(load_demo_corpus("emoji"), count=130)
    assert len(set(scenes.class_names)) == 517
    hands = [np.unique(mask[mask >= 0]).tolist() for _, mask in scenes]
    assert all(len(hand) == 4 for hand in hands)
    assert len({number for hand in hands[:129] for number in hand}) == 4 * 129


class TestCommand:
    @pytest.fixture(autouse=True)
    def model(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("lexvla_search.cli.arguments.load_model", lambda *_: PatchFake())

    def test_demo_scenes(self, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
        items = [drawing(name, name) for name in ("red", "blue", "yellow", "white")]
        monkeypatch.setattr("lexvla_search.cli.patchdis.load_demo_corpus", lambda _: items)
        assert cli.main(["patchdis", "--json"]) == 0
        data = json.loads(capsys.readouterr().out)
        assert (data["images"], data["classes"]) == (400, 4)
        assert data["all"]["miou"] == 1
