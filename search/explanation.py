"""Why an item was found: parts that sum to its score."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from lexvla.encoding import Encoding
from lexvla.vocabulary import Vocabulary

__all__ = ["Explanation", "TermMatch"]


@dataclass(frozen=True)
class TermMatch:
    """One word that query and item share.

    Attributes:
        term: The piece as the vocabulary writes it.
        word: The term as people see it.
        query_weight: Its weight in the query.
        document_weight: Its weight in the item, as the index keeps it.
        product: What it adds to the score.
        patch: The patch of the item's image that the word was read from, or ``None``.
    """

    term: str
    word: str
    query_weight: float
    document_weight: float
    product: float
    patch: int | None = None


@dataclass(frozen=True)
class Explanation:
    """Take a score apart.

    Attributes:
        matches: The shared words, the greatest product first.
        score: The score that the engine gave; `total` gives it again from the parts.
    """

    matches: tuple[TermMatch, ...]
    score: float

    @classmethod
    def of(
        cls,
        query: Encoding,
        document: Encoding,
        vocabulary: Vocabulary,
        score: float | None = None,
    ) -> Explanation:
        """Explain one document's score for one query, both encodings of one row.

        Without a score, that of the explanation is the sum of its own parts.
        """
        shared, at_query, at_document = np.intersect1d(
            query.lexical.indices, document.lexical.indices, return_indices=True
        )
        query_weights = query.lexical.data[at_query].astype(float)
        document_weights = document.lexical.data[at_document].astype(float)
        products = query_weights * document_weights
        patches = None if document.patches is None else document.patches[at_document]
        matches = tuple(
            TermMatch(
                vocabulary.terms[shared[i]],
                vocabulary.word(int(shared[i])),
                float(query_weights[i]),
                float(document_weights[i]),
                float(products[i]),
                None if patches is None or patches[i] < 0 else int(patches[i]),
            )
            for i in np.argsort(-products, kind="stable")
        )
        total = math.fsum(match.product for match in matches)
        return cls(matches, total if score is None else score)

    def total(self) -> float:
        """Return the sum of all parts."""
        return math.fsum(match.product for match in self.matches)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can hold."""
        return {"score": self.score, "matches": [asdict(match) for match in self.matches]}

    def summary(self, top: int = 4) -> str:
        """Return the strongest words and what each adds, on one line."""
        shown = [f"{match.word} {match.product:.3f}" for match in self.matches[:top]]
        rest = math.fsum(match.product for match in self.matches[top:])
        if len(self.matches) > top:
            shown.append(f"+{len(self.matches) - top} more {rest:.3f}")
        return "  ".join(shown)

    def table(self, top: int | None = None) -> str:
        """Render the strongest parts, or all, as a table with their sum under it."""
        if not self.matches:
            return "no word in common: score 0"
        rows = [("word", "query", "item", "product", "patch")]
        rows += [
            (
                match.word,
                f"{match.query_weight:.4f}",
                f"{match.document_weight:.4f}",
                f"{match.product:.4f}",
                "-" if match.patch is None else str(match.patch),
            )
            for match in self.matches[:top]
        ]
        rest = self.matches[len(rows) - 1 :]
        if rest:
            product = math.fsum(match.product for match in rest)
            rows.append((f"+{len(rest)} more", "", "", f"{product:.4f}", ""))
        rows.append(("sum", "", "", f"{self.total():.4f}", ""))
        return "\n".join(_align(rows))

    def __str__(self) -> str:
        """Render all parts."""
        return self.table()


def _align(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for first, *others in rows:
        cells = [first.ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return lines
