"""What the legs of vectors and those of an index must have in common, for every engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import numpy as np
from scipy import sparse

from lexvla.encoding import Encoding
from lexvla.errors import UnsupportedError, VocabularyMismatchError
from lexvla.vocabulary import Vocabulary

__all__ = ["Leg", "check_added", "check_asked", "no_rows", "stack", "widths_of"]

Leg = Literal["lexical", "codes", "dense"]


def widths_of(encoding: Encoding) -> dict[str, int]:
    """Return the number of columns of each leg that an encoding has."""
    legs = {"lexical": encoding.lexical, "codes": encoding.codes, "dense": encoding.dense}
    return {leg: int(matrix.shape[1]) for leg, matrix in legs.items() if matrix is not None}


def no_rows(widths: Mapping[str, int]) -> Encoding:
    """Return an encoding of nothing, with these legs."""
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
    """Refuse vectors that do not fit to those of an index.

    Args:
        encoding: What is to come in.
        kept: The widths of the index's legs; empty where nothing was put yet.
        vocabulary: The index's own; empty if it has none yet.
        place: Names the index in errors.

    Raises:
        UnsupportedError: The legs are not those of the index.
        VocabularyMismatchError: A leg has another width than in the index.
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


def check_asked(queries: Encoding, leg: str, kept: Mapping[str, int], place: object) -> None:
    """Refuse a leg by which an index cannot be asked.

    Args:
        queries: What is asked.
        leg: By which leg.
        kept: The widths of the index's legs; empty where nothing was put yet.
        place: Names the index in errors.

    Raises:
        UnsupportedError: The index or the queries lack the leg.
        ValueError: There is no leg of that name.
        VocabularyMismatchError: The leg has another width in the index.
    """
    if leg not in get_args(Leg):
        raise ValueError(f"no leg is called {leg!r}; there are {', '.join(get_args(Leg))}")
    if kept and leg not in kept:
        raise UnsupportedError(f"{place} has no {leg} leg")
    given = widths_of(queries)
    if leg not in given:
        raise UnsupportedError(f"the queries have no {leg} leg")
    if kept:
        _check_width(place, leg, kept[leg], given[leg])


def _check_width(place: object, leg: str, expected: int, width: int) -> None:
    if width != expected:
        rule = f"{leg} has {expected} columns in the index, {width} here"
        raise VocabularyMismatchError(f"{place}: {rule}")


def stack(parts: Sequence[Encoding]) -> Encoding:
    """Stack encodings that may differ in one thing: where some have patches, the rest get -1."""
    if any(part.patches is not None for part in parts):
        parts = [part if part.patches is not None else _without_patches(part) for part in parts]
    return Encoding.concat(parts)


def _without_patches(part: Encoding) -> Encoding:
    missing = np.full(part.lexical.nnz, -1, np.int16)
    return Encoding(part.lexical, missing, part.codes, part.dense)
