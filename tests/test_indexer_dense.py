"""The dense leg inside an index: inverted lists in large segments, and what `info` says of them."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from scipy import sparse

from indexer_fakes import brute_force, documents, found
from lexvla.encoding import Encoding
from lexvla.errors import IndexCorruptError, OptionalDependencyError
from lexvla_indexer import open_index
from lexvla_indexer.embedded import dense_lists

pytest.importorskip("faiss", reason="needs faiss: pip install 'lexvla[fast]'")

CODES, WIDTH, ROWS = 40, 8, 400


@pytest.fixture(autouse=True)
def _small_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dense_lists, "LISTED_ROWS", 100)
    monkeypatch.setattr(dense_lists.DenseLists, "nprobe", 2)


def clustered(rng: np.random.Generator, rows: int = ROWS) -> Encoding:
    """Return rows around other centres for each state of the generator."""
    centres = rng.standard_normal((CODES, WIDTH))
    own = rng.integers(0, CODES, rows)
    dense = centres[own] + 0.6 * rng.standard_normal((rows, WIDTH))
    dense /= np.linalg.norm(dense, axis=1, keepdims=True)
    codes = sparse.csr_array((np.ones(rows, "f4"), own, np.arange(rows + 1)), (rows, CODES))
    none = sparse.csr_array((rows, 4), dtype=np.float32)
    return Encoding(none, None, codes, dense.astype(np.float32))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Encoding, list[str]]:
    """Return an index of one segment with lists and one without."""
    stored = clustered(np.random.default_rng(0))
    ids = [f"{i:03}" for i in range(ROWS)]
    path = tmp_path_factory.mktemp("lists") / "i.lex"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dense_lists, "LISTED_ROWS", 100)
        with open_index(path, create=True) as index:
            for rows in (slice(0, 370), slice(370, ROWS)):
                index.add(documents(ids[rows]), stored[rows])
                index.commit()
    return path, stored, ids


def test_lists_find_nearly_all_and_a_scan_finds_all(made):
    path, stored, ids = made
    with open_index(path) as index:
        queries = clustered(np.random.default_rng(1))[::3]
        answers = index.search(queries, 2, "dense")
        exact = index.search(queries, 2, "dense", exact=True)
        overlaps = []
        for i, (some, all_) in enumerate(zip(answers, exact, strict=True)):
            right = brute_force("dense", ids, stored, queries[i], 2)
            assert list(zip(all_.ids, all_.scores.tolist(), strict=True)) == right
            scores = dict(brute_force("dense", ids, stored, queries[i], ROWS))
            assert [scores[name] for name in some.ids] == some.scores.tolist()
            overlaps.append(len({*some.ids} & {*all_.ids}) / 2)
        assert 0.8 < np.mean(overlaps) < 1  # else the lists were not used, or are no good
        facts = index.info()["dense_search"]
    assert facts["listed_rows"] == 370
    assert (facts["lists"], facts["nprobe"]) == (40, 2)
    assert 0.9 < facts["recall@10"] <= 1


def test_a_filter_comes_before_the_best_are_taken(made):
    path, stored, ids = made
    with open_index(path) as index:
        (answer,) = index.search(stored[:1], 5, "dense", filter='id in ("017", "200", "390")')
        kept = [17, 200, 390]
        assert list(zip(answer.ids, answer.scores.tolist(), strict=True)) == brute_force(
            "dense", [ids[i] for i in kept], stored[kept], stored[0], 5
        )


def test_deletion_and_compaction_keep_the_lists_right(made, tmp_path):
    path, stored, _ = made
    shutil.copytree(path, tmp_path / "i.lex")
    with open_index(tmp_path / "i.lex", create=True) as index:
        gone = found(index, stored[0], 1, "dense")[0][0]
        index.delete([gone])
        index.commit()
        before = found(index, stored[0], 3, "dense")
        assert gone not in dict(before)
        index.compact()
        assert found(index, stored[0], 3, "dense") == before
        assert index.info()["dense_search"]["listed_rows"] == ROWS - 1
        assert index.verify() == []


def test_damaged_lists_are_named(made, tmp_path):
    for file in ("dense.list.head.npy", "dense.list.of.npy", "dense.list.faiss"):
        path = tmp_path / file
        shutil.copytree(made[0], path)
        target = path / "segments" / "00000001" / file
        target.write_bytes(target.read_bytes()[:-1])
        with pytest.raises(IndexCorruptError, match=file):
            open_index(path)


def test_a_bit_flipped_in_a_list_is_found_before_a_merge(made, tmp_path):
    path = tmp_path / "i.lex"
    shutil.copytree(made[0], path)
    target = path / "segments" / "00000001" / "dense.list.faiss"
    data = bytearray(target.read_bytes())
    data[-1] ^= 1
    target.write_bytes(data)
    with open_index(path) as index:
        (damage,) = index.verify()
        assert str(target) in damage
        with pytest.raises(IndexCorruptError, match=r"dense\.list\.faiss"):
            index.compact()
        assert index.count() == ROWS


def test_lists_without_faiss_name_the_extra_and_scans_go_on(made, monkeypatch):
    path, stored, ids = made
    monkeypatch.setattr(dense_lists, "_import_faiss", lambda: None)
    with open_index(path) as index:
        with pytest.raises(OptionalDependencyError, match=r"lexvla\[fast\]"):
            index.search(stored[:1], 5, "dense")
        (answer,) = index.search(stored[:1], 5, "dense", exact=True)
        assert answer.ids == [i for i, _ in brute_force("dense", ids, stored, stored[0], 5)]
        assert index.info()["dense_search"]["recall@10"] is None
