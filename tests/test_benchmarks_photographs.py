"""The figures of photographs, on four tiny cut-outs where they are known."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zlib
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy import sparse

from lexvla.encoding import Encoding
from lexvla.errors import InputError
from lexvla.images import ImageSource
from search_fakes import FakeEncoder
from source_tree import ROOT

BENCHMARKS = ROOT / "benchmarks"
if not BENCHMARKS.is_dir():
    pytest.skip("needs a clone: benchmarks are in no distribution", allow_module_level=True)
sys.path.insert(0, str(BENCHMARKS))

from photograph_figures import (  # noqa: E402 - needs the path above
    SCENE_SIDE,
    SCENERY,
    Photograph,
    class_words,
    evaluate_photographs,
    in_scenery,
    names_class,
    on_white,
    read_photographs,
    read_scenery,
)


def cutout(colour: str, size: tuple[int, int] = (16, 16)) -> Image.Image:
    return Image.new("RGBA", size, colour)


def add_stamp(stamps: Path, name: str, text: str | None, colour: str = "red") -> None:
    path = stamps / name
    path.parent.mkdir(parents=True, exist_ok=True)
    cutout(colour).save(path)
    if text is not None:
        path.with_suffix(".txt").write_text(text, encoding="utf-8")


def crc(folder: str, remainder: int, skip: int = 0) -> str:
    """Return the name of a stamp in the folder whose CRC-32 is even (0) or odd (1)."""
    names = (f"{folder}/{i}.png" for i in range(100))
    return [name for name in names if zlib.crc32(name.encode()) % 2 == remainder][skip]


def names(items: Iterable[Photograph]) -> list[str]:
    return [item.name for item in items]


def test_only_stamps_with_an_even_checksum_are_read(tmp_path: Path) -> None:
    assert zlib.crc32(b"animals/birds/crow.png") == 0x25465BDE
    assert zlib.crc32(b"animals/birds/hen.png") == 0x7AED8573
    add_stamp(tmp_path, "animals/birds/crow.png", "A crow.\nde.utf8=Eine Krähe.\n")
    add_stamp(tmp_path, "animals/birds/hen.png", "A hen.")
    items = read_photographs(tmp_path)
    assert names(items) == ["animals/birds/crow.png"]
    assert items[0].caption == "A crow"
    assert items[0].cutout.mode == "RGBA"


@pytest.mark.parametrize("folder", ["symbols", "cartoon", "flags", "roadsigns"])
def test_folders_without_photographs_are_left_out(tmp_path: Path, folder: str) -> None:
    kept, *others = [crc(at, 0) for at in ("town", folder, f"town/{folder}", f"{folder}/town")]
    for name in (kept, *others):
        add_stamp(tmp_path, name, "A thing.")
    assert names(read_photographs(tmp_path)) == [kept]


def test_captions_have_one_to_four_words_beside_the_article(tmp_path: Path) -> None:
    texts = {
        "Boom!!!": "Boom",
        "A Jack-o’-lantern.": "A Jack-o’-lantern",
        "An old Chinese sailing ship.\n": "An old Chinese sailing ship",
        "the baby of a gnu": "the baby of a gnu",
        "Dark red apple tree.": "Dark red apple tree",
        "Five words, and no article.": None,
        "A walnut in its brown shell.": None,
        "A": None,
        "!": None,
        "": None,
        "\n\n": None,
    }
    expected = []
    for skip, (text, caption) in enumerate(texts.items()):
        name = crc("food", 0, skip)
        add_stamp(tmp_path, name, text)
        expected += [(name, caption)] if caption else []
    add_stamp(tmp_path, crc("food", 0, len(texts)), None)
    found = [(item.name, item.caption) for item in read_photographs(tmp_path)]
    assert found == sorted(expected)


def test_a_folder_without_stamps_is_refused(tmp_path: Path) -> None:
    add_stamp(tmp_path, crc("food", 1), "A plum.")
    with pytest.raises(InputError, match="no stamps"):
        read_photographs(tmp_path)


def test_scenery_is_the_middle_square(tmp_path: Path) -> None:
    wide = Image.new("RGB", (60, 20), "red")
    wide.paste(Image.new("RGB", (20, 20), "blue"), (20, 0))
    for name in SCENERY:
        path = tmp_path / name / "contents" / "images" / "2560x1600.jpg"
        path.parent.mkdir(parents=True)
        wide.save(path, "PNG")
    scenes = read_scenery(tmp_path)
    assert len(scenes) == len(SCENERY) == 9
    assert {scene.size for scene in scenes} == {(SCENE_SIDE, SCENE_SIDE)}
    assert scenes[0].getcolors() == [(SCENE_SIDE**2, (0, 0, 255))]
    path.unlink()
    with pytest.raises(InputError, match=f"lacks {SCENERY[-1]}/contents"):
        read_scenery(tmp_path)


def test_on_white_keeps_the_longer_side() -> None:
    thing = cutout("red", (4, 2))
    thing.putpixel((0, 0), (0, 0, 255, 0))
    picture = on_white(thing)
    red, white = (255, 0, 0), (255, 255, 255)
    colours = [[white] * 4, [white, red, red, red], [red] * 4, [white] * 4]
    assert np.asarray(picture.image).tolist() == np.array(colours).tolist()
    alpha = [[0] * 4, [0, 255, 255, 255], [255] * 4, [0] * 4]
    assert np.asarray(picture.alpha).tolist() == alpha


def test_in_scenery_is_half_as_long_at_a_place_that_the_name_gives() -> None:
    scenes = [Image.new("RGB", (32, 32), colour) for colour in ("black", "#0f0", "blue")]
    name = "animals/birds/crow.png"
    number = zlib.crc32(name.encode())
    assert number == 0x25465BDE
    picture = in_scenery(cutout("red", (8, 4)), scenes, name)
    # The longer side is 16 of 32 pixels. Left, 0x5B of 0xFF is 5 of 16; above, 0x46 is 6 of 24.
    alpha = np.zeros((32, 32), dtype=int)
    alpha[6:14, 5:21] = 255
    assert np.asarray(picture.alpha).tolist() == alpha.tolist()
    ground = scenes[number // 2 % 3].getpixel((0, 0))
    pixels = np.where(alpha[..., None] == 255, (255, 0, 0), ground)
    assert np.asarray(picture.image).tolist() == pixels.tolist()
    assert in_scenery(cutout("red", (8, 4)), scenes, name).image == picture.image
    assert scenes[1].getcolors() == [(32 * 32, (0, 255, 0))]


def test_captions_that_name_a_class() -> None:
    words = class_words(["tiger cat", "acorn squash, gourd", "jack-o'-lantern", "cherry", "box"])
    assert words == {"cat", "squash", "gourd", "jack-o'-lantern", "cherry", "box"}
    yes = ["A cat", "Black cats", "A Jack-o’-lantern", "Two cherries", "Boxes", "A “wild” “Cat”"]
    no = ["A cat's", "A cat in its box, asleep", "A lantern", "Squashed", "…", ""]
    assert [text for text in (*yes, *no) if names_class(text, words)] == yes


def things(tmp_path: Path, colours: dict[str, str]) -> list[Photograph]:
    items = []
    for caption, colour in colours.items():
        path = tmp_path / f"{len(items)}.png"
        # The thing fills the left half of the patches on white, in the first row none.
        thing = Image.new("RGBA", (64, 64))
        thing.paste(colour, (0, 16, 32, 64))
        thing.save(path)
        items.append(Photograph(path.name, caption.strip(), path))
    return items


COLOURS = {"a red": "red", "a green": "#0f0", "a blue": "blue", "the blue": "blue"}
BLACK = [Image.new("RGB", (64, 64), "black")]


def test_figures(tmp_path: Path) -> None:
    words = frozenset({"red", "blue"})
    figures = evaluate_photographs(FakeEncoder(), things(tmp_path, COLOURS), BLACK, words)
    # Every image bears its colour and the ground's; both are 1, and the colours come before white.
    # The two blue ones tie with each other, so neither is first.
    assert figures.white.recall == {"words": {1: 0.5, 5: 1.0, 10: 1.0}}
    assert figures.white.class_recall == {"words": {1: pytest.approx(1 / 3), 5: 1.0, 10: 1.0}}
    assert (figures.items, figures.class_items) == (4, 3)
    assert figures.chance_recall == {1: 0.25, 5: 1.0, 10: 1.0}
    assert figures.words_per_text == 1.0
    assert figures.white.words_per_image == 2.0
    assert figures.white.pointing == 1.0
    assert figures.white.chance_pointing == 6 / 16
    expected = [("white", 1.0), ("blue", 0.5), ("red", 0.25), ("green", 0.25)]
    assert figures.frequent_words == expected
    data = json.loads(json.dumps(figures.to_dict()))
    assert data["white"]["recall"]["words"]["1"] == 0.5


def test_a_strongest_word_of_the_ground_misses(tmp_path: Path) -> None:
    # A dark red is nearer to black than to red, and white is wholly white.
    items = things(tmp_path, {"red": "#a00000", "green": "#0f0"})
    figures = evaluate_photographs(FakeEncoder(), items, BLACK, frozenset())
    assert figures.white.pointing == 0.5
    assert (figures.class_items, figures.white.class_recall) == (0, None)


def test_images_without_words_miss(tmp_path: Path) -> None:
    items = things(tmp_path, {"red": "red", "blue": "blue"})
    figures = evaluate_photographs(FakeEncoder(words=("red",)), items, BLACK, frozenset())
    assert figures.white.recall == {"words": {1: 0.5, 5: 0.5, 10: 0.5}}
    assert figures.white.pointing == 0.5
    assert figures.frequent_words == [("red", 0.5)]


def test_a_model_without_patches_points_nowhere(tmp_path: Path) -> None:
    class NoPatches(FakeEncoder):
        def encode_image(self, images: list[ImageSource]) -> Encoding:
            return replace(super().encode_image(images), patches=None)

    class NoGrid(FakeEncoder):
        def __init__(self) -> None:
            super().__init__()
            del self.patch_grid

    for model in (NoPatches(), NoGrid()):
        figures = evaluate_photographs(model, things(tmp_path, COLOURS), BLACK, frozenset())
        for pictures in (figures.white, figures.scenery):
            assert (pictures.pointing, pictures.chance_pointing) == (None, None)
            assert pictures.recall["words"][5] == 1.0


class Placed(FakeEncoder):
    """An item's place in the list is its dense vector; its codes are those of the next item."""

    with_codes = False

    def encode_text(self, texts: list[str]) -> Encoding:
        return self._placed(super().encode_text(texts), np.eye(len(texts), 4))

    def encode_image(self, images: list[ImageSource]) -> Encoding:
        return self._placed(super().encode_image(images), np.eye(len(images), 4))

    def _placed(self, encoding: Encoding, places: np.ndarray) -> Encoding:
        rows = places.astype(np.float32)
        codes = sparse.csr_array(9 * np.roll(rows, 1, axis=1)) if self.with_codes else None
        return replace(encoding, dense=rows, codes=codes)


def test_the_legs_are_summed(tmp_path: Path) -> None:
    items = things(tmp_path, COLOURS)
    model = Placed()
    found = evaluate_photographs(model, items, BLACK, frozenset()).white.recall
    # Dense vectors break the tie of the two blue ones.
    assert {legs: recall[1] for legs, recall in found.items()} == {
        "words": 0.5,
        "words and dense": 1.0,
    }
    model.with_codes = True
    found = evaluate_photographs(model, items, BLACK, frozenset()).scenery.recall
    assert list(found) == ["words", "words and dense", "words, codes and dense"]
    assert found["words, codes and dense"][1] == 1.0


def test_codes_count(tmp_path: Path) -> None:
    class Misled(Placed):
        with_codes = True

        def encode_text(self, texts: list[str]) -> Encoding:
            encoding = super().encode_text(texts)
            return replace(encoding, codes=sparse.csr_array(encoding.codes.toarray()[:, ::-1]))

    items = things(tmp_path, COLOURS)
    found = evaluate_photographs(Misled(), items, BLACK, frozenset()).white.recall
    # Texts have the codes 2, 1, 0, 3 and images 1, 2, 3, 0: those of all but one are another's.
    assert found["words and dense"][1] == 1.0
    assert found["words, codes and dense"][1] == 0.0


def test_there_must_be_items_and_scenes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="items and scenes"):
        evaluate_photographs(FakeEncoder(), [], BLACK, frozenset())
    with pytest.raises(ValueError, match="items and scenes"):
        evaluate_photographs(FakeEncoder(), things(tmp_path, COLOURS), [], frozenset())


@pytest.fixture
def script() -> Any:
    pytest.importorskip("timm", reason="needs timm: pip install timm")
    import photographs

    return photographs


def test_packages_are_fetched_once(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = []

    def run(command: tuple[str, ...], cwd: str, check: bool, stdout: Any) -> None:
        assert check
        assert stdout is sys.stderr
        commands.append(command)
        if command[0] == "apt-get":
            (Path(cwd) / f"{command[2]}.deb").touch()
        else:
            folder = Path(cwd) / script.PACKAGES[command[2].removesuffix(".deb")]
            folder.mkdir(parents=True)
            (folder / "file").touch()

    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}")
    monkeypatch.setattr(subprocess, "run", run)
    data = tmp_path / "new" / "data"
    script.get_packages(data)
    assert commands == [
        ("apt-get", "download", "tuxpaint-stamps-default"),
        ("dpkg-deb", "-x", "tuxpaint-stamps-default.deb", "."),
        ("apt-get", "download", "plasma-workspace-wallpapers"),
        ("dpkg-deb", "-x", "plasma-workspace-wallpapers.deb", "."),
    ]
    files = sorted(p.relative_to(data).as_posix() for p in data.rglob("*") if p.is_file())
    assert files == [f"{script.STAMPS}/file", f"{script.WALLPAPERS}/file"]
    script.get_packages(data)
    assert len(commands) == 4


def test_what_cannot_be_fetched_is_to_be_unpacked_by_hand(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(command: tuple[str, ...], **_: Any) -> None:
        raise subprocess.CalledProcessError(100, command)

    by_hand = "unpack both there by hand .* tuxpaint-stamps-default and plasma-workspace-wallpapers"
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(InputError, match=f"no apt-get here; {by_hand}"):
        script.get_packages(tmp_path / "none")
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}")
    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(InputError, match=f"exit status 100.; {by_hand}"):
        script.get_packages(tmp_path / "data")
    assert list((tmp_path / "data").iterdir()) == []
    monkeypatch.setattr(sys, "argv", ["photographs.py", "--data", str(tmp_path / "data")])
    with pytest.raises(SystemExit, match="lacks tuxpaint-stamps-default"):
        script.main()


def test_the_table_is_in_percent(
    script: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    items = things(tmp_path, COLOURS)
    script.print_figures(evaluate_photographs(Placed(), items, BLACK, frozenset({"red"})), 1)
    lines = capsys.readouterr().out.splitlines()
    assert f"{'on white, by words':44}    50.0   100.0   100.0" in lines
    assert f"{'in scenery, by words and dense':44}   100.0   100.0   100.0" in lines
    assert f"{'chance':44}    25.0   100.0   100.0" in lines
    assert "the 1 captions that name a class of ImageNet, among all" in lines
    assert "strongest word's patch on the thing, on white: 100.0%, chance 37.5%" in lines
    assert lines[-1] == "on most images on white: white 100%, blue 50%, red 25%, green 25%"


def test_class_names_are_imagenets(script: Any) -> None:
    words = script.imagenet_words()
    assert {"tench", "cat", "jack-o'-lantern", "tissue"} <= words
    assert "giraffe" not in words
