"""Kill a writer at every step of a commit, a compaction and the making of an index."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from indexer_fakes import VOCABULARY, documents, encode, found
from lexvla.encoding import Encoding
from lexvla_indexer import EmbeddedIndex, durable, open_index
from lexvla_indexer.embedded import segment
from lexvla_indexer.embedded.manifest import Manifest
from step_fakes import FORK, kill_at_every_step

OLD = {"a": 1.0, "b": 1.0}
NEW = {"b": 0.5, "c": 0.5}


@pytest.fixture(autouse=True)
def _without_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Save time: what a killed process has written is not lost, unlike in a power cut."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


def put(index: EmbeddedIndex, ids: str, weight: float = 1.0) -> None:
    index.add(documents(ids), Encoding(encode([{0: weight}] * len(ids)).lexical))
    index.commit()


def segments(path: Path) -> set[str]:
    return {folder.name for folder in (path / "segments").iterdir()}


def test_a_killed_commit_happened_whole_or_not_at_all(tmp_path):
    path = tmp_path / "i.lex"
    with EmbeddedIndex(path, create=True, vocabulary=VOCABULARY) as index:
        put(index, "ab")
    seen = set()

    def commit() -> None:
        with open_index(path) as index:
            index.delete(["a"])
            put(index, "cb", 0.5)

    def check(killed: bool) -> None:
        before = segments(path)
        with open_index(path) as reader:
            state = dict(found(reader))
            assert state in (OLD, NEW)
            assert killed or state == NEW
            stored = reader.fetch(sorted(state))
            assert stored.documents == documents(sorted(state))
            assert stored.encoding.lexical[:, [0]].toarray()[:, 0].tolist() == list(state.values())
            seen.add(("old" if state == OLD else "new", len(before)))
        assert segments(path) == before  # a reader removes nothing
        with open_index(path, create=True) as writer:
            assert len(segments(path)) == writer.info()["segments"]
            assert dict(found(writer)) == state
            put(writer, "d")
            assert dict(found(writer)) == {**state, "d": 1.0}

    assert kill_at_every_step(path, commit, check) > 20
    assert seen == {("old", 1), ("old", 2), ("new", 2), ("new", 1)}


def test_a_killed_compaction_changes_no_answer(tmp_path):
    path = tmp_path / "i.lex"
    with EmbeddedIndex(path, create=True, vocabulary=VOCABULARY) as index:
        put(index, "abx")
        put(index, "b")
        index.delete(["x"])
        index.commit()
    seen = set()

    def compact() -> None:
        with EmbeddedIndex(path) as index:
            index.compact()

    def check(killed: bool) -> None:
        with open_index(path) as reader:
            assert dict(found(reader)) == OLD
            seen.add(reader.info()["segments"])
        with EmbeddedIndex(path, create=True) as writer:
            assert len(segments(path)) == writer.info()["segments"]
            assert killed or len(segments(path)) == 1
            writer.compact()
            assert dict(found(writer)) == OLD

    kill_at_every_step(path, compact, check)
    assert seen == {1, 2}


def test_an_index_whose_making_was_killed_can_be_made_again(tmp_path):
    path = tmp_path / "deep" / "i.lex"

    def make() -> None:
        EmbeddedIndex(path, create=True, vocabulary=VOCABULARY).close()

    def check(killed: bool) -> None:
        with EmbeddedIndex(path, create=True, vocabulary=VOCABULARY) as index:
            put(index, "a")
            assert found(index) == [("a", 1.0)]
        assert not list(path.glob("*.new*"))

    kill_at_every_step(path, make, check)


def test_a_commit_that_fails_can_be_tried_again(tmp_path, monkeypatch):
    with EmbeddedIndex(tmp_path / "i.lex", create=True, vocabulary=VOCABULARY) as index:
        put(index, "a")
        for target, name in ((os, "fsync"), (Path, "replace")):
            index.delete(["a"])
            with monkeypatch.context() as patch:
                patch.setattr(target, name, _no_space)
                with pytest.raises(OSError, match="No space"):
                    put(index, "b")
            assert found(index) == [("a", 1.0)]
        index.commit()
        assert found(index) == [("b", 1.0)]


def _no_space(*_: object) -> None:
    raise OSError(28, "No space left on device")


def test_files_are_on_the_disk_before_the_commit_that_names_them(tmp_path, monkeypatch):
    done: list[str] = []
    for module in (segment, durable):
        monkeypatch.setattr(module, "fsync", lambda path: done.append(f"fsync {path.name}"))
    replace, add = Path.replace, Manifest._add

    def replaced(path: Path, target: Path) -> Path:
        done.append(f"{path.name} -> {target.name}")
        return replace(path, target)

    def named(manifest: Manifest, segments: dict) -> None:
        done.append(f"named {sorted(segments)}")
        add(manifest, segments)

    with EmbeddedIndex(tmp_path / "i.lex", create=True, vocabulary=VOCABULARY) as index:
        monkeypatch.setattr(Path, "replace", replaced)
        monkeypatch.setattr(Manifest, "_add", named)
        done.clear()
        put(index, "ab")
    files = sorted(f"fsync {f.name}" for f in (tmp_path / "i.lex/segments/00000001").iterdir())
    assert len(files) == 25
    assert sorted(done[:25]) == files
    assert done[25:] == [
        "fsync 00000001.new",
        "00000001.new -> 00000001",
        "fsync segments",
        "named [1]",
    ]


def test_another_process_reads_whole_commits_only(tmp_path):
    path, commits, ids = tmp_path / "i.lex", 40, "abcdefghij"
    index = EmbeddedIndex(path, create=True, vocabulary=VOCABULARY)
    put(index, ids)

    def read() -> None:
        last = 0.0
        with EmbeddedIndex(path) as reader:
            while last < commits:
                hits = found(reader)
                stored = reader.fetch([name for name, _ in hits])
                generations = {score for _, score in hits}
                assert sorted(name for name, _ in hits) == sorted(ids)
                assert len(generations) == 1  # never rows of two commits
                assert set(stored.encoding.lexical[:, [0]].data) == generations
                assert min(generations) >= last
                last = min(generations)

    process = FORK.Process(target=read)
    process.start()
    for generation in range(2, commits + 1):
        put(index, ids, float(generation))
        if generation % 9 == 0:
            index.compact()
    process.join(30)
    index.close()
    assert process.exitcode == 0
