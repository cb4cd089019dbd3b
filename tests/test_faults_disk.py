"""Full disks and read-only ones."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from disk_fakes import in_a_child, mount_memory, mount_read_only
from indexer_fakes import (
    LEGS,
    QUERY,
    VOCABULARY,
    brute_force,
    documents,
    encode,
    fill,
    found,
    random_rows,
)
from kill_fakes import files_of
from lexvla.encoding import Encoding
from lexvla_indexer import EmbeddedIndex, open_index
from lexvla_indexer.bm25 import TextRows
from lexvla_indexer.embedded import merging
from lexvla_indexer.report import Reject, RejectLog, Report

Rows = dict[str, dict[int, float]]


def rows_of(seed: int, *names: str) -> Rows:
    return dict(zip(names, random_rows(np.random.default_rng(seed), len(names)), strict=True))


FIRST = rows_of(1, *(f"a{i:02}" for i in range(30)))
MORE = rows_of(2, *(f"a{i:02}" for i in range(20, 30)), *(f"b{i:02}" for i in range(30)))
GONE = [f"a{i:02}" for i in range(5)]
SECOND = {name: row for name, row in (FIRST | MORE).items() if name not in GONE}


def wide(rows: Rows) -> Encoding:
    """Return vectors of which the dense ones are far larger than all else."""
    found = encode(list(rows.values()))
    return Encoding(found.lexical, found.patches, found.codes, np.repeat(found.dense, 700, axis=1))


def begin(path: Path) -> EmbeddedIndex:
    """Make an index in which the next commit is followed by a merge."""
    index = EmbeddedIndex(path, create=True, vocabulary=VOCABULARY)
    names = list(FIRST)
    for some in (names[:10], names[10:20], names[20:]):
        rows = {name: FIRST[name] for name in some}
        index.add(documents(list(rows)), wide(rows))
        index.commit()
    return index


def stage(index: EmbeddedIndex) -> None:
    index.delete(GONE)
    index.add(documents(list(MORE)), wide(MORE))


def holds(index: EmbeddedIndex, rows: Rows) -> bool:
    """Tell whether the index has just these rows, as all readers see it."""
    if index.count() != len(rows):
        return False
    with open_index(index.directory) as reader:
        stored, names = wide(rows), list(rows)
        assert found(reader, k=99) == brute_force("lexical", names, stored, QUERY, 99)
        back = reader.fetch(names)
        assert back.documents == documents(names)
        assert np.array_equal(back.encoding.dense, stored.dense)
        assert reader.verify() == []
    return True


def fails(work: Callable[[], None], path: Path) -> bool:
    """Tell whether the disk was too small. What is said names a file of the index."""
    try:
        work()
    except OSError as error:
        assert str(path) in str(error)
        return True
    return False


def try_on(path: Path, pressed: Callable[[int], object], sizes: list[int]) -> set[str]:
    """Commit and compact under each of these limits, and then without. Return what happened."""
    seen = set()
    pristine = path.with_name("pristine")
    begin(pristine).close()
    for size in sizes:
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(pristine, path)
        with EmbeddedIndex(path, create=True) as index:
            stage(index)
            with pressed(size):
                failed = fails(index.commit, path)
            assert holds(index, SECOND) or (failed and holds(index, FIRST))
            seen.add(f"{'failed' if failed else 'done'}, {index.count()}")
            index.commit()
            assert holds(index, SECOND)
            with pressed(size):
                failed = fails(index.compact, path)
            assert holds(index, SECOND)
            seen.add("not compacted" if failed else "compacted")
        with EmbeddedIndex(path, create=True) as index:
            index.delete([])
            live = index.info()["segments"]
            assert len(list((path / "segments").iterdir())) == live
            assert not list(path.glob("*.new"))
            index.compact()
            assert holds(index, SECOND)
        assert files_of(path) == expected(path.with_name("whole"))
    return seen


def expected(path: Path) -> dict[str, bytes]:
    if not path.exists():
        with EmbeddedIndex(path, create=True, vocabulary=VOCABULARY) as index:
            index.add(documents(list(SECOND)), wide(SECOND))
            index.commit()
    return files_of(path)


EVERYTHING = {
    f"failed, {len(FIRST)}",  # nothing of the commit
    f"failed, {len(SECOND)}",  # committed, but not merged
    f"done, {len(SECOND)}",
    "not compacted",
    "compacted",
}


@pytest.fixture(autouse=True)
def _merge_early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merging, "FAN_IN", 4)
    monkeypatch.setattr(os, "fsync", lambda _: None)  # saves time


def test_a_commit_that_no_file_may_be_large_enough_for(tmp_path):
    @contextmanager
    def no_larger_than(size: int) -> Iterator[None]:
        most = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, most))
        yield
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))

    def work() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # an error in its place
        sizes = [0, 100, 129, 200, 500, 4000, 40_000, 70_000, 200_000, 400_000, 10**7]
        assert try_on(tmp_path / "i.lex", no_larger_than, sizes) == EVERYTHING

    in_a_child(work)


def test_a_full_disk(tmp_path):
    """Nothing is left, then a page more each time, until it is enough."""
    path = tmp_path / "disk" / "i.lex"
    path.parent.mkdir()

    @contextmanager
    def with_left(size: int) -> Iterator[None]:
        ballast = path.with_name("ballast")
        disk = os.statvfs(path)
        ballast.write_bytes(bytes(max(disk.f_bavail * disk.f_bsize - size, 0)))
        yield
        ballast.unlink()

    def work() -> None:
        mount_memory(path.parent, 8 << 20)
        sizes = [4096 * pages for pages in (*range(0, 40, 3), 80, 120, 130, 150, 200, 500)]
        assert try_on(path, with_left, sizes) == EVERYTHING

    in_a_child(work)


def test_small_arrays_are_not_cut_short_unseen(tmp_path):
    """As `numpy.save` and faiss do: a segment was then live that could not be opened."""

    def work() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        index = EmbeddedIndex(tmp_path / "i.lex", create=True, vocabulary=VOCABULARY)
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        writer = index._own_writer()
        for size in range(1, 1300, 29):
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
            with pytest.raises(OSError, match=r"segments/00000007\.new/"):
                writer._store.write_segment(
                    7, sorted(FIRST), encode(list(FIRST.values())), TextRows.of([""] * len(FIRST))
                )
        resource.setrlimit(resource.RLIMIT_FSIZE, (limits[1], limits[1]))

    in_a_child(work)


# Read-only


def read(path: Path) -> None:
    with open_index(path) as index:
        for leg in LEGS:
            assert [name for name, _ in found(index, leg=leg)] == ["a", "b"]
        assert index.search(QUERY, filter="id = b")[0].ids == ["b"]
        assert index.fetch(["b"]).documents == documents(["b"])
        assert index.info()["documents"] == 2
        assert index.verify() == []


def refuses_to_write(path: Path) -> None:
    for work in (
        lambda: open_index(path, create=True),
        lambda: open_index(path).delete(["a"]),
        lambda: open_index(path).add(documents(["c"]), encode([{0: 1.0}])),
        lambda: open_index(path).compact(),
    ):
        with pytest.raises(OSError, match=str(path)):
            work()


@pytest.fixture
def index_of_two() -> Iterator[Path]:
    """Return an index in a directory that every user may read."""
    home = Path(tempfile.mkdtemp())
    home.chmod(0o755)
    with EmbeddedIndex(home / "i.lex", create=True, vocabulary=VOCABULARY) as index:
        fill(index, "a", "b")
        read(home / "i.lex")  # all that is loaded when it is needed, before another user is
    yield home / "i.lex"
    for folder in (home, *home.rglob("*")):
        if folder.is_dir():
            folder.chmod(0o755)
    shutil.rmtree(home)


def forbid_writing(path: Path) -> None:
    for file in (*path.rglob("*"), path):
        file.chmod(0o555 if file.is_dir() else 0o444)


def as_another_user() -> None:
    """Be somebody for whom permissions count."""
    if os.geteuid() == 0:
        os.setgid(65534)
        os.setuid(65534)


def test_a_directory_without_permission_to_write_is_read(index_of_two):
    forbid_writing(index_of_two)

    def work() -> None:
        as_another_user()
        read(index_of_two)
        refuses_to_write(index_of_two)

    in_a_child(work)


def test_what_a_killed_writer_left_is_read_without_permission_to_write(index_of_two):
    """The last commit is still in SQLite's log beside the manifest."""

    def die() -> None:
        index = EmbeddedIndex(index_of_two, create=True)
        index.delete(["b"])
        fill(index, "c")
        assert index_of_two.with_name("i.lex").joinpath("manifest.sqlite-wal").stat().st_size
        os.kill(os.getpid(), signal.SIGKILL)

    in_a_child(die, ends_with=-signal.SIGKILL)
    forbid_writing(index_of_two)

    def work() -> None:
        as_another_user()
        with open_index(index_of_two) as index:
            assert found(index) == [("a", 1.0), ("c", 1.0)]
        refuses_to_write(index_of_two)

    in_a_child(work)


def test_a_read_only_mount_is_read(index_of_two):
    def work() -> None:
        mount_read_only(index_of_two)
        read(index_of_two)
        refuses_to_write(index_of_two)

    in_a_child(work)


def test_an_index_is_begun_whole_or_an_error_names_the_file(tmp_path: Path) -> None:
    def work() -> None:
        mount_memory(tmp_path, 1 << 18)
        made = []
        for pages in range(0, 60, 3):
            (tmp_path / "ballast").write_bytes(bytes((1 << 18) - pages * 4096))
            try:
                EmbeddedIndex(tmp_path / "i.lex", create=True, vocabulary=VOCABULARY).close()
                made.append(True)
            except OSError as error:
                assert str(tmp_path / "i.lex") in str(error)
                made.append(False)
            shutil.rmtree(tmp_path / "i.lex", ignore_errors=True)
        assert (made[0], made[-1]) == (False, True)

    in_a_child(work)


def test_the_list_of_rejects_is_named_when_the_disk_is_full(tmp_path: Path) -> None:
    def work() -> None:
        mount_memory(tmp_path, 4096)
        path = tmp_path / "rejected.jsonl"
        with pytest.raises(OSError, match=f"{path}.part"), RejectLog(path, Report()) as log:
            log.add(Reject("a" * 5000, "is bad", "there"))

    in_a_child(work)
