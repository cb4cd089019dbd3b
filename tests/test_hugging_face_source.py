"""Hugging Face datasets as sources of an index: local ones, as the hub is not there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from data_fakes import BROKEN, png
from ingest_fakes import picture
from lexvla.errors import InputError
from lexvla_indexer import Document, open_index
from lexvla_indexer.hugging_face_source import DatasetChoice, HuggingFaceSource
from lexvla_indexer.item_source import ListedItem, UnlistedItem
from lexvla_indexer.sources import open_item_source
from lexvla_search import cli
from search_fakes import FakeEncoder

datasets = pytest.importorskip("datasets", reason="needs pip install 'lexvla[hugging-face]'")

ROWS = {
    "key": ["a", "b", "c", None],
    "picture": [png(1), BROKEN, None, png(2)],
    "captions": [["red", "a red thing"], [], None, ["x"]],
    "kind": [1, 0, -1, 0],
    "year": [2020, None, 2021, 2022],
    "tags": [["x"], None, [], ["y"]],
    "box": [[1, 2], [3], None, None],
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def parquet(tmp_path: Path) -> str:
    """Write a dataset of a folder as the hub has it, and return its address."""
    string, whole = datasets.Value("string"), datasets.Value("int32")
    features = datasets.Features(
        {
            "key": string,
            "picture": datasets.Image(),
            "captions": datasets.List(string),
            "kind": datasets.ClassLabel(names=["cat", "dog"]),
            "year": whole,
            "tags": datasets.List(string),
            "box": datasets.List(whole),
        }
    )
    data: dict[str, Any] = dict(ROWS)
    data["picture"] = [each and {"bytes": each, "path": None} for each in ROWS["picture"]]
    folder = tmp_path / "things" / "data"
    folder.mkdir(parents=True)
    made = datasets.Dataset.from_dict(data, features)
    made.to_parquet(str(folder / "train-00000-of-00001.parquet"))
    made.select([0]).to_parquet(str(folder / "test-00000-of-00001.parquet"))
    return f"hf:{folder.parent}"


COLUMNS = DatasetChoice(image_field="picture", id_field="key")


def test_rows_become_items(parquet: str) -> None:
    source = HuggingFaceSource(parquet, "captions", COLUMNS)
    entries = list(source.entries())
    assert source.count() == len(entries) == 4
    metadata = {"kind": "dog", "year": 2020, "tags": ["x"]}
    assert entries[0] == ListedItem(
        Document("a", text="red\na red thing", metadata=metadata),
        png(1),
        f"{parquet} row 0, column 'picture'",
    )
    assert entries[1] == ListedItem(
        Document("b", metadata={"kind": "cat"}), BROKEN, f"{parquet} row 1, column 'picture'"
    )
    assert [
        (each.reject.item, each.reject.rule, each.id)
        for each in entries
        if isinstance(each, UnlistedItem)
    ] == [("c", "has neither an image nor a text", "c"), ("train/3", "has no id", None)]
    test = HuggingFaceSource(parquet, None, DatasetChoice("test", image_field="picture"))
    (entry,) = test.entries()
    assert isinstance(entry, ListedItem)
    assert entry.document.id == "test/0"
    assert entry.document.metadata["key"] == "a"
    assert test.key != source.key


def test_files_of_a_folder_have_addresses_and_are_indexed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder = FakeEncoder()
    monkeypatch.setattr("lexvla_search.cli.arguments.load_model", lambda *_: encoder)
    folder, index = tmp_path / "colours", str(tmp_path / "colours.lex")
    for name, colour in (("a.png", "red"), ("b.png", "blue")):
        picture(folder / "train" / name, colour)
    lines = [{"file_name": "a.png", "text": "first"}, {"file_name": "b.png", "text": "second"}]
    text = "".join(f"{json.dumps(line)}\n" for line in lines)
    (folder / "train" / "metadata.jsonl").write_text(text)
    command = ["index", f"hf:{folder}", "--index", index, "--json"]
    assert cli.main(command) == 0
    assert json.loads(capsys.readouterr().out)["added"] == 2
    with open_index(index) as opened:
        documents = opened.fetch(["train/0", "train/1"]).documents
        assert [(each.uri, each.text) for each in documents] == [
            ("train/a.png", "first"),
            ("train/b.png", "second"),
        ]
        (hits,) = opened.search(encoder.encode_text(["blue"]), 1)
        assert hits.ids == ["train/1"]
    assert cli.main(command) == 0
    assert json.loads(capsys.readouterr().out)["unchanged"] == 2


def test_a_dead_path_is_told_with_its_row_and_column(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("lexvla_search.cli.arguments.load_model", lambda *_: FakeEncoder())
    folder = tmp_path / "links"
    picture(folder / "there.png", "red")
    rows = [("a", "there.png"), ("b", "gone.png"), ("c", "gone too.png")]
    lines = "".join(json.dumps({"id": name, "photo": path}) + "\n" for name, path in rows)
    (folder / "train.jsonl").write_text(lines)
    command = ["index", f"hf:{folder}", "--image-field", "photo"]
    assert cli.main([*command, "--index", str(tmp_path / "i.lex")]) == 0
    said = f"rejected 'b' (hf:{folder} row 1, column 'photo') and 1 more: no such file\n"
    assert said in capsys.readouterr().err


def test_what_is_not_there_is_refused(parquet: str, tmp_path: Path) -> None:
    there = r"it has key, picture, captions, kind, year, tags, box"
    for text_field, choice in (
        ("words", COLUMNS),
        (None, DatasetChoice(image_field="image")),
        (None, DatasetChoice(id_field="id")),
        (None, None),  # neither an image nor a text by its usual name
    ):
        with pytest.raises(InputError, match=f"has no column '.*'; {there}"):
            open_item_source(parquet, text_field, choice=choice)
    with pytest.raises(InputError, match="cannot be read"):
        open_item_source(parquet, "captions", choice=DatasetChoice("dev"))
    with pytest.raises(InputError, match=r"is not hf:NAME, so it has no split"):
        open_item_source(picture(tmp_path / "p" / "a.png").parent, choice=DatasetChoice("test"))
