from __future__ import annotations

import hashlib
import io
import json
import os
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
COUNT = 1906


@pytest.fixture(scope="module")
def items() -> list[DemoItem]:
    return load_demo_corpus()


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
    assert "png" not in repr(heart)


def test_drawings_lie_over_white(items: list[DemoItem]) -> None:
    for item in items[::100]:
        colour = np.asarray(Image.open(io.BytesIO(item.png)).convert("RGBA")).astype(float)
        alpha = colour[..., 3:] / 255
        expected = colour[..., :3] * alpha + 255 * (1 - alpha)
        assert np.abs(np.asarray(item.image) - expected).max() <= 1


def test_the_archive_is_small_and_carries_its_notices() -> None:
    data = ARCHIVE.read_bytes()
    assert len(data) < 8 * 1024 * 1024
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.testzip() is None
        assert len(archive.namelist()) == COUNT + 5
        texts = {
            name: archive.read(name).decode()
            for name in archive.namelist()
            if name.startswith(("NOTICE", "LICENSE"))
        }
    for words in ("Copyright Google LLC", "Apache License", "Cal Henderson", "Miles Johnson"):
        assert words in texts["NOTICE"]
    assert "Version 2.0, January 2004" in texts["LICENSE-Apache-2.0.txt"]
    assert "Copyright (c) 2013 Cal Henderson" in texts["LICENSE-emoji-datasource.txt"]
    assert "Copyright (c) 2017-2019 Miles Johnson" in texts["LICENSE-emojibase.txt"]


def test_extraction(tmp_path: Path, items: list[DemoItem]) -> None:
    manifest = extract_demo_corpus(tmp_path / "new" / "corpus")
    folder = tmp_path / "new" / "corpus"
    assert manifest == folder / "manifest.jsonl"
    lines = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]
    assert [line["id"] for line in lines] == [item.id for item in items]
    for line, item in zip(lines, items, strict=True):
        assert set(line) == {"id", "image", "metadata"}
        assert line["metadata"] == {
            "label": item.label,
            "tags": list(item.tags),
            "group": item.group,
            "subgroup": item.subgroup,
        }
        assert (folder / line["image"]).read_bytes() == item.png
    assert "Apache License" in (folder / "NOTICE").read_text()
    names = {path.relative_to(folder).parts[0] for path in folder.rglob("*")}
    assert names == {
        "images",
        "manifest.jsonl",
        "NOTICE",
        "LICENSE-Apache-2.0.txt",
        "LICENSE-emoji-datasource.txt",
        "LICENSE-emojibase.txt",
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


def test_the_build_is_deterministic(tmp_path: Path) -> None:
    """Rebuild a small corpus from packages made here, twice; one emoji of each special case."""
    script = Path(demo_corpus.__file__).parents[2] / "scripts" / "build_demo_corpus.py"
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
        command = [sys.executable, str(script), "--packages", str(tmp_path), "--out", str(out)]
        subprocess.run(command, check=True, capture_output=True)
    assert outs[0].read_bytes() == outs[1].read_bytes()
    with zipfile.ZipFile(outs[0]) as archive:
        records = [json.loads(line) for line in archive.read("items.jsonl").splitlines()]
        assert [record["id"] for record in records] == ["2764", "1f436"]
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
