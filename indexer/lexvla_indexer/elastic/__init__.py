"""Elasticsearch 8.19 and newer, by its own client: sparse and dense vectors, aliases, filters."""

from lexvla_indexer.elastic.attached_index import AttachedIndex
from lexvla_indexer.elastic.attached_store import is_attached
from lexvla_indexer.elastic.engine import ElasticIndex

__all__ = ["AttachedIndex", "ElasticIndex", "is_attached"]
