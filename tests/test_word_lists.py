from __future__ import annotations

import json
from pathlib import Path

import pytest

from lexvla.data.word_lists import ImageClass, read_classes, read_nouns
from lexvla.errors import InputError

CAT = {
    "id": "n02123045",
    "label": "tabby",
    "names": ["tabby", "tabby cat"],
    "above": ["domestic cat"],
    "gloss": "a cat with a grey coat",
    "words": {"tabby": 1, "cat": 0.7},
}
NOUN = {"text": "café table", "words": {"cafe": 1.0, "table": 1.0}}


def save(path: Path, *records: object) -> Path:
    lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
    path.write_text("".join(lines), encoding="utf-8")
    return path


def test_classes_are_read_in_order(tmp_path: Path) -> None:
    path = save(tmp_path / "classes.jsonl", CAT, CAT | {"id": "n2", "above": []})
    first, second = read_classes(path)
    assert first == ImageClass(
        id="n02123045",
        label="tabby",
        names=("tabby", "tabby cat"),
        above=("domestic cat",),
        gloss="a cat with a grey coat",
        words={"tabby": 1.0, "cat": 0.7},
    )
    assert isinstance(first.words["tabby"], float)
    assert (second.id, second.above) == ("n2", ())


def test_nouns_are_read_in_order(tmp_path: Path) -> None:
    path = save(tmp_path / "nouns.jsonl", NOUN, {"text": "cat", "words": {"cat": 1}})
    assert read_nouns(str(path)) == [
        ("café table", {"cafe": 1.0, "table": 1.0}),
        ("cat", {"cat": 1.0}),
    ]


@pytest.mark.parametrize("read", [read_classes, read_nouns])
def test_a_missing_file_names_what_makes_it(tmp_path: Path, read) -> None:
    with pytest.raises(InputError, match=r"lost\.jsonl': missing; make it with scripts/build_tr"):
        read(tmp_path / "lost.jsonl")


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"id": 7}, "id must be a string"),
        ({"label": None}, "label must be a string"),
        ({"names": "tabby"}, "names must be a list of strings"),
        ({"above": [1]}, "above must be a list of strings"),
        ({"gloss": []}, "gloss must be a string"),
        ({"words": ["tabby"]}, "words must hold weights above 0"),
        ({"words": {"tabby": "1"}}, "words must hold weights above 0"),
        ({"words": {"tabby": True}}, "words must hold weights above 0"),
        ({"words": {"tabby": 0}}, "words must hold weights above 0"),
        ({"words": {"tabby": float("nan")}}, "words must hold weights above 0"),
        ({"words": {"tabby": float("inf")}}, "words must hold weights above 0"),
    ],
)
def test_a_damaged_class_is_named(tmp_path: Path, change: dict, rule: str) -> None:
    path = save(tmp_path / "classes.jsonl", CAT, CAT | change)
    with pytest.raises(InputError, match=rf"classes\.jsonl:2': damaged: {rule}"):
        read_classes(path)


@pytest.mark.parametrize(
    ("line", "rule"),
    [
        (b'{"text": "cat", "wor', "not JSON"),
        (b'{"text": "caf\xe9", "words": {}}', "not JSON in UTF-8"),
        (b"[1]", "not a JSON object"),
        (b"", "not JSON"),
        (b'{"text": "cat"}', "words must hold weights"),
        (b'{"words": {"cat": 1}}', "text must be a string"),
    ],
)
def test_a_damaged_noun_is_named(tmp_path: Path, line: bytes, rule: str) -> None:
    path = save(tmp_path / "nouns.jsonl", NOUN)
    path.write_bytes(path.read_bytes() + line + b"\n")
    with pytest.raises(InputError, match=rf"nouns\.jsonl:2': damaged: {rule}"):
        read_nouns(path)
