from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from data_fakes import write_images
from lexvla.data.captions import read_captions
from lexvla.data.karpathy import read_karpathy
from lexvla.data.pairs import Pair, PairList, Skipped
from lexvla.errors import InputError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_images(tmp_path / "images", 3)
    return tmp_path


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def pairs(source: PairList) -> list[Pair]:
    return [source[number] for number in range(len(source))]


def test_csv_with_all_columns(folder: Path) -> None:
    text = '\ufeffid,image,text,label,class_path\nx,images/00.png," a cat, black",cat,animal/ cat\n'
    source = read_captions(write(folder, "a.csv", text + "y,images/01.png,Hund,,\n"))
    image = folder / "images"
    assert pairs(source) == [
        Pair("x", image / "00.png", ("a cat, black",), "cat", ("animal", "cat")),
        Pair("y", image / "01.png", ("Hund",), None, ()),
    ]
    assert source.classes() == {"cat", None}
    assert source.rejects == []


@pytest.mark.parametrize(("name", "tab"), [("a.csv", ","), ("a.TSV", "\t")])
def test_lines_of_one_image_are_captions_of_one_pair(folder: Path, name: str, tab: str) -> None:
    rows = [("image", "caption"), ("images/01.png", "one"), ("images/00.png", "two")]
    rows.append(("images/01.png", "three"))
    source = read_captions(write(folder, name, "\n".join(map(tab.join, rows))))
    assert [(pair.id, pair.texts) for pair in pairs(source)] == [
        ("images/01.png", ("one", "three")),
        ("images/00.png", ("two",)),
    ]


def test_json_lines(folder: Path) -> None:
    records: list[dict[str, Any]] = [
        {"image": "images/00.png", "text": ["a", " b "], "label": 7, "class_path": ["x", "y"]},
        {"image": str(folder / "images/01.png"), "caption": "c", "id": 5},
    ]
    text = json.dumps(records[0]) + "\n\n" + json.dumps(records[1])
    assert pairs(read_captions(write(folder, "a.jsonl", text))) == [
        Pair("images/00.png", folder / "images/00.png", ("a", "b"), "7", ("x", "y")),
        Pair("5", folder / "images/01.png", ("c",)),
    ]


def test_missing_images_are_counted(folder: Path) -> None:
    path = write(
        folder, "a.csv", "image,text\nno.png,a\nimages/02.png,b\nimages,c\n" + "n" * 300 + ",d"
    )
    source = read_captions(path)
    assert [pair.id for pair in pairs(source)] == ["images/02.png"]
    assert source.rejects == [
        Skipped("no.png", f"no such file: {folder / 'no.png'}"),
        Skipped("images", f"no such file: {folder / 'images'}"),
        Skipped("n" * 300, f"no such file: {folder / ('n' * 300)}"),
    ]


CSV_ERRORS = {
    "": "has no column image; it has none",
    "file,text\na,b\n": "has no column image; it has file, text",
    "image,words\na,b\n": "has no column text or caption; it has image, words",
    "image,text\n": "has no records",
    "image,text\nimages/00.png,a\nimages/01.png,\n": "line 3: 'images/01.png' has no text",
    "image,text\nimages/00.png\n": "line 2: 'images/00.png' has no text",
    "image,text\n,a\n": "line 2: 'image' is missing",
    "image,text\nimages/00.png,a, b\n": "line 2: has more fields than the header",
    'image,text\nimages/00.png,"a"b\n': "line 2: is broken",
    "id,image,text\n1,images/00.png,a\n1,images/00.png,b\n": "line 3: '1' the id occurs twice",
    "image,text,label\nimages/00.png,a,x\nimages/00.png,b,y\n": "line 3: 'images/00.png' the same",
    "image,text\na.png,a\nb.png,b\n": "all 2 images are missing; the first, a.png: no such file",
}


@pytest.mark.parametrize("text", CSV_ERRORS)
def test_bad_csv(folder: Path, text: str) -> None:
    path = write(folder, "a.csv", text)
    with pytest.raises(InputError) as caught:
        read_captions(path)
    assert CSV_ERRORS[text] in caught.value.rule
    assert caught.value.item == str(path)[:197] + "..." * (len(str(path)) > 200)


GOOD = '{"image": "images/00.png", "text": "a"}\n'
JSON_ERRORS = {
    "\n": "has no records",
    GOOD + "{": "line 2: is not valid JSON",
    GOOD + "[1]": "line 2: must be a JSON object",
    "[" * 100_000: "line 1: is not valid JSON",
    '{"image": 1, "text": "a"}': "line 1: 'image' must be a path",
    '{"image": "a", "text": []}': "line 1: 'a' has no text",
    '{"image": "a", "text": [" "]}': "line 1: 'a' has no text",
    '{"image": "a", "text": 1}': "line 1: 'a' the text must be a string or a list of strings",
    '{"image": "a", "text": "\\ud800"}': "line 1: 'a' holds half of a character",
    '{"image": "a", "text": "b", "id": true}': "line 1: 'id' must be a string or an integer",
    '{"image": "a", "text": "b", "label": 1.5}': "the label must be a string or an integer",
    '{"image": "a", "text": "b", "class_path": 1}': "class_path must be a string or a list",
}


@pytest.mark.parametrize("text", JSON_ERRORS)
def test_bad_json_lines(folder: Path, text: str) -> None:
    with pytest.raises(InputError) as caught:
        read_captions(write(folder, "a.jsonl", text))
    assert JSON_ERRORS[text] in caught.value.rule


def test_files_that_are_none(folder: Path) -> None:
    (folder / "latin.csv").write_bytes("image,text\na,é".encode("latin-1"))
    for name, rule in (
        ("no.csv", "cannot be read"),
        ("latin.csv", "cannot be read"),
        ("a.txt", "must end in .csv, .tsv, .jsonl, .ndjson"),
    ):
        with pytest.raises(InputError, match=rule):
            read_captions(folder / name)


def karpathy_file(folder: Path, **changes: Any) -> Path:
    def record(number: int, split: str, count: int) -> dict[str, Any]:
        sentences = [{"raw": f"{number} {each}", "tokens": []} for each in range(count)]
        return {"filename": f"0{number}.png", "split": split, "sentences": sentences}

    records = [record(0, "train", 6), record(1, "restval", 5), record(2, "test", 1)]
    records[1] |= {"filepath": "images"}
    records[0] |= {"filepath": "images"} | changes
    path = folder / "dataset.json"
    path.write_text(json.dumps({"images": records, "dataset": "coco"}))
    return path


def test_karpathy_splits(folder: Path) -> None:
    path = karpathy_file(folder)
    image = folder / "images"
    train = Pair("00.png", image / "00.png", tuple(f"0 {n}" for n in range(5)))
    restval = Pair("01.png", image / "01.png", tuple(f"1 {n}" for n in range(5)))
    assert pairs(read_karpathy(path)) == [train]
    assert pairs(read_karpathy(path, split="train+restval")) == [train, restval]
    assert pairs(read_karpathy(path, captions=9))[0].texts[5] == "0 5"
    test = read_karpathy(path, folder / "images", "test", captions=1)
    assert pairs(test) == [Pair("02.png", image / "02.png", ("2 0",))]
    assert train != pairs(test)[0]


KARPATHY_ERRORS: list[tuple[dict[str, Any], str]] = [
    ({"sentences": []}, "images[0]: '00.png' has no text"),
    ({"sentences": [{}]}, "images[0]: '00.png' the text must be a string"),
    ({"sentences": "a"}, "images[0]: '00.png' sentences must be a list of JSON objects"),
    ({"filename": 3}, "images[0]: 'filename' must be a string"),
    ({"filename": "01.png"}, "images[1]: '01.png' occurs twice"),
    ({"split": "val"}, "has no split 'train'; there are restval, test, val"),
]


@pytest.mark.parametrize(("changes", "rule"), KARPATHY_ERRORS)
def test_bad_karpathy(folder: Path, changes: dict[str, Any], rule: str) -> None:
    path = karpathy_file(folder, **changes)
    with pytest.raises(InputError) as caught:
        read_karpathy(path, split="train+restval")
    assert rule in caught.value.rule


def test_karpathy_files_that_are_none(folder: Path) -> None:
    for text, rule in (
        ("{", "is not readable JSON"),
        ("[]", "must be a JSON object with a list of images"),
        ('{"images": 1}', "must be a JSON object with a list of images"),
        ('{"images": []}', "has no records"),
        ('{"images": [1]}', "has no split"),
        ('{"images": [1, {"split": "train"}]}', "images[0]: 'the record' must be a JSON object"),
    ):
        with pytest.raises(InputError) as caught:
            read_karpathy(write(folder, "bad.json", text))
        assert rule in caught.value.rule
    with pytest.raises(InputError, match="is not readable JSON"):
        read_karpathy(folder / "no.json")
    with pytest.raises(ValueError, match="at least 1"):
        read_karpathy(folder / "no.json", captions=0)
