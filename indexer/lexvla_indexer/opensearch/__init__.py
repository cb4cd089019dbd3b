"""OpenSearch 2.19 and newer, by its own client: what of `lexvla_indexer.elastic` differs there."""

from lexvla_indexer.opensearch.engine import OpenSearchIndex

__all__ = ["OpenSearchIndex"]
