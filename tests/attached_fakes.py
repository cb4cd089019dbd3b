"""A shop's own Elasticsearch index with vectors of ours, written by bulk requests."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from indexer_fakes import VOCABULARY, encode
from lexvla_indexer.elastic.attachment import Attachment, write_attachment
from lexvla_indexer.elastic.connection import Address, connect
from lexvla_indexer.elastic.product import Json
from lexvla_indexer.strongest import strongest

ATTACHMENT = Attachment(
    image_field="photo.url",
    text_fields=("title", "description"),
    lexical_field="lex",
    dense_field="vec",
    model="rows",
    vocabulary_sha256=VOCABULARY.sha256,
    widths={"lexical": len(VOCABULARY), "dense": 3},
)
PROPERTIES: Json = {
    "title": {"type": "text", "fields": {"keyword": {"type": "keyword"}}},
    "description": {"type": "text"},
    "brand": {"type": "keyword"},
    "tags": {"type": "keyword"},
    "price": {"type": "double"},
    "weight": {"type": "float"},
    "stock": {"type": "integer"},
    "sizes": {"type": "integer"},
    "sale": {"type": "boolean"},
    "released": {"type": "date"},
    "maker": {"properties": {"name": {"type": "keyword"}}},
    "attributes": {"type": "flattened"},
    "variants": {"type": "nested", "properties": {"colour": {"type": "keyword"}}},
    "photo": {"properties": {"url": {"type": "keyword"}}},
    "picked": {"type": "keyword", "doc_values": False},
}


def made(
    address: str,
    rows: Sequence[Mapping[int, float]],
    products: Sequence[Json],
    attachment: Attachment = ATTACHMENT,
    shards: int = 3,
) -> None:
    """Make the index; a product without a row is one that was not filled yet."""
    place = Address.parse(address)
    encoding = encode(rows)
    with connect(place) as client:
        client.indices.create(
            index=place.name,
            settings={"number_of_shards": shards, "number_of_replicas": 0},
            mappings={"_meta": {"team": "shop"}, "properties": PROPERTIES},
        )
        write_attachment(client, place, attachment, VOCABULARY)
        lines: list[Json] = []
        for at, product in enumerate(products):
            source = {name: value for name, value in product.items() if name != "id"}
            if at < len(rows):
                source |= vectors_of(encoding, at)
            lines += [{"index": {"_id": product["id"]}}, source]
        answer = client.bulk(index=place.name, operations=lines, refresh=True)
        assert not answer["errors"], answer


def vectors_of(encoding: Any, row: int) -> Json:
    start, end = encoding.lexical.indptr[row : row + 2]
    columns, weights = encoding.lexical.indices[start:end], encoding.lexical.data[start:end]
    return {
        "lex": {VOCABULARY.terms[c]: float(w) for c, w in zip(columns, weights, strict=True)},
        "vec": encoding.dense[row].tolist(),
        "lexvla": {
            "fingerprint": f"f{row}",
            "patches": base64.b64encode(encoding.patches[start:end].astype("<i2")).decode(),
            "strongest": [VOCABULARY.terms[c] for c in strongest(columns, weights)],
        },
    }


def products(count: int) -> list[Json]:
    """Return products whose order of ids is not that in which they are written."""
    rng = np.random.default_rng(3)
    names = [f"p{i:02}" for i in rng.permutation(count)]
    words = ("red", "blue", "shoe", "hat", "wool")
    return [
        {
            "id": name,
            "title": " ".join(rng.choice(words, int(rng.integers(1, 4)))),
            "description": " ".join(rng.choice(words, int(rng.integers(2, 9)))),
            "brand": f"brand{i % 3}",
            "tags": [f"t{i % 2}", f"t{i % 5}"],
            "price": i / 4,
            "weight": 0.1 * (i % 4),
            "stock": i % 7,
            "sizes": [i, i + 1],
            "sale": i % 2 == 0,
            "released": f"2024-01-{1 + i % 28:02}",
            "maker": {"name": f"maker{i % 4}"},
            "photo": {"url": f"https://shop.example/{name}.jpg"},
        }
        for i, name in enumerate(names)
    ]
