"""A query as vectors, and the constraints on its hits."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
from PIL import Image
from scipy import sparse

from lexvla.encoder import Encoder
from lexvla.encoding import Encoding
from lexvla.errors import InputError, UnsupportedError
from lexvla.images import ENOUGH_SIDE, ImageSource, open_image
from lexvla.vocabulary import Vocabulary
from lexvla_indexer.legs import Leg, VectorLeg
from lexvla_indexer.strongest import strongest
from lexvla_search.query import Query, name_of_image
from lexvla_search.typed_words import UnknownWord, telling, understood
from lexvla_search.words import column_of, columns_of

__all__ = ["Constraints", "EncodedQuery", "encode_query"]

_CANCELLED = 1e-6  # relative length below which a sum of vectors is taken as 0


@dataclass(frozen=True)
class Constraints:
    """Constraints on the strongest words of a hit.

    Attributes:
        banned: Columns that must not be among them.
        required: Sets of columns; one of each set must be among them.
    """

    banned: frozenset[int] = frozenset()
    required: tuple[frozenset[int], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.banned or self.required)

    def allow(self, columns: np.ndarray, weights: np.ndarray) -> bool:
        """Return whether a document with these words may be a hit."""
        shown = strongest(columns, weights).tolist()
        kept = self.banned.isdisjoint(shown)
        return kept and all(not columns.isdisjoint(shown) for columns in self.required)

    def allow_row(self, stored: Encoding, row: int) -> bool:
        """Return whether the document of a stored row may be a hit."""
        columns, weights, _ = stored.words(row)
        return self.allow(columns, weights)


@dataclass(frozen=True)
class EncodedQuery:
    """A query as one model reads it.

    Attributes:
        encoding: One row, with terms, boosts and bans applied.
        words: The words of that row with their weights, heaviest first.
        filter: Which documents may be hits.
        unknown: The words of the text that the encoder does not know.
        unread: The end of the text, if it is too long for the encoder; otherwise empty.
        text: What to look for in documents' texts, those words included; empty if nothing.
        excluded: Ids that are not hits: the items of ``similar``.
        picture: Names the image that was asked by; empty if there is none.
    """

    encoding: Encoding
    words: list[tuple[str, float]]
    constraints: Constraints
    filter: str | None
    unknown: tuple[UnknownWord, ...] = ()
    text: str = ""
    excluded: frozenset[str] = frozenset()
    picture: str = ""
    unread: str = ""

    @property
    def legs(self) -> tuple[Leg, ...]:
        """The legs to ask by: no vectors if all words are unknown."""
        vectors = [leg for leg in get_args(VectorLeg) if getattr(self.encoding, leg) is not None]
        if vectors == ["lexical"] and not self.words:
            vectors = []
        return (*vectors, "text") if self.text else tuple(vectors)


def encode_query(query: Query, encoder: Encoder, stored: Encoding | None = None) -> EncodedQuery:
    """Encode a query as one row; ``stored`` has the vectors of the items of ``similar``.

    Text, image, similar items and terms are added up as unit vectors and the sum is scaled to
    length 1, as are the dense vectors; codes are averaged. Terms have neither: a query of terms
    alone has a lexical leg only. Similar items count as one vector: their weighted sum, without
    what is below 0 in the words and codes. Words of the text that the encoder does not know are
    left out; if no other word is left, the text adds nothing to the vectors.

    `InputError` if the image cannot be read, has no word or does not contain the region, the
    vocabulary lacks a word given outside the text, a word is both banned and asked for, or the bans
    or the weights of similar items leave nothing to look for.
    """
    vocabulary = encoder.vocabulary
    parts: list[Encoding] = []
    unknown: tuple[UnknownWord, ...] = ()
    told = picture = unread = ""
    if query.text is not None and query.has_text:
        text, unknown = understood(query.text, encoder)
        if text:
            parts.append(encoder.encode_text([text]))
            unread = encoder.unread([text])[0] if hasattr(encoder, "unread") else ""
        told = telling(query.text, query.ban)
    if query.image is not None:
        part, picture = _encode_image(query, query.image, encoder)
        parts.append(part)
    if query.similar:
        if stored is None:
            raise UnsupportedError("similar: there are no stored vectors to search by here")
        parts.append(_weighted_sum(stored, list(query.similar_weights.values())))
    constraints = _constraints(query, vocabulary)
    asked = _sum_of_words(query, parts, vocabulary)
    lexical = _weigh(asked, query, constraints, vocabulary)
    if len(parts) == 1 and lexical is parts[0].lexical and parts[0].patches is None:
        encoding = parts[0]  # checked already
    else:
        encoding = Encoding(lexical, None, _mean_codes(parts), _sum_of_dense(parts))
    if asked.nnz and not lexical.nnz and encoding.dense is None and encoding.codes is None:
        raise InputError(", ".join(query.ban), "nothing to look for is left without these words")
    order = (-lexical.data).argsort(kind="stable").tolist()
    words = [(vocabulary.word(int(lexical.indices[at])), float(lexical.data[at])) for at in order]
    excluded = frozenset(query.similar_weights)
    return EncodedQuery(
        encoding, words, constraints, query.filter, unknown, told, excluded, picture, unread
    )


def _weighted_sum(stored: Encoding, weights: Sequence[float]) -> Encoding:
    """Return the weighted sum of rows, words and dense vector of length 1, codes as their mean."""
    if (
        not stored.lexical.nnz
        and stored.codes is None
        and (stored.dense is None or not stored.dense.any())
    ):
        raise InputError("similar", "these items have no vectors to search by")
    row = np.array([weights])
    lexical = _clipped(row @ stored.lexical.astype(np.float64))
    codes = dense = None
    if stored.codes is not None:
        codes = _clipped(row @ stored.codes.astype(np.float64)) / np.abs(row).sum()
        codes = sparse.csr_array(codes.astype(np.float32))
    if stored.dense is not None:
        dense = row @ stored.dense.astype(np.float64)
        size = np.linalg.norm(dense)
        # Vectors that cancel each other leave rounding errors.
        dense = dense / size if size > _CANCELLED * np.abs(row).sum() else np.zeros_like(dense)
        dense = dense.astype(np.float32)
    if not lexical.nnz and (codes is None or not codes.nnz) and (dense is None or not dense.any()):
        raise InputError("similar", "the weights leave nothing to look for")
    if lexical.nnz:
        lexical = lexical / np.linalg.norm(lexical.data)
    return Encoding(sparse.csr_array(lexical.astype(np.float32)), None, codes, dense)


def _clipped(row: np.ndarray) -> sparse.csr_array:
    """Return the values of one row that are above 0."""
    dense = sparse.csr_array(row).toarray()
    return sparse.csr_array(np.where(dense > 0, dense, 0.0))


def _digest(image: Image.Image) -> str:
    small = image.convert("RGB").resize((64, 64), Image.Resampling.BOX)
    return hashlib.sha256(repr(image.size).encode() + small.tobytes()).hexdigest()


def _encode_image(query: Query, source: ImageSource, encoder: Encoder) -> tuple[Encoding, str]:
    """Return an image's vectors and what names it."""
    name = name_of_image(source)
    # A region is in pixels of the whole picture.
    image = open_image(source, name, least_side=None if query.region else ENOUGH_SIDE)
    digest = _digest(image)
    if query.region is not None:
        # Cut out: read in context, it gets the words of its surroundings (see docs/search.md).
        image = image.crop(_pixels(query.region, image.size))
        name = f"region {query.region} of {name}"
    try:
        part = encoder.encode_image([image])
    except InputError as error:  # the encoder does not know the name of an image in memory
        raise InputError(name, error.rule) from error
    if not part.lexical.nnz and (query.legs is None or "lexical" in query.legs):
        raise InputError(name, "the model reads no word from the image")
    return part, digest


def _pixels(
    region: tuple[float, float, float, float], size: tuple[int, int]
) -> tuple[int, int, int, int]:
    """Return the whole pixels that a region touches: left, upper, right, lower."""
    x, y, width, height = region
    if x + width > size[0] or y + height > size[1]:
        rule = f"must lie within the image of {size[0]} x {size[1]} pixels"
        raise InputError(f"region {tuple(region)}", rule)
    return math.floor(x), math.floor(y), math.ceil(x + width), math.ceil(y + height)


def _constraints(query: Query, vocabulary: Vocabulary) -> Constraints:
    banned = {word: columns_of(vocabulary, word) for word in query.ban}
    for name, words in (
        ("terms", query.terms),
        ("boost", query.boost),
        ("require", query.require),
    ):
        wanted = frozenset[int]().union(*(columns_of(vocabulary, word) for word in words))
        for word, columns in banned.items():
            if not columns.isdisjoint(wanted):
                raise InputError(word, f"is banned, but is in {name} too")
    required = tuple(columns_of(vocabulary, word) for word in query.require)
    return Constraints(frozenset[int]().union(*banned.values()), required)


def _sum_of_words(
    query: Query, parts: Sequence[Encoding], vocabulary: Vocabulary
) -> sparse.csr_array:
    rows = [part.lexical for part in parts]
    if query.terms:
        terms: dict[int, float] = {}
        for word, weight in query.terms.items():
            column = column_of(vocabulary, word)
            terms[column] = terms.get(column, 0.0) + weight
        entries = (
            np.array([terms[column] for column in sorted(terms)]),
            sorted(terms),
            [0, len(terms)],
        )
        rows.append(sparse.csr_array(entries, shape=(1, len(vocabulary))))
    elif len(rows) == 1:
        return rows[0]
    if not rows:
        return sparse.csr_array((1, len(vocabulary)), dtype=np.float32)
    units = [row.astype(np.float64) / np.linalg.norm(row.data) for row in rows if row.nnz]
    if not units:
        return rows[0]
    total = sum(units[1:], units[0])
    unit = sparse.csr_array((total / np.linalg.norm(total.data)).astype(np.float32))
    unit.eliminate_zeros()
    unit.sort_indices()
    return unit


def _weigh(
    lexical: sparse.csr_array, query: Query, constraints: Constraints, vocabulary: Vocabulary
) -> sparse.csr_array:
    if not query.boost and not constraints.banned:
        return lexical
    row = lexical.toarray().astype(np.float64)[0]
    shown = row[strongest(lexical.indices, lexical.data)]
    usual = float(shown.mean()) if len(shown) else 1.0
    for word, factor in query.boost.items():
        own = [column for column in columns_of(vocabulary, word) if row[column] > 0]
        if own:
            row[own] *= factor
        else:
            row[column_of(vocabulary, word)] = factor * usual
    row[list(constraints.banned)] = 0
    weighed = sparse.csr_array(row[None].astype(np.float32))
    weighed.eliminate_zeros()  # weights too small for float32
    return weighed


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
