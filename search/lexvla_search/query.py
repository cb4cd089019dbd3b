"""A search query: any mix of text, image, words and indexed items, and conditions on hits."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, cast

import numpy as np
from PIL import Image

from lexvla.errors import InputError
from lexvla.images import ImageSource, name_of
from lexvla.text_normalisation import normalise_text
from lexvla_indexer.document import check_id
from lexvla_indexer.facets import Facet, facets_of
from lexvla_indexer.filters import Filter
from lexvla_indexer.legs import Leg
from lexvla_indexer.listing import orders
from lexvla_search.copies import ALIKE
from lexvla_search.field_weights import field_weights_of
from lexvla_search.finite import is_finite
from lexvla_search.fusion import LEGS, MAX_HITS, Fusion, FusionName, named_fusion

__all__ = ["MAX_TEXT_LENGTH", "Query", "check_page", "name_of_image"]

MAX_TEXT_LENGTH = 16_384  # characters: documents serve as queries in some test collections
MAX_WORDS = 1024  # in each of terms, boost, ban and require
MAX_SIMILAR = 256
MAX_CURSOR_LENGTH = 65_536
_UNNAMED = "the query's image"
LEAST_WEIGHT, GREATEST_WEIGHT = 1e-6, 1e6  # for terms and boosts, so that no product overflows


@dataclass(frozen=True)
class Query:
    """Ask by text, image, words and indexed items together, and set conditions on hits.

    Words are matched to the vocabulary in any case: ``face`` means every term that people see as
    "face". Boosts and bans change the query's words, but not its codes or its dense vector. A query
    with none of text, image, terms and similar scores nothing: it lists all documents that
    ``filter``, ``ban`` and ``require`` admit. A value that breaks its rule raises `InputError`; a
    filter that cannot be parsed raises `FilterSyntaxError`.

    Args:
        text: Words to look for; blank text counts as no text.
        image: A picture to find similar ones to, in any form of `lexvla.images.open_image`.
        region: Ask by this part of the image, which is cut out: (x, y, width, height) in pixels
            of the upright image, from its upper left corner.
        terms: Words with weights, added to the query without a model. Text, image and terms count
            alike: each is scaled to length 1 before they are added up.
        similar: Items of the index to find similar ones to, by their stored vectors: an id, a list
            of ids, or weights by id, which may be negative. Together they count as much as
            a text. The items themselves are not hits.
        boost: Words with factors for their weights, applied after the sum. A word that the query
            lacks is added with the factor times the mean weight of the query's 16 strongest words.
        ban: Words to remove from the query. A document that has one of them among its 16
            strongest words is not a hit.
        require: A document is a hit only if each of these is among its 16 strongest words.
        filter: Which documents may be hits, such as ``year >= 2020 and tag = cat``; see
            `lexvla_indexer.filters`.
        legs: What to search by; ``None`` for all legs that query and index have, but codes only
            if a fusion asks for them.
        fusion: How to fuse the legs' rankings: a name of `lexvla_search.fusion.FUSIONS` or a
            `Fusion`. ``None`` takes the fusion fitted for the index, else that of the model.
        text_fields: Fields of a user's own index, attached to LexVLA, where the leg ``text`` looks
            for the text's words: ``title^2,description``, or weights by field. ``None`` takes the
            fields that were encoded.
        k: The most hits to return.
        offset: How many of the best hits to skip; offset and k together are at most 10,000.
        group_copies: Return near-identical documents as one hit, the best, with the ids of the
            others; see `lexvla_search.copies`. A number is the least cosine of their vectors; True
            is 0.95. ``total`` and facets still count documents.
        min_score: The lowest score of a hit.
        min_relevance: The lowest relevance of a hit, from 0 to 1.
        sort: Metadata fields to order hits by, such as ``year``, or ``-year`` for descending; then
            by id. A scored query needs `min_score` or `min_relevance` too, which bounds what is
            sorted.
        facets: What to count among the documents that ``total`` counts: fields, or `Facet`.
        after: The ``next`` of an earlier answer, to continue after it.
    """

    text: str | None = None
    image: ImageSource | None = None
    region: tuple[float, float, float, float] | None = None
    terms: Mapping[str, float] = field(default_factory=dict)
    similar: str | Sequence[str] | Mapping[str, float] = field(default_factory=dict)
    boost: Mapping[str, float] = field(default_factory=dict)
    ban: Sequence[str] = ()
    require: Sequence[str] = ()
    filter: str | None = None
    legs: tuple[Leg, ...] | None = None
    fusion: FusionName | Fusion | None = None
    text_fields: Mapping[str, float] | Sequence[str] | str | None = None
    k: int = 10
    group_copies: bool | float = False
    offset: int = 0
    min_score: float | None = None
    min_relevance: float | None = None
    sort: str | Sequence[str] = ()
    facets: Sequence[str | Facet | Mapping[str, Any]] = ()
    after: str | None = None

    def __post_init__(self) -> None:
        if self.text is not None:
            _check_text(self.text, "a query's text")
        for name in ("terms", "boost"):
            object.__setattr__(self, name, _weights(name, getattr(self, name)))
        for name in ("ban", "require"):
            object.__setattr__(self, name, _words(name, getattr(self, name)))
        object.__setattr__(self, "similar", _similar(self.similar))
        if self.region is not None:
            object.__setattr__(self, "region", _region(self.region, self.image))
        if self.filter is not None:
            Filter.parse(self.filter)
        if self.legs is not None:
            object.__setattr__(self, "legs", _legs(self.legs))
        self._check_fusion()
        self._check_text_fields()
        check_page(self.k, self.offset)
        for name in ("k", "offset"):
            object.__setattr__(self, name, int(getattr(self, name)))
        object.__setattr__(self, "group_copies", _alike(self.group_copies))
        for name in ("min_score", "min_relevance"):
            object.__setattr__(self, name, _least(name, getattr(self, name)))
        object.__setattr__(self, "sort", _sort(self.sort))
        object.__setattr__(self, "facets", facets_of(self.facets))
        self._check_after()
        if not self.is_scored:
            self._check_listing()
        elif self.sort and not self.is_bounded:
            rule = "a query that scores documents needs min_score or min_relevance to be sorted"
            raise InputError("sort", rule)

    def _check_text_fields(self) -> None:
        if self.text_fields is None:
            return
        object.__setattr__(self, "text_fields", field_weights_of(self.text_fields))
        if not self.has_text:
            raise InputError("text_fields", "needs a text to look for")
        named = self.legs or (self.chosen_fusion.legs if self.chosen_fusion else None)
        if named is not None and "text" not in named:
            raise InputError("text_fields", "the query leaves out the leg text")

    def _check_after(self) -> None:
        if self.after is None:
            return
        if not isinstance(self.after, str) or len(self.after) > MAX_CURSOR_LENGTH:
            raise InputError("after", "must be the next of an earlier answer")
        if self.offset:
            raise InputError("after", "cannot go with an offset")
        if self.group_copies:
            raise InputError("after", "cannot go with group_copies; use offset")

    def _check_listing(self) -> None:
        for name in ("boost", "legs", "fusion", "min_score", "min_relevance"):
            if getattr(self, name) not in (None, {}):
                rule = "needs something to score by: text, image, terms or similar"
                raise InputError(name, rule)

    @property
    def is_scored(self) -> bool:
        """Whether documents are scored; otherwise they are only listed."""
        return self.has_text or self.image is not None or bool(self.terms or self.similar)

    @property
    def is_bounded(self) -> bool:
        """Whether hits must reach a score or a relevance."""
        return self.min_score is not None or self.min_relevance is not None

    @property
    def similar_weights(self) -> dict[str, float]:
        """The items of ``similar`` with their weights."""
        return cast(dict[str, float], self.similar)

    @property
    def text_weights(self) -> dict[str, float] | None:
        """The fields of ``text_fields`` with their weights."""
        return cast("dict[str, float] | None", self.text_fields)

    @property
    def asked_facets(self) -> tuple[Facet, ...]:
        """What to count."""
        return cast(tuple[Facet, ...], self.facets)

    @property
    def alike(self) -> float | None:
        """The least cosine of copies; ``None`` if they are not grouped."""
        return ALIKE if self.group_copies is True else float(self.group_copies) or None

    @cached_property
    def chosen_fusion(self) -> Fusion | None:
        """The fusion that the query names."""
        return named_fusion(self.fusion) if isinstance(self.fusion, str) else self.fusion

    def _check_fusion(self) -> None:
        fusion = self.chosen_fusion
        if fusion is None:
            return
        if not isinstance(fusion, Fusion):
            raise InputError(repr(fusion), "a fusion must be a name or a Fusion")
        if self.legs is None or fusion.legs is None:
            return
        for leg in fusion.legs:
            if leg not in self.legs:
                raise InputError(leg, "the fusion weighs this leg, but the query leaves it out")
        for leg in self.legs:
            if leg not in fusion.legs:
                rule = "the query asks by this leg, but its fusion does not weigh it"
                raise InputError(leg, rule)

    @cached_property
    def has_text(self) -> bool:
        """Whether there is text to encode."""
        return self.text is not None and bool(normalise_text(self.text))

    def describe(self) -> str:
        """Return a short description of the query."""
        asked = []
        if self.has_text:
            asked.append(f'"{self.text}"')
        if self.image is not None:
            where = "" if self.region is None else f" at {','.join(f'{v:g}' for v in self.region)}"
            name = name_of_image(self.image)
            asked.append(f"{name if name == _UNNAMED else f'image {name}'}{where}")
        if self.terms:
            asked.append("words " + ", ".join(f"{w} {v:g}" for w, v in self.terms.items()))
        if self.similar:
            named = [n if w == 1 else f"{n} x{w:g}" for n, w in self.similar_weights.items()]
            asked.append("like " + ", ".join(named))
        parts = [" and ".join(asked) or "all documents"]
        parts += [f"without {word}" for word in self.ban]
        parts += [f"with {word} x{factor:g}" for word, factor in self.boost.items()]
        parts += [f"only with {word}" for word in self.require]
        if self.filter is not None:
            parts.append(f"where {self.filter}")
        if self.text_weights is not None:
            named = [n if w == 1 else f"{n}^{w:g}" for n, w in self.text_weights.items()]
            parts.append(f"its words in {' and '.join(named)}")
        if self.legs is not None:
            parts.append(f"by {' and '.join(self.legs)}")
        if self.group_copies:
            parts.append("copies as one")
        if self.chosen_fusion is not None:
            parts.append(f"fused by {self.chosen_fusion}")
        if self.sort:
            parts.append(f"sorted by {' and '.join(self.sort)}")
        said = ", ".join(parts)
        has_vectors = self.has_text or self.image is not None or bool(self.similar)
        weighs = bool(self.boost or self.ban) and has_vectors
        if weighs and self.legs != ("lexical",):
            said += " (boosts and bans change words, not codes or dense vectors)"
        return said

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; an image in memory is only mentioned."""
        fusion = self.chosen_fusion
        return {
            "text": self.text,
            "image": None if self.image is None else name_of_image(self.image),
            "region": None if self.region is None else list(self.region),
            "terms": dict(self.terms),
            "similar": dict(self.similar_weights),
            "boost": dict(self.boost),
            "ban": list(self.ban),
            "require": list(self.require),
            "filter": self.filter,
            "legs": None if self.legs is None else list(self.legs),
            "fusion": None if fusion is None else fusion.to_dict(),
            "text_fields": self.text_weights,
            "k": self.k,
            "group_copies": self.group_copies,
            "offset": self.offset,
            "min_score": self.min_score,
            "min_relevance": self.min_relevance,
            "sort": list(self.sort),
            "facets": [facet.to_dict() for facet in self.asked_facets],
            "after": self.after,
        }


def check_page(k: object, offset: object = 0) -> None:
    """Raise `InputError` for k below 1, an offset below 0, or a sum above 10,000."""
    for name, value in (("k", k), ("offset", offset)):
        if not isinstance(value, int | np.integer) or isinstance(value, bool):
            raise InputError(name, f"must be a whole number, not {value!r}")
    number, start = cast(int, k), cast(int, offset)
    if number < 1:
        raise InputError(str(number), "the number of hits must be at least 1")
    if start < 0:
        raise InputError(str(start), "the offset must be at least 0")
    if number + start > MAX_HITS:
        rule = f"the number of hits and the offset must be at most {MAX_HITS:,} together"
        raise InputError(str(number + start), rule)


def _check_text(text: object, what: str) -> None:
    if not isinstance(text, str):
        raise InputError(repr(text), f"{what} must be a string")
    if len(text) > MAX_TEXT_LENGTH:
        rule = f"{what} must be at most {MAX_TEXT_LENGTH:,} characters, not {len(text):,}"
        raise InputError(text, rule)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(ascii(text), f"{what} must be valid Unicode") from error


def _check_word(name: str, word: object) -> None:
    _check_text(word, f"a word of {name}")
    if not normalise_text(cast(str, word)):
        raise InputError(cast(str, word), f"a word of {name} must not be blank")


def _weights(name: str, weights: object) -> dict[str, float]:
    if not isinstance(weights, Mapping):
        raise InputError(name, f"must be weights by word, not {weights!r}")
    _check_count(name, len(weights))
    for word, weight in weights.items():
        _check_word(name, word)
        if not is_finite(weight) or not LEAST_WEIGHT <= weight <= GREATEST_WEIGHT:
            what = "a weight" if name == "terms" else "a factor"
            limits = f"from {LEAST_WEIGHT:g} to {GREATEST_WEIGHT:,.0f}"
            raise InputError(word, f"{what} of {name} must be a number {limits}, not {weight!r}")
    return {word: float(weight) for word, weight in weights.items()}


def _similar(given: object) -> dict[str, float]:
    if isinstance(given, str):
        given = [given]
    if not isinstance(given, Mapping | Sequence):
        raise InputError("similar", f"must be ids, or weights by id, not {given!r}")
    if len(given) > MAX_SIMILAR:
        raise InputError("similar", f"must be at most {MAX_SIMILAR} ids, not {len(given):,}")
    if not isinstance(given, Mapping):
        for name in given:
            if not isinstance(name, str) or given.count(name) > 1:
                raise InputError(str(name), "similar must be different ids, as strings")
        given = dict.fromkeys(given, 1.0)
    for name, weight in given.items():
        check_id(name)
        if not is_finite(weight) or not LEAST_WEIGHT <= abs(weight) <= GREATEST_WEIGHT:
            limits = f"of a size from {LEAST_WEIGHT:g} to {GREATEST_WEIGHT:,.0f}"
            rule = f"a weight of similar must be a number {limits}, not {weight!r}"
            raise InputError(name, rule)
    return {name: float(weight) for name, weight in given.items()}


def _alike(given: object) -> bool | float:
    if isinstance(given, bool):
        return given
    if not is_finite(given) or not 0 < given <= 1:
        rule = f"must be True, False or a number above 0 and at most 1, not {given!r}"
        raise InputError("group_copies", rule)
    return float(given)


def _least(name: str, given: object) -> float | None:
    if given is None:
        return None
    number = float(given) if is_finite(given) else math.nan
    if name == "min_relevance" and not 0 <= number <= 1:
        raise InputError(name, f"must be a number from 0 to 1, not {given!r}")
    if math.isnan(number):
        raise InputError(name, f"must be a finite number, not {given!r}")
    return number


def _sort(given: object) -> tuple[str, ...]:
    made = orders(cast(Any, given))
    return tuple(f"-{field}" if descending else field for field, descending in made)


def _words(name: str, words: object) -> tuple[str, ...]:
    if isinstance(words, str) or not isinstance(words, Sequence | set | frozenset):
        raise InputError(name, f"must be a list of words, not {words!r}")
    _check_count(name, len(words))
    for word in words:
        _check_word(name, word)
    return tuple(words)


def _check_count(name: str, count: int) -> None:
    if count > MAX_WORDS:
        raise InputError(name, f"must be at most {MAX_WORDS:,} words, not {count:,}")


def _legs(legs: object) -> tuple[Leg, ...]:
    if isinstance(legs, str) or not isinstance(legs, Sequence) or not legs:
        raise InputError(repr(legs), f"legs must be a list of some of {', '.join(LEGS)}")
    for leg in legs:
        if leg not in LEGS:
            raise InputError(str(leg), f"a leg must be one of {', '.join(LEGS)}")
    return tuple(leg for leg in LEGS if leg in legs)


def _region(region: object, image: object) -> tuple[float, ...]:
    if image is None:
        raise InputError("region", "needs an image")
    values = list(region) if isinstance(region, Sequence | np.ndarray) else []
    if len(values) != 4 or not all(is_finite(value) for value in values):
        rule = f"must be four finite numbers: x, y, width and height, not {region!r}"
        raise InputError("region", rule)
    x, y, width, height = values
    if x < 0 or y < 0 or width <= 0 or height <= 0:
        rule = "its corner must be at least 0 and its size above 0"
        raise InputError(f"region {tuple(values)}", rule)
    return tuple(map(float, values))


def name_of_image(image: ImageSource) -> str:
    """Return the path of an image, or "the query's image"."""
    named = getattr(image, "filename", "") if isinstance(image, Image.Image) else name_of(image)
    return _UNNAMED if not named or named.startswith("<") else str(named)
