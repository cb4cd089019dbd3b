"""The OpenSearch engine: that of Elasticsearch, on another product."""

from __future__ import annotations

from lexvla_indexer.elastic.engine import ElasticIndex
from lexvla_indexer.elastic.product import DENSE_STORED
from lexvla_indexer.legs import Leg
from lexvla_indexer.opensearch.product import OPENSEARCH

__all__ = ["OpenSearchIndex"]


class OpenSearchIndex(ElasticIndex):
    """Keep an index on an OpenSearch server, behind an alias; see `ElasticIndex`.

    Two things differ. Dense vectors are always searched exactly, by a scan, and only where the
    server has the plugin ``opensearch-knn``; otherwise they are stored, and `search` by them raises
    UnsupportedError. A document that would bring the index to more than 1,000 fields is refused
    (InputError).

    Credentials come from the environment; see `lexvla_indexer.opensearch.client.connect`.
    """

    product = OPENSEARCH

    def legs(self) -> tuple[Leg, ...]:
        """Return what the server can search; see `Index.legs`."""
        found = super().legs()
        is_stored = self._store.state.dense == DENSE_STORED
        return tuple(leg for leg in found if leg != "dense" or not is_stored)
