"""The JSON of answers: ``to_dict``, ``--json``, the REST API, its description and its client.

Type checkers check the code that makes answers against these shapes, and OpenAPI is made of them.
"""

from __future__ import annotations

from typing import Any, Literal, NotRequired

from typing_extensions import TypedDict  # pydantic takes that of typing from Python 3.12 on

from lexvla_indexer.legs import Leg

__all__ = [
    "BatchAnswer",
    "Completions",
    "CountedFacet",
    "CountedRange",
    "CountedValue",
    "Deleted",
    "Document",
    "DocumentList",
    "DocumentWords",
    "Encoded",
    "EncodedItem",
    "Explained",
    "Explanation",
    "Facts",
    "Field",
    "Health",
    "Hit",
    "LegPart",
    "LegScore",
    "LineError",
    "Patched",
    "PictureUrls",
    "QueryRead",
    "SearchAnswer",
    "ShownDocument",
    "ShownHit",
    "TermMatch",
    "TextMatch",
    "Took",
    "UnknownWord",
    "UpsertAnswer",
    "VocabularyFacts",
    "WeightedWord",
    "Word",
]


class Document(TypedDict):
    """What the index keeps of a document beside its vectors."""

    id: str
    uri: str
    text: str
    metadata: dict[str, Any]


class PictureUrls(TypedDict):
    """Addresses of a picture, to be appended to the server's; null where there is none.

    The longer side of ``image_url`` is at most 1024 pixels, that of ``thumbnail_url`` 256. Where
    they are signed, they load without a key for an hour.
    """

    image_url: str | None
    thumbnail_url: str | None


class ShownDocument(Document, PictureUrls):
    """A document with its picture; ``uri`` is not an absolute path of the server's machine."""


class LegScore(TypedDict):
    """What one leg alone gave a document."""

    score: float
    rank: int | None


class TermMatch(TypedDict):
    """A word that query and document share, and what it adds to the score."""

    term: str
    word: str
    query_weight: float
    document_weight: float
    product: float
    patch: int | None
    part: float


class TextMatch(TypedDict):
    """A word of the query that the document's text has, and what it adds to the score."""

    word: str
    score: float
    part: float


class LegPart(TypedDict):
    """What one leg adds to the score."""

    leg: Leg
    score: float | None
    rank: int | None
    part: float


class Explanation(TypedDict):
    """A score broken down; the legs' parts sum to it."""

    score: float
    fusion: str
    parts: list[LegPart]
    matches: list[TermMatch]
    text: list[TextMatch]
    difference: float


class Hit(TypedDict):
    """One document found for a query; ``score`` is null if the query scores nothing."""

    id: str
    score: float | None
    relevance: float | None
    rank: int | None
    lexical: LegScore | None
    codes: LegScore | None
    dense: LegScore | None
    text: LegScore | None
    document: Document
    explanation: Explanation | None
    copies: list[str] | None


class ShownHit(Hit, PictureUrls):
    """A hit with its picture; the document's ``uri`` is as in `ShownDocument`."""


class WeightedWord(TypedDict):
    """A word and its weight."""

    word: str
    weight: float


class Word(WeightedWord):
    """A word with the patch of the image that it was read from, counted row by row."""

    patch: int | None


class UnknownWord(TypedDict):
    """A word of the text that is not known, and known words that may be meant, likeliest first."""

    word: str
    nearest: list[str]


class QueryRead(TypedDict):
    """How a query was understood."""

    description: str
    words: list[WeightedWord]
    unknown: list[UnknownWord]
    unread: str
    legs: list[Leg]
    fusion: str | None


class CountedValue(TypedDict):
    """A value of a field, and how many documents have it."""

    value: str | float | bool
    count: int


CountedRange = TypedDict(
    "CountedRange", {"from": str | float | None, "to": str | float | None, "count": int}
)


class CountedFacet(TypedDict):
    """Counts of a field: of its values, or of the ranges asked for.

    ``other`` is how often further values occur, ``missing`` how many documents have no value.
    """

    values: NotRequired[list[CountedValue]]
    other: NotRequired[int]
    ranges: NotRequired[list[CountedRange]]
    missing: int


class Took(TypedDict):
    """Milliseconds that the parts of an answer took, waiting included."""

    encode: float
    search: float
    total: float


class SearchAnswer(TypedDict):
    """Hits, best first. ``good_match`` is whether the first of all is relevant, null if unknown.

    ``total`` is how many documents the filter, bans and requirements admit; with ``min_score`` or
    ``min_relevance``, how many hits reach that. If ``total_exact`` is false, there are at least
    that many. ``facets`` counts the same documents. ``next`` continues the answer, as ``after`` of
    the same query; it is null at the end.
    """

    query: QueryRead
    hits: list[ShownHit]
    total: int
    total_exact: bool
    facets: dict[str, CountedFacet]
    next: str | None
    good_match: bool | None
    took_ms: Took
    request_id: str


class BatchAnswer(TypedDict):
    """The answers, in the order of the queries."""

    answers: list[SearchAnswer]


class Explained(TypedDict):
    """One hit in full."""

    hit: ShownHit


class EncodedItem(TypedDict):
    """The strongest words of a text or an image."""

    words: list[Word]
    dense: NotRequired[list[float]]


class Encoded(TypedDict):
    """The items, in the order of the request."""

    items: list[EncodedItem]


class LineError(TypedDict):
    """Why a line of an upsert was rejected."""

    line: int
    id: str | None
    detail: str


class UpsertAnswer(TypedDict):
    """The outcome of an upsert. What is counted as indexed is committed."""

    indexed: int
    rejected: int
    errors: list[LineError]


class Patched(ShownDocument):
    """A document as it is now, and whether its new text was encoded."""

    encoded_again: bool


class Deleted(TypedDict):
    """How many documents were deleted."""

    deleted: int


class DocumentList(TypedDict):
    """A page of documents, how many there are in all, and what continues the list, if anything."""

    documents: list[ShownDocument]
    total: int
    next: str | None


class DocumentWords(TypedDict):
    """The strongest words of a document."""

    id: str
    words: list[Word]


class Completions(TypedDict):
    """Words of the vocabulary."""

    words: list[str]


class VocabularyFacts(TypedDict):
    """The terms of the lexical vectors."""

    size: int
    sha256: str


class Field(TypedDict):
    """A metadata field; see `lexvla_search.fields`."""

    name: str
    kind: Literal["string", "number", "boolean", "mixed"]
    distinct: int
    low: float | None
    high: float | None


class Facts(TypedDict):
    """What is served; ``legs`` are those of vectors, with their widths.

    ``fields`` is null if the engine can neither list documents nor count their values.
    """

    count: int
    model: str | None
    vocabulary: VocabularyFacts
    legs: dict[str, int]
    has_text: bool
    fusion: str
    writable: bool
    images: bool
    fields: list[Field] | None
    limits: dict[str, float]


class Health(TypedDict):
    """That the server runs."""

    status: str
