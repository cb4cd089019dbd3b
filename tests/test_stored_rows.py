"""Rows read from their files: the same as from the map, by any thread, and nothing left open."""

from __future__ import annotations

import gc
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from indexer_fakes import LEGS, VOCABULARY, brute_force, documents, encode, found, random_rows
from lexvla.errors import IndexCorruptError
from lexvla_indexer import EmbeddedIndex, open_index
from lexvla_indexer.embedded import stored_rows
from lexvla_indexer.embedded.arrays import save_array
from lexvla_indexer.embedded.sparse_leg import SparseLeg, write_leg
from lexvla_indexer.embedded.stored_rows import StoredArray
from postings_fakes import WAYS, searching

IDS = [f"d{i:03}" for i in range(200)]
ROWS = encode(random_rows(np.random.default_rng(6), len(IDS)))
QUERIES = encode(random_rows(np.random.default_rng(7), 6), patches=False)


@pytest.fixture(autouse=True)
def always_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read rows of files of any size, however many."""
    monkeypatch.setattr(stored_rows, "READ_FROM", 1)
    monkeypatch.setattr(stored_rows, "FEW", 10**9)


def make(path: Path) -> Path:
    """Write an index of two segments."""
    parts = [(documents(IDS[first : first + 100]), ROWS[first : first + 100]) for first in (0, 100)]
    with EmbeddedIndex(path, create=True, vocabulary=VOCABULARY) as index:
        for part in parts:
            index.add(*part)
            index.commit()
    return path


def check(index: EmbeddedIndex) -> None:
    """Demand the answers of brute force, and all that is stored."""
    for leg in LEGS:
        for query, k in zip(QUERIES, (1, 7, 10, 20, 99, 999), strict=True):
            assert found(index, query, k, leg) == brute_force(leg, IDS, ROWS, query, k)
    names = [IDS[i] for i in (150, 3, 3, 199, 0)]
    back, stored = index.fetch(names).encoding, ROWS[[IDS.index(name) for name in names]]
    assert (back.lexical != stored.lexical).nnz == (back.codes != stored.codes).nnz == 0
    assert back.patches.tolist() == stored.patches.tolist()
    assert np.array_equal(back.dense, stored.dense)


def descriptors(word: str = "segments") -> list[str]:
    """Return the files of an index that this process has open."""
    found = []
    for link in Path("/proc/self/fd").iterdir():
        try:
            found.append(str(link.readlink()))
        except FileNotFoundError:  # that of the listing itself
            continue
    return [name for name in found if word in name]


needs_proc = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs Linux's /proc")


@WAYS
def test_answers_are_those_of_brute_force(tmp_path, way):
    with open_index(make(tmp_path / "i.lex")) as index, searching(way):
        assert all(segment.sparse["lexical"].rows.reads(1) for segment in parts(index))
        check(index)


@WAYS
@pytest.mark.parametrize(("width", "kind"), [(1 << 16, np.uint16), ((1 << 16) + 1, np.int32)])
def test_column_numbers_take_as_few_bytes_as_the_width_allows(tmp_path, way, width, kind):
    rows = sparse.csr_array(([1.0, 2.0, 3.0], ([0, 0, 1], [0, width - 1, 1])), (2, width))
    rows = rows.astype(np.float32)
    _, quantizer = write_leg(tmp_path, "lexical", rows)
    leg = SparseLeg(tmp_path, "lexical", 2, width, quantizer.to_dict())
    assert np.load(tmp_path / "lexical.row.entry.npy")["column"].dtype == kind
    with searching(way):
        scores, found = leg.top(rows[[0]], 2, None, exact=True)
    assert (scores.tolist(), found.tolist()) == ([5.0], [0])
    taken, _ = leg.take(np.array([1, 0]))
    assert (taken != rows[[1, 0]]).nnz == 0


def parts(index: EmbeddedIndex) -> list:
    return list(index._refresh().segments.values())


@WAYS
@settings(max_examples=30)
@given(
    spans=st.lists(st.tuples(st.integers(0, 60), st.integers(0, 9)), max_size=12),
    kind=st.sampled_from([np.float32, np.int32, np.int16]),
    few=st.sampled_from([0, 5, 100]),
)
def test_any_spans_are_read(tmp_path_factory, way, spans, kind, few):
    numbers = np.arange(100, 170).astype(kind)
    file = tmp_path_factory.mktemp("spans") / "numbers.npy"
    save_array(file, numbers)
    array = StoredArray(file, kind, (70,))
    firsts, lengths = (np.array([span[i] for span in spans], np.int64) for i in (0, 1))
    with searching(way), pytest.MonkeyPatch.context() as patch:
        patch.setattr(stored_rows, "FEW", few)
        taken = array.take(firsts, lengths)
    assert taken.dtype == kind
    assert taken.tolist() == [n for first, size in spans for n in numbers[first : first + size]]


def test_few_rows_of_large_files_are_read_and_all_others_mapped(tmp_path, monkeypatch):
    file = tmp_path / "numbers.npy"
    save_array(file, np.arange(70))
    calls = []
    read = StoredArray._read
    monkeypatch.setattr(StoredArray, "_read", lambda *a: (calls.append(len(a[1])), read(*a))[1])
    monkeypatch.setattr(stored_rows, "kernels", lambda *_: None)
    monkeypatch.setattr(stored_rows, "FEW", 2)
    ones = np.ones(3, np.int64)
    for size in (70 * 8, 70 * 8 + 1):
        monkeypatch.setattr(stored_rows, "READ_FROM", size)
        array = StoredArray(file, np.int64, (70,))
        assert array.take(ones, ones).tolist() == [1, 1, 1]
        assert array.take(ones[:2], ones[:2]).tolist() == [1, 1]
    assert calls == [2]


@WAYS
@pytest.mark.parametrize("few", [0, 9])
@pytest.mark.parametrize(("first", "length"), [(-1, 2), (69, 2), (71, 0), (5, -1), (1 << 60, 1)])
def test_a_span_outside_is_damage(tmp_path, monkeypatch, way, few, first, length):
    monkeypatch.setattr(stored_rows, "FEW", few)
    file = tmp_path / "numbers.npy"
    save_array(file, np.arange(70))
    array = StoredArray(file, np.int64, (70,))
    with searching(way), pytest.raises(IndexCorruptError, match=r"numbers\.npy: a stored row"):
        array.take(np.array([3, first]), np.array([2, length]))


@WAYS
def test_a_file_that_became_shorter_is_damage(tmp_path, way):
    path = make(tmp_path / "i.lex")
    with open_index(path) as index, searching(way):
        check(index)
        file = path / "segments" / "00000002" / "lexical.row.entry.npy"
        data = file.read_bytes()
        os.truncate(file, 140)
        with pytest.raises(IndexCorruptError, match=f"{file}: a stored row is damaged"):
            index.search(QUERIES[0], 20)
        with pytest.raises(IndexCorruptError, match=f"{file}: a stored row is damaged"):
            index.fetch(IDS[-3:])
        file.write_bytes(data)
        check(index)


@WAYS
def test_a_file_that_cannot_be_read_is_named(tmp_path, way):
    file = tmp_path / "numbers.npy"
    save_array(file, np.arange(70))
    array = StoredArray(file, np.int64, (70,))
    array._close.detach()
    os.close(array._file)
    one = np.ones(1, np.int64)
    with searching(way), pytest.raises(OSError, match=re.escape(str(file))):
        array.take(one, one)


def test_a_reader_keeps_its_files_through_compaction(tmp_path):
    path = make(tmp_path / "i.lex")
    with open_index(path) as reader, open_index(path) as writer:
        check(reader)
        snapshot = reader._reader().snapshot
        writer.compact()
        assert [folder.name for folder in (path / "segments").iterdir()] == ["00000003"]
        masks = snapshot.live
        for query in QUERIES:
            (answer,) = snapshot.search(query, 20, "lexical", masks, True)
            pairs = list(zip(answer.ids, answer.scores.tolist(), strict=True))
            assert pairs == brute_force("lexical", IDS, ROWS, query, 20)
        check(reader)


@needs_proc
def test_files_are_closed_with_their_segment(tmp_path):
    path = make(tmp_path / "i.lex")
    assert descriptors(str(path)) == []
    reader = open_index(path)
    check(reader)
    both = len(descriptors(f"{path}/segments/00000001")), len(descriptors(f"{path}/segments"))
    assert both[1] == 2 * both[0] > 0
    with open_index(path) as writer:
        writer.compact()
    for _ in range(5):
        check(reader)
        gc.collect()
        assert descriptors(f"{path}/segments/0000000") == descriptors(f"{path}/segments/00000003")
        assert len(descriptors(f"{path}/segments")) == both[0]
    reader.close()
    gc.collect()
    assert descriptors(str(path)) == []
    with pytest.raises(ValueError, match="closed"):
        reader.search(QUERIES[0])


@needs_proc
def test_a_closed_index_leaves_nothing_open_without_a_collection(tmp_path):
    path = make(tmp_path / "i.lex")
    gc.disable()
    try:
        with open_index(path) as index:
            check(index)
        assert descriptors(str(path)) == []
    finally:
        gc.enable()


def test_nothing_of_small_files_is_held_open(tmp_path, monkeypatch):
    monkeypatch.setattr(stored_rows, "READ_FROM", 1 << 26)
    with open_index(make(tmp_path / "i.lex")) as index:
        assert not any(segment.sparse["lexical"].rows.reads(1) for segment in parts(index))
        check(index)


@WAYS
def test_threads_share_the_files(tmp_path, way):
    wrong: list[BaseException] = []

    def work(index: EmbeddedIndex) -> None:
        try:
            for _ in range(5):
                check(index)
        except BaseException as error:  # noqa: BLE001 - shown below
            wrong.append(error)

    with open_index(make(tmp_path / "i.lex")) as index, searching(way):
        threads = [threading.Thread(target=work, args=[index]) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


_RESIDENT = """
import sys
import numpy as np
from pathlib import Path
from lexvla_indexer.embedded import stored_rows
from lexvla_indexer.embedded.stored_rows import StoredArray

stored_rows.READ_FROM, stored_rows.FEW = 1, int(sys.argv[2])
array = StoredArray(Path(sys.argv[1]), np.float32, (1 << 23,))
for first in range(0, 1 << 23, 1 << 12):
    array.take(np.array([first]), np.array([9]))
lines = Path("/proc/self/smaps").read_text().splitlines()
at = next(i for i, line in enumerate(lines) if sys.argv[1] in line)
print(next(int(line.split()[1]) for line in lines[at:] if line.startswith("Rss:")))
"""


@needs_proc
def test_reading_leaves_the_map_alone(tmp_path):
    file = tmp_path / "numbers.npy"
    save_array(file, np.zeros(1 << 23, np.float32))
    resident = [
        int(subprocess.check_output([sys.executable, "-c", _RESIDENT, str(file), few]))
        for few in ("0", "1")
    ]
    assert resident[0] >= 2048 * 4  # of 32 MiB, a page of each piece at the least, in KiB
    assert resident[1] <= 64
