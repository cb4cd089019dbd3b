"""The requests to a server that a search makes, to be read and pasted, and what the client adds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from lexvla.errors import UnsupportedError
from lexvla_indexer.legs import Leg
from lexvla_search.fusion import Fusion, Weighted
from lexvla_search.query import Query
from lexvla_search.searcher import Searcher

__all__ = ["ShownQuery", "shown_query"]


@dataclass(frozen=True)
class ShownQuery:
    """What a search asks.

    Attributes:
        requests: The body of a request for each leg.
        steps: What the client does with the answers; if nothing, the request gives the hits.
    """

    requests: dict[Leg, dict[str, Any]]
    steps: list[str]


def shown_query(searcher: Searcher, query: Query, named: bool = False) -> ShownQuery:
    """Return the requests of a query; errors are those of `Searcher.search`.

    ``named`` makes a clause of each word. An engine without a server raises UnsupportedError.
    """
    for name in ("sort", "facets", "after"):
        if getattr(query, name):
            raise UnsupportedError(f"{name}: its requests follow the answers and cannot be shown")
    searcher = searcher.within(query)
    encoded = searcher.encode(query)
    plan = searcher.plan(query, encoded)
    if plan is None:
        return ShownQuery({}, ["The index is not asked: no word of the query is known."])
    fusion, legs = plan
    index, limits = searcher.index, encoded.constraints
    if limits:
        view = index.constrained(limits.banned, limits.required)
        if view is None:
            raise UnsupportedError(f"{index} is not on a server: there are no requests to show")
        index = view
    asked = encoded.encoding, query.filter, encoded.text
    least = _least(query, fusion)
    without = f"It leaves out {', '.join(sorted(encoded.excluded))}."

    def requests(k: int, offset: int = 0, **rest: Any) -> dict[Leg, dict[str, Any]]:
        encoding, chosen, text = asked
        return index.requests(encoding, k, legs, chosen, text, offset, named=named, **rest)

    if len(legs) == 1 and fusion.absolute:
        (leg,) = legs
        weight = fusion.weighed(legs)[leg]
        steps = {
            f"The client multiplies each score by {weight:g}.": weight != 1,
            without: bool(encoded.excluded),
            "It puts hits of equal score in the order of ids.": not index.equal_scores_by_id,
        }
        lowest = {} if least is None else {leg: least / weight}
        most = query.k + len(encoded.excluded)
        taken = [step for step, is_taken in steps.items() if is_taken]
        return ShownQuery(requests(most, query.offset, least=lowest), taken)
    merging = [f"The client merges these lists: {fusion}."]
    if fusion.rescores:
        merging.append("It asks what each leg gives documents that only other legs have listed.")
    if encoded.excluded:
        merging.append(without)
    merging.append("Where too few are left, or the order is not certain, it asks for longer lists.")
    if least is not None:
        merging.append(f"It leaves out scores below {least:g}.")
    merging.append(f"It shows hits {query.offset + 1} to {query.offset + query.k}.")
    return ShownQuery(requests(fusion.depth), merging)


def _least(query: Query, fusion: Fusion) -> float | None:
    """Return the lowest score of a hit."""
    limits = [] if query.min_score is None else [query.min_score]
    relevance = query.min_relevance
    if relevance and isinstance(fusion, Weighted) and fusion.calibration is not None:
        slope, intercept = fusion.calibration
        odds = math.log(relevance / (1 - relevance)) if relevance < 1 else math.inf
        limits.append((odds - intercept) / slope)
    return max(limits, default=None)
