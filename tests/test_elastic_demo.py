"""The demo's emoji through Elasticsearch: the same hits as from the embedded engine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import elastic_fakes
from lexvla import LexVLA
from lexvla.data.demo_corpus import extract_demo_corpus
from lexvla_indexer import index_source, open_index
from lexvla_search import Query, Searcher
from lexvla_search.encoded_query import encode_query

pytestmark = [pytest.mark.elasticsearch, pytest.mark.slow]

QUERIES = ("red heart", "animal that lives in the sea", "fruit", "smiling cat", "green leaf")
PICTURES = 250


def test_the_demo_s_hits(tmp_path: Path) -> None:
    model = LexVLA.from_pretrained()
    manifest = extract_demo_corpus(tmp_path / "images")
    lines = manifest.read_text().splitlines(keepends=True)
    manifest.write_text("".join(lines[:: len(lines) // PICTURES][:PICTURES]))
    made = {"vocabulary": model.vocabulary, "model": model.name}
    with (
        elastic_fakes.cleaned(),
        open_index(tmp_path / "demo.lex", create=True, **made) as embedded,
        open_index(elastic_fakes.address(tmp_path), create=True, **made) as elastic,
    ):
        index_source(manifest, embedded, model)
        count = embedded.count()
        assert count == PICTURES
        ids = [line.split('"id": "')[1].split('"')[0] for line in manifest.read_text().splitlines()]
        stored = embedded.fetch(ids)
        elastic.add(stored.documents, stored.encoding)
        elastic.commit()
        assert elastic.count() == count
        back = elastic.fetch(ids)
        assert back.documents == stored.documents
        assert (back.encoding.lexical != stored.encoding.lexical).nnz == 0
        cut = stored.encoding.lexical.astype(np.float64)
        cut.data = elastic_fakes.stored(stored.encoding.lexical.data).astype(np.float64)
        for text in QUERIES:
            query = encode_query(Query(text), model).encoding
            sums = (cut @ query.lexical.astype(np.float64).T).toarray()[:, 0]
            foretold = dict(zip(ids, sums.tolist(), strict=True))
            (results,) = elastic.search(query, 1000)
            order = sorted((n for n in ids if foretold[n] > 0), key=lambda n: (-foretold[n], n))
            assert results.ids == order
            assert results.scores == pytest.approx([foretold[n] for n in order], rel=1e-5)
            ours = Searcher(model, elastic).search(Query(text), 5)
            theirs = Searcher(model, embedded).search(Query(text), 5)
            assert [hit.id for hit in ours] == [hit.id for hit in theirs]
            for hit, exact in zip(ours, theirs, strict=True):
                assert hit.score == pytest.approx(exact.score, rel=2**-8)
