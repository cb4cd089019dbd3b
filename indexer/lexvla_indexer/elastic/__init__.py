"""Elasticsearch 8.19 and newer, by its own client: sparse and dense vectors, aliases, filters."""

from lexvla_indexer.elastic.attached_index import AttachedIndex
from lexvla_indexer.elastic.engine import ElasticIndex
from lexvla_indexer.elastic.layout import AttachedError

__all__ = ["AttachedError", "AttachedIndex", "ElasticIndex"]
