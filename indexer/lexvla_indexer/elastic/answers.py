"""Questions to an index: many in one request, deep pages, and scores taken apart."""

from __future__ import annotations

import json
import math
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lexvla.encoding import Encoding
from lexvla.errors import LexVLAError
from lexvla_indexer.base import Results
from lexvla_indexer.elastic.connection import Place, elastic_errors, refusal
from lexvla_indexer.elastic.layout import FIELD_OF, ID, SHOWN
from lexvla_indexer.elastic.requests import WINDOW, named_terms, search_body
from lexvla_indexer.legs import Leg

if TYPE_CHECKING:
    from elasticsearch import Elasticsearch

__all__ = ["Answers", "ElasticExplanation", "Product", "results"]

Json = dict[str, Any]

REQUEST_BYTES = 16 * 1024 * 1024  # of several searches together
REQUEST_HITS = 100_000  # of their answers together
CLAUSES = 1000  # named words of one request: servers take 1,024 at least
PIT_TIME = "2m"
TOLERANCE = 1e-5  # of a score against the sum of its parts, which float32 adds in another order
_HITS = "hits.hits._id,hits.hits._score,hits.hits.sort,pit_id"
_MANY = "responses.hits.hits._id,responses.hits.hits._score,responses.error,responses.status"


class Product(NamedTuple):
    """What one term adds to a score.

    Attributes:
        term: As the vocabulary writes it; of a code, its column number.
        query_weight: The query's.
        document_weight: The document's, as the server keeps it, with 9 significant bits.
        product: The two multiplied, by the server.
    """

    term: str
    query_weight: float
    document_weight: float
    product: float


@dataclass(frozen=True)
class ElasticExplanation:
    """A score as Elasticsearch makes it.

    Attributes:
        id: The document.
        score: The server's; 0 if no term is shared.
        products: What it is the sum of, the greatest first.
    """

    id: str
    score: float
    products: tuple[Product, ...]

    def __str__(self) -> str:
        """Render the sum, a term a line."""
        rows = [
            f"{p.product:.6f} = {p.query_weight:.6f} x {p.document_weight:.6f}  {p.term}"
            for p in self.products
        ]
        return "\n".join([f"{self.score:.6f}  {self.id}, the sum of:", *(f"  {r}" for r in rows)])


class Answers:
    """Ask one index.

    Args:
        client: Of the server.
        place: The address, for messages.
        index: What is asked.
    """

    def __init__(self, client: Elasticsearch, place: Place, index: str) -> None:
        self._client = client
        self._place = place
        self._index = index

    def many(self, queries: Sequence[Json], k: int) -> list[list[tuple[str, float]]]:
        """Return the k best ids with scores for each query, best first, equal ones by id."""
        if k > WINDOW:
            return [self._deep(query, k) for query in queries]
        found: list[list[tuple[str, float]]] = []
        header = json.dumps({"index": self._index, "allow_partial_search_results": False})
        for batch in _batches((search_body(query, k) for query in queries), REQUEST_HITS // k):
            # As text: their length is known from it, and the client sends it as it is.
            searches: Any = [part for body in batch for part in (header, body)]
            with elastic_errors(self._place):
                answered = self._client.msearch(searches=searches, filter_path=_MANY)
            for each in answered["responses"]:
                if "error" in each:
                    raise refusal(self._place, each.get("status", 500), each)
                hits = each.get("hits", {}).get("hits", [])
                found.append([(hit["_id"], hit["_score"]) for hit in hits])
        return found

    def _deep(self, query: Json, k: int) -> list[tuple[str, float]]:
        with closing(self.pages(query)) as hits:
            return list(islice(hits, k))

    def pages(self, query: Json, source: bool = False) -> Generator[tuple[str, Any]]:
        """Give all hits of a query from one moment's view of the index.

        Args:
            query: What to find.
            source: Give what is kept of each instead of its score; such hits come by id.
        """
        with elastic_errors(self._place):
            opened = self._client.open_point_in_time(index=self._index, keep_alive=PIT_TIME)
            pit, after = opened["id"], None
            try:
                while True:
                    body = {
                        **search_body(query, WINDOW),
                        "pit": {"id": pit, "keep_alive": PIT_TIME},
                    }
                    path = _HITS
                    if source:
                        body |= {"sort": [{ID: "asc"}], "_source": list(SHOWN), "size": 1000}
                        path = f"{_HITS},hits.hits._source"
                    if after is not None:
                        body["search_after"] = after
                    answer = self._client.search(
                        body=body, filter_path=path, allow_partial_search_results=False
                    )
                    pit = answer.get("pit_id", pit)
                    hits = answer.get("hits", {}).get("hits", [])
                    for hit in hits:
                        yield hit["_id"], hit["_source"] if source else hit["_score"]
                    if len(hits) < body["size"]:
                        return
                    after = hits[-1]["sort"]
            finally:
                self._client.options(ignore_status=404).close_point_in_time(id=pit)

    def explain(
        self, query: Encoding, leg: Leg, name: str, terms: Sequence[str], stored: Encoding
    ) -> ElasticExplanation:
        """Take one document's score for one query by a sparse leg apart, by the server's own parts.

        Args:
            query: One row.
            leg: ``lexical`` or ``codes``.
            name: The document.
            terms: Those of the lexical columns.
            stored: The document's row.

        Raises:
            LexVLAError: The parts do not add up to the score.
        """
        weights = named_terms(query, leg, terms)
        held = named_terms(stored, leg, terms)
        shared = [term for term in weights if term in held]
        if not shared:
            return ElasticExplanation(name, 0.0, ())
        field, this = FIELD_OF[leg], {"term": {ID: name}}
        products: list[Product] = []
        for start in range(0, len(shared), CLAUSES):
            clauses = [
                {"term": {field: {"value": term, "boost": weights[term], "_name": str(i)}}}
                for i, term in enumerate(shared[start : start + CLAUSES], start)
            ]
            with elastic_errors(self._place):
                answer = self._client.search(
                    index=self._index,
                    query={"bool": {"should": clauses, "filter": [this]}},
                    include_named_queries_score=True,
                    source=False,
                    size=1,
                )
            for hit in answer["hits"]["hits"]:
                for i, product in hit["matched_queries"].items():
                    term = shared[int(i)]
                    products.append(
                        Product(term, weights[term], product / weights[term], float(product))
                    )
        products.sort(key=lambda product: -product.product)
        # Only what is shared counts, and long queries may have more words than servers take.
        only = {term: weights[term] for term in shared}
        asked = {"sparse_vector": {"field": field, "query_vector": only, "prune": False}}
        (hits,) = self.many([{"bool": {"must": [asked], "filter": [this]}}], 1)
        score = float(hits[0][1]) if hits else 0.0
        total = math.fsum(product.product for product in products)
        if abs(total - score) > TOLERANCE * score:
            rule = f"the score of {name!r} is {score}, and its terms add up to {total}"
            raise LexVLAError(f"{self._place}: {rule}")
        return ElasticExplanation(name, score, tuple(products))


def results(hits: Sequence[tuple[str, float]], scale: float | None = None) -> Results:
    """Return hits as results: those with a score above 0.

    Args:
        hits: Ids with the server's scores, best first.
        scale: What a dense query was multiplied by; its scores are 1 + the inner product.
    """
    # The server's numbers are float32, written as short as they can be.
    scores = np.array([score for _, score in hits], np.float32).astype(np.float64)
    if scale is not None:
        scores = (scores - 1) / scale
    count = int(np.count_nonzero(scores > 0))
    return Results([name for name, _ in hits[:count]], scores[:count])


def _batches(bodies: Iterable[Json], most: int) -> Iterator[list[str]]:
    """Give searches as text, grouped into requests that are not too large.

    Args:
        bodies: The searches.
        most: How many may be in one request; one at least is.
    """
    batch: list[str] = []
    size = 0
    for body in bodies:
        text = json.dumps(body, ensure_ascii=False, separators=(",", ":"))
        if batch and (size + len(text) > REQUEST_BYTES or len(batch) >= most):
            yield batch
            batch, size = [], 0
        batch.append(text)
        size += len(text)
    if batch:
        yield batch
