"""Texts whose end the model does not read: told, for documents and for queries."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from ingest_fakes import manifest
from lexvla.model import LexVLA
from lexvla_indexer import open_index
from lexvla_indexer.encoded import encode_source
from lexvla_search import Query, Searcher, cli
from model_fakes import tiny_model
from search_fakes import FakeEncoder

Capture = pytest.CaptureFixture[str]


class ShortSighted(FakeEncoder):
    """Read three words of a text."""

    def encode_text(self, texts: Sequence[str]):
        return super().encode_text([" ".join(text.split()[:3]) for text in texts])

    def unread(self, texts: Sequence[str]) -> list[str]:
        return [" ".join(text.split()[3:]) for text in texts]


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> ShortSighted:
    encoder = ShortSighted()
    monkeypatch.setattr("lexvla_search.cli.arguments.load_model", lambda *_: encoder)
    return encoder


@pytest.fixture
def source(tmp_path: Path) -> Path:
    texts = ["red square", "red square on blue", "red red red red red", "blue"]
    lines = [{"id": str(number), "text": text} for number, text in enumerate(texts)]
    return manifest(tmp_path / "m", *lines)


def test_an_ingest_counts_the_texts_that_are_cut(
    model: ShortSighted, source: Path, tmp_path: Path, capsys: Capture
) -> None:
    place = str(tmp_path / "i.lex")
    assert cli.main(["index", str(source), "--index", place]) == 0
    out, err = capsys.readouterr()
    assert out == "4 added, 2 texts cut; 4 in the index\n"
    assert "texts cut: the model does not read their ends" in err
    assert cli.main(["index", str(source), "--index", place]) == 0  # once, not at every run
    assert "cut" not in "".join(capsys.readouterr())
    assert encode_source(source, model)[1].cut == 2
    assert encode_source(source, FakeEncoder())[1].cut == 0  # it does not say what it reads


def test_a_query_tells_what_the_model_does_not_read(
    model: ShortSighted, source: Path, tmp_path: Path, capsys: Capture
) -> None:
    place = str(tmp_path / "i.lex")
    cli.main(["index", str(source), "--index", place])
    with open_index(place) as index:
        searcher = Searcher(model, index)
        assert searcher.answer(Query(text="red red red blue green")).unread == "blue green"
        assert searcher.answer(Query(text="red square")).unread == ""
    capsys.readouterr()
    for command in (["search"], ["explain", "1"]):
        arguments = [*command, "red red red blue green", "--index", place]
        assert cli.main(arguments) == 0
        assert "the model does not read 'blue green'" in capsys.readouterr().err
        assert cli.main([*arguments, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["query"]["unread"] == "blue green"


def test_a_model_reads_what_it_does_not_call_unread() -> None:
    model = tiny_model(max_text_tokens=3)
    texts = ["", "red", "two blue birds flying over a red bicycle", "  two\nblue  birds flying"]
    unread = model.unread(texts)
    assert unread[:2] == ["", ""]
    assert all(unread[2:])
    for text, rest in zip(texts, unread, strict=True):
        whole = " ".join(text.split())
        assert whole.endswith(rest)
        read = whole.removesuffix(rest).strip() or "red"
        short, long = model.encode_text([read]), model.encode_text([text or "red"])
        assert (short.lexical != long.lexical).nnz == 0
    assert model.unread([]) == []


def test_the_shipped_model_reads_64_tokens() -> None:
    model = LexVLA.from_pretrained()
    assert model.unread(["red " * 64, "red " * 65]) == ["", "red"]
