"""Filters as queries of Elasticsearch: what servers limit, and what terms cannot tell."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings

import elastic_fakes
import filter_fakes
from indexer_fakes import QUERY, VOCABULARY, encode
from lexvla_indexer import Document, ElasticIndex
from lexvla_indexer.elastic import selection
from lexvla_indexer.elastic.selection import any_of
from lexvla_indexer.filter_terms import LONGEST
from lexvla_indexer.filters import Filter


@pytest.fixture(scope="module")
def address(tmp_path_factory) -> Iterator[str]:
    with elastic_fakes.cleaned():
        yield elastic_fakes.address(tmp_path_factory.mktemp("i"))


@pytest.fixture
def index(address: str) -> Iterator[ElasticIndex]:
    with ElasticIndex(address, True, VOCABULARY, rebuild=True) as made:
        yield made


def put(index: ElasticIndex, made: list[Document]) -> None:
    index.add(made, encode([{0: 1.0}] * len(made)))
    index.commit()


def found(index: ElasticIndex, text: str) -> list[str]:
    return index.search(QUERY, 100, filter=text)[0].ids


def levels(query: object) -> int:
    """Return how many levels of queries the server counts."""
    if isinstance(query, list):
        return max(map(levels, query), default=0)
    if not isinstance(query, dict):
        return 0
    inner = [levels(part) for part in query.values()]
    return max(inner, default=0) + ("bool" in query or "terms" in query or "range" in query)


def test_terms_come_in_chunks() -> None:
    names = [f"{i:06}" for i in range(300_000)]
    chunks = any_of("id", names)["bool"]["should"]
    assert [len(chunk["terms"]["id"]) for chunk in chunks] == [65_536] * 4 + [37_856]
    assert sorted(name for chunk in chunks for name in chunk["terms"]["id"]) == names
    assert any_of("id", []) == {"match_none": {}}


def deepest() -> list[str]:
    """Return filters of 32 levels of parentheses and ``not``."""
    text = "n = 1"
    for i in range(32):
        text = f"(n != {i % 8} {'or' if i % 3 else 'and'} {text})"
    return [text, "not (" * 16 + "n > 3 or n = 1" + ")" * 16, "not " * 32 + "n = 1"]


@pytest.mark.parametrize("text", deepest())
def test_no_query_is_deeper_than_servers_read(text) -> None:
    made = selection.selection(Filter.parse(text), lambda _: [])
    assert levels(made) <= 25


@pytest.mark.elasticsearch
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(filter_fakes.documents, filter_fakes.filters)
def test_many_filters_on_many_documents(index, made, tree):
    """One index for all examples: each writes over the documents of the one before."""
    index.delete([f"d{i}" for i in range(8)])
    index.commit()
    made = [Document(f"d{i}", d.uri, d.text, d.metadata, d.fingerprint) for i, d in enumerate(made)]
    made.append(filter_fakes.EVERY)
    put(index, made)
    texts = [filter_fakes.written(tree), f"not ({filter_fakes.written(tree)})"]
    for document in made:
        for key, value in list(document.metadata.items())[:3]:
            if not isinstance(value, list):
                field = filter_fakes.json.dumps(key)
                signs = ("=", "!=") if isinstance(value, bool) else filter_fakes.OPERATORS
                texts += [f"{field} {sign} {filter_fakes.json.dumps(value)}" for sign in signs]
    for text in texts:
        expected = [d.id for d in made if Filter.parse(text).matches(d)]
        assert found(index, text) == expected, text


@pytest.mark.elasticsearch
def test_strings_longer_than_are_compared_by_their_characters(index):
    same = "x" * LONGEST
    values = ["", same[:-1], same, same + "a", same + "ab", same[:-1] + "y", "z" * 40_000]
    made = [Document(f"d{i}", metadata={"t": value}) for i, value in enumerate(values)]
    made.append(Document("e", metadata={"t": [same + "a", "z"]}))
    put(index, made)
    for value in [*values, same + "aa"]:
        for sign in filter_fakes.OPERATORS:
            for form in ("{}", "not {}"):
                text = form.format(f't {sign} "{value}"')
                assert found(index, text) == [d.id for d in made if Filter.parse(text).matches(d)]


@pytest.mark.elasticsearch
def test_numbers_and_fields_longer_than_a_term_of_a_range(index):
    field, huge = "f" * 2000, 10**4000
    values = [huge, huge + 1, -huge, 1, 0.5]
    made = [Document(f"d{i}", metadata={"n": value, field: i}) for i, value in enumerate(values)]
    put(index, made)
    for sign in filter_fakes.OPERATORS:
        for text in (f"n {sign} {huge}", f"n {sign} -{huge}", f"{field} {sign} 2"):
            assert found(index, text) == [d.id for d in made if Filter.parse(text).matches(d)]


@pytest.mark.elasticsearch
def test_the_deepest_filters(index):
    made = [Document(f"d{i}", metadata={"n": i}) for i in range(8)]
    put(index, made)
    for text in deepest():
        tree = Filter.parse(text)
        assert found(index, text) == [d.id for d in made if tree.matches(d)]


@pytest.mark.elasticsearch
def test_as_many_ids_as_a_filter_may_have(index):
    made = [Document(f"d{i}") for i in range(5)]
    put(index, made)
    names = ", ".join(f"x{i:06}" for i in range(199_998))
    assert found(index, f"id in ({names}, d1, d3)") == ["d1", "d3"]
    assert found(index, f"not id in ({names}, d1, d3)") == ["d0", "d2", "d4"]


@pytest.mark.elasticsearch
def test_filters_on_large_ids_in_batches(index):
    put(index, [Document(f"d{i}") for i in range(5)])
    banned = ", ".join(f"x{i:05}{'y' * 40}" for i in range(50_000))
    queries = encode([{0: 1.0}] * 6, patches=False)
    answered = index.search(queries, 3, filter=f"not id in ({banned}, d0)")
    assert [results.ids for results in answered] == [["d1", "d2", "d3"]] * 6
