"""The legs of vectors, and what those of an index and its queries must have in common."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Literal, get_args

import numpy as np
from scipy import sparse

from lexvla.encoding import Encoding
from lexvla.errors import UnsupportedError, VocabularyMismatchError
from lexvla.vocabulary import Vocabulary

__all__ = [
    "Leg",
    "VectorLeg",
    "check_added",
    "check_asked",
    "check_terms",
    "no_rows",
    "stack",
    "widths_of",
]

VectorLeg = Literal["lexical", "codes", "dense"]
Leg = Literal[VectorLeg, "text"]

MAX_TERM_BYTES = 32_766  # of Lucene, which Elasticsearch is built on


def widths_of(encoding: Encoding) -> dict[str, int]:
    """Return the number of columns of each leg that an encoding has."""
    legs = {"lexical": encoding.lexical, "codes": encoding.codes, "dense": encoding.dense}
    return {leg: int(matrix.shape[1]) for leg, matrix in legs.items() if matrix is not None}


def no_rows(widths: Mapping[str, int]) -> Encoding:
    """Return an encoding of no items, with these legs."""
    none = {leg: sparse.csr_array((0, width), dtype=np.float32) for leg, width in widths.items()}
    dense = none.pop("dense", None)
    return Encoding(
        none.get("lexical", sparse.csr_array((0, 0), dtype=np.float32)),
        None,
        none.get("codes"),
        None if dense is None else np.empty(dense.shape, np.float32),
    )


def check_added(
    encoding: Encoding, kept: Mapping[str, int], vocabulary: Vocabulary, place: object
) -> None:
    """Refuse vectors that do not fit an index whose legs have the widths ``kept``, if any yet.

    The errors are those of `Index.add`.
    """
    widths = widths_of(encoding)
    expected = dict(kept) or dict(widths)
    if len(vocabulary):
        expected["lexical"] = len(vocabulary)
    for leg in expected.keys() & widths.keys():
        _check_width(place, leg, expected[leg], widths[leg])
    if expected.keys() != widths.keys():
        have, come = ", ".join(expected), ", ".join(widths)
        raise UnsupportedError(f"the index keeps {have}; the new vectors have {come}")


def check_asked(
    queries: Encoding, k: int, leg: str, kept: Mapping[str, int], place: object
) -> None:
    """Refuse a search that an index whose legs have the widths ``kept`` cannot answer.

    The errors are those of `Index.search`.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, not {k}")
    if leg not in get_args(VectorLeg):
        raise ValueError(f"no leg is called {leg!r}; there are {', '.join(get_args(VectorLeg))}")
    if kept and leg not in kept:
        raise UnsupportedError(f"{place} has no {leg} leg")
    given = widths_of(queries)
    if leg not in given:
        raise UnsupportedError(f"the queries have no {leg} leg")
    if kept:
        _check_width(place, leg, kept[leg], given[leg])


def check_terms(terms: Iterable[str], engine: str) -> None:
    """Refuse terms that Lucene cannot store: those longer than 32,766 bytes (UnsupportedError)."""
    for term in terms:
        if len(term) * 4 > MAX_TERM_BYTES and len(term.encode()) > MAX_TERM_BYTES:
            rule = f"{engine} takes terms of at most {MAX_TERM_BYTES:,} bytes"
            raise UnsupportedError(f"{rule}; the vocabulary has {term[:40]!r}...")


def _check_width(place: object, leg: str, expected: int, width: int) -> None:
    if width != expected:
        rule = f"{leg} has {expected} columns in the index, {width} here"
        raise VocabularyMismatchError(f"{place}: {rule}")


def stack(parts: Sequence[Encoding]) -> Encoding:
    """Concatenate encodings; if some have patches, the words of the others get patch -1."""
    if any(part.patches is not None for part in parts):
        parts = [
            part
            if part.patches is not None
            else replace(part, patches=np.full(part.lexical.nnz, -1, np.int16))
            for part in parts
        ]
    return Encoding.concat(parts)
