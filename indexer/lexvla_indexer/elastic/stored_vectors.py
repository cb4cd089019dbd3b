"""Vectors in ``_source``: the exact rows of documents, and which documents have lost theirs."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import sparse

from lexvla.encoding import Encoding
from lexvla.errors import IndexCorruptError
from lexvla.vocabulary import Vocabulary
from lexvla_indexer.elastic.layout import FIELD_OF, FILTER, ID, PATCHES, State
from lexvla_indexer.elastic.product import Json, Product

__all__ = ["STORED", "incomplete", "rows_of"]

STORED = (*FIELD_OF.values(), PATCHES)


def incomplete(state: State, product: Product) -> Json:
    """Return a query for documents that lack what searches need, such as a leg's field.

    Whoever replaces a document whole can leave that out.
    """
    there: list[Json] = [{"exists": {"field": field}} for field in (ID, FILTER)]
    there += [product.has_leg(FIELD_OF[leg]) for leg in FIELD_OF if leg in state.widths]
    return {"bool": {"must_not": [{"bool": {"filter": there}}]}}


def rows_of(
    sources: Sequence[Mapping[str, Any]],
    vocabulary: Vocabulary,
    widths: Mapping[str, int],
    product: Product,
) -> Encoding:
    """Return the exact rows of documents, at least one; of those that lost them, empty rows.

    A term that the vocabulary does not have raises IndexCorruptError.
    """
    lexical, patches = [], []
    for source in sources:
        stored = source.get(FIELD_OF["lexical"]) or {}
        try:
            columns = np.fromiter(
                map(vocabulary.id, map(product.name_of, stored)), np.int32, len(stored)
            )
        except KeyError as error:
            rule = f"has the term {error}, which the vocabulary of the index lacks"
            raise IndexCorruptError(f"document {source.get(ID)!r} {rule}") from error
        lexical.append(_sorted(columns, stored))
        packed = np.frombuffer(base64.b64decode(source.get(PATCHES) or ""), "<i2")
        is_whole = len(packed) == len(stored)
        patches.append(packed if is_whole else np.full(len(stored), -1, "<i2"))
    has_patches = any((own >= 0).any() for own in patches)
    codes = dense = None
    if "codes" in widths:
        found = [source.get(FIELD_OF["codes"]) or {} for source in sources]
        rows = [_sorted(np.fromiter(map(int, own), np.int32, len(own)), own) for own in found]
        codes = _stacked(rows, widths["codes"])
    if "dense" in widths:
        none = [0.0] * widths["dense"]
        dense = np.array([s.get(FIELD_OF["dense"]) or none for s in sources], np.float32)
    return Encoding(
        _stacked(lexical, widths["lexical"]),
        np.concatenate(patches).astype(np.int16) if has_patches else None,
        codes,
        dense,
    )


def _sorted(columns: np.ndarray, stored: Mapping[str, float]) -> tuple[np.ndarray, np.ndarray]:
    weights = np.fromiter(stored.values(), np.float64, len(stored)).astype(np.float32)
    order = columns.argsort()
    return columns[order], weights[order]


def _stacked(rows: Sequence[tuple[np.ndarray, np.ndarray]], width: int) -> sparse.csr_array:
    starts = np.cumsum([0, *(len(columns) for columns, _ in rows)])
    parts = np.concatenate([w for _, w in rows]), np.concatenate([c for c, _ in rows]), starts
    return sparse.csr_array(parts, shape=(len(rows), width))
