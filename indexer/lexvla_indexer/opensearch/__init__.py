"""OpenSearch 3, by its own client: what of `lexvla_indexer.elastic` differs there."""

from lexvla_indexer.opensearch.engine import OpenSearchIndex

__all__ = ["OpenSearchIndex"]
