"""COCO-style annotations: masks to the pixel, and what is wrong with a bad file."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra.numpy import arrays
from PIL import Image

from lexvla.errors import InputError, OptionalDependencyError
from lexvla_search import cli
from lexvla_search.evaluation.coco import read_coco
from patch_fakes import PatchFake

# pycocotools still speaks to numpy as before its version 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
Capture = pytest.CaptureFixture[str]


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
    for content, complaint in (("{", "is not JSON"), ("[]", "is no COCO file")):
        (tmp_path / "x.json").write_text(content)
        with pytest.raises(InputError, match=complaint):
            read_coco(tmp_path / "x.json", tmp_path)
    with pytest.raises(InputError, match="no such file"):
        read_coco(tmp_path / "absent.json", tmp_path)


def test_without_pycocotools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    with pytest.raises(OptionalDependencyError, match=r"pip install 'lexvla\[evaluation\]'"):
        read_coco(coco(tmp_path), tmp_path)


class TestCommand:
    @pytest.fixture(autouse=True)
    def model(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("lexvla_search.cli.arguments.load_model", lambda *_: PatchFake())

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

    def test_failures(self, tmp_path: Path, capsys: Capture) -> None:
        path = str(coco(tmp_path))
        assert cli.main(["patchdis", "--annotations", path, "--images", str(tmp_path)]) == 1
        assert capsys.readouterr().err == "lexvla: error: 'masks': no patch is of a class\n"
