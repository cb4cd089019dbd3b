"""OpenSearch: rank features, dense vectors by a script of the k-NN plugin."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, ClassVar, cast

from lexvla_indexer.elastic.product import DENSE_STORED, Json, Place, Product
from lexvla_indexer.opensearch.client import TIMEOUT, Client, connect, opensearch_errors

if TYPE_CHECKING:
    from elasticsearch import Elasticsearch

__all__ = ["LEGS", "NAMES", "OPENSEARCH"]

# Of keywords. Whether a document has a field of rank features cannot be asked, and which terms a
# field has, only by an aggregation.
LEGS, NAMES = "legs", "names"
_MOST_NAMES = 65_535  # the server's limit of buckets
_KNN = "opensearch-knn"
# A dot ends the name of a field that has others inside. JSON pointers escape / so.
_ESCAPES = (("~", "~0"), (".", "~1"))


class _OpenSearch(Product):
    name = "OpenSearch"
    engine = "opensearch"
    secrets = "OPENSEARCH_USERNAME and OPENSEARCH_PASSWORD"
    settings: ClassVar[Mapping[str, Any]] = {}
    fields: ClassVar[Mapping[str, Any]] = {
        LEGS: {"type": "keyword"},
        NAMES: {"type": "keyword", "ignore_above": 8191},
    }
    most_dimensions = 16_000
    graph = ""
    lacks_dense = f"that takes its plugin {_KNN}, and an index made after it was installed"
    asks_neighbours = False
    attaches = False
    text_scale = 1.0  # since 3.0, as Lucene

    def connect(self, place: Place) -> Elasticsearch:
        # It answers the calls that are made.
        return cast("Elasticsearch", connect(place))

    def errors(self, place: Place) -> AbstractContextManager[None]:
        return opensearch_errors(place)

    def refused(self) -> type[Exception]:
        import opensearchpy

        return opensearchpy.RequestError

    def failed(self) -> tuple[type[Exception], ...]:
        import opensearchpy

        return (opensearchpy.TransportError,)

    def create_index(self, client: Elasticsearch, name: str, settings: Json, **rest: Any) -> None:
        client.indices.create(index=name, settings=settings, **rest)

    def bulk(self, client: Elasticsearch, actions: Iterable[Any], **rest: Any) -> Iterable[Any]:
        from opensearchpy.helpers import streaming_bulk

        library = cast(Client, client).library
        # Without a time of ours, it would take the server's parameter "timeout" for one.
        return streaming_bulk(library, actions, request_timeout=TIMEOUT, **rest)

    def words_field(self) -> Json:
        return {"type": "rank_features"}

    def dense_field(self, width: int, how: str) -> Json:
        if how == DENSE_STORED:
            return {"type": "object", "enabled": False}
        return {"type": "knn_vector", "dimension": width}

    def lacks_dense_field(self, error: Exception) -> bool:
        return "knn_vector" in str(error)

    def object_field(self) -> Json:
        return {"type": "object", "dynamic": "true"}

    def part(self, name: str) -> str:
        for letter, escape in _ESCAPES:
            name = name.replace(letter, escape)
        return name

    def name_of(self, part: str) -> str:
        for letter, escape in reversed(_ESCAPES):
            part = part.replace(escape, letter)
        return part

    def own_fields(self, legs: Iterable[str], metadata: Iterable[str]) -> Json:
        return {LEGS: list(legs), NAMES: list(metadata)}

    def has_leg(self, field: str) -> Json:
        return {"term": {LEGS: field}}

    def words_query(self, field: str, weights: Mapping[str, float], named: bool) -> Json:
        clauses = []
        for term, weight in weights.items():
            feature: Json = {"field": f"{field}.{self.part(term)}", "linear": {}, "boost": weight}
            clauses.append({"rank_feature": feature | ({"_name": term} if named else {})})
        return {"bool": {"should": clauses}}

    def dense_query(
        self,
        field: str,
        vector: Sequence[float],
        k: int,
        is_quantised: bool,
        chosen: Json | None,
    ) -> Json:
        there: list[Json] = [{"exists": {"field": field}}]
        parameters = {"field": field, "query_value": vector, "space_type": "innerproduct"}
        return {
            "script_score": {
                "query": {"bool": {"filter": there if chosen is None else [*there, chosen]}},
                "script": {"lang": "knn", "source": "knn_score", "params": parameters},
            }
        }

    def metadata_fields(self, client: Elasticsearch, index: str) -> Iterable[str]:
        counted = {"names": {"terms": {"field": NAMES, "size": _MOST_NAMES}}}
        answer = client.search(index=index, size=0, aggregations=counted)
        return [bucket["key"] for bucket in answer["aggregations"]["names"]["buckets"]]


OPENSEARCH = _OpenSearch()
