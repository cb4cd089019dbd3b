from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from data_fakes import (
    BROKEN,
    image_file,
    open_parquet,
    texts,
    write_images,
    write_parquet,
)
from lexvla.data.hf_datasets import (
    Columns,
    HuggingFaceStream,
    HuggingFaceTable,
    load_hugging_face,
)
from lexvla.data.pairs import Pair
from lexvla.errors import InputError, OptionalDependencyError


def expected(number: int) -> Pair:
    name, label = f"n{number}", f"kind {number % 2}"
    return Pair(name, image_file(number), tuple(texts(number)), label)


def table(path: Path, cache: Path, **columns: str | None) -> HuggingFaceTable:
    source = open_parquet(path, cache, **columns)
    assert isinstance(source, HuggingFaceTable)
    return source


def test_parquet_whole_and_streamed(tmp_path: Path) -> None:
    write_parquet(tmp_path / "0.parquet", range(3))
    write_parquet(tmp_path / "1.parquet", range(3, 5))
    pattern = tmp_path / "*.parquet"
    whole = table(pattern, tmp_path)
    assert [whole[number] for number in range(len(whole))] == [expected(n) for n in range(5)]
    assert whole.classes() == {"kind 0", "kind 1"}
    assert table(pattern, tmp_path, label=None).classes() == {None}
    assert expected(3).image == BROKEN
    stream = open_parquet(pattern, tmp_path, streaming=True)
    assert isinstance(stream, HuggingFaceStream)
    assert stream.shards == 2
    for _ in range(2):
        assert [record() for record in stream.read_shard(1)] == [expected(3), expected(4)]
    unnamed = open_parquet(pattern, tmp_path, streaming=True, id=None)
    assert isinstance(unnamed, HuggingFaceStream)
    assert [record().id for record in unnamed.read_shard(1)] == ["shard 1 row 0", "shard 1 row 1"]
    assert table(pattern, tmp_path, id=None)[4].id == "row 4"


def test_images_by_path(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "images", 2)
    write_parquet(tmp_path / "0.parquet", range(2), paths=folder)
    source = table(tmp_path / "0.parquet", tmp_path, folder=str(folder))
    assert [source[number].image for number in range(2)] == [folder / "00.png", folder / "01.png"]


def test_class_labels_and_rows_without_parts() -> None:
    from datasets import ClassLabel, Dataset, Features, Value

    string = Value("string")
    features = Features(
        {"image": Value("binary"), "text": string, "c": ClassLabel(names=["cat", "dog"])}
    )
    rows = {
        "image": [b"a", b"b", None, b"d"],
        "text": ["one", None, "three", "four"],
        "c": [1, 0, 0, -1],
    }
    columns = Columns(label="c")
    source = HuggingFaceTable(Dataset.from_dict(rows, features), columns)
    assert source[0] == Pair("row 0", b"a", ("one",), "dog")
    assert source[3] == Pair("row 3", b"d", ("four",))
    assert source.classes() == {"cat", "dog", None}
    for number, rule in ((1, "'row 1': has no text"), (2, "'row 2': has no image")):
        with pytest.raises(InputError, match=rule):
            source[number]


def test_what_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from datasets import Dataset

    path = write_parquet(tmp_path / "0.parquet", [0, 1, 1])
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(InputError, match="row 2: the id 'n1' occurs twice"):
        table(path, tmp_path)
    for streaming in (False, True):
        rule = "no column 'words'; it has name, text, kind, image"
        with pytest.raises(InputError, match=rule):
            open_parquet(path, tmp_path, streaming=streaming, text="words")
        with pytest.raises(InputError, match=r"does not exist or cannot be read.*train"):
            load_hugging_face(path, "test", streaming=streaming, cache_dir=tmp_path / "cache")
        for name in ("no.parquet", "bad.parquet", "folder"):
            with pytest.raises(InputError, match="does not exist or cannot be read"):
                open_parquet(tmp_path / name, tmp_path, streaming=streaming)
    with pytest.raises(InputError, match="has no records"):
        HuggingFaceTable(Dataset.from_dict({"image": [], "text": []}))
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(OptionalDependencyError, match=r"pip install 'lexvla\[hugging-face\]'"):
        load_hugging_face(path)


def test_a_file_that_breaks_off_is_a_bad_record(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "0.parquet", range(3))
    stream = open_parquet(path, tmp_path, streaming=True)
    assert isinstance(stream, HuggingFaceStream)
    path.write_bytes(path.read_bytes()[:-100])
    (record,) = stream.read_shard(0)
    with pytest.raises(InputError, match="'shard 0': cannot be read on"):
        record()


def test_the_network_is_not_the_data() -> None:
    from datasets import Features, IterableDataset, Value

    def rows() -> Iterator[dict[str, object]]:
        yield {"image": b"a", "text": "one"}
        raise ConnectionError("gone")

    features = Features({"image": Value("binary"), "text": Value("string")})
    stream = HuggingFaceStream(IterableDataset.from_generator(rows, features))
    records = stream.read_shard(0)
    assert next(records)() == Pair("shard 0 row 0", b"a", ("one",))
    with pytest.raises(ConnectionError, match="gone"):
        next(records)
