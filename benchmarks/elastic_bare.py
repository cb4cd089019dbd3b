"""The plain client of Elasticsearch, as used without this package."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any, NamedTuple, Self
from unittest import mock

import numpy as np
from elasticsearch import Elasticsearch
from elasticsearch.helpers import streaming_bulk
from scipy import sparse

from lexvla.encoding import Encoding
from lexvla_indexer import Document, ElasticIndex
from lexvla_indexer.elastic.elasticsearch_product import ELASTICSEARCH
from lexvla_indexer.elastic.layout import ID, State, mappings, settings
from lexvla_indexer.elastic.product import Json
from lexvla_indexer.elastic.writer import sources

HITS = "hits.hits._id,hits.hits._score"


class Request(NamedTuple):
    """One request of HTTP."""

    method: str
    target: str
    headers: Any
    body: Any


class Bare:
    """Maintain an index of the same form as `ElasticIndex` with the plain client.

    Args:
        url: Address of the server.
        index: Name of the index, which is deleted at the end.
        width: Number of words.
        asked: Name of the searched index: that of this package, so that both search the same one.
    """

    def __init__(self, url: str, index: str, width: int, asked: str) -> None:
        self._client = Elasticsearch(url, request_timeout=600)
        self._index, self.asked = index, asked
        self._terms = list(map(str, range(width)))
        made = mappings(State(widths={"lexical": width}), ELASTICSEARCH)
        chosen = settings(1, ELASTICSEARCH)
        ELASTICSEARCH.create_index(self._client, index, chosen, mappings=made)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        with closing(self._client):
            self._client.indices.delete(index=self._index)

    def actions(self, documents: Sequence[Document], encoding: Encoding) -> list[Json]:
        """Return the bulk actions of `load`."""
        bodies = map(json.loads, sources(documents, encoding, self._terms, ELASTICSEARCH))
        return [{"_index": self._index, "_id": body[ID], "_source": body} for body in bodies]

    def load(self, actions: Sequence[Json]) -> None:
        """Send documents and refresh."""
        for _ in streaming_bulk(self._client, actions):
            pass
        self._client.indices.refresh(index=self._index)

    def compact(self) -> None:
        """Merge all segments into one."""
        self._client.indices.forcemerge(index=self._index, max_num_segments=1)

    def search(self, body: Json) -> list[tuple[str, float]]:
        """Return ids and scores."""
        answer = self._client.search(index=self.asked, body=body, filter_path=HITS)
        return pairs(answer)

    def many(self, bodies: Sequence[Json]) -> list[list[tuple[str, float]]]:
        """Return ids and scores of several searches."""
        searches: list[Json] = []
        for body in bodies:
            searches += [{"index": self.asked}, body]
        path = ",".join(f"responses.{each}" for each in HITS.split(","))
        answer = self._client.msearch(searches=searches, filter_path=path)
        return [pairs(each) for each in answer["responses"]]

    def repeat(self, requests: Sequence[Request]) -> list[Any]:
        """Repeat the requests of another client, and return all answers."""
        send = self._client.transport.perform_request
        return [
            send(method, target, headers=headers, body=body).body
            for method, target, headers, body in requests
        ]


def sent(index: ElasticIndex, ask: Callable[[], Any]) -> list[Request]:
    """Return the requests that an index sends to answer a question, except the alias lookup."""
    found: list[Request] = []
    transport = index._client.transport
    send = transport.perform_request

    def noted(method: str, target: str, **rest: Any) -> Any:
        if "/_mapping" not in target:
            found.append(Request(method, target, rest.get("headers"), rest.get("body")))
        return send(method, target, **rest)

    with mock.patch.object(transport, "perform_request", noted):
        ask()
    return found


def pairs(answer: Any) -> list[tuple[str, float]]:
    """Return ids and scores of an answer."""
    return [(hit["_id"], hit["_score"]) for hit in answer["hits"]["hits"]]


def truncated(rows: sparse.csr_array) -> sparse.csr_array:
    """Return rows as the server stores them, with 9 significant bits for each weight."""
    data = ((rows.data.view(np.uint32) >> 15) << 15).view(np.float32)
    return sparse.csr_array((data, rows.indices, rows.indptr), shape=rows.shape)
