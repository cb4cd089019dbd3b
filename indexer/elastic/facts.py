"""What is told of an index: counts, sizes, health, versions, and how exact scores are."""

from __future__ import annotations

from typing import Any

from indexer.elastic.connection import elastic_errors
from indexer.elastic.layout import FLAT, FLAT_DOCUMENTS, FORMAT_VERSION
from indexer.elastic.requests import CANDIDATES
from indexer.elastic.store import Store
from lexvla.vocabulary import Vocabulary

__all__ = ["facts"]


def facts(store: Store, count: int, vocabulary: Vocabulary) -> dict[str, Any]:
    """Describe an index.

    Args:
        store: Has found it.
        count: The number of documents.
        vocabulary: The terms of the lexical columns.
    """
    client, meta = store.client, store.meta
    with elastic_errors(store.place):
        health = client.cluster.health(index=store.index)
        stats = client.indices.stats(index=store.index, metric=["docs", "store", "segments"])
        kept = client.indices.get_settings(index=store.index, human=True).body
    primaries = stats["_all"]["primaries"]
    settings = kept[store.index]["settings"]["index"]
    found: dict[str, Any] = {
        "engine": "elasticsearch",
        "documents": count,
        "index": store.index,
        "health": health["status"],
        "shards": int(settings["number_of_shards"]),
        "replicas": int(settings["number_of_replicas"]),
        "segments": primaries["segments"]["count"],
        "deleted_rows": primaries["docs"]["deleted"],
        "bytes": primaries["store"]["size_in_bytes"],
        "legs": dict(meta.widths),
        "searched_legs": list(meta.widths),
        "weights": "9 significant bits, cut off: scores are up to 0.4% low",
        "vocabulary_size": len(vocabulary),
        "vocabulary_sha256": vocabulary.sha256,
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
