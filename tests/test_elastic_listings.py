"""Sorting and counting by the server's typed fields, and where they end."""

from __future__ import annotations

import pytest

import elastic_fakes
from indexer_fakes import VOCABULARY, encode
from lexvla.errors import UnsupportedError
from lexvla_indexer import Document, ElasticIndex
from lexvla_indexer.facets import Facet

pytestmark = pytest.mark.elasticsearch


def test_a_field_that_the_server_could_not_type_is_named(tmp_path):
    held = [{" ": 1, "empty": [], "n": 2**60}, {"n": 2**60 + 1}, {"n": 1}]
    made = [Document(f"d{i}", metadata=metadata) for i, metadata in enumerate(held)]
    place = elastic_fakes.address(tmp_path)
    with elastic_fakes.cleaned(), ElasticIndex(place, True, VOCABULARY) as index:
        index.add(made, encode([{0: 1.0}] * 3))
        index.commit()
        for ask in (
            lambda: index.list_documents(sort=" "),
            lambda: index.facets([Facet("n"), Facet(" ")]),
        ):
            with pytest.raises(UnsupportedError, match="no typed field of ' ' to"):
                ask()
        assert [d.id for d in index.list_documents(sort="empty").documents] == ["d0", "d1", "d2"]
        assert index.facets([Facet("empty")])["empty"].missing == 3
        # Numbers of more than 53 bits are equal in float64.
        counts = index.facets([Facet("n")])["n"].values
        assert counts == [(2**60, 2), (1, 1)]
        listed = index.list_documents(sort="-n", limit=2)
        assert [d.id for d in listed.documents] == ["d0", "d1"]
        with pytest.raises(ValueError, match="no position in such an order"):
            index.list_documents(sort="n", after=("[1]", "d0"))
