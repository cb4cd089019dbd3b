"""Indexes of format 1: read, added to, converted, and killed meanwhile."""

from __future__ import annotations

import os
import shutil
import sqlite3
from pathlib import Path

import numpy as np
import pytest

from format1_fakes import write_format_1
from indexer_fakes import LEGS, VOCABULARY, brute_force, documents, encode, found, random_rows
from kill_fakes import files_of
from lexvla.encoding import Encoding
from lexvla.errors import IndexCorruptError
from lexvla_indexer import Document, EmbeddedIndex, open_index
from lexvla_indexer.embedded import merging
from postings_fakes import WAYS, searching
from step_fakes import kill_at_every_step

RNG = np.random.default_rng(12)
FIRST, SECOND = [f"a{i:02}" for i in range(30)], [f"a{i:02}" for i in range(20, 50)]
ROWS = encode(random_rows(RNG, 30)), encode(random_rows(RNG, 30), patches=False)
GONE = FIRST[::7]
ADDED = ["a05", "z"]
NEW = encode(random_rows(RNG, 2))
QUERIES = encode(random_rows(RNG, 3), patches=False)


def stored(added: bool = False) -> dict[str, tuple[Encoding, Document]]:
    """Return what the index holds."""
    left = [
        (FIRST, ROWS[0]),
        (SECOND, ROWS[1]),
        *([(ADDED, NEW)] if added else []),
    ]
    found = {}
    for number, (names, rows) in enumerate(left):
        found |= dict(zip(names, zip(rows, documents(names), strict=True), strict=True))
        if number == 0:
            found = {name: pair for name, pair in found.items() if name not in GONE}
    return found


@pytest.fixture
def old(tmp_path: Path) -> Path:
    commits = [
        (documents(FIRST), ROWS[0], []),
        ([], None, GONE),
        (documents(SECOND), ROWS[1], []),
    ]
    write_format_1(tmp_path / "i.lex", VOCABULARY, commits)
    return tmp_path / "i.lex"


def check(index: EmbeddedIndex, added: bool = False) -> None:
    """Demand the answers of brute force, and all that is stored."""
    held = stored(added)
    names = list(held)
    rows = [row for row, _ in held.values()]
    bare = [Encoding(row.lexical, None, row.codes, row.dense) for row in rows]
    everything = Encoding.concat(bare)
    assert index.count() == len(names)
    for leg in LEGS:
        for query, k in zip(QUERIES, (1, 7, 99), strict=True):
            assert found(index, query, k, leg) == brute_force(leg, names, everything, query, k)
    chosen = index.search(QUERIES[0], 99, filter='id >= "a30"')[0].ids
    assert chosen == [name for name, _ in found(index, QUERIES[0]) if name >= "a30"]
    fetched = index.fetch(names)
    assert fetched.documents == [document for _, document in held.values()]
    for row, back in zip(rows, fetched.encoding, strict=True):
        assert np.array_equal(back.lexical.toarray(), row.lexical.toarray())
        assert np.array_equal(back.dense, row.dense)
        wanted = np.full(row.lexical.nnz, -1) if row.patches is None else row.patches
        assert back.patches.tolist() == wanted.tolist()
    assert index.verify() == []


def version(path: Path) -> int:
    db = sqlite3.connect(path / "manifest.sqlite")
    try:
        return int(db.execute("SELECT value FROM meta WHERE key = 'format_version'").fetchone()[0])
    finally:
        db.close()


def folders(path: Path) -> list[str]:
    return sorted(folder.name for folder in (path / "segments").iterdir())


@WAYS
def test_it_is_read_and_left_as_it_is(old, way):
    before = files_of(old), (old / "manifest.sqlite").read_bytes()
    with searching(way), open_index(old) as index:
        check(index)
        info = index.info()
        assert (info["model"], info["commit"], info["segments"]) == ("the old one", 3, 2)
        assert info["quantization"]["lexical"]["overlap@10"] > 0.5
    assert (files_of(old), (old / "manifest.sqlite").read_bytes()) == before
    assert version(old) == 1


def test_a_commit_leaves_old_segments_and_adds_a_new_one(old):
    before = files_of(old)
    reader = open_index(old)
    check(reader)
    with EmbeddedIndex(old, create=True, vocabulary=VOCABULARY) as index:
        index.add(documents(ADDED), NEW)
        assert version(old) == 2
        check(reader)  # the other way to see the commit that it saw
        index.commit()
        check(index, added=True)
        check(reader, added=True)
    reader.close()
    after = files_of(old)
    assert before.items() <= after.items()
    assert folders(old) == ["00000001", "00000003", "00000005"]
    assert (old / "segments/00000005/segment.json").exists()


def rebuilt(path: Path, added: bool) -> dict[str, bytes]:
    with EmbeddedIndex(path, create=True, vocabulary=VOCABULARY) as index:
        for row, document in stored(added).values():
            index.add([document], row)
        index.commit()
    return files_of(path)


@pytest.mark.parametrize("added", [False, True])
def test_compact_makes_of_it_what_a_new_index_is(old, tmp_path, added):
    with open_index(old) as index:
        if added:
            index.add(documents(ADDED), NEW)
        index.compact()
        check(index, added)
        assert index.info()["segments"] == 1
    with open_index(old) as index:
        check(index, added)
    assert files_of(old) == rebuilt(tmp_path / "new.lex", added)


def test_one_old_segment_without_deletions_is_converted_too(tmp_path):
    path = tmp_path / "i.lex"
    write_format_1(path, VOCABULARY, [(documents(FIRST), ROWS[0], [])])
    with open_index(path) as index:
        index.compact()
    assert "segment.json" in {file.name for file in path.glob("segments/*/*")}
    with EmbeddedIndex(tmp_path / "new", create=True, vocabulary=VOCABULARY) as index:
        index.add(documents(FIRST), ROWS[0])
        index.commit()
    assert files_of(path) == files_of(tmp_path / "new")


def test_old_segments_are_merged_with_new_ones(old, monkeypatch):
    monkeypatch.setattr(merging, "FAN_IN", 3)
    with open_index(old) as index:
        index.add(documents(ADDED), NEW)
        index.commit()
        assert index.info()["segments"] == 1
        check(index, added=True)


@pytest.mark.parametrize("whole", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_kill_while_it_is_converted_changes_no_answer(old, monkeypatch, whole):
    monkeypatch.setattr(os, "fsync", lambda _: None)  # saves time
    seen = set()

    def convert() -> None:
        with open_index(old) as index:
            index.delete([])  # a writer changes the manifest before all else
            if whole:
                index.add(documents(ADDED), NEW)
                index.commit()
                index.compact()

    def check_after(killed: bool) -> None:
        now = version(old)
        with open_index(old) as reader:
            added = reader.count() == len(stored(added=True))
            check(reader, added)
        seen.add((now, added))
        assert killed or (now, added) == (2, whole)
        with EmbeddedIndex(old, create=True) as writer:
            writer.delete([])
            assert version(old) == 2
            assert len(folders(old)) == writer.info()["segments"]
            if whole:
                writer.add(documents(ADDED), NEW)
                writer.compact()
                check(writer, added=True)

    assert kill_at_every_step(old, convert, check_after) > (40 if whole else 8)
    assert seen == {(1, False), (2, False), *([(2, True)] if whole else [])}


@pytest.mark.parametrize(
    ("name", "place", "number"),
    [
        ("lexical.row.column", 7, 1 << 30),
        ("lexical.row.column", 0, -5),
        ("codes.row.column", 3, 4),
        ("lexical.row.weight", 3, 0x7FC00000),
        ("lexical.row.start", 1, 1 << 40),
        ("ids.start", 2, -1),
    ],
)
def test_damage_is_refused_though_there_are_no_checksums(old, name, place, number):
    file = old / "segments" / "00000001" / f"{name}.npy"
    array = np.lib.format.open_memmap(file, "r+")
    array.view(np.int32 if array.dtype == np.float32 else array.dtype)[place] = number
    array.flush()
    copy = shutil.copytree(old, old.with_name("copy"))
    with pytest.raises(IndexCorruptError, match=name.rsplit(".", 1)[0]):
        open_index(old)
    with pytest.raises(IndexCorruptError, match=name.rsplit(".", 1)[0]):
        EmbeddedIndex(old, create=True)
    assert files_of(old) == files_of(copy)
