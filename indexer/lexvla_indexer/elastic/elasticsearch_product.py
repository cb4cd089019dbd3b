"""Elasticsearch 8.19 and newer: its own client, sparse and dense vectors."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, cast

from lexvla.errors import EngineUnavailableError, OptionalDependencyError
from lexvla_indexer.bm25 import K1
from lexvla_indexer.elastic.product import Json, Place, Product
from lexvla_indexer.elastic.refusals import NoAnswerError, cause_of, innermost, refusal
from lexvla_indexer.elastic.tls import no_tls, trusted
from lexvla_indexer.filter_terms import listed_fields

if TYPE_CHECKING:
    from elasticsearch import Elasticsearch

__all__ = ["ELASTICSEARCH"]

_TIMEOUT = 60.0  # seconds for one request
# Since 9.2 servers keep vectors out of _source, and put back their own, inexact ones.
_EXACT = {"mapping.exclude_source_vectors": False}


class _Elasticsearch(Product):
    name = "Elasticsearch"
    engine = "elasticsearch"
    secrets = "ELASTIC_API_KEY, or ELASTIC_USERNAME and ELASTIC_PASSWORD"
    settings: ClassVar[Mapping[str, Any]] = {
        "mapping.total_fields.ignore_dynamic_beyond_limit": True
    }
    fields: ClassVar[Mapping[str, Any]] = {}
    most_dimensions = 4096
    graph = "int8_hnsw"
    lacks_dense = ""
    asks_neighbours = True
    attaches = True
    text_scale = K1 + 1  # as Lucene once did

    def connect(self, place: Place) -> Elasticsearch:
        """Make a client, with credentials and certificates from the environment.

        ``ELASTIC_API_KEY``, or ``ELASTIC_USERNAME`` and ``ELASTIC_PASSWORD``; ``ELASTIC_CA_CERTS``,
        a file of certificates to trust, or ``ELASTIC_CERT_FINGERPRINT``, the SHA-256 of the
        server's.

        Raises:
            EngineUnavailableError: The settings contradict each other.
            OptionalDependencyError: The client is not installed.
        """
        try:
            library = importlib.import_module("elasticsearch")
        except ModuleNotFoundError as error:
            raise OptionalDependencyError("elasticsearch", "elasticsearch") from error
        settings = trusted(place, "ELASTIC")
        key, user = os.environ.get("ELASTIC_API_KEY"), os.environ.get("ELASTIC_USERNAME")
        if key:
            settings["api_key"] = key
        elif user:
            settings["basic_auth"] = (user, os.environ.get("ELASTIC_PASSWORD", ""))
        try:
            client: Elasticsearch = library.Elasticsearch(
                place.nodes,
                request_timeout=_TIMEOUT,
                max_retries=2,
                retry_on_timeout=True,
                **settings,
            )
        except (ValueError, OSError) as error:
            raise EngineUnavailableError(f"{place}: {error}") from error
        _check_answers(client)
        return client

    @contextmanager
    def errors(self, place: Place) -> Iterator[None]:
        import elasticsearch

        try:
            yield
        except elasticsearch.UnsupportedProductError as error:
            rule = (
                "what answers there is not Elasticsearch; the address of an OpenSearch index "
                "starts with opensearch+"
            )
            raise EngineUnavailableError(f"{place}: {rule}") from error
        except elasticsearch.ApiError as error:
            raise _refusal(place, error.status_code, error.body) from error
        except elasticsearch.SSLError as error:
            raise no_tls(place, "ELASTIC", error) from error
        except elasticsearch.TransportError as error:
            raise NoAnswerError(f"{place}: no server answers: {innermost(error)}") from error

    def refused(self) -> type[Exception]:
        import elasticsearch

        return elasticsearch.BadRequestError

    def failed(self) -> tuple[type[Exception], ...]:
        import elasticsearch

        return elasticsearch.TransportError, elasticsearch.ApiError

    def create_index(self, client: Elasticsearch, name: str, settings: Json, **rest: Any) -> None:
        import elasticsearch

        try:
            client.indices.create(index=name, settings={**settings, **_EXACT}, **rest)
        except elasticsearch.BadRequestError as error:
            if "unknown setting" not in str(error):
                raise
            client.indices.create(index=name, settings=settings, **rest)

    def bulk(self, client: Elasticsearch, actions: Iterable[Any], **rest: Any) -> Iterable[Any]:
        from elasticsearch.helpers import streaming_bulk

        return streaming_bulk(client, cast(Any, actions), **rest)

    def words_field(self) -> Json:
        return {"type": "sparse_vector"}

    def dense_field(self, width: int, how: str) -> Json:
        return {
            "type": "dense_vector",
            "dims": width,
            # Not dot_product: that refuses vectors that are not of unit length, such as zeros.
            "similarity": "max_inner_product",
            "index_options": {"type": how},
        }

    def lacks_dense_field(self, error: Exception) -> bool:
        return False

    def object_field(self) -> Json:
        # Without subobjects a dot in a key is a letter like others.
        return {"type": "object", "dynamic": "true", "subobjects": False}

    def part(self, name: str) -> str:
        return name

    def name_of(self, part: str) -> str:
        return part

    def own_fields(self, legs: Iterable[str], metadata: Iterable[str]) -> Json:
        return {}

    def has_leg(self, field: str) -> Json:
        return {"exists": {"field": field}}

    def words_query(self, field: str, weights: Mapping[str, float], named: bool) -> Json:
        # Without "prune": false newer servers leave out words that are frequent and have low
        # weights.
        settings = {"field": field, "prune": False}
        if not named:
            return {"sparse_vector": {**settings, "query_vector": dict(weights)}}
        clauses = [
            {"sparse_vector": {**settings, "query_vector": {term: weight}, "_name": term}}
            for term, weight in weights.items()
        ]
        return {"bool": {"should": clauses}}

    def dense_query(
        self,
        field: str,
        vector: Sequence[float],
        k: int,
        is_quantised: bool,
        chosen: Json | None,
    ) -> Json:
        neighbours: Json = {"field": field, "query_vector": vector, "k": k, "num_candidates": k}
        if is_quantised:
            neighbours["rescore_vector"] = {"oversample": 2.0}
        if chosen is not None:
            neighbours["filter"] = chosen
        return {"knn": neighbours}

    def metadata_fields(self, client: Elasticsearch, index: str) -> Iterable[str]:
        def next_term(text: str) -> str | None:
            answer = client.terms_enum(
                index=index, field="filter", size=1, search_after=text or None
            )
            terms: list[str] = answer["terms"]
            return terms[0] if terms else None

        return listed_fields(next_term)


ELASTICSEARCH = _Elasticsearch()


def _check_answers(client: Elasticsearch) -> None:
    """Refuse every answer that is not from Elasticsearch; the client checks only the first.

    Otherwise a gateway's page would be read as an answer that says nothing about an index.
    """
    import elasticsearch

    perform = client.transport.perform_request

    def checked(method: str, target: str, **rest: Any) -> Any:
        answer = perform(method, target, **rest)
        meta, body = answer.meta, answer.body
        is_told = 200 <= meta.status < 300 or meta.status == 404
        is_ours = meta.headers.get("x-elastic-product") == ELASTICSEARCH.name
        if is_told and not (is_ours and (method == "HEAD" or isinstance(body, Mapping))):
            raise elasticsearch.UnsupportedProductError("another answers", meta, body)
        return answer

    client.transport.perform_request = checked  # type: ignore[method-assign]


def _refusal(place: Place, status: int, body: Any) -> Exception:
    kind, reason = cause_of(body)
    if status not in (401, 403) and ("compatible-with" in reason or "media_type_header" in kind):
        import elasticsearch

        major = elasticsearch.__version__[0]
        client = ".".join(map(str, elasticsearch.__version__))
        rule = (
            f"the Python client elasticsearch {client} speaks to servers of its own and the next "
            f"major version, {major} and {major + 1}, and this is another; pip install "
            "'lexvla[elasticsearch]' gets the client for servers 8 and 9"
        )
        return EngineUnavailableError(f"{place}: {rule}. It says: {kind}: {reason}")
    return refusal(place, status, body)
