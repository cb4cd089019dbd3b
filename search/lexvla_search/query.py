"""What a search asks for: any mix of text, image and weighted words, and what hits must be."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
from PIL import Image
from scipy import sparse

from lexvla.encoding import Encoder, Encoding
from lexvla.errors import InputError
from lexvla.images import ImageSource, open_image
from lexvla.text_normalisation import normalise_text
from lexvla_indexer.filters import Filter
from lexvla_indexer.legs import Leg
from lexvla_search.fusion import LEGS, MAX_HITS, Fusion, named_fusion
from lexvla_search.words import Constraints, column_of, columns_of, strongest

__all__ = ["Query"]

MAX_TEXT_LENGTH = 4096  # characters; far above what any text tower reads of a query
MAX_WORDS = 1024  # of terms, boosts, bans and requirements each
LEAST_WEIGHT, GREATEST_WEIGHT = 1e-6, 1e6  # of terms and boosts, so that no product overflows


@dataclass(frozen=True)
class Query:
    """Ask by text, image and words together, and say what hits must be.

    Words are those of the vocabulary, in any case: ``face`` means each of its terms that people
    see as "face". Boosts and bans change the query's words, and neither its codes nor its dense
    vector; a ban and a requirement hold for the hits of every leg.

    Args:
        text: Words to look for; blank text counts as none.
        image: A picture to find similar ones to: a path, a PIL image, bytes or an array.
        region: Ask by this part of the image, cut out of it: (x, y, width, height) in pixels of
            the upright image, from its upper left corner.
        terms: Words with weights, put into the query without a model. Text, image and terms count
            alike: each is brought to length 1 before they are added up.
        boost: Words with factors for their weights in the query, after all is added up. A word
            that the query lacks comes in with the factor times the mean weight of the query's 16
            strongest words.
        ban: Words to strike from the query. Documents among whose 16 strongest words one of them
            is are no hits.
        require: Only documents among whose 16 strongest words each of them is are hits.
        filter: Which documents may be hits, such as ``year >= 2020 and tag = cat``; see
            `lexvla_indexer.filters`.
        legs: By what to search; ``None`` for all that query and index have, and codes only if a
            fusion asks for them or there is nothing else.
        fusion: How to make one list of the legs' answers: a name of `lexvla_search.fusion.FUSIONS`
            or a `Fusion`. ``None`` takes the one that was fitted for the index, else the default.
        k: The most hits to return.
        offset: How many of the best hits to leave out first; offset and k together are at most
            10,000.
        min_score: The least score of a hit.

    Raises:
        FilterSyntaxError: The filter cannot be read.
        InputError: There is neither text, image nor term, or a value breaks its rule. The error
            names it.
    """

    text: str | None = None
    image: ImageSource | None = None
    region: tuple[float, float, float, float] | None = None
    terms: Mapping[str, float] = field(default_factory=dict)
    boost: Mapping[str, float] = field(default_factory=dict)
    ban: Sequence[str] = ()
    require: Sequence[str] = ()
    filter: str | None = None
    legs: tuple[Leg, ...] | None = None
    fusion: str | Fusion | None = None
    k: int = 10
    offset: int = 0
    min_score: float | None = None

    def __post_init__(self) -> None:
        if self.text is not None:
            _check_text(self.text, "a query's text")
        for name in ("terms", "boost"):
            object.__setattr__(self, name, _weights(name, getattr(self, name)))
        for name in ("ban", "require"):
            object.__setattr__(self, name, _words(name, getattr(self, name)))
        if not self.has_text and self.image is None and not self.terms:
            raise InputError(self.text or "", "a query must have a text or an image, or terms")
        if self.region is not None:
            object.__setattr__(self, "region", _region(self.region, self.image))
        if self.filter is not None:
            Filter.parse(self.filter)
        if self.legs is not None:
            object.__setattr__(self, "legs", _legs(self.legs))
        if isinstance(self.fusion, str):
            object.__setattr__(self, "fusion", named_fusion(self.fusion))
        elif self.fusion is not None and not isinstance(self.fusion, Fusion):
            raise InputError(repr(self.fusion), "a fusion must be a name or a Fusion")
        self._check_fusion()
        check_place(self.k, self.offset)
        if self.min_score is not None and not _is_number(self.min_score):
            raise InputError("min_score", f"must be a finite number, not {self.min_score!r}")

    def _check_fusion(self) -> None:
        if self.legs is None or not isinstance(self.fusion, Fusion) or self.fusion.legs is None:
            return
        for leg in self.fusion.legs:
            if leg not in self.legs:
                raise InputError(leg, "the fusion weighs this leg, and the query leaves it out")
        for leg in self.legs:
            if leg not in self.fusion.legs:
                raise InputError(
                    leg, "the query asks by this leg, and its fusion does not weigh it"
                )

    @property
    def has_text(self) -> bool:
        """Say whether there is text to encode."""
        return self.text is not None and bool(normalise_text(self.text))

    def constraints(self, encoder: Encoder) -> Constraints:
        """Return what hits must show and must not.

        Raises:
            InputError: The vocabulary lacks a word, or a word is both banned and asked for.
        """
        vocabulary = encoder.vocabulary
        banned = {word: columns_of(vocabulary, word) for word in self.ban}
        for word, columns in banned.items():
            for name in ("terms", "boost", "require"):
                for other in getattr(self, name):
                    if not columns.isdisjoint(columns_of(vocabulary, other)):
                        raise InputError(word, f"is banned, and is in {name} too")
        required = tuple(columns_of(vocabulary, word) for word in self.require)
        return Constraints(frozenset().union(*banned.values()), required)

    def resolve(self, encoder: Encoder) -> Encoding:
        """Encode the query as one row, with terms, boosts and bans applied.

        Text, image and terms are added up as unit vectors, and the sum is made unit. So are the
        dense vectors of text and image; codes are averaged. Terms have neither: a query of terms
        alone has a lexical leg only.

        Raises:
            InputError: The text has no known word, the image cannot be read or the region lies
                outside of it, the vocabulary lacks a word, or the bans leave nothing to ask for.
            UnsupportedError: The encoder reads no images.
        """
        parts: list[Encoding] = []
        if self.text is not None and self.has_text:
            part = encoder.encode_text([self.text])
            self._require_words(part, self.text, "no word of the query is in the vocabulary")
            parts.append(part)
        if self.image is not None:
            parts.append(self._encode_image(encoder, self.image))
        if not self.terms and len(parts) == 1:
            lexical = parts[0].lexical
        else:
            rows = [part.lexical for part in parts]
            lexical = _sum_of_units([*rows, *self._terms(encoder)])
        lexical = self._weigh(lexical, encoder)
        encoding = Encoding(lexical, None, _mean_codes(parts), _sum_of_dense(parts))
        if not lexical.nnz and encoding.dense is None and encoding.codes is None:
            raise InputError(", ".join(self.ban), "nothing to look for is left without these words")
        return encoding

    def describe(self) -> str:
        """Say in words what is asked for."""
        asked = []
        if self.has_text:
            asked.append(f'"{self.text}"')
        if self.image is not None:
            where = "" if self.region is None else f" at {','.join(f'{v:g}' for v in self.region)}"
            asked.append(f"image {_name_of(self.image)}{where}".replace("image the", "the"))
        if self.terms:
            asked.append("words " + ", ".join(f"{w} {v:g}" for w, v in self.terms.items()))
        parts = [" and ".join(asked)]
        parts += [f"without {word}" for word in self.ban]
        parts += [f"with {word} x{factor:g}" for word, factor in self.boost.items()]
        parts += [f"only with {word}" for word in self.require]
        if self.filter is not None:
            parts.append(f"where {self.filter}")
        if self.legs is not None:
            parts.append(f"by {' and '.join(self.legs)}")
        if self.fusion is not None:
            parts.append(f"fused by {self.fusion}")
        said = ", ".join(parts)
        weighs = bool(self.boost or self.ban) and (self.has_text or self.image is not None)
        if weighs and self.legs != ("lexical",):
            said += " (boosts and bans change words, not codes or dense vectors)"
        return said

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can hold; of an image in memory, just that there is one."""
        fusion = cast("Fusion | None", self.fusion)
        return {
            "text": self.text,
            "image": None if self.image is None else _name_of(self.image),
            "region": None if self.region is None else list(self.region),
            "terms": dict(self.terms),
            "boost": dict(self.boost),
            "ban": list(self.ban),
            "require": list(self.require),
            "filter": self.filter,
            "legs": None if self.legs is None else list(self.legs),
            "fusion": None if fusion is None else fusion.to_dict(),
            "k": self.k,
            "offset": self.offset,
            "min_score": self.min_score,
        }

    def _encode_image(self, encoder: Encoder, source: ImageSource) -> Encoding:
        name = _name_of(source)
        image = open_image(source, name)
        if self.region is not None:
            # Cut out: read in its surroundings, it is full of them (docs/search.md has figures).
            image = image.crop(_pixels(self.region, image.size))
            name = f"region {self.region} of {name}"
        try:
            part = encoder.encode_image([image])
        except InputError as error:  # an encoder knows no name of pixels in memory
            raise InputError(name, error.rule) from error
        self._require_words(part, name, "the model reads no word from the image")
        return part

    def _require_words(self, encoding: Encoding, item: str, rule: str) -> None:
        needed = self.legs is None or "lexical" in self.legs
        if needed and encoding.lexical.nnz == 0:
            raise InputError(item, rule)

    def _terms(self, encoder: Encoder) -> list[sparse.csr_array]:
        if not self.terms:
            return []
        row = np.zeros((1, len(encoder.vocabulary)))
        for word, weight in self.terms.items():
            row[0, column_of(encoder.vocabulary, word)] += weight
        return [sparse.csr_array(row)]

    def _weigh(self, lexical: sparse.csr_array, encoder: Encoder) -> sparse.csr_array:
        """Apply boosts, then bans."""
        banned = self.constraints(encoder).banned  # finds unknown words too
        if not self.boost and not banned:
            return lexical
        vocabulary = encoder.vocabulary
        row = lexical.toarray().astype(np.float64)[0]
        shown = row[strongest(lexical.indices, lexical.data)]
        usual = float(shown.mean()) if len(shown) else 1.0
        for word, factor in self.boost.items():
            own = [column for column in columns_of(vocabulary, word) if row[column] > 0]
            if own:
                row[own] *= factor
            else:
                row[column_of(vocabulary, word)] = factor * usual
        row[list(banned)] = 0
        weighed = sparse.csr_array(row[None].astype(np.float32))
        weighed.eliminate_zeros()  # a weight that is too small for 32 bits
        return weighed


def check_place(k: object, offset: object = 0) -> None:
    """Refuse a k or an offset that is out of its range.

    Raises:
        InputError: k is below 1, the offset is below 0, or their sum is over 10,000.
    """
    for name, value in (("k", k), ("offset", offset)):
        if not isinstance(value, int) or isinstance(value, bool):
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
        if not _is_number(weight) or not LEAST_WEIGHT <= weight <= GREATEST_WEIGHT:
            what = "a weight" if name == "terms" else "a factor"
            limits = f"from {LEAST_WEIGHT:g} to {GREATEST_WEIGHT:,.0f}"
            raise InputError(word, f"{what} of {name} must be a number {limits}, not {weight!r}")
    return {word: float(weight) for word, weight in weights.items()}


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
            raise InputError(str(leg), f"is no leg; there are {', '.join(LEGS)}")
    return tuple(leg for leg in LEGS if leg in legs)


def _region(region: object, image: object) -> tuple[float, ...]:
    if image is None:
        raise InputError("region", "goes with an image only")
    values = list(region) if isinstance(region, Sequence | np.ndarray) else []
    if len(values) != 4 or not all(_is_number(value) for value in values):
        rule = f"must be four finite numbers: x, y, width and height, not {region!r}"
        raise InputError("region", rule)
    x, y, width, height = values
    if x < 0 or y < 0 or width <= 0 or height <= 0:
        rule = "must have a place of at least 0 and a size above 0"
        raise InputError(f"region {tuple(values)}", rule)
    return tuple(map(float, values))


def _pixels(
    region: tuple[float, float, float, float], size: tuple[int, int]
) -> tuple[int, int, int, int]:
    """Return the whole pixels that a region touches: left, upper, right, lower."""
    x, y, width, height = region
    if x + width > size[0] or y + height > size[1]:
        rule = f"lies outside of the image of {size[0]} x {size[1]} pixels"
        raise InputError(f"region {tuple(region)}", rule)
    return math.floor(x), math.floor(y), math.ceil(x + width), math.ceil(y + height)


def _is_number(value: object) -> bool:
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | float | np.number):
        return False
    return math.isfinite(float(value))


def _name_of(image: ImageSource) -> str:
    if isinstance(image, str | Path):
        return str(image)
    named = getattr(image, "filename", "") if isinstance(image, Image.Image) else ""
    return str(named) if named else "the query's image"


def _sum_of_units(rows: Sequence[sparse.csr_array]) -> sparse.csr_array:
    given = [row.astype(np.float64) / np.linalg.norm(row.data) for row in rows if row.nnz]
    if not given:
        return rows[0]
    total = sum(given[1:], given[0])
    unit = sparse.csr_array((total / np.linalg.norm(total.data)).astype(np.float32))
    unit.eliminate_zeros()
    unit.sort_indices()
    return unit


def _sum_of_dense(parts: Sequence[Encoding]) -> np.ndarray | None:
    rows = [part.dense for part in parts if part.dense is not None]
    if len(rows) < 2:
        return rows[0] if rows else None
    total = np.sum([row.astype(np.float64) / (np.linalg.norm(row) or 1.0) for row in rows], axis=0)
    return np.asarray(total / (np.linalg.norm(total) or 1.0), np.float32)


def _mean_codes(parts: Sequence[Encoding]) -> sparse.csr_array | None:
    rows = [part.codes for part in parts if part.codes is not None]
    if len(rows) < 2:
        return rows[0] if rows else None
    mean = sparse.csr_array((sum(rows[1:], rows[0]) / len(rows)).astype(np.float32))
    mean.sort_indices()
    return mean
