"""What an index tells of its metadata."""

from __future__ import annotations

from pathlib import Path

import pytest

from indexer_fakes import VOCABULARY, encode
from lexvla.errors import UnsupportedError
from lexvla_indexer import Document, open_index
from lexvla_search.fields import fields_of


def test_an_engine_that_cannot_list_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise UnsupportedError("cannot list documents")

    with open_index(tmp_path / "i.lex", create=True, vocabulary=VOCABULARY) as index:
        monkeypatch.setattr(index, "list_documents", refuse)
        assert fields_of(index) is None


def test_kinds_and_limits(tmp_path: Path) -> None:
    with open_index(tmp_path / "i.lex", create=True, vocabulary=VOCABULARY) as index:
        assert fields_of(index) == []
        documents = [
            Document(f"{n:05}", metadata={"n": n - 7, "half": n % 3 / 2, "even": n % 2 == 0})
            for n in range(1100)
        ]
        tags = {"tags": ["a", "b"], "any": 1}
        documents[3] = Document("00003", metadata={"n": 9000.5, **tags})
        documents[4] = Document("00004", metadata={"any": "one"})
        documents[200] = Document("00200", metadata={"later": 1})  # not among the first 100
        index.add(documents, encode([{0: 1.0}] * len(documents)))
        index.commit()
        assert fields_of(index) == [
            {"name": "n", "kind": "number", "distinct": 1000, "low": -7, "high": 9000.5},
            {"name": "half", "kind": "number", "distinct": 3, "low": 0, "high": 1},
            {"name": "even", "kind": "boolean", "distinct": 2, "low": None, "high": None},
            {"name": "tags", "kind": "string", "distinct": 2, "low": None, "high": None},
            {"name": "any", "kind": "mixed", "distinct": 2, "low": None, "high": None},
        ]
