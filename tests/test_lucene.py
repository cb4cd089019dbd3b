"""The Lucene engine: exact integer sums, words of any form, what it keeps, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from scipy import sparse

from indexer_fakes import (
    QUERY,
    VOCABULARY,
    WORDS,
    documents,
    encode,
    fill,
    found,
    scores,
)
from lexvla.encoding import Encoding
from lexvla.errors import (
    UnsupportedError,
)
from lexvla.vocabulary import Vocabulary
from lexvla_indexer import open_index
from lexvla_indexer.impacts import ImpactQuantizer
from lexvla_indexer.lucene import LuceneIndex
from lexvla_indexer.lucene.layout import State
from lexvla_indexer.lucene.scoring import LARGEST_SUM, query_weights
from lucene_fakes import by_integers

pytestmark = pytest.mark.java


@pytest.fixture
def index(tmp_path: Path) -> Iterator[LuceneIndex]:
    with LuceneIndex(tmp_path / "i", create=True, vocabulary=VOCABULARY, model="m") as made:
        yield made


def state_of(index: LuceneIndex) -> State:
    state = index._refresh().state
    assert state is not None
    return state


def matrix(rows: list[list[float]] | np.ndarray) -> sparse.csr_array:
    return sparse.csr_array(np.array(rows, np.float32))


# Scores


@pytest.mark.parametrize("leg", ["lexical", "codes"])
@pytest.mark.parametrize("words", [3, 300])  # with and without Lucene's skipping
def test_scores_are_exact_sums_of_integers(tmp_path, leg, words):
    rng = np.random.default_rng(7)
    random = [sparse.random_array((400, 320), density=0.5, rng=rng, format="csr") for _ in "ab"]
    stored = Encoding(
        sparse.csr_array(random[0], dtype=np.float32),
        codes=sparse.csr_array(random[1], dtype=np.float32),
    )
    row = np.zeros((1, 320), np.float32)
    row[0, rng.choice(320, words, replace=False)] = rng.random(words)
    query = Encoding(sparse.csr_array(row), codes=sparse.csr_array(row))
    ids = [f"{i:03}" for i in rng.permutation(400)]
    with open_index(f"lucene:{tmp_path / 'i'}", create=True) as index:
        for start in (0, 150):
            stop = start + 150 if start == 0 else 400
            index.add(documents(ids[start:stop]), stored[start:stop])
            index.commit()
        for k in (1, 10, 1000):
            expected = by_integers(leg, ids, stored, query, k, state_of(index))
            assert found(index, query, k, leg) == expected
        exact = dict(zip(ids, scores(leg, stored, query).tolist(), strict=True))
        errors = [abs(score - exact[name]) for name, score in found(index, query, 1000, leg)]
        assert 0 < max(errors) <= index.bound(query, leg)[0]


def test_more_words_than_lucene_takes_by_itself(tmp_path):
    width = 5000
    rows = np.full((2, width), 0.25, np.float32)
    rows[1, :2500] = 0.125
    query = Encoding(sparse.csr_array(np.full((1, width), 0.5, np.float32)))
    with LuceneIndex(tmp_path / "i", create=True) as index:
        index.add(documents("ab"), Encoding(sparse.csr_array(rows)))
        index.commit()
        bound = index.bound(query)[0]
        assert bound < 20
        assert found(index, query) == [
            ("a", pytest.approx(0.125 * width, abs=bound)),
            ("b", pytest.approx(0.125 * 2500 + 0.0625 * 2500, abs=bound)),
        ]


def test_a_query_of_too_many_words_is_refused(index):
    wide = Encoding(sparse.csr_array(np.ones((1, LARGEST_SUM // 2 + 1), np.float32)))
    with pytest.raises(UnsupportedError, match="at most 32,896 words, not 32,897"):
        query_weights(wide.lexical)


def test_no_sum_of_integers_is_beyond_float32():
    rng = np.random.default_rng(1)
    for words in (1, 2, 50, 3000, LARGEST_SUM // 2):
        row = sparse.csr_array(rng.random((1, words), dtype=np.float32) ** 8 + np.float32(1e-9))
        whole, scale = query_weights(row)
        assert whole.min() >= 1
        assert int(whole.sum()) * 255 < 2**24
        # A document of that length that is most alike: no other has a greater product.
        finer, its_scale = query_weights(row, longest=900.0)
        assert its_scale >= scale
        assert min(np.linalg.norm(finer) * 900, finer.sum() * 255) < 2**24
        assert np.abs(finer / its_scale - row.data).max() <= 1 / its_scale


def test_long_queries_keep_fine_weights_where_documents_are_short():
    row = sparse.csr_array(np.full((1, 1000), 0.03, np.float32))
    assert query_weights(row).integers[0] == 61  # 2048 * 0.03
    assert query_weights(row, longest=850.0).integers[0] == 492


def test_words_in_every_document_count_like_others(index):
    fill(index, "a", "b")
    (hit, _) = found(index, encode([{0: 1.0}], patches=False))
    assert hit == ("a", pytest.approx(1.0, abs=1e-4))


HOSTILE = (
    *("\u2581dog", "a b", " ", "\t", "\n", "|", "a|1", "^", "a^2", "AND", "OR", "NOT", "TO", "\\"),
    *("\\u0041", "\x01", "\x02", "\x01\x02", "\x02\x02", "\x02\x03", "*", "d?g", "dog~", '"', "("),
    *(
        ")",
        "[",
        "]",
        "{",
        "}",
        ":",
        "contents:dog",
        "+",
        "-",
        "!",
        "&&",
        "||",
        "/",
        "\u3000",
        "\xa0",
    ),
    *(
        "\U0001f600",
        "\U0001d400x",
        "\uffff",
        "\ufeff",
        "\u0130",
        "e\u0301",
        "\u00e9",
        "<0x0A>",
        "1",
    ),
    *(
        "0.5",
        "dog",
        "Dog",
        "x" * 300,
        "\u65e5\u672c",
        "_",
        "a_b",
        "\x85",
        "a in 0) [I], result of:",
    ),
)


def test_terms_of_any_form(tmp_path):
    rows = sparse.csr_array(
        np.eye(len(HOSTILE), dtype=np.float32) + np.eye(len(HOSTILE), k=1, dtype=np.float32) / 2
    )
    ids = [f"d{i:02}" for i in range(len(HOSTILE))]
    with LuceneIndex(tmp_path / "i", create=True, vocabulary=Vocabulary(HOSTILE)) as index:
        index.add(documents(ids), Encoding(rows))
        index.commit()
        for i, name in enumerate(ids):
            query = np.zeros((1, len(HOSTILE)), np.float32)
            query[0, i] = 1
            answer = found(index, Encoding(sparse.csr_array(query)))
            assert [hit for hit, _ in answer] == [name, *ids[max(i - 1, 0) : i]]
            assert answer[0][1] == pytest.approx(1, abs=1e-4)


def test_a_term_longer_than_lucene_takes_is_refused(tmp_path):
    with LuceneIndex(tmp_path / "i", create=True, vocabulary=Vocabulary(["x" * 40_000])) as index:
        with pytest.raises(UnsupportedError, match="at most 32,766 bytes; the vocabulary has 'xxx"):
            index.add(documents("a"), Encoding(matrix([[1.0]])))
        index.commit()
        assert index.count() == 0


# Integers


def test_the_first_commit_decides_the_scale_and_later_weights_are_clipped(tmp_path):
    with LuceneIndex(tmp_path / "i", create=True, vocabulary=VOCABULARY) as index:
        fill(index)
        assert state_of(index).legs == {}
        index.add(documents("a"), encode([{0: 0.5}]))
        index.commit()
        index.add(documents("bc"), encode([{0: 0.75}, {0: 0.25}]))
        index.commit()
        facts = index.info()["quantization"]["lexical"]
    with open_index(f"lucene:{tmp_path / 'i'}", create=True) as index:
        again = index.info()["quantization"]["lexical"]
        assert again == facts
        assert (again["bits"], again["top"], again["clipped"], again["rows"]) == (8, 0.5, 1, 3)
        assert again["max_error"] == 0.25
        assert again["mean_error"] == pytest.approx((0.25 + abs(0.25 - 128 * 0.5 / 255)) / 3)
        query = encode([{0: 1.0}], patches=False)
        assert found(index, query)[:2] == [
            ("a", pytest.approx(0.5, abs=1e-4)),
            ("b", pytest.approx(0.5, abs=1e-4)),
        ]
        assert index.bound(query)[0] >= 0.25
        assert index.fetch(["b"]).encoding.lexical[[0], [0]][0] == 0.75  # exact all the same


def test_a_given_scale(tmp_path):
    given = ImpactQuantizer(2.0, 0.5, 2.0, bits=2)
    with LuceneIndex(tmp_path / "i", create=True, quantizer=given) as index:
        index.add(documents("abc"), Encoding(matrix([[2.0], [0.9], [0.1]])))
        index.commit()
        assert [(n, round(s, 3)) for n, s in found(index, Encoding(matrix([[1.0]])))] == [
            ("a", 2.0), ("b", 0.667), ("c", 0.667),
        ]  # fmt: skip
        assert index.info()["quantization"]["lexical"]["bits"] == 2


def test_overlap_says_whether_integers_give_the_same_answers(tmp_path):
    rng = np.random.default_rng(2)
    fine = Encoding(sparse.csr_array(rng.random((300, 40), dtype=np.float32)))
    for bits, low, high in ((8, 0.9, 1.0), (1, 0.0, 0.8)):
        given = ImpactQuantizer(1.0, 0.0001, 1.0, bits=bits)
        with LuceneIndex(tmp_path / str(bits), create=True, quantizer=given) as index:
            index.add(documents([str(i) for i in range(300)]), fine)
            index.commit()
            assert low <= index.info()["quantization"]["lexical"]["overlap@10"] <= high


# What is kept


def test_dense_vectors_are_kept_and_not_searched(index):
    fill(index, "a")
    assert index.fetch(["a"]).encoding.dense.tolist() == [[1, 0, 0]]
    with pytest.raises(UnsupportedError, match="store dense vectors and do not search them"):
        index.search(QUERY, leg="dense")
    facts = index.info()
    assert facts["legs"] == {"lexical": WORDS, "codes": 4, "dense": 3}
    assert facts["searched_legs"] == ["lexical", "codes", "text"]


def test_rows_with_and_without_patches(index):
    fill(index, "a")
    index.add(documents("b"), encode([{0: 1.0, 3: 0.5}], patches=False))
    index.commit()
    assert index.fetch(["b"]).encoding.patches is None
    assert index.fetch(["b", "a"]).encoding.patches.tolist() == [-1, -1, 0, 3]


def test_info_and_compact(index):
    fill(index, "a", "b", "c")
    index.delete(["a"])
    index.commit()
    facts = index.info()
    assert (facts["documents"], facts["segments"]) == (2, 1)
    assert facts["engine"] == "lucene"
    assert facts["mean_active_words"] == 2
    assert facts["vocabulary_sha256"] == VOCABULARY.sha256
    assert (facts["model"], index.model) == ("m", "m")
    json.dumps(facts)
    index.compact()
    facts = index.info()
    assert (facts["documents"], facts["segments"], facts["deleted_rows"]) == (2, 1, 0)
    assert facts["bytes"] == sum(f.stat().st_size for f in index.directory.iterdir())
    commit = facts["commit"]
    index.compact()
    index.commit()
    assert index.info()["commit"] == commit  # nothing to do
