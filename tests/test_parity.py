"""The same answers from every engine: the embedded one, Lucene, Elasticsearch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from itertools import permutations

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import elastic_fakes
import filter_fakes
import opensearch_fakes
from engine_parity import (
    Engine,
    ban,
    check,
    compare,
    hostile_ids,
    put,
    queries,
    random_stored,
)
from indexer_fakes import LEGS, QUERY, documents, encode
from lexvla.encoding import Encoding
from lexvla.errors import InputError
from lexvla_indexer import Document
from lexvla_indexer.facets import Facet
from lexvla_indexer.filters import Comparison
from lexvla_indexer.scope import Scope
from lexvla_indexer.sort_keys import key_of
from listing_fakes import counted, listed
from postings_fakes import searching

EMBEDDED = Engine("embedded", str, lambda: searching("numba"), LEGS, True)
NUMPY = Engine("numpy", str, lambda: searching("numpy"), LEGS, True)
LUCENE = Engine("lucene", lambda path: f"lucene:{path}", nullcontext, ("lexical", "codes"), False)
ELASTIC = Engine("elastic", elastic_fakes.address, elastic_fakes.cleaned, LEGS, False, False)
OPENSEARCH = Engine(
    "opensearch", opensearch_fakes.address, opensearch_fakes.cleaned, LEGS, False, False
)


@pytest.fixture(
    params=[
        pytest.param(EMBEDDED, id="embedded"),
        pytest.param(NUMPY, id="numpy"),
        pytest.param(LUCENE, id="lucene", marks=pytest.mark.java),
        pytest.param(ELASTIC, id="elastic", marks=pytest.mark.elasticsearch),
        pytest.param(OPENSEARCH, id="opensearch", marks=pytest.mark.opensearch),
    ]
)
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    if request.param is EMBEDDED:
        pytest.importorskip("numba", reason="needs numba: pip install 'lexvla[fast]'")
    with request.param.context():
        yield request.param


@pytest.mark.parametrize("k", [1, 7, 1000])
def test_many_commits_upserts_and_deletions(engine, tmp_path, k):
    rng = np.random.default_rng(3)
    stored = random_stored(rng, [f"d{i:03}" for i in rng.permutation(300)])
    ids = list(stored)
    with engine.open(tmp_path / "i") as index:
        for start, stop in ((0, 1), (1, 120), (120, 300)):
            put(index, {name: stored[name] for name in ids[start:stop]})
        changed = random_stored(rng, ids[50:90])
        put(index, changed)
        stored |= changed
        gone = ids[::7]
        assert index.delete([*gone, "unknown"]) == len(gone)
        index.commit()
        stored = {name: pair for name, pair in stored.items() if name not in gone}
        assert index.count() == len(stored)
        for query in queries(rng, 4):
            check(engine, index, stored, query, k)
        index.compact()
        for query in queries(rng, 4):
            check(engine, index, stored, query, k)
        back = index.fetch(list(stored))
        assert back.documents == [document for document, _ in stored.values()]
        assert_same(back.encoding, encode([row for _, row in stored.values()]))
        some = [*list(stored)[50:100:3], *list(stored)[:60:7], list(stored)[50]]
        assert_same(index.vectors(some), encode([stored[name][1] for name in some]))


def assert_same(found: Encoding, expected: Encoding) -> None:
    for leg in ("lexical", "codes"):
        assert (getattr(found, leg) != getattr(expected, leg)).nnz == 0
    assert (found.patches == expected.patches).all()
    assert (found.dense == expected.dense).all()


def test_filters_come_before_the_best_are_taken(engine, tmp_path):
    rng = np.random.default_rng(4)
    stored = random_stored(rng, [f"d{i:03}" for i in range(200)])
    with engine.open(tmp_path / "i") as index:
        for start in range(0, 200, 80):
            put(index, dict(list(stored.items())[start : start + 80]))
        index.delete(["d000", "d100"])
        index.commit()
        del stored["d000"], stored["d100"]
        for text in (
            "year >= 2005 and tag = cat",
            "not tag = cat",
            "year < 2003 or id in (d001, d002, d100)",
            'text != "text of d001"',
            "year > 3000",
            "id in ()",
        ):
            for query in queries(rng, 2):
                for k in (3, 1000):
                    check(engine, index, stored, query, k, text)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(filter_fakes.documents, filter_fakes.filters)
def test_any_filter_on_any_documents(engine, tmp_path_factory, made, tree):
    made = [Document(f"d{i}", d.uri, d.text, d.metadata, d.fingerprint) for i, d in enumerate(made)]
    made.append(filter_fakes.EVERY)
    with engine.open(tmp_path_factory.mktemp("index") / "i") as index:
        index.add(made, encode([{0: 1.0}] * len(made)))
        index.commit()
        assert index.fetch([d.id for d in made]).documents == made
        assert index.documents([d.id for d in made]) == made
        (results,) = index.search(QUERY, filter=filter_fakes.written(tree))
        assert results.ids == [d.id for d in made if tree.matches(d)]


def test_every_operator_means_the_same(engine, tmp_path):
    held = [*("a", "b", "c", 1, 2, 2.5, True), ["b"], ["a", "c"]]
    made = [Document(f"d{i}", metadata={"x": value}) for i, value in enumerate(held)]
    with engine.open(tmp_path / "i") as index:
        index.add(made, encode([{0: 1.0}] * len(made)))
        index.commit()
        for sign in filter_fakes.OPERATORS:
            for value in ("b", 2):
                tree = Comparison("x", sign, value)
                expected = [d.id for d in made if tree.matches(d)]
                assert index.search(QUERY, filter=filter_fakes.written(tree))[0].ids == expected


def test_a_field_that_no_document_has_is_named_with_those_that_there_are(engine, tmp_path):
    held = [{"year": 1, "tag": []}, {"a b\x01": True, "Tag": "x"}, {}, {"year": 2, "é" * 250: 1}]
    made = [Document(f"d{i}", metadata=metadata) for i, metadata in enumerate(held)]
    with engine.open(tmp_path / "i") as index:
        assert index.search(QUERY, filter="yaer = 1")[0].ids == []
        index.add(made, encode([{0: 1.0}] * 4))
        index.commit()
        for text in ("yaer = 1", "not yaer = 1", "year = 1 or (id = d0 and not yaer in ())"):
            with pytest.raises(InputError) as caught:
                index.search(QUERY, filter=text)
            assert caught.value.item == "yaer"
            known, long = caught.value.rule.rsplit(", ", 1)
            there = "there are id, uri, text, Tag, a b\x01, tag, year"
            assert known == f"no document has such a field to filter by; {there}"
            assert set(long) == {"é"}
        assert index.search(QUERY, filter="tag != x and uri != x")[0].ids == ["d0"]
        assert index.search(QUERY, filter=f"{'é' * 250} = 1")[0].ids == ["d3"]


def test_equal_scores_come_by_id_across_commits(engine, tmp_path):
    names = ["b", "é", "z", "\U0001f600", "\uffff", "a", "c", "Z", "a b", "\ud7ff"]
    with engine.open(tmp_path / "i") as index:
        for part in (names[:5], names[5:]):
            index.add(documents(part), encode([{0: 1.0, 3: 0.5}] * len(part)))
            index.commit()
        for k in (1, 4, 99):
            assert index.search(QUERY, k)[0].ids == sorted(names)[:k]
        index.compact()
        assert index.search(QUERY, 99)[0].ids == sorted(names)


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(hostile_ids)
def test_any_ids(engine, tmp_path_factory, names):
    with engine.open(tmp_path_factory.mktemp("index") / "i") as index:
        index.add(documents(names), encode([{0: 1.0}] * len(names)))
        index.commit()
        assert index.search(QUERY, 99)[0].ids == sorted(names)
        assert index.fetch(names).documents == documents(names)
        assert index.fingerprints(names) == dict.fromkeys(names, "")
        (results,) = index.search(QUERY, 99, filter=ban(names[:1]))
        assert results.ids == sorted(names[1:])
        assert index.delete(names[1:]) == len(names) - 1
        index.commit()
        assert index.search(QUERY, 99)[0].ids == names[:1]


def test_empty_vectors_and_empty_queries(engine, tmp_path):
    with engine.open(tmp_path / "i") as index:
        assert index.search(QUERY)[0].ids == []
        index.add(documents("ab"), encode([{}, {1: 1.0}]))
        index.commit()
        assert index.count() == 2
        assert [r.ids for r in index.search(encode([{}, {1: 0.5}, {2: 1.0}]))] == [[], ["b"], []]
        assert index.fetch(["a"]).encoding.lexical.nnz == 0
        assert index.vectors(["b", "a"]).lexical.nnz == 1
        assert len(index.fetch([]).encoding) == len(index.vectors([])) == 0
        index.delete([*"ab"])
        index.commit()
        assert (index.count(), index.search(QUERY)[0].ids) == (0, [])


def test_all_scores_equal_beyond_the_end_of_the_index(engine, tmp_path):
    names = [f"{i:04}" for i in range(1500)]
    with engine.open(tmp_path / "i") as index:
        index.add(documents(names[::-1]), encode([{0: 0.5}] * len(names)))
        index.commit()
        exact = dict.fromkeys(names, 0.5)
        for k in (10, 1499, 10**6):
            (results,) = index.search(QUERY, k)
            compare(results, exact, k, engine.bound(index, QUERY, "lexical"), engine.is_exact)
            assert results.ids == names[:k]


def test_a_hundred_thousand_ids_in_a_filter(engine, tmp_path):
    names = [f"d{i:04}" for i in range(3000)]
    banned = [f"x{i:06}" for i in range(97_003)] + names[:-3]
    with engine.open(tmp_path / "i") as index:
        index.add(documents(names), encode([{0: 1.0}] * len(names)))
        index.commit()
        (results,) = index.search(QUERY, filter=ban(banned))
        assert results.ids == names[-3:]


def test_many_queries_at_once(engine, tmp_path):
    rng = np.random.default_rng(5)
    stored = random_stored(rng, [f"d{i:03}" for i in range(100)])
    asked = encode([{i % 12: 1.0, (i * 5) % 12: 0.3} for i in range(30)], patches=False)
    with engine.open(tmp_path / "i") as index:
        put(index, stored)
        for leg in engine.legs:
            together = index.search(asked, 5, leg)
            alone = [index.search(asked[i], 5, leg)[0] for i in range(30)]
            assert [r.ids for r in together] == [r.ids for r in alone]
            assert [r.scores.tolist() for r in together] == [r.scores.tolist() for r in alone]


def test_what_is_staged_shows_at_commit_only(engine, tmp_path):
    with engine.open(tmp_path / "i") as index:
        index.add(documents("ab"), encode([{0: 1.0}] * 2))
        assert index.count() == 0
        assert index.fingerprints([*"abc"]) == {"a": "", "b": ""}
        index.commit()
        assert index.delete(["a"]) == 1
        assert index.delete(["a"]) == 0
        assert index.search(QUERY)[0].ids == ["a", "b"]
        with engine.open(tmp_path / "i", create=False) as reader:
            assert reader.search(QUERY)[0].ids == ["a", "b"]
            index.commit()
            if engine.keeps_views:  # that of the last search
                assert reader.fetch(["a"]).documents == reader.documents(["a"]) == documents("a")
                assert reader.vectors(["a"]).lexical.nnz
            assert reader.search(QUERY)[0].ids == ["b"]
            with pytest.raises(KeyError):
                reader.fetch(["a"])
            with pytest.raises(KeyError):
                reader.documents(["a"])
            with pytest.raises(KeyError):
                reader.vectors(["a"])
    with engine.open(tmp_path / "i", create=False) as index:
        index.add(documents("c"), encode([{0: 1.0}]))
    with engine.open(tmp_path / "i", create=False) as index:
        assert index.search(QUERY)[0].ids == ["b"]


def assert_lists(index, made, scope, sort, page):
    """Compare a listing, read page by page, with brute force."""
    expected, found, after = listed(made, scope, sort), [], None
    assert index.count(scope) == len(expected)
    while True:
        documents, positions = index.list_documents(scope, sort, page, after)
        found += documents
        assert len(positions) == len(documents) <= page
        if len(documents) < page:
            break
        after = positions[-1]
    assert [document.id for document in found] == expected
    by_id = {document.id: document for document in made}
    assert found == [by_id[name] for name in expected]


def assert_counts(index, made, scope, facets):
    found = {name: counts.to_dict() for name, counts in index.facets(facets, scope).items()}
    assert found == {facet.field: counted(made, scope, facet) for facet in facets}


def test_listings_and_facets_over_many_commits(engine, tmp_path):
    rng = np.random.default_rng(6)
    stored = random_stored(rng, [f"d{i:03}" for i in rng.permutation(150)])
    facets = [Facet("tag", 1), Facet("year", ranges=[(None, 2003), (2003, 2007), (2007, None)])]
    with engine.open(tmp_path / "i") as index:
        assert index.list_documents() == ([], [])
        assert index.list_documents(sort="year") == ([], [])
        assert index.facets([Facet("year")])["year"].to_dict() == {
            "values": [],
            "other": 0,
            "missing": 0,
        }
        ids = list(stored)
        for part in (ids[:100], ids[100:]):
            put(index, {name: stored[name] for name in part})
        index.delete(ids[::9])
        index.commit()
        made = [stored[name][0] for name in ids if name not in ids[::9]]
        few = Scope("year >= 2003", only={*ids[:80], "unknown"}, but={*ids[:20], "unknown"})
        for scope in (Scope(), Scope("tag = cat"), few, Scope(only=[]), Scope(but=ids[:3])):
            for sort in ((), ("-year",), ("tag", "-year")):
                assert_lists(index, made, scope, sort, 40)
            assert_counts(index, made, scope, facets)
        with pytest.raises(InputError, match="such a field to sort by; there are tag, year"):
            index.list_documents(sort=["yaer"])
        for name in ("yaer", "uri"):
            with pytest.raises(InputError, match="such a field to count by; there are tag, year"):
                index.facets([Facet(name)])


def test_a_field_whose_name_starts_others(engine, tmp_path):
    values = [{"a": "x"}, {"a.b": 1}, {"a.b": True, "a": 1}, {"a.b.c": ["y"]}, {"a": []}, {}]
    made = [Document(f"d{i}", metadata=metadata) for i, metadata in enumerate(values)]
    facets = [Facet("a"), Facet("a.b"), Facet("a.b.c", ranges=[("x", None)])]
    with engine.open(tmp_path / "i") as index:
        index.add(made, encode([{0: 1.0}] * len(made)))
        index.commit()
        assert_lists(index, made, Scope(), ["a", "-a.b"], 2)
        assert_counts(index, made, Scope(), facets)


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(filter_fakes.documents, st.data())
def test_any_listing_and_facets_of_any_documents(engine, tmp_path_factory, made, data):
    made = [Document(f"d{i}", d.uri, d.text, d.metadata, d.fingerprint) for i, d in enumerate(made)]
    if engine in (ELASTIC, OPENSEARCH):
        made = [d for d in made if all(map(_is_typed, d.metadata.items()))]
        assume(made)
    own = ("", "id", "uri", "text")
    fields = sorted({field for d in made for field in d.metadata if field not in own})
    named = st.sampled_from(fields) if fields else st.nothing()
    sort = data.draw(st.lists(named, max_size=3, unique=True)) if fields else []
    sort = [data.draw(st.sampled_from(["", "-"])) + field for field in sort]
    facets = [_facet(data, field) for field in fields[:4]]
    with engine.open(tmp_path_factory.mktemp("index") / "i") as index:
        index.add(made, encode([{0: 1.0}] * len(made)))
        index.commit()
        assert_lists(index, made, Scope(), sort, data.draw(st.integers(1, 3)))
        assert_counts(index, made, Scope(but=["d1"]), facets)


def _is_typed(item):
    """Tell whether the server's typed fields can have a value of metadata as it is."""
    name, value = item
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return bool(name.strip()) and (not is_number or abs(value) <= 2**53)


def _facet(data, field):
    limits = data.draw(st.lists(filter_fakes.strings | filter_fakes.numbers, max_size=3))
    ranges = []
    for limit in limits:
        ranges += [(None, limit), (limit, None)]
    for low, high in permutations(limits, 2):
        if isinstance(low, str) == isinstance(high, str) and key_of(low) < key_of(high):
            ranges.append((low, high))
    return Facet(field, data.draw(st.integers(1, 3)), ranges or None)


def test_fingerprints_by_their_start(engine, tmp_path, monkeypatch):
    monkeypatch.setattr("lexvla_indexer.base._LISTED", 2)  # several pages
    made = [
        Document(name, fingerprint=fingerprint)
        for name, fingerprint in (("b", "1:x:y"), ("é", "1:z:z"), ("a", "12:x:y"), ("c", ""))
    ]
    with engine.open(tmp_path / "i") as index:
        assert list(index.fingerprinted("1:")) == []
        index.add(made, encode([{0: 0.5}] * 4))
        index.commit()
        assert list(index.fingerprinted("1:")) == [("b", "1:x:y"), ("é", "1:z:z")]
        assert list(index.fingerprinted()) == sorted((d.id, d.fingerprint) for d in made)
        index.delete(["b"])
        index.commit()
        assert list(index.fingerprinted("1:")) == [("é", "1:z:z")]
