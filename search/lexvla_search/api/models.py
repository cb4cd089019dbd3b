"""What requests hold; for answers see `lexvla_search.schema`."""

from __future__ import annotations

from typing import Annotated

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    StringConstraints,
    Tag,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)

from lexvla_indexer.document import MAX_ID_BYTES
from lexvla_indexer.facets import MAX_FACETS, MAX_RANGES, MAX_VALUES
from lexvla_indexer.legs import Leg
from lexvla_indexer.listing import MAX_ORDERS
from lexvla_indexer.strongest import SHOWN_WORDS
from lexvla_search.fusion import LEGS, FusionKind, FusionName, Normalization
from lexvla_search.query import MAX_CURSOR_LENGTH, MAX_SIMILAR, MAX_TEXT_LENGTH

__all__ = [
    "TAGS",
    "BatchRequest",
    "DocumentLine",
    "DocumentPatch",
    "EncodeRequest",
    "ExplainRequest",
    "FacetSettings",
    "FusionSettings",
    "ProblemModel",
    "SearchRequest",
    "SimilarItem",
]

Id = Annotated[str, StringConstraints(min_length=1, max_length=MAX_ID_BYTES)]
FieldName = Annotated[str, StringConstraints(min_length=1, max_length=4096)]
Word = Annotated[str, StringConstraints(min_length=1, max_length=256)]
Weight = Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)]
Side = Annotated[float, Field(ge=0, le=1 << 24, allow_inf_nan=False)]
Base64 = Annotated[str, Field(json_schema_extra={"contentEncoding": "base64"})]
Url = Annotated[str, StringConstraints(min_length=1, max_length=2048)]


def _by_one_rule(value: object, check: ValidatorFunctionWrapHandler) -> object:
    # A union would break a rule for each of its types.
    try:
        return check(value)
    except ValidationError as error:
        rule = "must be a string, a finite number, a boolean or a list of strings"
        raise ValueError(rule) from error


MetadataValue = Annotated[
    str | int | Annotated[float, Field(allow_inf_nan=False)] | bool | list[str] | None,
    WrapValidator(_by_one_rule),
]


class _Request(BaseModel):
    # Strict: "5" is not a number, and an unknown field is an error that names it.
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class FusionSettings(_Request):
    """A fusion and what is not its default: ``constant`` of rrf, ``normalization`` of weighted."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "name": "weighted",
                    "weights": {"lexical": 0.3, "dense": 0.7},
                    "normalization": "zscore",
                }
            ]
        }
    )

    name: FusionKind
    weights: dict[Leg, Annotated[float, Field(ge=0, le=1e6)]] | None = None
    normalization: Normalization | None = None
    constant: Annotated[float, Field(ge=0, le=1e6)] | None = None
    depth: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Candidates of each leg; at most as many as the server's limit of k."
    )


class SimilarItem(_Request):
    """An indexed item to find similar ones to; a negative weight leads away from it."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"id": "2764", "weight": -0.5}]})

    id: Id
    weight: Annotated[float, Field(ge=-1e6, le=1e6)] = 1.0


Limit = str | int | float | None


class FacetSettings(_Request):
    """Count a field's most frequent values, or ranges of it: from a limit to below another."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"field": "tags", "limit": 5},
                {"field": "year", "ranges": [[None, 2000], [2000, None]]},
            ]
        }
    )

    field: FieldName
    limit: Annotated[int, Field(ge=1, le=MAX_VALUES)] = 10
    ranges: (
        Annotated[
            list[Annotated[list[Limit], Field(min_length=2, max_length=2)]],
            Field(min_length=1, max_length=MAX_RANGES),
        ]
        | None
    ) = None


# Discriminated by type, so that errors are about the one that was meant. Errors have these tags in
# the place of a value; `problems.invalid` leaves them out.
_SHORT, _FULL = "(short)", "(full)"
TAGS = (_SHORT, _FULL)


def _either(short: type, full: type | tuple[type, ...], rule: str) -> Discriminator:
    def tag(value: object) -> str | None:
        if isinstance(value, short):
            return _SHORT
        return _FULL if isinstance(value, full) else None

    return Discriminator(tag, "of_no_type", f"Input should be {rule}")


_STRING_OR_OBJECT = _either(str, (dict, BaseModel), "a string or an object")
AnyFusion = Annotated[
    Annotated[FusionName, Tag(_SHORT)] | Annotated[FusionSettings, Tag(_FULL)], _STRING_OR_OBJECT
]
AnySimilar = Annotated[
    Annotated[Id, Tag(_SHORT)] | Annotated[SimilarItem, Tag(_FULL)], _STRING_OR_OBJECT
]
AnyFacet = Annotated[
    Annotated[FieldName, Tag(_SHORT)] | Annotated[FacetSettings, Tag(_FULL)], _STRING_OR_OBJECT
]
Sort = Annotated[
    Annotated[FieldName, Tag(_SHORT)]
    | Annotated[Annotated[list[FieldName], Field(max_length=MAX_ORDERS)], Tag(_FULL)],
    _either(str, list, "a string or an array"),
]
GroupCopies = Annotated[
    Annotated[bool, Tag(_SHORT)] | Annotated[float, Field(gt=0, le=1), Tag(_FULL)],
    _either(bool, (int, float), "a boolean or a number"),
]


class SearchRequest(_Request):
    """A query: a text, an image, weighted words, similar items, or a mix of them.

    Without any of these nothing is scored: it lists what ``filter``, ``ban`` and ``require`` admit.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"text": "red heart", "k": 5, "explain": True},
                {
                    "text": "cat",
                    "ban": ["face"],
                    "boost": {"red": 2.0},
                    "filter": "group = animals-nature",
                },
                {"terms": {"red": 1.0, "heart": 0.5}, "legs": ["lexical"]},
                {"similar": ["2764", {"id": "1f494", "weight": -0.5}], "k": 5},
                {
                    "filter": "group = animals-nature",
                    "sort": ["label"],
                    "facets": ["tags", {"field": "year", "ranges": [[None, 2000], [2000, None]]}],
                },
            ]
        }
    )

    text: Annotated[str, StringConstraints(max_length=MAX_TEXT_LENGTH)] | None = None
    image: Base64 | None = Field(None, description="The bytes of an image file.")
    image_url: Url | None = Field(
        None, description="Fetched only from hosts that the server was told to allow."
    )
    region: Annotated[list[Side], Field(min_length=4, max_length=4)] | None = Field(
        None, description="x, y, width and height of a part of the image, in its pixels."
    )
    terms: dict[Word, Weight] | None = Field(None, description="Words of the query, by weight.")
    similar: Annotated[list[AnySimilar], Field(max_length=MAX_SIMILAR)] | None = Field(
        None,
        description="Ids of the index, or ids with weights, which may be negative.",
        examples=[["2764", {"id": "1f494", "weight": -0.5}]],
    )
    boost: dict[Word, Weight] | None = Field(None, description="Words, by the factor of each.")
    ban: list[Word] | None = Field(None, description="No hit shows these among its words.")
    require: list[Word] | None = Field(None, description="Every hit shows these.")
    filter: str | None = Field(None, description="Such as `year >= 2020 and tags = cat`.")
    legs: Annotated[list[Leg], Field(min_length=1, max_length=len(LEGS))] | None = None
    fusion: AnyFusion | None = None
    text_fields: dict[FieldName, Weight] | None = Field(
        None,
        description="Fields of an attached index to look for the text's words in, by weight.",
        examples=[{"title": 2.0, "description": 1.0}],
    )
    k: Annotated[int, Field(ge=1)] = 10
    group_copies: GroupCopies = Field(
        False, description="One hit for near-identical documents; a number is their least cosine."
    )
    offset: Annotated[int, Field(ge=0)] = 0
    min_score: Annotated[float, Field(allow_inf_nan=False)] | None = None
    min_relevance: Annotated[float, Field(ge=0, le=1)] | None = None
    sort: Sort | None = Field(
        None,
        description="Metadata fields to order by, then by id; `-year` is descending. "
        "With scores only beside min_score or min_relevance.",
        examples=["-year", ["-year", "label"]],
    )
    facets: Annotated[list[AnyFacet], Field(max_length=MAX_FACETS)] | None = Field(
        None,
        description="What to count of the documents that `total` counts.",
        examples=[["tags", {"field": "year", "ranges": [[None, 2000], [2000, None]]}]],
    )
    after: Annotated[str, StringConstraints(max_length=MAX_CURSOR_LENGTH)] | None = Field(
        None, description="The `next` of an earlier answer to the same query, to go on after it."
    )
    explain: bool = Field(False, description="Take each score apart.")

    @model_validator(mode="after")
    def _asks_for_something(self) -> SearchRequest:
        if self.image is not None and self.image_url is not None:
            raise ValueError("give either image or image_url")
        return self


class ExplainRequest(SearchRequest):
    """A query, and the id of the document to explain."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"text": "red heart", "id": "2764"}]})

    id: Id


class BatchRequest(_Request):
    """Several queries, each answered as by itself."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"queries": [{"text": "red heart"}, {"text": "cat"}]}]}
    )

    queries: Annotated[list[SearchRequest], Field(min_length=1)]


class EncodeRequest(_Request):
    """Texts or images to encode. In a multipart body, the images are the parts ``image``."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"texts": ["red heart"], "top_k": 5}]}
    )

    texts: (
        list[Annotated[str, StringConstraints(min_length=1, max_length=MAX_TEXT_LENGTH)]] | None
    ) = None
    images: list[Base64] | None = Field(None, description="The bytes of image files.")
    top_k: Annotated[int, Field(ge=1, le=1000)] = SHOWN_WORDS
    dense: bool = Field(False, description="Give the dense vectors too.")


class DocumentLine(_Request):
    """One line of an upsert. A document is encoded by its image; one without, by its text.

    Null means absent.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"id": "n1", "text": "a red heart", "metadata": {"year": 2024}}]
        }
    )

    id: str
    text: str | None = None
    image: Base64 | None = None
    image_url: Url | None = None
    uri: str | None = None
    metadata: dict[str, MetadataValue] | None = None

    @model_validator(mode="after")
    def _has_content(self) -> DocumentLine:
        images = (self.image is not None) + (self.image_url is not None)
        if images > 1:
            raise ValueError("give either image or image_url")
        if not images and not (self.text or "").strip():
            raise ValueError("a document needs a text, an image or an image_url")
        return self


class DocumentPatch(_Request):
    """Changes of a document, as of RFC 7396: what is absent stays, null removes."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"metadata": {"price": 9.5, "sale": None}}]}
    )

    text: str | None = None
    uri: str | None = None
    metadata: dict[str, MetadataValue | None] | None = None


class ProblemModel(BaseModel):
    """Problem details as of RFC 9457."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "type": "urn:problem-type:lexvla:invalid",
                    "title": "The request breaks a rule",
                    "status": 422,
                    "detail": "colour: there is no such field",
                    "instance": "/v1/search",
                    "request_id": "5f0c0d6e9a3b4c55",
                    "errors": [{"field": "colour", "detail": "there is no such field"}],
                }
            ]
        }
    )

    type: str
    title: str
    status: int
    detail: str
    instance: str
    request_id: str
    errors: list[dict[str, str]] | None = None
