"""PatchDis on sets so small that the answer is worked out by hand."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image, ImageDraw
from scipy import sparse

from lexvla.data.demo_corpus import DemoItem, load_demo_corpus
from lexvla.encoding import Encoding
from lexvla.errors import InputError, OptionalDependencyError
from lexvla.images import ImageSource
from search import cli
from search.evaluation.coco import read_coco
from search.evaluation.patchdis import (
    choose_classes,
    count_overlap,
    evaluate_patchdis,
    mean_iou,
    patch_truth,
)
from search.evaluation.scenes import DemoScenes
from search_fakes import GRID, FakeEncoder, unit

# pycocotools still speaks to numpy as before its version 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
Capture = pytest.CaptureFixture[str]


class PatchFake(FakeEncoder):
    """Read each patch by its own colours; words are their own vectors."""

    def encode_words(self, words: Sequence[str]) -> Encoding:
        return self.encode_text(list(words))

    def encode_patches(self, images: Sequence[ImageSource]) -> Encoding:
        rows = np.concatenate([self._activations(image) for image in images])
        return Encoding(sparse.csr_array(unit(rows)))


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
        (SCENES[2], "no patch is of a class"),
    ):
        with pytest.raises(ValueError, match=complaint):
            evaluate_patchdis(PatchFake(), [scene], NAMES)
    with pytest.raises(ValueError, match="batch_size"):
        evaluate_patchdis(PatchFake(), SCENES, NAMES, batch_size=0)


def coco(folder: Path, *annotations: dict[str, Any], **more: Any) -> Path:
    """Write a picture of 8 x 8 pixels, 2 a patch, and its annotations; return their file."""
    Image.new("RGB", (8, 8), "black").save(folder / "a.png")
    data = {
        "images": [{"id": 7, "file_name": "a.png", "width": 8, "height": 8}],
        "categories": [{"id": 30, "name": "red"}, {"id": 10, "name": "blue"}],
        "annotations": [
            {"id": number, "image_id": 7, "category_id": 30, **annotation}
            for number, annotation in enumerate(annotations)
        ],
        **more,
    }
    path = folder / "instances.json"
    path.write_text(json.dumps(data))
    return path


def box(left: int, top: int, right: int, bottom: int) -> list[int]:
    return [left, top, right, top, right, bottom, left, bottom]


def mask_from(folder: Path, *annotations: dict[str, Any]) -> np.ndarray:
    ((image, mask),) = read_coco(coco(folder, *annotations), folder)
    assert image.size == (8, 8)
    return mask


def runs(mask: np.ndarray) -> list[int]:
    """Return the lengths of the runs of 0 and 1, column by column, 0 first."""
    flat = np.concatenate([[0], mask.ravel(order="F"), [2]])
    ends = np.flatnonzero(np.diff(flat))
    return np.diff(np.concatenate([[0], ends])).tolist()


def test_polygons(tmp_path: Path) -> None:
    mask = mask_from(tmp_path, {"segmentation": [box(0, 0, 4, 2), box(6, 6, 8, 8)]})
    expected = np.full((8, 8), -1)
    expected[:2, :4] = expected[6:, 6:] = 0
    assert mask.tolist() == expected.tolist()


@given(arrays(bool, (8, 8)))
def test_run_lengths(tmp_path_factory: pytest.TempPathFactory, area: np.ndarray) -> None:
    from pycocotools import mask as tools

    folder = tmp_path_factory.mktemp("coco")
    plain = {"size": [8, 8], "counts": runs(area)}
    packed = tools.encode(np.asfortranarray(area.astype(np.uint8)))
    for code in (plain, {"size": [8, 8], "counts": packed["counts"].decode()}):
        mask = mask_from(folder, {"segmentation": code, "category_id": 10})
        assert (mask == np.where(area, 1, -1)).all()


def test_the_smaller_instance_is_on_top_and_crowds_are_left_out(tmp_path: Path) -> None:
    small = {"segmentation": [box(2, 2, 4, 4)], "category_id": 10}
    large = {"segmentation": [box(0, 0, 8, 8)]}
    crowd = {"segmentation": {"size": [8, 8], "counts": [0, 64]}, "iscrowd": 1}
    expected = np.zeros((8, 8), dtype=int)
    expected[2:4, 2:4] = 1
    for order in ((small, large, crowd), (crowd, large, small)):
        assert mask_from(tmp_path, *order).tolist() == expected.tolist()
    # Of two alike the later one.
    assert mask_from(tmp_path, small, {**small, "category_id": 30})[2, 2] == 0
    assert (mask_from(tmp_path, crowd) == -1).all()


SQUARE = {"segmentation": [box(0, 0, 4, 4)]}


def rle(counts: Any, size: Any = (8, 8)) -> dict[str, Any]:
    return {"segmentation": {"size": size, "counts": counts}}


@pytest.mark.parametrize(
    ("annotation", "complaint"),
    [
        ({**SQUARE, "image_id": 8}, "'annotation 0': image_id 8 is not in the file"),
        ({**SQUARE, "category_id": 99}, "'annotation 0': category_id 99 is not in the file"),
        ({**SQUARE, "category_id": [30]}, "category_id .30. is not in the file"),
        ({"segmentation": [box(0, 0, 10, 4)]}, "a corner lies outside of the image of 8 x 8"),
        ({"segmentation": [box(0, -3, 8, 4)]}, "a corner lies outside of the image of 8 x 8"),
        ({"segmentation": [[0, 0, float("nan"), 4, 4, 4]]}, "a corner lies outside"),
        ({"segmentation": [[0, 0, 4, 4]]}, "a polygon must be a list x, y"),
        ({"segmentation": [[0, 0, 4, 4, 0, "4"]]}, "a polygon must be a list x, y"),
        ({"segmentation": []}, "'annotation 0': has no polygon"),
        ({}, "segmentation must be a list of polygons, or a run-length code"),
        (rle([64], [8, 9]), r"has the size \[8, 9\], its image \[8, 8\]"),
        (rle([60]), "the run-length code has 60 pixels, the image has 64"),
        (rle([60, 400]), "the run-length code has 460 pixels"),
        (rle([65, -1]), "the run-length code is damaged"),
        (rle(None), "the run-length code is damaged"),
        (rle("l"), "the run-length code is damaged"),
        (rle("!!"), "the run-length code is damaged"),
        (rle(""), "the run-length code has 0 pixels"),
    ],
)
def test_bad_annotations(annotation: dict[str, Any], complaint: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=complaint):
        mask_from(tmp_path, annotation)


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        ({"images": None}, "is no COCO file: it has no list of images"),
        ({"categories": [{"name": "red"}]}, r"'categories\[0\]': must be an object with an id"),
        ({"categories": [{"id": 30}]}, "'category 30': name must be a string"),
        ({"categories": [{"id": i, "name": "red"} for i in (1, 2)]}, "'red': two categories"),
        ({"images": [{"id": 7}, {"id": 7}]}, "two of the images have the same id"),
        ({"images": [{"id": 7}]}, "'image 7': file_name must be a string"),
        ({"images": [{"id": 7, "file_name": "a.png", "width": 8}]}, "height must be an integer"),
        ({"images": [{"id": 7, "file_name": "a.png", "width": 0, "height": 8}]}, "has no area"),
        ({"images": [{"id": 7, "file_name": "b.png", "width": 8, "height": 8}]}, "no such file"),
        (
            {"images": [{"id": 7, "file_name": "a.png", "width": 8, "height": 9}]},
            "'a.png': has 8 x 8 pixels, the annotations say 8 x 9",
        ),
    ],
)
def test_bad_files(more: dict[str, Any], complaint: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=complaint):
        list(read_coco(coco(tmp_path, **more), tmp_path))


def test_no_json(tmp_path: Path) -> None:
    for content, complaint in (("{", "is no JSON"), ("[]", "is no COCO file")):
        (tmp_path / "x.json").write_text(content)
        with pytest.raises(InputError, match=complaint):
            read_coco(tmp_path / "x.json", tmp_path)
    with pytest.raises(InputError, match="no such file"):
        read_coco(tmp_path / "absent.json", tmp_path)


def test_without_pycocotools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    with pytest.raises(OptionalDependencyError, match=r"pip install 'lexvla\[evaluation\]'"):
        read_coco(coco(tmp_path), tmp_path)


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
    others = DemoScenes(items, count=3, seed=2)
    assert any((a[1] != b[1]).any() for a, b in zip(scenes, others, strict=True))
    with pytest.raises(ValueError, match="only 3 items"):
        DemoScenes(items[:3])
    figures = evaluate_patchdis(PatchFake(), scenes, scenes.class_names)
    assert figures.all.miou == 1
    assert figures.patches == 3 * 8


def test_classes_are_dealt_out_like_cards() -> None:
    scenes = DemoScenes(load_demo_corpus(), count=130)
    assert len(set(scenes.class_names)) == 517
    hands = [np.unique(mask[mask >= 0]).tolist() for _, mask in scenes]
    assert all(len(hand) == 4 for hand in hands)
    assert len({number for hand in hands[:129] for number in hand}) == 4 * 129


class TestCommand:
    @pytest.fixture(autouse=True)
    def model(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("search.studies.load_model", lambda _: PatchFake())

    def test_annotations(self, tmp_path: Path, capsys: Capture) -> None:
        red = {"segmentation": [box(0, 0, 4, 2)]}
        blue = {"segmentation": [box(0, 4, 4, 8)], "category_id": 10}
        path = coco(tmp_path, red, blue)
        picture = Image.new("RGB", (8, 8), "black")
        picture.paste("red", (0, 0, 2, 2))
        picture.paste("blue", (0, 4, 4, 8))
        picture.save(tmp_path / "a.png")
        arguments = ["patchdis", "--annotations", str(path), "--images", str(tmp_path)]
        assert cli.main([*arguments, "--json"]) == 0
        data = json.loads(capsys.readouterr().out)
        # Of red one patch of two is black; all four of blue are right.
        assert (data["patches"], data["occurring"], data["names"]) == (6, 2, "words")
        assert data["all"]["miou"] == pytest.approx((1 / 2 + 1) / 2)
        assert data["all"]["accuracy"] == pytest.approx(5 / 6)
        assert cli.main([*arguments, "--names", "text"]) == 0
        out = capsys.readouterr().out
        assert "class names as text: 1 images,\n6 patches of 2 classes (0 of 2 names" in out
        assert "\nall classes   75.00 " in out

    def test_demo_scenes(self, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
        items = [drawing(name, name) for name in ("red", "blue", "yellow", "white")]
        monkeypatch.setattr("search.studies.load_demo_corpus", lambda: items)
        assert cli.main(["patchdis", "--json"]) == 0
        data = json.loads(capsys.readouterr().out)
        assert (data["images"], data["classes"]) == (400, 4)
        assert data["all"]["miou"] == 1

    def test_failures(self, tmp_path: Path, capsys: Capture) -> None:
        assert cli.main(["patchdis", "--images", str(tmp_path)]) == 2
        assert "--annotations and --images go together" in capsys.readouterr().err
        path = str(coco(tmp_path))
        assert cli.main(["patchdis", "--annotations", path, "--images", str(tmp_path)]) == 1
        assert capsys.readouterr().err == f"lexvla: error: {path!r}: no patch is of a class\n"
