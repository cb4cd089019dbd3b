from __future__ import annotations

import hashlib
import io
import json
import os
import re
import subprocess
import sys
import zipfile
from collections import Counter
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lexvla.data import demo_corpus
from lexvla.data.demo_corpus import DemoItem, extract_demo_corpus, load_demo_corpus

ARCHIVE = resources.files("lexvla.data").joinpath("demo_corpus.zip")
COUNT, PHOTOGRAPHS = 1906, 11
EMOJI = "fb95a735be18e8d592bf7b0828d94c387ab56fe93c4721afe72dc4e472900670"
SCRIPT = Path(demo_corpus.__file__).parents[2] / "scripts" / "build_demo_corpus.py"


@pytest.fixture(scope="module")
def items() -> list[DemoItem]:
    return load_demo_corpus("emoji")


@pytest.fixture(scope="module")
def photographs() -> list[DemoItem]:
    return load_demo_corpus("photographs")


def test_the_emoji_are_those_that_figures_were_measured_on(items: list[DemoItem]) -> None:
    digest = hashlib.sha256()
    for item in items:
        told = [item.id, item.label, item.tags, item.group, item.subgroup]
        digest.update(json.dumps(told).encode() + item.data)
    assert digest.hexdigest() == EMOJI
    assert not any(item.license or item.source for item in items)


def test_photographs_come_after_emoji(items: list[DemoItem], photographs: list[DemoItem]) -> None:
    assert load_demo_corpus() == [*items, *photographs]
    assert len(photographs) == PHOTOGRAPHS
    assert not {item.id for item in items} & {item.id for item in photographs}
    assert not {item.label for item in items} & {item.label for item in photographs}


def test_photographs_open_and_say_whose_they_are(photographs: list[DemoItem]) -> None:
    for item in photographs:
        assert item.group == "photographs"
        assert item.subgroup
        assert item.id.startswith("photo-")
        assert list(item.tags) == sorted(set(item.tags))
        assert item.license in {"CC0-1.0", "public domain"}
        assert item.source.endswith(" of scikit-image 0.25.2")
        with Image.open(io.BytesIO(item.data)) as image:
            assert image.format == "JPEG"
        assert item.image.mode == "RGB"
        assert 300 <= max(item.image.size) <= 512
    cat = next(item for item in photographs if item.id == "photo-cat")
    assert (cat.label, cat.license) == ("tabby cat", "CC0-1.0")
    assert cat.source == "Stefan van der Walt; chelsea.png of scikit-image 0.25.2"
    assert {"cat", "pet"} <= set(cat.tags)
    red, _, blue = np.asarray(cat.image).mean(axis=(0, 1))
    assert red > blue + 40  # it is a ginger cat


def test_count_and_groups(items: list[DemoItem]) -> None:
    assert len(items) == COUNT
    assert len({item.id for item in items}) == COUNT
    assert len({item.label for item in items}) == COUNT
    assert Counter(item.group for item in items) == {
        "people-body": 386,
        "flags": 270,
        "objects": 264,
        "symbols": 224,
        "travel-places": 218,
        "smileys-emotion": 169,
        "animals-nature": 159,
        "food-drink": 131,
        "activities": 85,
    }
    assert all(item.subgroup and item.tags for item in items)


def test_no_skin_tones(items: list[DemoItem]) -> None:
    tones = {"1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff"}
    assert not [item for item in items if tones & set(item.id.split("-"))]
    assert not [item for item in items if "skin tone" in item.label]


def test_every_drawing_opens(items: list[DemoItem]) -> None:
    for item in items:
        assert (item.image.mode, item.image.size) == ("RGB", (64, 64)), item.id
    drawings = {hashlib.sha256(item.image.tobytes()).digest() for item in items}
    assert len(drawings) > 0.98 * COUNT  # a few flags are the same flag


def test_a_known_item(items: list[DemoItem]) -> None:
    heart = next(item for item in items if item.id == "2764")
    assert heart.label == "red heart"
    assert heart.tags == ("emotion", "heart", "love", "red")
    assert (heart.group, heart.subgroup) == ("smileys-emotion", "heart")
    pixels = np.asarray(heart.image)
    assert pixels[0, 0].tolist() == [255, 255, 255]
    red, green, blue = pixels[32, 32].tolist()
    assert red > 200
    assert max(green, blue) < 80
    assert heart.image is heart.image
    assert "PNG" not in repr(heart)


def test_drawings_lie_over_white(items: list[DemoItem]) -> None:
    for item in items[::100]:
        colour = np.asarray(Image.open(io.BytesIO(item.data)).convert("RGBA")).astype(float)
        alpha = colour[..., 3:] / 255
        expected = colour[..., :3] * alpha + 255 * (1 - alpha)
        assert np.abs(np.asarray(item.image) - expected).max() <= 1


def test_the_archive_is_small_and_carries_its_notices(photographs: list[DemoItem]) -> None:
    data = ARCHIVE.read_bytes()
    assert len(data) < 8 * 1024 * 1024
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.testzip() is None
        assert len(archive.namelist()) == COUNT + PHOTOGRAPHS + 7
        texts = {
            name: archive.read(name).decode()
            for name in archive.namelist()
            if name.startswith(("NOTICE", "LICENSE"))
        }
    for words in ("Copyright Google LLC", "Apache License", "Cal Henderson", "Miles Johnson"):
        assert words in texts["NOTICE"]
    for item in photographs:
        credit, file = item.source.removesuffix(" of scikit-image 0.25.2").split("; ")
        line = f"- {item.id}.jpg: {file}, {item.license}, {credit}"
        assert line in texts["NOTICE"].splitlines()
        assert f"images/{item.id}.jpg, from {file}" in texts["NOTICE-photographs.txt"]
    said = re.split(r"^images/.*\n=+$", texts["NOTICE-photographs.txt"], flags=re.MULTILINE)[1:]
    assert len(said) == PHOTOGRAPHS
    assert all(re.search(r"CC0|public\s+domain", text) for text in said)
    assert "BSD-3-Clause" in texts["LICENSE-scikit-image.txt"]
    assert "Version 2.0, January 2004" in texts["LICENSE-Apache-2.0.txt"]
    assert "Copyright (c) 2013 Cal Henderson" in texts["LICENSE-emoji-datasource.txt"]
    assert "Copyright (c) 2017-2019 Miles Johnson" in texts["LICENSE-emojibase.txt"]


def test_extraction(tmp_path: Path, items: list[DemoItem], photographs: list[DemoItem]) -> None:
    manifest = extract_demo_corpus(tmp_path / "new" / "corpus")
    folder = tmp_path / "new" / "corpus"
    assert manifest == folder / "manifest.jsonl"
    lines = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]
    assert [line["id"] for line in lines] == [item.id for item in items + photographs]
    for line, item in zip(lines, items + photographs, strict=True):
        rights = {"license": item.license, "source": item.source} if item.license else {}
        assert set(line) == {"id", "image", "metadata"}
        assert line["metadata"] == {
            "label": item.label,
            "tags": list(item.tags),
            "group": item.group,
            "subgroup": item.subgroup,
            **rights,
        }
        assert (folder / line["image"]).read_bytes() == item.data
    assert "Apache License" in (folder / "NOTICE").read_text()
    names = {path.relative_to(folder).parts[0] for path in folder.rglob("*")}
    assert names == {
        "images",
        "manifest.jsonl",
        "NOTICE",
        "NOTICE-photographs.txt",
        "LICENSE-Apache-2.0.txt",
        "LICENSE-emoji-datasource.txt",
        "LICENSE-emojibase.txt",
        "LICENSE-scikit-image.txt",
    }


def test_extraction_again_mends_and_touches_nothing_else(tmp_path: Path) -> None:
    manifest = extract_demo_corpus(tmp_path)
    heart = tmp_path / "images" / "2764.png"
    right = heart.read_bytes()
    for path in tmp_path.rglob("*"):
        if path.is_file():
            os.utime(path, (1, 1))
    heart.write_bytes(b"half")
    assert extract_demo_corpus(str(tmp_path)) == manifest
    assert heart.read_bytes() == right
    touched = [p.name for p in tmp_path.rglob("*") if p.is_file() and p.stat().st_mtime > 1]
    assert touched == ["2764.png"]


def test_a_failed_extraction_leaves_no_manifest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Path, target: Path) -> None:
        if target.name.startswith("1f4"):
            raise OSError(28, "No space left on device")
        self.rename(target)

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        extract_demo_corpus(tmp_path)
    assert not (tmp_path / "manifest.jsonl").exists()
    assert not list(tmp_path.rglob(".*"))


def make_photographs(folder: Path, items: list[DemoItem]) -> None:
    """Make a package with a picture of 600 x 400 in the place of each that we take."""
    data = folder / "skimage" / "data"
    data.mkdir(parents=True)
    texts = []
    for item in items:
        file = item.source.split("; ")[1].split(" of ")[0]
        Image.linear_gradient("L").resize((600, 400)).save(data / file)
        texts.append(f'def {Path(file).stem}():\n    """Show {file}.\n\n    CC0.\n    """\n')
    (data / "_fetchers.py").write_text("\n\n".join(texts))
    facts = folder / "scikit_image-0.25.2.dist-info"
    facts.mkdir()
    (facts / "LICENSE.txt").write_text("BSD")


def test_the_build_is_deterministic(tmp_path: Path, photographs: list[DemoItem]) -> None:
    """Rebuild a small corpus from packages made here, twice; one emoji of each special case."""
    make_photographs(tmp_path / "scikit-image-0.25.2", photographs)
    drawings = tmp_path / "emoji-datasource-google-16.0.0"
    words = tmp_path / "emojibase-data-17.0.0"
    (drawings / "img" / "google" / "64").mkdir(parents=True)
    (words / "en").mkdir(parents=True)
    for folder in (drawings, words):
        (folder / "LICENSE").write_text("MIT")
    for name in ("2764-fe0f", "1f436", "1f3fb"):
        Image.new("RGBA", (64, 64)).save(drawings / "img" / "google" / "64" / f"{name}.png")
    table = [
        {"unified": "2764-FE0F", "image": "2764-fe0f.png", "has_img_google": True},
        {"unified": "1F436", "image": "1f436.png", "has_img_google": True},
        {"unified": "1F3FB", "image": "1f3fb.png", "has_img_google": True},
        {"unified": "1F431", "image": "1f431.png", "has_img_google": False},
    ]
    (drawings / "emoji.json").write_text(json.dumps(table))
    emoji = [
        {"hexcode": "1F436", "label": "dog face", "tags": ["dog"], "order": 2},
        {"hexcode": "2764", "label": "red heart", "tags": ["love"], "order": 1},
        {"hexcode": "1F431", "label": "cat face", "tags": ["cat"], "order": 3},
        {"hexcode": "1F3FB", "label": "light skin tone", "tags": [], "order": 4},
        {"hexcode": "1F1E6", "label": "regional indicator A"},
    ]
    for entry in emoji[:-1]:
        entry |= {"group": 1 if entry["label"] == "light skin tone" else 0, "subgroup": 0}
    (words / "en" / "data.json").write_text(json.dumps(emoji))
    messages = {
        "groups": [{"key": "things", "order": 0}, {"key": "component", "order": 1}],
        "subgroups": [{"key": "kinds", "order": 0}],
    }
    (words / "en" / "messages.json").write_text(json.dumps(messages))
    outs = [tmp_path / "one.zip", tmp_path / "two.zip"]
    for out in outs:
        command = [sys.executable, str(SCRIPT), "--packages", str(tmp_path), "--out", str(out)]
        subprocess.run(command, check=True, capture_output=True)
    assert outs[0].read_bytes() == outs[1].read_bytes()
    with zipfile.ZipFile(outs[0]) as archive:
        records = [json.loads(line) for line in archive.read("items.jsonl").splitlines()]
        names = [item.id for item in photographs]
        assert [record["id"] for record in records] == ["2764", "1f436", *names]
        with Image.open(archive.open("images/photo-cat.jpg")) as image:
            assert (image.format, image.size) == ("JPEG", (512, 341))
        notice = archive.read("NOTICE-photographs.txt").decode()
        head = "images/photo-cat.jpg, from chelsea.png"
        assert notice.startswith(f"{head}\n{'=' * len(head)}\n\nShow chelsea.png.\n\nCC0.\n\n\n")
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
