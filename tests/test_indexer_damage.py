from __future__ import annotations

import json
import shutil
import sqlite3
from pathlib import Path

import pytest

from indexer_fakes import LEGS, QUERY, VOCABULARY, fill
from lexvla.errors import IndexCorruptError, IndexVersionError, LexVLAError
from lexvla.vocabulary import Vocabulary
from lexvla_indexer import EmbeddedIndex, open_index


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "i.lex"
    with EmbeddedIndex(path, create=True, vocabulary=VOCABULARY) as index:
        fill(index, "a", "b")
        fill(index, "b", "c")
    return path


def use(path: Path) -> None:
    """Do all that a reader does."""
    with open_index(path) as index:
        for leg in LEGS:
            index.search(QUERY, leg=leg)
        index.search_text("text of b")
        index.fetch(["a", "b", "c"])
        index.info()


def damaged_files(whole: Path) -> list[str]:
    files = (f for f in whole.rglob("*") if f.is_file() and f.name != "lock")
    return sorted(str(f.relative_to(whole)) for f in files)


@pytest.mark.parametrize("damage", ["removed", "emptied", "halved", "one byte short", "zeroed"])
def test_every_damaged_file_is_named(whole, tmp_path, damage):
    names = damaged_files(whole)
    assert len(names) == 2 * 37 + 2
    for name in names:
        path = tmp_path / name.replace("/", "_")
        shutil.copytree(whole, path)
        file = path / name
        data = file.read_bytes()
        sizes = {"emptied": 0, "halved": len(data) // 2, "one byte short": len(data) - 1}
        if damage == "removed":
            file.unlink()
        elif damage == "one byte short" and file.suffix == ".sqlite":
            continue  # SQLite takes the missing byte for a zero
        elif damage == "zeroed":
            file.write_bytes(bytes(len(data)))
        else:
            file.write_bytes(data[: sizes[damage]])
        with pytest.raises(IndexCorruptError, match=file.name):
            use(path)


def test_a_flipped_manifest_gives_answers_or_a_typed_error(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "i.lex")
    file = tmp_path / "i.lex" / "manifest.sqlite"
    data = file.read_bytes()
    used = [i for i, byte in enumerate(data) if byte]  # pages are mostly empty
    errors = 0
    for position in used[:100] + used[100::5]:
        file.write_bytes(data[:position] + bytes([data[position] ^ 0xFF]) + data[position + 1 :])
        for leftover in file.parent.glob("manifest.sqlite-*"):
            leftover.unlink()
        try:
            use(file.parent)
        except (LexVLAError, KeyError):  # an id may have become another
            errors += 1
    assert errors > 10


def test_a_newer_format_is_refused_by_name(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "i.lex")
    with sqlite3.connect(tmp_path / "i.lex" / "manifest.sqlite") as db:
        db.execute("UPDATE meta SET value = 9 WHERE key = 'format_version'")
        db.execute("UPDATE meta SET value = '\"7.1\"' WHERE key = 'writer_version'")
    db.close()
    with pytest.raises(IndexVersionError, match=r"format 9, written by lexvla 7\.1"):
        open_index(tmp_path / "i.lex")


def test_the_vocabulary_file_of_another_index_is_refused(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "i.lex")
    Vocabulary(["x"]).save(tmp_path / "i.lex" / "vocabulary.json")
    with pytest.raises(IndexCorruptError, match=r"vocabulary\.json"):
        open_index(tmp_path / "i.lex")
    text = (whole / "vocabulary.json").read_text()
    assert json.loads(text)["terms"] == list(VOCABULARY.terms)


def test_what_lies_in_no_commit_is_left_by_readers_and_removed_by_writers(whole, tmp_path):
    path = tmp_path / "i.lex"
    shutil.copytree(whole, path)
    for name in ("00000099", "00000003.new"):
        (path / "segments" / name).mkdir()
    use(path)
    assert len(list((path / "segments").iterdir())) == 4
    with open_index(path) as index:
        index.delete([])
        assert len(list((path / "segments").iterdir())) == 2
