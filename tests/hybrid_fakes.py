"""An encoder of all three legs, and hybrid search over all documents by plain formulas."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from indexer_fakes import VOCABULARY, documents, encode, scores
from lexvla.encoding import Encoding
from lexvla_indexer import open_index
from lexvla_indexer.base import Index
from lexvla_indexer.strongest import SHOWN_WORDS

Row = Mapping[int, float]


class RowEncoder:
    """Read texts such as ``"word0:1 word4:0.5"`` as rows, with codes and dense vectors."""

    def __init__(self, legs: Sequence[str] = ("lexical", "codes", "dense")) -> None:
        self.name = "rows"
        self.vocabulary = VOCABULARY
        self.legs = legs

    def encode_text(self, texts: Sequence[str]) -> Encoding:
        rows = []
        for text in texts:
            pairs = (part.partition(":") for part in text.split())
            rows.append({VOCABULARY.id(word): float(weight) for word, _, weight in pairs})
        return self.only(encode(rows, patches=False))

    def encode_image(self, images: Sequence[object]) -> Encoding:
        raise NotImplementedError

    def only(self, encoding: Encoding) -> Encoding:
        codes = encoding.codes if "codes" in self.legs else None
        dense = encoding.dense if "dense" in self.legs else None
        return Encoding(encoding.lexical, encoding.patches, codes, dense)


def text_of(row: Row) -> str:
    return " ".join(f"{VOCABULARY.word(column)}:{weight}" for column, weight in row.items())


def filled(address: Path | str, rows: Sequence[Row], encoder: RowEncoder | None = None) -> Index:
    """Return an open index of these rows, named d00, d01, ..., without texts."""
    index = open_index(str(address), create=True, vocabulary=VOCABULARY, model="rows")
    names = names_of(rows)
    if rows:
        untold = [replace(document, text="") for document in documents(names)]
        index.add(untold, (encoder or RowEncoder()).only(encode(rows)))
    index.commit()
    return index


def names_of(rows: Sequence[Row]) -> list[str]:
    return [f"d{i:02}" for i in range(len(rows))]


def shown(row: Row, count: int = SHOWN_WORDS) -> set[int]:
    return set(sorted(row, key=lambda column: (-row[column], column))[:count])


def leg_lists(
    rows: Sequence[Row], query: Encoding, legs: Sequence[str], depth: int, kept: Sequence[bool]
) -> tuple[dict[str, list[str]], dict[str, dict[str, float]]]:
    """Return each leg's best ids, and each leg's scores of all documents."""
    stored, names = encode(rows), names_of(rows)
    lists, all_scores = {}, {}
    for leg in legs:
        own = dict(zip(names, scores(leg, stored, query).tolist(), strict=True))
        all_scores[leg] = own
        found = [n for n, keep in zip(names, kept, strict=True) if keep and own[n] > 0]
        lists[leg] = sorted(found, key=lambda name: (-own[name], name))[:depth]
    return lists, all_scores


def by_rank(
    lists: Mapping[str, list[str]], weights: Mapping[str, float], constant: float
) -> dict[str, float]:
    fused: dict[str, float] = {}
    for leg, names in lists.items():
        for rank, name in enumerate(names, 1):
            fused[name] = fused.get(name, 0.0) + weights[leg] / (constant + rank)
    return fused


def by_score(
    lists: Mapping[str, list[str]],
    all_scores: Mapping[str, Mapping[str, float]],
    weights: Mapping[str, float],
    normalization: str,
) -> dict[str, float]:
    names = sorted({name for found in lists.values() for name in found})
    fused = dict.fromkeys(names, 0.0)
    for leg in lists:
        values = [all_scores[leg][name] for name in names]
        if normalization == "raw":
            values = [max(value, 0.0) for value in values]
        if normalization == "minmax" and values:
            low, high = min(values), max(values)
            values = [(v - low) / (high - low) if high > low else 1.0 for v in values]
        if normalization == "zscore" and values:
            mean = sum(values) / len(values)
            spread = math.sqrt(sum((v - mean) ** 2 for v in values) / len(values))
            values = [(v - mean) / spread if len(set(values)) > 1 else 0.0 for v in values]
        for name, value in zip(names, values, strict=True):
            fused[name] += weights[leg] * value
    return fused


def ranking(fused: Mapping[str, float]) -> list[tuple[str, float]]:
    return sorted(fused.items(), key=lambda pair: (-pair[1], pair[0]))
