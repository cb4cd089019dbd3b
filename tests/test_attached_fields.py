"""Filters, orders and facets of a user's own Elasticsearch fields, against Python's own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import elastic_fakes
from attached_fakes import made, products
from indexer_fakes import QUERY, brute_force, encode, random_rows
from lexvla.errors import InputError, UnsupportedError
from lexvla_indexer import open_index
from lexvla_indexer.base import Index
from lexvla_indexer.elastic.mapped_fields import MappedFields
from lexvla_indexer.facets import Facet
from lexvla_indexer.filters import Filter
from lexvla_indexer.scope import Scope

pytestmark = pytest.mark.elasticsearch

ROWS = random_rows(np.random.default_rng(6), 40)
PRODUCTS = products(40)
PRODUCTS[7] |= {"attributes": {"colour": "red"}, "tags": [], "price": None}
PRODUCTS[8].pop("brand")
ROUNDING = 1e-6
NAMES = [product["id"] for product in PRODUCTS]
STORED = encode(ROWS)


@pytest.fixture(scope="module")
def index(tmp_path_factory) -> Iterator[Index]:
    with elastic_fakes.cleaned():
        address = elastic_fakes.address(tmp_path_factory.mktemp("own"))
        made(address, ROWS, PRODUCTS)
        with open_index(address) as opened:
            yield opened


def price(product):
    return -1 if product["price"] is None else product["price"]


FILTERS = {
    "price >= 2.5 and price < 5": lambda p: 2.5 <= price(p) < 5,
    "price = 2.5": lambda p: p["price"] == 2.5,
    "price != 2.5": lambda p: p["price"] not in (2.5, None),
    "not price = 2.5": lambda p: p["price"] != 2.5,
    "stock > 2.5": lambda p: p["stock"] > 2.5,
    "stock = 2.5": lambda p: False,
    "stock in (1, 3, 5.0)": lambda p: p["stock"] in (1, 3, 5),
    "weight = 0.1": lambda p: p["weight"] == 0.1,
    "brand = brand1": lambda p: p.get("brand") == "brand1",
    "brand != brand1": lambda p: p.get("brand") not in ("brand1", None),
    "brand > brand0": lambda p: p.get("brand", "") > "brand0",
    "tags = t4 or maker.name in (maker1, maker2)": lambda p: (
        "t4" in p["tags"] or p["maker"]["name"] in ("maker1", "maker2")
    ),
    "sizes <= 3": lambda p: p["sizes"][0] <= 3,
    "sale = true": lambda p: p["sale"],
    "sale != true and not (stock in ())": lambda p: not p["sale"],
    'released >= "2024-01-10" and released <= "2024-01-12"': lambda p: (
        "2024-01-10" <= p["released"] <= "2024-01-12"
    ),
    'released = "2024-01-10"': lambda p: p["released"] == "2024-01-10",
    'title = "red"': lambda p: p["title"] == "red",
    "attributes.colour = red": lambda p: "attributes" in p,
    "id in (p01, p02, nobody)": lambda p: p["id"] in ("p01", "p02"),
    "id != p01": lambda p: p["id"] != "p01",
    "photo.url = 'https://shop.example/p05.jpg'".replace("'", '"'): lambda p: p["id"] == "p05",
}


@pytest.mark.parametrize("text", FILTERS)
def test_filters_are_clauses_of_their_own_fields(index, text):
    keeps = FILTERS[text]
    kept = {product["id"] for product in PRODUCTS if keeps(product)}
    assert index.count(Scope(text)) == len(kept)
    ranked = brute_force("lexical", NAMES, STORED, QUERY, 100)
    expected = [pair for pair in ranked if pair[0] in kept]
    (results,) = index.search(QUERY, 100, "lexical", text)
    assert results.ids == [name for name, _ in expected]
    assert results.scores.tolist() == pytest.approx([score for _, score in expected])
    (dense,) = index.search(QUERY, 5, "dense", text)
    near = brute_force("dense", NAMES, STORED, QUERY, 100)
    expected = [name for name, score in near if name in kept and score > ROUNDING][:5]
    assert dense.ids[: int(np.count_nonzero(dense.scores > ROUNDING))] == expected


NUMBERS = {"stock": range(-1, 8), "price": (0, 2.25, 5, 99), "weight": (0, 0.1)}
STRINGS = {"brand": ("brand0", "brand1", "brandx"), "maker.name": ("maker2", "m")}
comparisons = st.one_of(
    st.builds(
        lambda field, sign, at: f"{field} {sign} {at}",
        field,
        st.sampled_from(("=", "!=", "<", "<=", ">", ">=")),
        st.sampled_from(tuple(values)),
    )
    for field, values in ((st.just(f), v) for f, v in (NUMBERS | STRINGS).items())
)
lists = st.lists(st.sampled_from(("t0", "t1", "t4", "t9")), max_size=3).map(
    lambda tags: f"tags in ({', '.join(tags)})"
)
trees = st.recursive(
    comparisons | lists | st.sampled_from(("sale = true", "sale != true", "tags != t1")),
    lambda inner: (
        inner.map("not ({})".format)
        | st.builds("({}) and ({})".format, inner, inner)
        | st.builds("({}) or ({})".format, inner, inner)
    ),
    max_leaves=5,
)


@settings(max_examples=40, deadline=None)
@given(text=trees)
def test_filters_mean_what_they_mean_on_other_engines(index, text):
    read = index.fetch(NAMES).documents
    parsed = Filter.parse(text)
    assert index.count(Scope(text)) == sum(parsed.matches(document) for document in read)


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        ("colour = red", InputError, "no document has such a field to filter by; there are id, "),
        ("description = red", UnsupportedError, "'description' is of type text and has no sub-"),
        ("variants.colour = red", UnsupportedError, "is in nested documents"),
        ("lex = red", UnsupportedError, "is of type sparse_vector, which has no value to filter"),
        ("price = '2'", InputError, "of type double in the index: compare it with a number with"),
        ("brand = 2", InputError, "of type keyword in the index: compare it with a string in"),
        ("sale = 1", InputError, "compare it with true or false, not 1"),
        ("released = true", InputError, "compare it with a date in double quotes, not true"),
        ("released = soon", InputError, "^'released': .* failed to parse date field"),
        ("id > p01", InputError, "cannot order documents by _id"),
    ],
)
def test_filters_that_cannot_be_asked(index, text, error, said):
    with pytest.raises(error, match=said):
        index.search(QUERY, 5, "lexical", text.replace("'", '"'))


def test_deep_filters(index):
    text = "(" * 30 + "sale = true" + " and sale = true)" * 30
    assert index.count(Scope(text)) == 20


def listed(index: Index, sort: list[str], limit: int, scope: Scope) -> list[str]:
    """Return all ids, a page at a time."""
    names, after = [], None
    while True:
        page = index.list_documents(scope, sort, limit, after)
        names += [document.id for document in page.documents]
        if len(page.documents) < limit:
            return names
        after = page.positions[-1]


def test_documents_in_the_order_of_their_fields(index):
    number = {p["id"]: p["stock"] for p in PRODUCTS}
    for limit in (1, 7, 100):
        names = listed(index, ["-stock"], limit, Scope())
        assert sorted(names) == sorted(NAMES)
        assert [number[name] for name in names] == sorted(number.values(), reverse=True)
        assert names == listed(index, ["-stock"], 40, Scope())
    by_two = listed(index, ["brand", "-price"], 3, Scope("sale = true"))
    expected = sorted(
        (p for p in PRODUCTS if p["sale"]),
        key=lambda p: (p.get("brand", "z"), -price(p)),
    )
    assert by_two == [product["id"] for product in expected]
    one, two, three = NAMES[:3]  # by their prices
    assert listed(index, ["-price"], 6, Scope(but=[two], only=[one, two, three])) == [three, one]
    assert sorted(listed(index, [], 9, Scope())) == sorted(NAMES)


def test_facets_are_aggregations(index):
    asked = [Facet("brand"), Facet("tags", 2), Facet("stock"), Facet("sale"), Facet("weight")]
    counts = index.facets([*asked, Facet("released", 1), Facet("title", 1)])
    brands = Counter(p["brand"] for p in PRODUCTS if "brand" in p)
    assert dict(counts["brand"].values) == brands
    assert counts["brand"].missing == 1
    tags = Counter(tag for p in PRODUCTS for tag in set(p["tags"]))
    best = sorted(tags.items(), key=lambda pair: (-pair[1], pair[0]))[:2]
    assert list(counts["tags"].values) == best
    assert counts["tags"].other == tags.total() - sum(count for _, count in best)
    assert dict(counts["stock"].values) == Counter(p["stock"] for p in PRODUCTS)
    assert dict(counts["sale"].values) == Counter(p["sale"] for p in PRODUCTS)
    assert dict(counts["weight"].values) == {0: 10, 0.1: 10, 0.2: 10, 0.3: 10}
    assert list(counts["released"].values) == [("2024-01-01T00:00:00.000Z", 2)]
    titles = Counter(p["title"] for p in PRODUCTS)
    assert counts["title"].values[0][1] == max(titles.values())


def test_facets_of_ranges(index):
    asked = [
        Facet("price", ranges=[(None, 2), (2, 5), (5, None)]),
        Facet("released", ranges=[(None, "2024-01-10"), ("2024-01-10", None)]),
    ]
    counts = index.facets(asked, Scope("sale = true"))
    prices = [p["price"] for p in PRODUCTS if p["sale"]]
    assert [count for _, count in counts["price"].ranges] == [
        sum(value < 2 for value in prices),
        sum(2 <= value < 5 for value in prices),
        sum(value >= 5 for value in prices),
    ]
    days = [p["released"] for p in PRODUCTS if p["sale"]]
    early = sum(day < "2024-01-10" for day in days)
    assert [count for _, count in counts["released"].ranges] == [early, len(days) - early]


@pytest.mark.parametrize(
    ("field", "error", "said"),
    [
        ("description", UnsupportedError, "'description' is of type text"),
        ("picked", UnsupportedError, "'picked' has no doc_values to"),
        ("id", InputError, "the server cannot (sort|count) by _id"),
        ("colour", InputError, "no document has such a field to (sort|count) by"),
    ],
)
def test_fields_that_have_no_order(index, field, error, said):
    with pytest.raises(error, match=said):
        index.list_documents(sort=[field])
    with pytest.raises(error, match=said):
        index.facets([Facet(field)])


def test_fields_of_a_mapping():
    keyword = {"type": "keyword"}
    fields = MappedFields(
        "x",
        {
            "properties": {
                "a": {"type": "alias", "path": "b.c"},
                "b": {"properties": {"c": {"type": "text", "fields": {"raw": keyword}}}},
                "hidden": {"type": "keyword", "index": False, "doc_values": False},
            },
            "runtime": {"day": {"type": "keyword"}},
        },
    )
    assert fields.comparable("a", "filter by").name == "b.c.raw"
    assert fields.comparable("b.c.raw", "filter by").name == "b.c.raw"
    assert fields.ordered("day", "sort by").kind == "keyword"
    with pytest.raises(UnsupportedError, match="'hidden' is neither indexed"):
        fields.comparable("hidden", "filter by")
    with pytest.raises(InputError, match=r"there are id, a, b\.c, b\.c\.raw, day$"):
        fields.comparable("none", "filter by")
