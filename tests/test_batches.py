"""Many queries at once, by compiled loops or not, beside brute force over the floats."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from indexer_fakes import documents
from lexvla.encoding import Encoding
from lexvla.errors import IndexCorruptError
from lexvla_indexer import open_index
from lexvla_indexer.embedded.batches import Batch
from lexvla_indexer.embedded.sparse_leg import SparseLeg, write_leg
from lexvla_indexer.impacts import ImpactQuantizer
from postings_fakes import NUMBA, WAYS, random_impacts, searching

WORDS = 9


def random_rows(rng: np.random.Generator, rows: int, kinds: int) -> sparse.csr_array:
    """Return rows of so many kinds of weights: few make many scores equal. Some are empty."""
    made = random_impacts(rng, rows, WORDS, 4, kinds)
    made.data = (made.data / np.float32(7)).astype(np.float32)
    dense = made.toarray()
    dense[rng.random(rows) < 0.1] = 0
    return sparse.csr_array(dense)


def brute_force(ids, stored, queries, k, allowed):
    answers = []
    for number in range(queries.shape[0]):
        query = queries[number : number + 1].toarray()[0].astype(np.float64)
        scores = np.cumsum(stored.toarray() * query, axis=1)[:, -1].tolist()
        found = [i for i in range(len(ids)) if scores[i] > 0 and allowed[i]]
        best = sorted(found, key=lambda i: (-scores[i], ids[i]))[:k]
        answers.append(([ids[i] for i in best], [scores[i] for i in best]))
    return answers


@WAYS
@pytest.mark.parametrize("exact", [True, False])
def test_several_segments_equal_brute_force(tmp_path_factory, way, exact):
    """Ids are in the order of no segment, and the later segments have a floor to reach."""

    @settings(max_examples=40)
    @given(
        seed=st.integers(0, 10**6),
        sizes=st.lists(st.integers(1, 90), min_size=1, max_size=4),
        kinds=st.sampled_from([1, 3, 200]),
        k=st.sampled_from([1, 3, 20, 300]),
        threads=st.integers(1, 3),
        filtered=st.booleans(),
    )
    def check(seed, sizes, kinds, k, threads, filtered):
        rng = np.random.default_rng(seed)
        count = sum(sizes)
        kinds = 1 if not exact else kinds  # then integers give the order of the floats
        stored, queries = random_rows(rng, count, kinds), random_rows(rng, 7, kinds)
        ids = [f"d{'x' * int(n % 2)}{n:03}" for n in rng.permutation(count)]
        allowed = rng.random(count) < 0.7
        folder = tmp_path_factory.mktemp("index")
        with (
            searching(way),
            mock.patch("lexvla_indexer.embedded.reader.THREADS", threads),
            open_index(folder / "i.lex", create=True) as index,
        ):
            ends = np.cumsum(sizes).tolist()
            for first, last in zip([0, *ends], ends, strict=False):
                index.add(documents(ids[first:last]), Encoding(stored[first:last]))
                index.commit()
            if not allowed.all():
                index.delete([name for name, kept in zip(ids, allowed, strict=True) if not kept])
                index.commit()
            chosen = None
            if filtered:
                chosen, allowed = "n = 4", allowed & np.array([len(name) == 4 for name in ids])
            options = {"filter": chosen, "exact": exact}
            together = index.search(Encoding(queries), k, **options)
            alone = [index.search(Encoding(queries[i : i + 1]), k, **options)[0] for i in range(7)]
        right = brute_force(ids, stored, queries, k, allowed)
        for found, single, (names, scores) in zip(together, alone, right, strict=True):
            assert found.ids == single.ids
            assert found.scores.tolist() == single.scores.tolist()
            if exact:
                assert (found.ids, found.scores.tolist()) == (names, scores)

    check()


def leg_of(folder: Path, stored: sparse.csr_array) -> SparseLeg:
    folder.mkdir()
    _, quantizer = write_leg(folder, "lexical", stored)
    return SparseLeg(folder, "lexical", *stored.shape, quantizer.to_dict())


@WAYS
@pytest.mark.parametrize("read_from", [1, 1 << 26])
@pytest.mark.parametrize("few", [0, 128])
def test_rows_read_or_mapped_answer_alike(tmp_path, way, read_from, few, monkeypatch):
    monkeypatch.setattr("lexvla_indexer.embedded.stored_rows.READ_FROM", read_from)
    monkeypatch.setattr("lexvla_indexer.embedded.stored_rows.FEW", few)
    rng = np.random.default_rng(0)
    stored, queries = random_rows(rng, 3000, 200), random_rows(rng, 20, 200)
    leg, batch = leg_of(tmp_path / "leg", stored), Batch.of(queries)
    numbers = np.array([3, 19, 0])
    ids = [f"{i:04}" for i in range(3000)]
    right = brute_force(ids, stored, queries, 5, np.ones(3000, bool))
    with searching(way):
        found = leg.top_batch(batch, numbers, 5, None, True, np.zeros(3))
    for number, (scores, rows) in zip(numbers, found, strict=True):
        assert ([ids[row] for row in rows], scores.tolist()) == right[number]


@WAYS
def test_a_row_that_scores_the_floor_is_found_and_lower_ones_are_few(tmp_path, way):
    """The step is 1/255, so rows of 3 and 4 are far below the floor of 8."""
    stored = sparse.csr_array(np.repeat([[8], [4], [9], [3]], 20, axis=0).astype(np.float32) / 9)
    leg, batch = leg_of(tmp_path / "leg", stored), Batch.of(stored[40:41])
    floor = float(stored[[0], :].toarray()[0, 0])
    with searching(way):
        ((scores, rows),) = leg.top_batch(batch, np.array([0]), 50, None, True, np.array([floor]))
        alone = leg.top(batch.row(0), 50, None, True, 1, floor)
    assert rows[:40].tolist() == [*range(40, 60), *range(20)]
    assert scores[20:40].tolist() == [floor] * 20
    assert len(rows) == (40 if way == "numba" else 50)
    assert alone[1][:40].tolist() == rows[:40].tolist()


def test_the_longest_queries_are_dealt_out(monkeypatch):
    queries = sparse.csr_array(np.tri(5, dtype=np.float32))
    shares = Batch.of(queries).shares(2)
    assert [share.tolist() for share in shares] == [[4, 2, 0], [3, 1]]
    assert Batch.of(queries[:0]).shares(0) == []


@pytest.mark.parametrize("way", [NUMBA])
def test_one_loop_answers_a_share_of_the_queries(tmp_path, way, monkeypatch):
    rng = np.random.default_rng(1)
    stored = random_rows(rng, 300, 200)
    leg, batch = leg_of(tmp_path / "leg", stored), Batch.of(random_rows(rng, 9, 200))
    monkeypatch.setattr(SparseLeg, "top", lambda *_: pytest.fail("a query by itself"))
    with searching(way):
        assert len(leg.top_batch(batch, np.arange(9), 5, None, True, np.zeros(9))) == 9


@WAYS
def test_dropped_words_are_left_to_single_searches(tmp_path, way, monkeypatch):
    """Row 1 has only a dropped word of the query, and scores more than no row."""
    stored = sparse.csr_array(np.array([[100, 0], [0, 0.1]], np.float32))
    folder = tmp_path / "leg"
    folder.mkdir()
    with mock.patch.object(
        ImpactQuantizer,
        "fit",
        lambda rows: ImpactQuantizer(100.0, 0.1, 100.0, drop_zero=True),
    ):
        _, quantizer = write_leg(folder, "lexical", stored)
    leg = SparseLeg(folder, "lexical", 2, 2, quantizer.to_dict())
    batch = Batch.of(sparse.csr_array(np.array([[0, 1]], np.float32)))
    with searching(way):
        ((scores, rows),) = leg.top_batch(batch, np.array([0]), 5, None, True, np.zeros(1))
    assert rows.tolist() == [1]
    assert scores.tolist() == [float(np.float32(0.1))]


@WAYS
def test_damaged_rows_are_an_error_and_no_crash(tmp_path, way):
    stored = random_rows(np.random.default_rng(2), 50, 200)
    leg, batch = leg_of(tmp_path / "leg", stored), Batch.of(stored[:2])
    damaged = leg.rows.mapped._replace(indptr=np.arange(51) * 10**6)
    with (
        searching(way),
        mock.patch.object(leg.rows, "mapped", damaged),
        pytest.raises(IndexCorruptError, match="damaged"),
    ):
        leg.top_batch(batch, np.arange(2), 5, None, True, np.zeros(2))


def test_terms_outside_the_vocabulary_are_refused():
    queries = sparse.csr_array((np.ones(1, np.float32), [0], [0, 1]), shape=(1, 2))
    queries.indices[0] = 2
    with pytest.raises(ValueError, match="from 0 to 1"):
        Batch.of(queries)
