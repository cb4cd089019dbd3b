"""What tests of exports need: an encoder of numbers written as text, and a source of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from indexer_fakes import VOCABULARY, WORDS, encode
from lexvla.encoding import Encoding
from lexvla_indexer.document import Document
from lexvla_indexer.exports.base import Format, Names, Row
from lexvla_indexer.exports.exporting import Widths, export_source
from lexvla_indexer.exports.formats import open_format
from lexvla_indexer.report import Report

WORDLESS = "wordless"
_PROJECTION = np.random.default_rng(1).normal(size=(WORDS, 3))


class NumberEncoder:
    """Read weights from texts such as ``0:0.5 4:0.25``; dense vectors follow from those."""

    name = "numbers"
    vocabulary = VOCABULARY

    def encode_text(self, texts: list[str]) -> Encoding:
        pairs = [[part.split(":") for part in text.split() if ":" in part] for text in texts]
        made = encode([{int(c): float(w) for c, w in row} for row in pairs], patches=False)
        return Encoding(made.lexical, dense=(made.lexical @ _PROJECTION).astype(np.float32))

    def encode_image(self, images: list[Any]) -> Encoding:
        raise NotImplementedError


def items(count: int) -> list[Document]:
    """Return documents with random words, all scores different, and one without words."""
    rng = np.random.default_rng(7)
    found = []
    for number in range(count):
        columns = rng.choice(WORDS, 5, replace=False).tolist()
        text = " ".join(f"{column}:{rng.uniform(0.01, 1):.6f}" for column in columns)
        metadata = {"n": number, "half": number / 2, "odd": bool(number % 2), "tags": ["a", "b"]}
        found.append(Document(f"photo {number}.png", text=text, metadata=metadata))
    return [*found, Document(WORDLESS, text="none")]


def source(folder: Path, documents: list[Document]) -> Path:
    """Write documents as a manifest."""
    path = folder / "items.jsonl"
    lines = [
        {"id": each.id, "text": each.text, "metadata": dict(each.metadata)} for each in documents
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def export(
    path: Path, documents: list[Document], format_name: str, **names: str
) -> tuple[Format, Widths, Report]:
    form = open_format(format_name, Names(**names))
    made = source(path.parent, documents)
    return form, *export_source(made, NumberEncoder(), path, form, batch_size=7)


def row(text: str) -> Row:
    """Return the vectors of a text."""
    (found,) = Row.of(NumberEncoder().encode_text([text]), VOCABULARY)
    return found


def best(documents: list[Document], text: str, leg: str, k: int) -> list[tuple[str, float]]:
    """Return the k documents with the highest dot products, by brute force."""
    rows = NumberEncoder().encode_text([each.text for each in documents])
    query = NumberEncoder().encode_text([text])
    stored, asked = (
        (each.lexical.toarray() if leg == "lexical" else each.dense) for each in (rows, query)
    )
    scores = (stored.astype(float) @ asked[0].astype(float)).tolist()
    pairs = zip([each.id for each in documents], scores, strict=True)
    return sorted(pairs, key=lambda pair: (-pair[1], pair[0]))[:k]
