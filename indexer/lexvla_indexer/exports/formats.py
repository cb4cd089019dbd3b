"""Which engines there are formats for."""

from __future__ import annotations

from lexvla.errors import UnsupportedError
from lexvla_indexer.exports.base import Format, Names
from lexvla_indexer.exports.elasticsearch import ElasticsearchFormat
from lexvla_indexer.exports.milvus import MilvusFormat
from lexvla_indexer.exports.pgvector import PgvectorFormat
from lexvla_indexer.exports.qdrant import QdrantFormat
from lexvla_indexer.exports.vespa import VespaFormat
from lexvla_indexer.exports.weaviate import WeaviateFormat

__all__ = ["FORMATS", "open_format"]

FORMATS: dict[str, type[Format]] = {
    "elasticsearch": ElasticsearchFormat,
    "qdrant": QdrantFormat,
    "milvus": MilvusFormat,
    "pgvector": PgvectorFormat,
    "vespa": VespaFormat,
    "weaviate": WeaviateFormat,
}


def open_format(name: str, names: Names | None = None) -> Format:
    """Return a format by its name; an unknown one raises UnsupportedError."""
    if name not in FORMATS:
        raise UnsupportedError(f"there is no format {name!r}, only {', '.join(FORMATS)}")
    return FORMATS[name](names or Names())
