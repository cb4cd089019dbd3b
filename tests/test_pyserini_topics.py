"""Queries for Pyserini as whole numbers, in memory and in files, without Java."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy import sparse

from lexvla.encoding import Encoding
from lexvla.errors import InputError
from lexvla_search import Query, cli
from lexvla_search.pyserini import LexVLAQueryEncoder, main, write_topics
from search_fakes import FakeEncoder, save_pictures

RED, BLUE = "▁red", "▁blue"
HALF = round(2048 / math.sqrt(2))


class Fixed(FakeEncoder):
    """Encode every text by the same weights."""

    def __init__(self, weights: list[float]) -> None:
        super().__init__(words=tuple(f"w{i}" for i in range(len(weights))))
        self._row = np.array([weights], np.float32)

    def encode_text(self, texts: list[str]) -> Encoding:
        return Encoding(sparse.csr_array(np.repeat(self._row, len(texts), axis=0)))


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_weights_become_whole_numbers_of_python():
    vector = LexVLAQueryEncoder(FakeEncoder()).encode("red blue")
    assert vector == {RED: HALF, BLUE: HALF}
    assert all(type(weight) is int for weight in vector.values())
    assert LexVLAQueryEncoder(FakeEncoder()).encode("unheard of") == {}


def test_small_weights_stay_and_great_ones_leave_room_for_exact_sums():
    assert LexVLAQueryEncoder(Fixed([1.0, 1e-6])).encode("") == {"▁w0": 2048, "▁w1": 1}
    great = LexVLAQueryEncoder(Fixed([100.0, 50.0])).encode("")
    assert great == {"▁w0": 25600, "▁w1": 12800}  # 256 is the next power of two that fits


@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=1024).filter(any))
def test_the_sums_of_unit_vectors_are_exact_at_the_usual_scale(weights: list[float]):
    row = np.array(weights, np.float32)
    row /= np.linalg.norm(row)
    vector = LexVLAQueryEncoder(Fixed(row.tolist())).encode("")
    assert 255 * sum(vector.values()) < 2**24
    for column in np.flatnonzero(row):
        expected = max(1, round(float(row[column]) * 2048))
        assert abs(vector[f"▁w{column}"] - expected) <= 1


def test_expected_texts_are_encoded_in_batches_and_once():
    asked: list[list[str]] = []

    class Counting(FakeEncoder):
        def encode_text(self, texts: list[str]) -> Encoding:
            asked.append(texts)
            return super().encode_text(texts)

    texts = [f"red {number}" for number in range(70)]
    encoder, single = LexVLAQueryEncoder(Counting()), LexVLAQueryEncoder(FakeEncoder())
    encoder.expect([*texts, texts[0]])
    for text in (*texts[:2], "blue", *texts[1:], texts[0], "blue"):
        vector = encoder.encode(text)
        assert vector == single.encode(text)
        vector.clear()  # the caller's own
    assert [len(batch) for batch in asked] == [64, 1, 6]
    # In another order too.
    asked.clear()
    encoder = LexVLAQueryEncoder(Counting())
    encoder.expect(texts)
    assert [encoder.encode(text) for text in texts[::-1]] == [{RED: 2048}] * 70
    assert [len(batch) for batch in asked] == [64, 6]


def test_queries_of_words_and_images(tmp_path: Path):
    encoder = LexVLAQueryEncoder(FakeEncoder())
    assert encoder.encode(Query(terms={"red": 3, "blue": 4})) == {RED: 1229, BLUE: 1638}
    picture = encoder.encode(Query(image=Image.new("RGB", (8, 8), (255, 0, 0))))
    assert max(picture, key=lambda term: picture[term]) == RED


@pytest.mark.parametrize(
    ("condition", "name"),
    [
        ({"ban": ("blue",)}, "ban"),
        ({"require": ("red",)}, "require"),
        ({"filter": "n=1"}, "filter"),
    ],
)
def test_what_pyserini_cannot_search_by_is_refused(tmp_path, condition, name):
    query = Query("red", **condition)
    with pytest.raises(InputError, match=f"Pyserini cannot search by {name}"):
        LexVLAQueryEncoder(FakeEncoder()).encode(query)
    with pytest.raises(InputError, match=f"Pyserini cannot search by {name}"):
        write_topics(tmp_path / "t.jsonl", {"q": query}, FakeEncoder())
    assert list(tmp_path.iterdir()) == []


def test_topics_are_their_own_encoder(tmp_path: Path):
    queries = {
        "b": Query(" red blue "),
        "a": Query("red", image=Image.new("RGB", (8, 8), (255, 0, 0))),
        "c": Query("nothing known"),
        "d": Query("red blue"),
    }
    assert write_topics(tmp_path / "t.jsonl", queries, FakeEncoder()) == 1
    found = lines(tmp_path / "t.jsonl")
    assert [line["id"] for line in found] == ["b", "a", "c", "d"]
    assert [line["title"] for line in found] == ["red blue", "a", "nothing known", "red blue"]
    assert all(line["contents"] == line["title"] for line in found)
    one = LexVLAQueryEncoder(FakeEncoder())
    asked = ["red blue", queries["a"], "nothing known", "red blue"]
    assert [line["vector"] for line in found] == [one.encode(query) for query in asked]
    assert [file.name for file in tmp_path.iterdir()] == ["t.jsonl"]


def test_more_topics_than_a_batch_holds(tmp_path: Path):
    queries = {str(i): Query(("red", "blue", "red blue")[i % 3]) for i in range(150)}
    write_topics(tmp_path / "t.jsonl", queries, FakeEncoder())
    encode = LexVLAQueryEncoder(FakeEncoder()).encode
    expected = [(name, encode(query.text)) for name, query in queries.items()]
    assert [(line["id"], line["vector"]) for line in lines(tmp_path / "t.jsonl")] == expected


def test_a_title_names_one_vector(tmp_path: Path):
    queries = {"red": Query(terms={"blue": 1}), "1": Query("red")}
    with pytest.raises(InputError, match="the text of one query and the id of another"):
        write_topics(tmp_path / "t.jsonl", queries, FakeEncoder())


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lexvla_search.cli.arguments.load_model", lambda *_: FakeEncoder())


@pytest.mark.usefixtures("model")
def test_encode_of_queries(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "q.tsv").write_text("1\tred\n2\tunheard\n", encoding="utf-8")
    out = tmp_path / "topics.jsonl"
    command = ["encode", str(tmp_path / "q.tsv"), "--out"]
    assert cli.main([*command, str(out)]) == 0
    assert capsys.readouterr().out == f"2 queries, 1 wordless; the topics are in {out}\n"
    assert lines(out)[0] == {
        "id": "1", "title": "red", "contents": "red", "vector": {RED: 2048},
    }  # fmt: skip
    assert cli.main([*command, str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "out": str(out), "queries": 2, "wordless": 1, "scale": 2048,
    }  # fmt: skip
    assert cli.main([*command, str(out), "--strict"]) == 1
    for wrong in ([str(tmp_path / "t.npz")], [str(out), "--shard", "1/2"]):
        assert cli.main([*command, *wrong]) == 2
    assert cli.main(["encode", str(tmp_path / "gone.tsv"), "--out", str(out)]) == 1


@pytest.mark.usefixtures("model")
def test_vectors_come_with_their_vocabulary_and_scale(tmp_path: Path):
    out = tmp_path / "v.jsonl"
    assert cli.main(["encode", str(save_pictures(tmp_path / "photos")), "--out", str(out)]) == 0
    kept = json.loads((tmp_path / "v.jsonl.quantization").read_text())["lexical"]
    assert (kept["scale"], kept["bits"], kept["top"]) == (100.0, 8, 2.55)
    terms = json.loads((tmp_path / "v.jsonl.vocabulary").read_text())["terms"]
    assert tuple(terms) == FakeEncoder().vocabulary.terms
    # Tools that read a folder of vectors go by these endings.
    read = [f.name for f in tmp_path.iterdir() if f.suffix in (".json", ".jsonl", ".gz")]
    assert read == ["v.jsonl"]


def test_the_launcher_needs_a_command(capsys: pytest.CaptureFixture[str]):
    assert (main([]), main(["--help"])) == (2, 0)
    assert "usage: python -m lexvla_search.pyserini COMMAND" in capsys.readouterr().err
