"""The exact requests of searches, as JSON: to send, to print, and to paste into Kibana."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from lexvla.encoding import Encoding
from lexvla_indexer.elastic.layout import FLAT, WORDS, State
from lexvla_indexer.elastic.product import Json, Product
from lexvla_indexer.legs import Leg, VectorLeg

__all__ = [
    "CANDIDATES",
    "RESULT_WINDOW",
    "candidates",
    "console_text",
    "constraint_query",
    "dense_scale",
    "leg_query",
    "named_terms",
    "search_body",
    "text_query",
]

RESULT_WINDOW = 10_000  # hits of one request; the default of index.max_result_window
CANDIDATES = 1000  # of each shard in an approximate search, unless k is greater

UNQUANTISED = (FLAT, "hnsw")  # kinds of dense vectors that are kept as they are


def named_terms(
    queries: Encoding, leg: VectorLeg, terms: Sequence[str], row: int = 0
) -> dict[str, float]:
    """Return one query's weights of ``lexical`` or ``codes`` by term."""
    rows = queries.lexical if leg == "lexical" else queries.codes
    if rows is None or (leg == "lexical" and not terms):  # an index that is still empty
        return {}
    span = slice(*rows.indptr[row : row + 2].tolist())
    columns, weights = rows.indices[span].tolist(), rows.data[span].tolist()
    if leg == "lexical":
        return {terms[c]: w for c, w in zip(columns, weights, strict=True)}
    return {str(c): w for c, w in zip(columns, weights, strict=True)}


def dense_scale(query: np.ndarray, state: State) -> float:
    """Return what a dense query is multiplied by, a power of 2.

    The server's score is 1 + the inner product, in float32: little would be left of a small
    product. Multiplied, the 1 weighs nothing. Where rows are 8-bit integers, queries are scaled
    like these, and must keep their length.
    """
    size = float(np.linalg.norm(query))
    if state.dense != FLAT or not size:
        return 1.0
    return math.ldexp(1.0, 20 - math.frexp(size)[1])


def candidates(k: int, state: State) -> int:
    """Return how many neighbours to ask of each shard for the k best."""
    return min(k if state.dense == FLAT else max(k, CANDIDATES), RESULT_WINDOW)


def leg_query(
    queries: Encoding,
    leg: VectorLeg,
    terms: Sequence[str],
    state: State,
    product: Product,
    k: int,
    chosen: Json | None = None,
    row: int = 0,
    named: bool = False,
) -> Json | None:
    """Return the query of one leg, or ``None`` if it cannot match.

    ``chosen`` is the query of a filter. ``row`` selects one of ``queries``: cutting it out would
    take longer than all the rest. ``named`` makes a clause of each word, named after it.
    """
    if leg == "dense":
        vector = None if queries.dense is None else queries.dense[row]
        if vector is None or not vector.any():
            return None
        scaled = (vector * np.float32(dense_scale(vector, state))).tolist()
        is_quantised = state.dense not in UNQUANTISED
        wanted = candidates(k, state)
        return product.dense_query(state.fields.legs[leg], scaled, wanted, is_quantised, chosen)
    weights = named_terms(queries, leg, terms, row)
    if not weights:
        return None
    found = product.words_query(state.fields.legs[leg], weights, named)
    return found if chosen is None else {"bool": {"must": [found], "filter": [chosen]}}


def text_query(words: Iterable[str], chosen: Json | None = None) -> Json:
    """Return the query of the leg ``text``, whose clauses bear the names of their words."""
    clauses = [{"term": {WORDS: {"value": word, "_name": word}}} for word in words]
    found: Json = {"should": clauses, "minimum_should_match": 1}
    return {"bool": found if chosen is None else {**found, "filter": [chosen]}}


def constraint_query(
    banned: Sequence[str], required: Sequence[Sequence[str]], strongest: str
) -> Json:
    """Return a query for documents with certain words, given as terms, among the strongest."""
    return {
        "bool": {
            "filter": [{"terms": {strongest: list(terms)}} for terms in required],
            "must_not": [{"terms": {strongest: list(banned)}}] if banned else [],
        }
    }


def search_body(query: Json, size: int, by: str | None) -> Json:
    """Return a request for ids and scores, best first, equal scores by a field if there is one."""
    return {
        "query": query,
        "size": size,
        "sort": [{"_score": "desc"}, *([] if by is None else [{by: "asc"}])],
        "_source": False,
        "track_total_hits": False,
    }


def console_text(name: str, bodies: Mapping[Leg, Json], named: bool) -> str:
    """Return requests as the console of Kibana takes them."""
    texts = []
    for leg, body in bodies.items():
        asked = ["search_type=dfs_query_then_fetch"] if leg == "text" else []
        asked += ["include_named_queries_score=true"] if named else []
        start = f"# {leg}\nGET {name}/_search{'?' if asked else ''}{'&'.join(asked)}"
        texts.append(f"{start}\n{json.dumps(body, ensure_ascii=False, indent=2)}")
    return "\n\n".join(texts)
