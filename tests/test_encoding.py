from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import sparse

from lexvla.encoding import Encoding
from lexvla.errors import UnsupportedError, VocabularyMismatchError
from lexvla.vocabulary import Vocabulary


def csr(rows: list[list[float]]) -> sparse.csr_array:
    return sparse.csr_array(np.array(rows, np.float32))


def small() -> Encoding:
    return Encoding(
        csr([[0.6, 0, 0.8], [0, 0, 0], [0, 1, 0]]),
        np.array([3, 1, 2], np.int16),
        csr([[0.5, 0.5], [1, 0], [0, 0]]),
        np.eye(3, 4, dtype=np.float32),
    )


def assert_same(one: Encoding, other: Encoding) -> None:
    for leg in ("lexical", "codes"):
        mine, yours = getattr(one, leg), getattr(other, leg)
        assert (mine is None) == (yours is None)
        if mine is not None:
            assert mine.shape == yours.shape
            for part in ("data", "indices", "indptr"):
                np.testing.assert_array_equal(getattr(mine, part), getattr(yours, part))
    for leg in ("patches", "dense"):
        mine, yours = getattr(one, leg), getattr(other, leg)
        assert (mine is None) == (yours is None)
        if mine is not None:
            assert mine.dtype == yours.dtype
            np.testing.assert_array_equal(mine, yours)


@st.composite
def encodings(draw: st.DrawFn, width: int = 5, image: bool | None = None) -> Encoding:
    n = draw(st.integers(0, 4))
    image = draw(st.booleans()) if image is None else image
    # Weights above zero, down to the smallest that float32 has, or none.
    weights = st.one_of(st.just(0.0), st.floats(0, 2, width=32))
    lexical = sparse.csr_array(draw(hnp.arrays(np.float32, (n, width), elements=weights)))
    if not image:
        return Encoding(lexical)
    codes = sparse.csr_array(draw(hnp.arrays(np.float32, (n, 3), elements=weights)))
    patches = draw(hnp.arrays(np.int16, lexical.nnz, elements=st.integers(0, 255)))
    dense = draw(hnp.arrays(np.float32, (n, 2), elements=st.floats(-1, 1, width=32)))
    return Encoding(lexical, patches, codes, dense)


def test_one_row_carries_its_own_parts() -> None:
    row = small()[2]
    assert len(row) == 1
    assert row.lexical.toarray().tolist() == [[0, 1, 0]]
    assert row.patches is not None
    assert row.patches.tolist() == [2]
    assert row.patches.dtype == np.int16
    assert row.codes is not None
    assert row.codes.toarray().tolist() == [[0, 0]]
    assert row.dense is not None
    assert row.dense.tolist() == [[0, 0, 1, 0]]


@pytest.mark.parametrize(
    ("index", "rows"),
    [
        (0, [0]),
        (-1, [2]),
        (slice(1, None), [1, 2]),
        (slice(None, None, -1), [2, 1, 0]),
        (slice(3, None), []),
        ([2, 0, 2], [2, 0, 2]),
        ([], []),
        (np.array([True, False, True]), [0, 2]),
        (np.int64(1), [1]),
    ],
)
def test_indexing(index: int | slice | list[int] | np.ndarray, rows: list[int]) -> None:
    part = small()[index]
    spans = [[3, 1], [], [2]]
    assert part.lexical.toarray().tolist() == small().lexical.toarray()[rows].tolist()
    assert part.patches is not None
    assert part.patches.tolist() == [patch for row in rows for patch in spans[row]]
    assert part.codes is not None
    assert part.codes.toarray().tolist() == small().codes.toarray()[rows].tolist()
    assert part.dense is not None
    assert part.dense.shape == (len(rows), 4)


def test_an_index_out_of_range_is_an_error() -> None:
    with pytest.raises(IndexError):
        small()[3]
    with pytest.raises(IndexError):
        small()[[0, 5]]


@pytest.mark.parametrize("column", [3, 2**31 - 1, -1])
@pytest.mark.parametrize("leg", ["lexical", "codes"])
def test_columns_lie_within_the_width(leg: str, column: int) -> None:
    bad = csr([[0, 0.5, 0.5]])
    bad.indices[-1 if column > 0 else 0] = column  # sorted all the same
    parts = {"lexical": csr([[0, 0.5, 0.5]]), leg: bad}
    with pytest.raises(ValueError, match=f"{leg} must have column numbers from 0 to 2"):
        Encoding(**parts)


def test_iteration_gives_rows() -> None:
    rows = list(small())
    assert [len(row) for row in rows] == [1, 1, 1]
    assert_same(Encoding.concat(rows), small())


def test_encodings_compare_by_identity() -> None:
    one = small()
    assert one == one
    assert one != small()
    assert {one: 1}[one] == 1


F32 = np.float32


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"lexical": sparse.csr_array(np.ones((2, 3)))}, "must be float32, not float64"),
        ({"lexical": csr([[1, -1]])}, "finite values above zero"),
        ({"lexical": csr([[1, np.nan]])}, "finite values above zero"),
        ({"lexical": csr([[1, np.inf]])}, "finite values above zero"),
        (
            {"lexical": sparse.csr_array((np.zeros(1, F32), [0], [0, 1]), shape=(1, 2))},
            "finite values above zero",
        ),
        (
            {"lexical": sparse.csr_array((np.ones(2, F32), [1, 0], [0, 2]), shape=(1, 2))},
            "sorted column numbers",
        ),
        (
            {"lexical": sparse.csr_array((np.ones(2, F32), [1, 1], [0, 2]), shape=(1, 2))},
            "each once",
        ),
        ({"codes": csr([[1]])}, "codes has 1 rows, lexical has 2"),
        ({"patches": np.zeros(3, np.int16)}, "one for each stored word"),
        ({"patches": np.zeros(2, np.int32)}, "must be int16"),
        ({"dense": np.zeros((1, 4), F32)}, "one row for each item"),
        ({"dense": np.zeros((2, 4))}, "float32"),
        ({"dense": np.zeros(2, F32)}, "matrix"),
        ({"dense": np.array([[np.nan], [0]], F32)}, "finite"),
    ],
)
def test_bad_parts_are_refused(
    parts: dict[str, sparse.csr_array | np.ndarray], message: str
) -> None:
    lexical = csr([[1, 0, 0], [0, 0.5, 0]])
    with pytest.raises(ValueError, match=message):
        Encoding(**{"lexical": lexical, **parts})  # type: ignore[arg-type]


@given(encoding=encodings())
def test_save_and_load(tmp_path_factory: pytest.TempPathFactory, encoding: Encoding) -> None:
    path = tmp_path_factory.mktemp("encoding") / "vectors.npz"
    encoding.save(path)
    assert_same(Encoding.load(str(path)), encoding)


@given(parts=st.booleans().flatmap(lambda image: st.lists(encodings(image=image), min_size=1)))
def test_concat_then_slice_gives_the_parts(parts: list[Encoding]) -> None:
    whole = Encoding.concat(parts)
    assert len(whole) == sum(map(len, parts))
    start = 0
    for part in parts:
        assert_same(whole[start : start + len(part)], part)
        start += len(part)


@given(encoding=encodings(), data=st.data())
def test_picking_rows_twice_is_picking_once(encoding: Encoding, data: st.DataObject) -> None:
    rows = st.lists(st.integers(0, max(len(encoding) - 1, 0)), max_size=6 * bool(len(encoding)))
    first = data.draw(rows)
    second = data.draw(st.lists(st.integers(0, max(len(first) - 1, 0)), max_size=4 * bool(first)))
    assert_same(encoding[first][second], encoding[[first[i] for i in second]])


def test_concat_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="nothing to concatenate"):
        Encoding.concat([])
    full = small()
    for leg in ("patches", "codes", "dense"):
        lacking = Encoding(
            full.lexical,
            None if leg == "patches" else full.patches,
            None if leg == "codes" else full.codes,
            None if leg == "dense" else full.dense,
        )
        with pytest.raises(ValueError, match=f"some encodings have {leg} and some have none"):
            Encoding.concat([full, lacking])
    with pytest.raises(ValueError, match="dimension"):
        Encoding.concat([Encoding(csr([[1, 0]])), Encoding(csr([[1, 0, 0]]))])


def test_load_refuses_other_files(tmp_path: Path) -> None:
    whole = tmp_path / "whole.npz"
    small().save(whole)
    newer = tmp_path / "newer.npz"
    np.savez(newer, format_version=np.array(2))
    partial = tmp_path / "partial.npz"
    np.savez(partial, format_version=np.array(1), dense=np.zeros((1, 1), F32))
    array = tmp_path / "array.npy"
    np.save(array, np.zeros(3))
    other = tmp_path / "other.npz"
    np.savez(other, weights=np.zeros(3))
    half = tmp_path / "half.npz"
    half.write_bytes(whole.read_bytes()[:-100])
    text = tmp_path / "text.npz"
    text.write_text("no vectors")
    empty = tmp_path / "empty.npz"
    empty.write_bytes(b"")
    with pytest.raises(ValueError, match="format 2 is newer"):
        Encoding.load(newer)
    for path in (partial, array, other, half, text, empty):
        with pytest.raises(ValueError, match="the encoding cannot be read"):
            Encoding.load(path)
    with pytest.raises(FileNotFoundError):
        Encoding.load(tmp_path / "missing.npz")


def test_a_damaged_byte_raises_a_value_error_or_nothing(tmp_path: Path) -> None:
    path = tmp_path / "vectors.npz"
    Encoding(csr([[0.6, 0, 0.8]]), np.zeros(2, np.int16), None, np.eye(1, 3, dtype=F32)).save(path)
    whole = path.read_bytes()
    refused = 0
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        try:
            Encoding.load(path)
        except ValueError:
            refused += 1
    assert refused > len(whole) // 2


def test_jsonl_is_anserinis_vector_collection(tmp_path: Path) -> None:
    path = tmp_path / "vectors.jsonl"
    encoding = Encoding(csr([[0.126, 0, 0.001], [0, 0, 0], [0, 0.9, 0]]))
    encoding.to_jsonl(path, ["a", "b", "ç"], Vocabulary(["▁dog", "s", "é"]))
    assert path.read_text(encoding="utf-8").splitlines() == [
        '{"id": "a", "contents": "", "vector": {"▁dog": 13, "é": 1}}',
        '{"id": "b", "contents": "", "vector": {}}',
        '{"id": "ç", "contents": "", "vector": {"s": 90}}',
    ]


def test_jsonl_keeps_texts_beside_vectors(tmp_path: Path) -> None:
    path = tmp_path / "vectors.jsonl"
    encoding = Encoding(csr([[0.5, 0.25]]))
    encoding.to_jsonl(path, ["a"], Vocabulary("ab"), scale=2048, contents=["two words"])
    line = '{"id": "a", "contents": "two words", "vector": {"a": 1024, "b": 512}}\n'
    assert path.read_text(encoding="utf-8") == line
    with pytest.raises(ValueError, match="0 texts for 1 items"):
        encoding.to_jsonl(path, ["a"], Vocabulary("ab"), contents=[])


@pytest.mark.parametrize("term", ["red heart", "a\u3000b", "\n", "x" * 256, "\U0001f600" * 128])
def test_jsonl_refuses_terms_that_anserini_would_split(tmp_path: Path, term: str) -> None:
    with pytest.raises(UnsupportedError, match="Anserini splits terms"):
        Encoding(csr([[1.0]])).to_jsonl(tmp_path / "x.jsonl", ["a"], Vocabulary([term]))
    assert not (tmp_path / "x.jsonl").exists()


def test_jsonl_takes_terms_of_any_other_characters(tmp_path: Path) -> None:
    terms = ["a\u00a0b", "x" * 255, "\U0001f600" * 127, "red heart"]  # the last is not used
    Encoding(csr([[1.0, 1, 1, 0]])).to_jsonl(tmp_path / "x.jsonl", ["a"], Vocabulary(terms))
    assert set(json.loads((tmp_path / "x.jsonl").read_text())["vector"]) == set(terms[:3])


@given(encoding=encodings(), scale=st.integers(1, 1000))
def test_jsonl_keeps_every_word_within_half_a_step(
    tmp_path_factory: pytest.TempPathFactory, encoding: Encoding, scale: int
) -> None:
    path = tmp_path_factory.mktemp("jsonl") / "vectors.jsonl"
    vocabulary = Vocabulary("abcde")
    ids = [str(i) for i in range(len(encoding))]
    encoding.to_jsonl(path, ids, vocabulary, scale=scale)
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [line["id"] for line in lines] == ids
    for line, weights in zip(lines, encoding.lexical.toarray(), strict=True):
        assert set(line["vector"]) == {vocabulary.terms[c] for c in np.flatnonzero(weights)}
        for term, impact in line["vector"].items():
            exact = float(weights[vocabulary.id(term)]) * scale
            assert impact >= 1
            assert abs(impact - exact) <= max(0.5, 1 - exact) + 1e-3


def test_jsonl_refuses_what_does_not_fit(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="2 ids for 3 items"):
        small().to_jsonl(tmp_path / "x.jsonl", ["a", "b"], Vocabulary("abc"))
    with pytest.raises(VocabularyMismatchError, match="2 terms for 3 columns"):
        small().to_jsonl(tmp_path / "x.jsonl", ["a", "b", "c"], Vocabulary("ab"))
    assert not (tmp_path / "x.jsonl").exists()
