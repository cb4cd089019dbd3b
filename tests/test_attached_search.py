"""Searching a user's own Elasticsearch index: ids and scores against brute force."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

import elastic_fakes
from attached_fakes import ATTACHMENT, made, products
from indexer_fakes import QUERY, VOCABULARY, brute_force, encode, found, random_rows, scores
from lexvla.errors import (
    IndexCorruptError,
    IndexMissingError,
    UnknownDocumentError,
    UnsupportedError,
)
from lexvla.vocabulary import Vocabulary
from lexvla_indexer import open_index
from lexvla_indexer.elastic import AttachedIndex
from lexvla_indexer.elastic.attached_document import attached_document
from lexvla_indexer.elastic.connection import Address, connect

pytestmark = pytest.mark.elasticsearch

ROWS = random_rows(np.random.default_rng(5), 60)
PRODUCTS = products(64)  # of the last four nothing was encoded
NAMES = [product["id"] for product in PRODUCTS]
STORED = encode(ROWS)


@pytest.fixture(scope="module")
def address(tmp_path_factory) -> Iterator[str]:
    with elastic_fakes.cleaned():
        place = elastic_fakes.address(tmp_path_factory.mktemp("own"))
        made(place, ROWS, PRODUCTS)
        yield place


@pytest.fixture
def index(address) -> Iterator[AttachedIndex]:
    with open_index(address, vocabulary=VOCABULARY) as opened:
        assert isinstance(opened, AttachedIndex)
        yield opened


@pytest.mark.parametrize("leg", ["lexical", "dense"])
@pytest.mark.parametrize("k", [1, 3, 10, 100])
def test_each_leg_finds_what_brute_force_finds(index, leg, k):
    expected = brute_force(leg, NAMES[:60], STORED, QUERY, k)
    hits = found(index, QUERY, k, leg)
    assert [name for name, _ in hits] == [name for name, _ in expected]
    assert [score for _, score in hits] == pytest.approx([s for _, s in expected], rel=1e-6)


def test_equal_scores_are_ordered_by_id_across_shards(tmp_path):
    place = elastic_fakes.address(tmp_path)
    names = [f"p{i:03}" for i in range(90)]
    rows = [{0: 1.0}] * 90
    made(place, rows, [{"id": name} for name in reversed(names)])
    with open_index(place) as index:
        for k in (1, 7, 89, 100):
            assert found(index, QUERY, k) == [(name, 1.0) for name in names[:k]]
            assert [name for name, _ in found(index, QUERY, k, "dense")] == names[:k]


def test_scores_of_chosen_documents(index):
    names = [NAMES[3], NAMES[63], "nobody", NAMES[8]]
    for leg in ("lexical", "dense"):
        exact = [scores(leg, STORED[row], QUERY)[0] for row in (3, 8)]
        expected = [exact[0], 0.0, 0.0, exact[1]]
        assert index.rescore(QUERY, leg, names) == pytest.approx(expected, rel=1e-6)


def test_documents_and_their_exact_rows(index):
    assert index.count() == 64
    names = ["p07", "p00", NAMES[63]]
    fetched = index.fetch(names)
    product = next(each for each in PRODUCTS if each["id"] == "p07")
    document = fetched.documents[0]
    assert (document.id, document.uri) == ("p07", "https://shop.example/p07.jpg")
    assert document.text == f"{product['title']}\n\n{product['description']}"
    assert document.fingerprint == f"f{NAMES.index('p07')}"
    assert document.metadata == {
        **{name: product[name] for name in ("brand", "tags", "price", "weight", "stock")},
        **{name: product[name] for name in ("sale", "released")},
        "maker.name": product["maker"]["name"],
    }
    rows = [NAMES.index(name) for name in names[:2]]
    for got in (fetched.encoding, index.vectors(names)):
        assert (got.lexical[[0, 1]] != STORED.lexical[rows]).nnz == 0
        assert got.lexical[[2]].nnz == 0
        assert got.dense.tolist() == [*STORED.dense[rows].tolist(), [0.0, 0.0, 0.0]]
        patches = np.concatenate([STORED[row].patches for row in rows])
        assert got.patches.tolist() == patches.tolist()
    with pytest.raises(UnknownDocumentError, match="nobody"):
        index.vectors(["p07", "nobody"])


def test_what_a_document_shows():
    source = {
        "title": ["a", "b", 3],
        "description": "c",
        "photo": [{"url": "one.jpg"}, {"url": "two.jpg"}],
        "maker.name": "Zoe",
        "maker": {"since": [1999]},
        "tags": [{"name": "x"}, {"name": "y"}],
        "sizes": [1, 2],
        "mixed": ["a", 1],
        "none": None,
        "empty": {},
        "lex": {"word1": 1.0},
        "other": [0.5, 0.25],
        "lexvla": {"fingerprint": "f", "strongest": ["word1"]},
    }
    document = attached_document("p", source, ATTACHMENT, ["other"])
    assert document.text == "a b 3\n\nc"
    assert document.uri == "one.jpg"
    assert document.metadata == {"maker.name": "Zoe", "maker.since": 1999, "tags.name": ["x", "y"]}
    assert document.fingerprint == "f"
    for image in ("data:image/png;base64,AA==", "A" * 3000, 7):
        assert attached_document("p", {"photo": {"url": image}}, ATTACHMENT, []).uri == ""


def test_bans_and_requirements_look_at_the_strongest_words(index):
    row = 4
    column = max(ROWS[row], key=ROWS[row].__getitem__)
    bearers = {name for name, own in zip(NAMES, ROWS, strict=False) if column in own}
    every = [name for name, _ in brute_force("lexical", NAMES[:60], STORED, QUERY, 100)]
    banned, required = index.constrained([column], []), index.constrained([], [[column]])
    assert [n for n, _ in found(banned)] == [n for n in every if n not in bearers]
    assert [n for n, _ in found(required)] == [n for n in every if n in bearers]
    assert banned.count() == 64 - len(bearers)


def test_facts(index):
    facts = index.info()
    assert facts["attached"] is True
    assert (facts["documents"], facts["documents_filled"]) == (64, 60)
    assert facts["documents_rejected"] == 0
    assert facts["legs"] == {"lexical": 12, "dense": 3}
    assert facts["text_fields"] == ["title", "description"]
    assert index.model == "rows"
    assert index.legs() == ("lexical", "dense", "text")
    assert index.verify() == []


def test_what_would_write_is_refused(index, address):
    documents, encoding = index.fetch(["p01"])
    assert index.documents(["p01"]) == documents
    rule = "is an index of your own, which is attached: LexVLA only searches it"
    for write in (
        lambda: index.add(documents, encoding),
        lambda: index.delete(["p01"]),
        index.commit,
        index.compact,
        index.publish,
        index.rollback,
        lambda: index.write_note("fusion", {}),
        lambda: open_index(address, create=True),
        lambda: open_index(address, rebuild=True),
    ):
        with pytest.raises(UnsupportedError, match=rule):
            write()
    assert index.read_note("fusion") is None
    assert index.fetch(["p01"]).documents == documents


def test_other_indexes_are_not_attached(address, tmp_path):
    with pytest.raises(UnsupportedError, match="is not attached"):
        place = elastic_fakes.address(tmp_path)
        with open_index(place, create=True):
            AttachedIndex(place)
    with pytest.raises(IndexCorruptError, match="and it is not attached; lexvla attach"):
        place = elastic_fakes.address(tmp_path / "own")
        with connect(Address.parse(place)) as client:
            client.indices.create(index=Address.parse(place).name)
        open_index(place)
    with pytest.raises(IndexMissingError, match="no index at"):
        open_index(elastic_fakes.address(tmp_path / "other"))
    with pytest.raises(Exception, match="was made with"):
        open_index(address, vocabulary=Vocabulary(["else"]))


def test_a_document_that_lost_its_vectors(tmp_path):
    place = elastic_fakes.address(tmp_path)
    made(place, ROWS[:3], PRODUCTS[:3])
    with open_index(place) as index:
        name = index._store.index
        client = index._client
        client.index(index=name, id="q", document={"lexvla": {"fingerprint": "f"}}, refresh=True)
        rejected = {"lexvla": {"fingerprint": "f", "rejected": "no image"}}
        client.index(index=name, id="r", document=rejected, refresh=True)
        assert index.verify() == ["document 'q' has lost vectors; attach the index again"]
        assert index.info()["documents_rejected"] == 1
        assert ATTACHMENT.lexical_field == "lex"
