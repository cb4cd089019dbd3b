"""The pairs that a recipe names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data_fakes import COUNT, fake_pair, members, write_images, write_parquet, write_tar
from lexvla.data.emoji import EmojiDrawings
from lexvla.data.pairs import Pair, PairList, ShardedSource
from lexvla.errors import InputError
from lexvla.training.recipe import Data
from lexvla.training.sources import captions_of, classes_of, open_source, parents_of
from model_fakes import ITEMS


def caption_file(folder: Path, records: list[dict[str, object]]) -> Path:
    path = folder / "captions.jsonl"
    path.write_text("\n".join(json.dumps(record) for record in records), encoding="utf-8")
    return path


def test_a_caption_file_and_an_unknown_option(tmp_path: Path) -> None:
    write_images(tmp_path)
    path = caption_file(tmp_path, [{"image": "00.png", "text": "hat"}])
    source = open_source(Data("captions", str(path)))
    assert not hasattr(source, "shards")
    assert len(source) == 1  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"captions.jsonl.*\[data.options\].*'split'"):
        open_source(Data("captions", str(path), options={"split": "train"}))


def test_options_reach_the_source(tmp_path: Path) -> None:
    write_images(tmp_path)
    images = [
        {"filename": f"{n:02}.png", "split": ("train", "val")[n % 2], "sentences": [{"raw": "hat"}]}
        for n in range(COUNT)
    ]
    path = tmp_path / "dataset.json"
    path.write_text(json.dumps({"images": images}), encoding="utf-8")
    source = open_source(Data("karpathy", str(path), options={"split": "val"}))
    assert len(source) == COUNT // 2  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"\[data.options\] captions must be at least 1"):
        open_source(Data("karpathy", str(path), options={"captions": 0}))


def test_a_recipes_table_names_columns(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    path = write_parquet(tmp_path / "pairs.parquet", range(4))
    options = {"columns": {"id": "name", "label": "kind"}, "cache_dir": str(tmp_path / "cache")}
    source = open_source(Data("hugging_face", str(path), options=options))
    assert classes_of(source) == ["kind 0", "kind 1"]
    assert source[2].id == "n2"  # type: ignore[index]
    options["columns"] = {"colour": "name"}
    with pytest.raises(InputError, match=r"\[data.options\].*'colour'"):
        open_source(Data("hugging_face", str(path), options=options))


def test_columns_of_images_and_texts(tmp_path: Path, captions: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = [json.loads(line) for line in captions.read_text().splitlines()[:8]]
    table = {
        "picture": [str(captions.parent / row["image"]) for row in rows],
        "about": [row["text"] for row in rows],
    }
    datasets.Dataset.from_dict(table).to_parquet(tmp_path / "pairs.parquet")
    options = {"columns": {"image": "picture", "text": "about"}}
    source = open_source(Data("hugging_face", str(tmp_path / "pairs.parquet"), options=options))
    assert not isinstance(source, ShardedSource)
    assert source[3].texts == (rows[3]["text"],)  # type: ignore[index]


def test_drawings_are_a_source(drawings_folder: Path) -> None:
    source = open_source(Data("drawings", str(drawings_folder), options={"styles": ["flat"]}))
    assert isinstance(source, EmojiDrawings)
    assert [item.label for item in source.items] == [each[1] for each in ITEMS]
    for options, rule in (
        ({}, "'styles'"),
        ({"styles": []}, "styles must name a drawing set"),
        ({"styles": ["flat"], "size": 3}, "'size'"),
    ):
        with pytest.raises(InputError, match=rf"\[data.options\].*{rule}"):
            open_source(Data("drawings", str(drawings_folder), options=options))


def test_captions_are_all_texts_of_all_good_records(drawings_folder: Path) -> None:
    class Holed(PairList):
        def __getitem__(self, number: int) -> Pair:
            if number == 1:
                raise InputError("p1", "is bad")
            return super().__getitem__(number)

    texts = [("a hat", "hat"), ("bad",), ("a dog",)]
    source = Holed("holed", [Pair(f"p{n}", b"", each) for n, each in enumerate(texts)])
    assert captions_of(source) == ["a hat", "hat", "a dog"]
    flat = EmojiDrawings(drawings_folder, ["flat"])
    assert captions_of(flat) == flat.captions()


def test_a_source_that_is_not_there(tmp_path: Path) -> None:
    for kind in ("captions", "karpathy", "webdataset"):
        with pytest.raises(InputError):
            open_source(Data(kind, str(tmp_path / "none.jsonl")))


def test_shards_have_no_classes_beforehand(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "one.tar", members(range(3)))
    source = open_source(Data("webdataset", str(path), options={"label_key": "class"}))
    for read in (classes_of, captions_of):
        with pytest.raises(InputError, match="shards"):
            read(source)


def paired(*records: tuple[str | None, tuple[str, ...]]) -> PairList:
    return PairList(
        "fruit", [Pair(f"p{n}", b"", ("hat",), *record) for n, record in enumerate(records)]
    )


def test_classes_are_sorted_and_none_is_none() -> None:
    assert classes_of(paired(("pear", ()), (None, ()), ("apple", ()), ("pear", ()))) == [
        "apple",
        "pear",
    ]
    assert classes_of(PairList("list", [fake_pair(1)])) == []


def test_parents_come_from_class_paths() -> None:
    source = paired(
        ("pear", ("food", "fruit", "pear")),  # the nearest of those above
        ("oak", ("tree",)),  # the class itself may be left out
        ("apple", ("food", "fruit", "apple", "red apple")),  # what lies below is no parent
        (None, ("tree", "elm")),
        ("pear", ()),  # no path here, but another of its pairs has one
    )
    assert parents_of(source, classes_of(source)) == [[0, 1, 0]]


def test_a_class_has_one_parent() -> None:
    twice = paired(("pear", ("fruit", "pear")), ("oak", ("tree",)), ("pear", ("green", "pear")))
    with pytest.raises(InputError, match=r"'pear' lies under 'fruit' and 'green'"):
        parents_of(twice, classes_of(twice))
    for path in ((), ("oak",)):
        lonely = paired(("pear", ("fruit",)), ("oak", path))
        with pytest.raises(InputError, match=r"oak.*no parent"):
            parents_of(lonely, classes_of(lonely))
    same = paired(("pear", ("food",)), ("apple", ("food",)))
    with pytest.raises(InputError, match=r"food.*only class"):
        parents_of(same, classes_of(same))


def test_a_bad_record_is_passed_over_for_parents() -> None:
    class Holed(PairList):
        def __getitem__(self, number: int) -> Pair:
            if number == 1:
                raise InputError("p1", "is bad")
            return super().__getitem__(number)

    source = Holed("holed", [Pair(f"p{n}", b"", ("a",), *r) for n, r in enumerate(LEVELS)])
    assert parents_of(source, ["oak", "pear"]) == [[1, 0]]


LEVELS = [("pear", ("fruit",)), ("pear", ("bad",)), ("oak", ("tree",))]
