"""What is told of an index: counts, sizes, health, versions, and how exact scores are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lexvla_indexer.elastic.connection import Place, elastic_errors, whole
from lexvla_indexer.elastic.layout import FLAT, FLAT_DOCUMENTS, FORMAT_VERSION, Meta
from lexvla_indexer.elastic.requests import CANDIDATES

if TYPE_CHECKING:
    from elasticsearch import Elasticsearch

__all__ = ["facts"]


def facts(client: Elasticsearch, place: Place, index: str, meta: Meta) -> dict[str, Any]:
    """Describe an index but for what counting its documents tells.

    Args:
        client: Of the server.
        place: The address, for messages.
        index: What is described.
        meta: What it says of itself.
    """
    with elastic_errors(place):
        health = client.cluster.health(index=index)
        stats = client.indices.stats(index=index, metric=["docs", "store", "segments"])
        kept = client.indices.get_settings(index=index, human=True).body
    primaries = whole(place, stats.body)["_all"]["primaries"]
    settings = kept[index]["settings"]["index"]
    found: dict[str, Any] = {
        "engine": "elasticsearch",
        "index": index,
        "health": health["status"],
        "shards": int(settings["number_of_shards"]),
        "replicas": int(settings["number_of_replicas"]),
        "segments": primaries["segments"]["count"],
        "deleted_rows": primaries["docs"]["deleted"],
        "bytes": primaries["store"]["size_in_bytes"],
        "legs": dict(meta.widths),
        "searched_legs": list(meta.widths),
        "weights": "9 significant bits, cut off: scores are up to 0.4% low",
        "vocabulary_sha256": meta.vocabulary_sha256,
        "model": meta.model,
        "notes": sorted(meta.notes),
        "format_version": FORMAT_VERSION,
        "writer_version": meta.writer_version,
        "elasticsearch_version": str(settings["version"].get("created_string", "")),
    }
    if "dense" in meta.widths:
        exact = f"exact, up to {FLAT_DOCUMENTS:,} documents"
        graph = f"approximate: {meta.dense}, of each shard's {CANDIDATES:,} candidates or k"
        found["dense_search"] = exact if meta.dense == FLAT else graph
    return found
