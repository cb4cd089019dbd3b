"""Requests that the server fuses itself: one for all legs, and the retrievers of its paid licence.

Send them with `ElasticIndex.send`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from lexvla.encoding import Encoding
from lexvla.errors import UnsupportedError
from lexvla_indexer.elastic.requests import WINDOW
from lexvla_indexer.legs import Leg

if TYPE_CHECKING:
    from lexvla_indexer.elastic.engine import ElasticIndex

__all__ = ["Retriever", "hybrid_request", "retriever_request"]

Json = dict[str, Any]
Retriever = Literal["rrf", "linear"]

_LEAST_WINDOW = 100  # hits of each leg that a retriever fuses


def hybrid_request(
    index: ElasticIndex,
    query: Encoding,
    k: int = 10,
    boosts: Mapping[Leg, float] | None = None,
    filter: str | None = None,  # noqa: A002 - the public word for it
) -> Json:
    """Return one request, ``query`` with ``knn``, for the boosted sum of all legs in common.

    Of the dense leg, its score on the server counts, which is 1 + the inner product, and only for
    its best k.

    Args:
        index: Which is asked.
        query: One row.
        k: How many hits are wanted.
        boosts: The factors; a leg without one counts once.
        filter: Which documents may be hits.
    """
    body: Json = {"size": min(k, WINDOW), "_source": False, "track_total_hits": False}
    sparse = []
    for leg, made in index.queries(query, k, None, filter).items():
        boost = float((boosts or {}).get(leg, 1.0))
        if leg == "dense" and query.dense is not None:
            neighbours = {**made["knn"], "query_vector": query.dense[0].tolist()}
            body["knn"] = {**neighbours, "k": min(k, made["knn"]["k"]), "boost": boost}
        else:
            sparse.append({"bool": {"must": [made], "boost": boost}})
    if sparse:
        body["query"] = {"bool": {"should": sparse, "minimum_should_match": 1}}
    return body


def retriever_request(
    index: ElasticIndex,
    query: Encoding,
    kind: Retriever,
    k: int = 10,
    weights: Mapping[Leg, float] | None = None,
    filter: str | None = None,  # noqa: A002 - the public word for it
    constant: int = 60,
) -> Json:
    """Return one request that the server fuses by ``rrf`` or ``linear``, of its paid licence.

    Where the licence is another, sending it raises `UnsupportedError`.

    Args:
        index: Which is asked.
        query: One row.
        kind: ``rrf``: reciprocal ranks; ``linear``: weighted scores of 0 to 1.
        k: How many hits are wanted.
        weights: Those of ``linear``; a leg without one counts once.
        filter: Which documents may be hits.
        constant: That of reciprocal ranks.

    Raises:
        UnsupportedError: Weights for reciprocal ranks.
    """
    if kind == "rrf" and weights:
        raise UnsupportedError("the retriever rrf takes no weights; use linear")
    queries = index.queries(query, k, None, filter)
    parts: list[Json] = [{"standard": {"query": made}} for made in queries.values()]
    fused: Json = {"retrievers": parts, "rank_window_size": max(min(k, WINDOW), _LEAST_WINDOW)}
    if kind == "rrf":
        fused["rank_constant"] = constant
    else:
        given = weights or {}
        fused["retrievers"] = [
            {"retriever": part, "weight": float(given.get(leg, 1.0)), "normalizer": "minmax"}
            for leg, part in zip(queries, parts, strict=True)
        ]
    return {"retriever": {kind: fused}, "size": min(k, WINDOW), "_source": False}
