"""Ask a server of ``lexvla serve``, and read its answer as a local one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lexvla.errors import InputError, LexVLAError
from lexvla_indexer.document import Document
from lexvla_indexer.facets import FacetCounts, Range
from lexvla_search.client import ApiError, Client
from lexvla_search.explanation import Explanation, LegPart, TermMatch, TextMatch
from lexvla_search.query import Query
from lexvla_search.searcher import Hit, LegScore
from lexvla_search.typed_words import UnknownWord

if TYPE_CHECKING:
    from lexvla_search import schema

__all__ = ["RemoteAnswer", "ask"]

_OF_FUSION = ("name", "weights", "normalization", "constant", "depth")


@dataclass(frozen=True)
class RemoteAnswer:
    """What people are shown of a `lexvla_search.searcher.Answer`."""

    hits: list[Hit]
    words: list[tuple[str, float]]
    legs: tuple[str, ...]
    fusion: str | None
    total: int
    total_exact: bool
    facets: Mapping[str, FacetCounts]
    next: str | None
    good_match: bool | None
    unknown: tuple[UnknownWord, ...]
    unread: str

    def facets_to_dict(self) -> dict[str, Any]:
        """Return the facets as plain values for JSON."""
        return {field: counts.to_dict() for field, counts in self.facets.items()}


def ask(url: str, key: str | None, query: Query, explain: bool) -> RemoteAnswer:
    """Search by a server; `LexVLAError` if it refuses or does not answer."""
    asked = {
        name: value
        for name, value in query.to_dict().items()
        if value not in (None, {}, []) and value is not False
    }
    text = asked.pop("text", None)
    if asked.pop("image", None) is not None and not Path(str(query.image)).is_file():
        raise InputError(str(query.image), "no such file")
    if "fusion" in asked:
        settings = asked["fusion"].items()
        asked["fusion"] = {name: value for name, value in settings if name in _OF_FUSION}
    image = None if query.image is None else str(query.image)
    with Client(url, key) as client:
        try:
            answer = client.search(text, image=image, explain=explain, **asked)
        except ApiError as error:
            if error.status != 401:
                raise
            raise LexVLAError(f"{error}; give it by --key or $LEXVLA_KEY") from error
    read = answer["query"]
    return RemoteAnswer(
        [_hit(hit) for hit in answer["hits"]],
        [(word["word"], word["weight"]) for word in read["words"]],
        tuple(read["legs"]),
        read["fusion"],
        answer["total"],
        answer["total_exact"],
        {field: _facet(counts) for field, counts in answer["facets"].items()},
        answer["next"],
        answer["good_match"],
        tuple(UnknownWord(word["word"], tuple(word["nearest"])) for word in read["unknown"]),
        read["unread"],
    )


def _facet(data: schema.CountedFacet) -> FacetCounts:
    ranges = data.get("ranges")
    return FacetCounts(
        [(each["value"], each["count"]) for each in data.get("values", ())],
        data.get("other", 0),
        None
        if ranges is None
        else [(Range(each["from"], each["to"]), each["count"]) for each in ranges],
        data["missing"],
    )


def _hit(hit: schema.Hit) -> Hit:
    legs: dict[str, Any] = {leg: hit[leg] for leg in ("lexical", "codes", "dense", "text")}
    explanation = hit["explanation"]
    document = hit["document"]
    return Hit(
        hit["id"],
        hit["score"],
        hit["relevance"],
        hit["rank"],
        **{leg: None if found is None else LegScore(**found) for leg, found in legs.items()},
        document=Document(hit["id"], document["uri"], document["text"], document["metadata"]),
        explanation=None if explanation is None else _explanation(explanation),
        copies=None if hit["copies"] is None else tuple(hit["copies"]),
    )


def _explanation(data: schema.Explanation) -> Explanation:
    matches = [dict(match) for match in data["matches"]]
    shares = [match.pop("part") for match in matches]
    return Explanation(
        tuple(
            TermMatch(**match, share=share)  # type: ignore[arg-type]
            for match, share in zip(matches, shares, strict=True)
        ),
        data["score"],
        tuple(LegPart(**part) for part in data["parts"]),
        data["fusion"],
        tuple(TextMatch(**match) for match in data["text"]),
    )
