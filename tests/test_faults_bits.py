"""Damaged files: refused at open, found by `verify`, never copied, and never a crash."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

import flip_fakes
from flip_fakes import IDS, flip_index, flipped, make_index, make_postings
from indexer_fakes import QUERY, VOCABULARY, documents, encode, fill, found
from lexvla.errors import IndexCorruptError
from lexvla_indexer import EmbeddedIndex, open_index
from lexvla_indexer.embedded import merging
from lexvla_indexer.embedded.arrays import open_array, save_array
from postings_fakes import WAYS
from source_tree import PYTHONPATH


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "i.lex"
    make_index(path, lists=bool(find_spec("faiss")))
    return path


@pytest.fixture
def index(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "i.lex"))


def files_of(path: Path) -> list[Path]:
    return sorted(f for f in path.glob("segments/00000001/*") if f.is_file())


# At open


def moved(data: bytes) -> bytes:
    """Let the header be 64 bytes longer, and the numbers fewer: the size stays."""
    length = int.from_bytes(data[8:10], "little") + 64
    head = data[:8] + length.to_bytes(2, "little") + data[10:127] + b" " * 64 + b"\n"
    return head + data[128:-64]


CHANGES = {
    "emptied": lambda data: b"",
    "cut in its header": lambda data: data[:77],
    "cut behind its header": lambda data: data[:128],
    "halved": lambda data: data[: len(data) // 2],
    "a byte short": lambda data: data[:-1],
    "appended to": lambda data: data + b"\0",
    "with a longer header": lambda data: moved(data + bytes(64)),
    "with all moved": moved,
    "without its magic": lambda data: b"\x92" + data[1:],
    "of other numbers": lambda data: data.replace(b"'<", b"'>", 1).replace(b"'|u1'", b"'|i1'", 1),
    "of other rows": lambda data: data.replace(b"(121,", b"(112,", 1).replace(
        b"(120,", b"(102,", 1
    ),
}


@pytest.mark.parametrize("change", [*CHANGES, "missing"])
def test_a_file_of_another_form_is_named_at_open(index, change):
    files = files_of(index)
    assert len(files) == 36 + 1 + 3 * bool(find_spec("faiss"))
    refused = 0
    for file in files:
        data = file.read_bytes()
        changed = None if change == "missing" else CHANGES[change](data)
        if changed == data:
            continue
        file.unlink()
        if changed is not None:
            file.write_bytes(changed)
        try:
            open_index(index).close()
        except IndexCorruptError as error:
            assert file.name in str(error)
            refused += 1
        else:  # of the same size: faiss's numbers may be any, those of others are looked at
            assert file.name == "dense.list.faiss"
            assert change in ("with all moved", "of other rows")
        file.write_bytes(data)
    assert refused >= (2 if change == "of other rows" else 30)


@pytest.mark.filterwarnings("ignore:Data type alias")
def test_each_bit_of_a_header_counts_or_changes_nothing(tmp_path):
    numbers, file = np.arange(100, 109), tmp_path / "numbers.npy"
    save_array(file, numbers)
    refused = 0
    for bit in range(8 * 128):
        with flipped(file, bit):
            try:
                assert open_array(file, np.int64).tolist() == numbers.tolist()
            except IndexCorruptError as error:
                assert str(file) in str(error)
                refused += 1
    assert refused > 600


def test_a_header_is_read_again_where_python_took_another_threads_for_it(tmp_path, monkeypatch):
    file = tmp_path / "numbers.npy"
    save_array(file, np.arange(3))
    real, errors = np.lib.format.open_memmap, [SystemError("AST constructor recursion depth")] * 4

    def fails(*args, **options):
        if errors:
            raise errors.pop()
        return real(*args, **options)

    monkeypatch.setattr(np.lib.format, "open_memmap", fails)
    assert open_array(file, np.int64).tolist() == [0, 1, 2]
    errors += [SystemError("AST constructor recursion depth")] * 5
    with pytest.raises(SystemError):
        open_array(file, np.int64)


# Flipped bits


@pytest.mark.parametrize(("what", "count"), [("index", 60), ("postings", 100)])
@WAYS
def test_a_flipped_bit_crashes_nothing(index, tmp_path, what, count, way):
    """In a process of its own, whose compiled loops look at each place that they read or write."""
    run_flips(index, tmp_path, what, count, way)


def test_a_flipped_manifest_crashes_nothing(index, tmp_path):
    run_flips(index, tmp_path, "manifest", 40, "numpy")


def run_flips(index: Path, tmp_path: Path, what: str, count: int, way: str) -> None:
    folder = tmp_path / "postings"
    folder.mkdir()
    make_postings(folder)
    program = [sys.executable, flip_fakes.__file__, what, folder if what == "postings" else index]
    paths = os.pathsep.join([PYTHONPATH, str(Path(__file__).parent)])
    looking = {"NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": str(tmp_path / "numba")}
    done = subprocess.run(
        [*program, "5", str(count), way],
        env={**os.environ, **looking, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-500:] + done.stderr[-3000:]
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen.pop("answered") > 5
    assert sum(seen.values()) > count // 4


@pytest.mark.slow
def test_many_flipped_bits_are_found(index, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _: None)
    seen = flip_index(index, seed=77, count=1500)
    assert seen.total() == 1500


def test_verify_finds_what_was_damaged_while_the_index_is_open(index):
    with open_index(index) as reader:
        assert reader.verify() == []
        for file in files_of(index):
            with flipped(file, 8 * file.stat().st_size - 3):
                (damage,) = reader.verify()
                assert damage.startswith(f"{file}: damaged")
        file.unlink()
        (damage,) = reader.verify()
        assert damage.startswith(f"{file}: cannot be read")


def test_a_damaged_segment_is_not_merged_by_a_commit(index, monkeypatch):
    monkeypatch.setattr(merging, "FAN_IN", 3)
    file = index / "segments" / "00000002" / "dense.npy"
    before = sorted(f.name for f in (index / "segments").iterdir())
    with flipped(file, 8 * 1000), open_index(index) as writer:
        for name in ("x", "y"):  # what is staged is committed, whatever becomes of the merge
            with pytest.raises(IndexCorruptError, match=str(file)):
                fill(writer, name)
            assert writer.fetch([name]).documents == documents([name])
        with pytest.raises(IndexCorruptError, match=str(file)):
            writer.compact()
        assert writer.count() == len(IDS) + 1
        after = sorted(f.name for f in (index / "segments").iterdir())
        assert after[:2] == before
        assert len(after) == writer.info()["segments"] == 4
    with open_index(index) as writer:  # it is whole again
        fill(writer, "z")
        assert writer.info()["segments"] == 1
        assert writer.verify() == []


# What no list of checksums tells


def test_a_manifest_that_names_other_rows_is_refused(tmp_path):
    with EmbeddedIndex(tmp_path / "i.lex", create=True, vocabulary=VOCABULARY) as index:
        fill(index, "a", "b")
    with sqlite3.connect(tmp_path / "i.lex" / "manifest.sqlite") as db:
        for place in ("row = 0", "row = 7", "row = -2", "segment = 9"):
            db.execute(f"UPDATE documents SET {place} WHERE id = 'b'")
            db.commit()
            with open_index(tmp_path / "i.lex") as index:
                assert found(index) == [("a", 1.0), ("b", 1.0)]
                assert index.fetch(["a"]).documents == documents(["a"])
                with pytest.raises(IndexCorruptError, match="do not match"):
                    index.fetch(["a", "b"])
            db.execute("UPDATE documents SET segment = 1, row = 1 WHERE id = 'b'")
            db.commit()
    db.close()


def test_a_stray_file_or_a_missing_folder_stops_no_writer(tmp_path):
    path = tmp_path / "i.lex"
    EmbeddedIndex(path, create=True, vocabulary=VOCABULARY).close()
    (path / "segments").rmdir()  # as copying without empty folders does
    with open_index(path) as index:
        fill(index, "a")
    (path / "segments" / ".DS_Store").touch()
    (path / "vocabulary.json.new").touch()
    with open_index(path) as index:
        index.add(documents(["b"]), encode([{0: 1.0}]))
        index.commit()
        assert [name for name, _ in found(index, QUERY)] == ["a", "b"]
    assert sorted(f.name for f in (path / "segments").iterdir()) == ["00000001", "00000002"]
    assert not (path / "vocabulary.json.new").exists()
