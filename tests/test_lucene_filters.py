"""What filters of the Lucene engine rest on: terms in the order of their values."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given

import filter_fakes
from indexer_fakes import QUERY, VOCABULARY, encode
from lexvla.errors import FilterSyntaxError
from lexvla_indexer import Document
from lexvla_indexer.filter_terms import LONGEST, digits, terms_of
from lexvla_indexer.filters import Filter
from lexvla_indexer.lucene import LuceneIndex
from lexvla_indexer.lucene.layout import END


@given(filter_fakes.numbers, filter_fakes.numbers)
def test_digits_are_in_the_order_of_numbers(one, other):
    assert (digits(one) < digits(other)) == (one < other)
    assert (digits(one) == digits(other)) == (one == other)


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "8"),
        (-0.0, "8"),
        (1, "980000000"),
        (1.0, "980000000"),
        (3, "9800000018"),
        (0.5, "97fffffff"),
        (-1, "77fffffffg"),
        (-3, "77ffffffe7g"),
        (2**53 + 1, "98000003500000000000008"),
    ],
)
def test_digits(number, text):
    assert digits(number) == text


def test_conditions_of_a_document():
    document = Document("a", text="t", metadata={"n": [], "tag": ["x", "x"], "ok": True})
    assert sorted(END.join(terms_of(document)).split("\0")) == [
        *("id\x01\x03S", "id\x01\x03sa", "n\x01\x03S", "ok\x01\x03b1", "tag\x01\x03S"),
        *("tag\x01\x03lx", "text\x01\x03S", "text\x01\x03st", "uri\x01\x03S", "uri\x01\x03s"),
    ]
    assert "id\x01\x03N" in terms_of(Document("a", metadata={"id": 1}))
    terms = list(terms_of(Document("a", text="\0\x01")))
    assert terms[-1] == "text\x01\x03s\x01\x01\x01\x02"


@pytest.fixture
def index(tmp_path: Path) -> Iterator[LuceneIndex]:
    with LuceneIndex(tmp_path / "i", create=True, vocabulary=VOCABULARY) as made:
        yield made


def found(index: LuceneIndex, text: str) -> list[str]:
    return index.search(QUERY, 100, filter=text)[0].ids


@pytest.mark.java
def test_strings_longer_than_are_compared_by_their_characters(index):
    same = "x" * LONGEST
    values = [
        "",
        same[:-1],
        same,
        same + "a",
        same + "ab",
        same + "b",
        same[:-1] + "y",
        "z" * 40_000,
    ]
    made = [Document(f"d{i}", metadata={"t": value}) for i, value in enumerate(values)]
    made.append(Document("e", metadata={"t": [same + "a", "z"]}))
    index.add(made, encode([{0: 1.0}] * len(made)))
    index.commit()
    for value in [*values, same + "aa", "y"]:
        for sign in ("=", "!=", "<", "<=", ">", ">="):
            for form in ("{}", "not {}", "id != d3 and {}"):
                text = form.format(f't {sign} "{value}"')
                assert found(index, text) == [d.id for d in made if Filter.parse(text).matches(d)]


@pytest.mark.java
def test_numbers_and_fields_longer_than_a_term_of_a_range(index):
    field, huge = "f" * 2000, 10**4000
    values = [huge, huge + 1, -huge, 1, 0.5]
    made = [Document(f"d{i}", metadata={"n": value, field: i}) for i, value in enumerate(values)]
    index.add(made, encode([{0: 1.0}] * len(made)))
    index.commit()
    for sign in ("=", "!=", "<", "<=", ">", ">="):
        for text in (f"n {sign} {huge}", f"n {sign} -{huge}", f"{field} {sign} 2"):
            assert found(index, text) == [d.id for d in made if Filter.parse(text).matches(d)]


@pytest.mark.java
def test_a_filter_answers_for_each_commit_anew(index):
    def put(name: str, year: int) -> None:
        index.add([Document(name, metadata={"year": year})], encode([{0: 1.0}]))
        index.commit()

    put("a", 2020)
    assert found(index, "year = 2020") == ["a"]
    put("b", 2020)
    assert found(index, "year = 2020") == ["a", "b"]
    put("a", 2021)
    assert found(index, "year = 2020") == ["b"]
    assert found(index, "year >= 2020") == ["a", "b"]
    index.compact()
    assert found(index, "year = 2020") == ["b"]


@pytest.mark.java
def test_a_filter_that_cannot_be_read(index):
    with pytest.raises(FilterSyntaxError, match="column 5"):
        index.search(QUERY, filter="year")
