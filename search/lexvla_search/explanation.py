"""Why an item was found: parts that sum to its score."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

from PIL import Image

from lexvla.encoder import Encoder
from lexvla.encoding import Encoding
from lexvla.images import ImageSource, open_image
from lexvla.vocabulary import Vocabulary
from lexvla_indexer.legs import Leg
from lexvla_search.explanation_html import explanation_html
from lexvla_search.heatmap import fit, heatmap, match_map
from lexvla_search.picture import draw

if TYPE_CHECKING:
    from lexvla_search import schema

__all__ = ["Explanation", "LegPart", "TermMatch", "TextMatch"]

MAX_BARS = 12  # words of a picture; the others are one bar together


class TermMatch(NamedTuple):
    """A word that query and document share.

    Attributes:
        term: The piece as the vocabulary writes it.
        word: The term as people see it.
        document_weight: Its weight in the document, as the index keeps it.
        product: The two weights multiplied: what it adds to the lexical leg's score.
        patch: The patch of the image that the word was read from, or ``None``.
        share: What it adds to the hit's score; ``None`` if that is the product.
    """

    term: str
    word: str
    query_weight: float
    document_weight: float
    product: float
    patch: int | None = None
    share: float | None = None

    @property
    def part(self) -> float:
        """What the word adds to the hit's score."""
        return self.product if self.share is None else self.share


class TextMatch(NamedTuple):
    """A word, without case and accents, that the query shares with the document's text.

    Attributes:
        score: What it adds to the text leg's score.
        part: What it adds to the hit's score.
    """

    word: str
    score: float
    part: float


class LegPart(NamedTuple):
    """What one leg adds to the hit's score.

    Attributes:
        score: The leg's own score; ``None`` if it did not find the document.
        rank: The rank in the leg's own list, from 1; ``None`` if it is not on it.
        part: What the leg adds to the score after fusion.
    """

    leg: Leg
    score: float | None
    rank: int | None
    part: float


@dataclass(frozen=True)
class Explanation:
    """A score broken down, for any engine and fusion.

    The legs' parts sum to the score. The lexical leg's part is divided among the shared words in
    proportion to their products, so the words' parts sum to it. Likewise, the text leg's part is
    divided among the words of the document's text in proportion to their scores.

    Attributes:
        matches: The shared words, the greatest product first.
        score: The hit's score; `total` computes it from the parts.
        parts: What each leg adds; empty if there are only the words' products.
        fusion: How the legs' rankings were fused.
        text: The words of the document's text, the greatest part first.
    """

    matches: tuple[TermMatch, ...]
    score: float
    parts: tuple[LegPart, ...] = ()
    fusion: str = "lexical"
    text: tuple[TextMatch, ...] = ()

    @classmethod
    def of(
        cls,
        query: Encoding,
        documents: Encoding,
        vocabulary: Vocabulary,
        score: float | None = None,
        parts: Sequence[LegPart] = (),
        fusion: str = "lexical",
        text: Mapping[str, float] | None = None,
        row: int = 0,
    ) -> Explanation:
        """Explain the score of one row of the documents for one query, an encoding of one row.

        Without a score, it is the sum of the parts; without parts, these are the words' products.
        ``text`` is what each word of the document's text adds to the text leg's score.
        """
        asked, asked_weights, _ = query.words(0)
        held, held_weights, places = documents.words(row)
        near = asked.searchsorted(held)
        (at_document,) = (asked.searchsorted(held, "right") - near).nonzero()
        at_query = near[at_document]
        products = asked_weights[at_query].astype(float) * held_weights[at_document]
        order = (-products).argsort(kind="stable")
        at_query, at_document = at_query[order], at_document[order]
        rate = _rate("lexical", products.tolist(), parts)
        matches = tuple(
            TermMatch(
                vocabulary.terms[column],
                vocabulary.word(column),
                query_weight,
                document_weight,
                product,
                None if patch < 0 else patch,
                None if rate is None else product * rate,
            )
            for column, query_weight, document_weight, product, patch in zip(
                asked[at_query].tolist(),
                asked_weights[at_query].tolist(),
                held_weights[at_document].tolist(),
                products[order].tolist(),
                [-1] * len(order) if places is None else places[at_document].tolist(),
                strict=True,
            )
        )
        scores = text or {}
        share = _rate("text", scores.values(), parts) or 0.0
        texts = tuple(
            TextMatch(word, scores[word], scores[word] * share)
            for word in sorted(scores, key=lambda word: -scores[word])
        )
        made = cls(matches, 0.0 if score is None else score, tuple(parts), fusion, texts)
        return replace(made, score=made.total()) if score is None else made

    def total(self) -> float:
        """Return the sum of all parts."""
        if self.parts:
            return math.fsum(part.part for part in self.parts)
        return math.fsum(match.part for match in self.matches)

    @property
    def difference(self) -> float:
        """The engine's lexical score minus the sum of the words' products.

        An engine that scores by integers (Lucene) or by rounded weights (Elasticsearch) deviates a
        little from the products of the stored weights. The words' parts share the difference in
        proportion to their products. For the embedded engine it is rounding.
        """
        for part in self.parts:
            if part.leg == "lexical" and part.score is not None:
                return part.score - math.fsum(match.product for match in self.matches)
        return 0.0

    def to_dict(self) -> schema.Explanation:
        """Return plain values for JSON."""
        return {
            "score": self.score,
            "fusion": self.fusion,
            "parts": [
                {"leg": part.leg, "score": part.score, "rank": part.rank, "part": part.part}
                for part in self.parts
            ],
            "matches": [
                {
                    "term": match.term,
                    "word": match.word,
                    "query_weight": match.query_weight,
                    "document_weight": match.document_weight,
                    "product": match.product,
                    "patch": match.patch,
                    "part": match.part,
                }
                for match in self.matches
            ],
            "text": [
                {"word": match.word, "score": match.score, "part": match.part}
                for match in self.text
            ],
            "difference": self.difference,
        }

    @property
    def counted(self) -> tuple[TermMatch, ...]:
        """The matches that add to the score: none if the lexical leg does not count."""
        return tuple(match for match in self.matches if match.part)

    def summary(self, top: int) -> str:
        """Return the strongest words and the other legs with what each adds, on one line."""
        shown = [f"{match.word} {match.part:.3f}" for match in self.counted[:top]]
        if more := self.counted[top:]:
            shown.append(f"+{len(more)} more {math.fsum(match.part for match in more):.3f}")
        # Most documents of an index may have no text: a leg that adds nothing is left out.
        others = [
            part
            for part in self.parts
            if part.leg != "lexical" and (part.part or part.leg != "text")
        ]
        return "  ".join([*shown, *(f"{self._name(part)} {part.part:.3f}" for part in others)])

    def table(self, top: int | None = None) -> str:
        """Return a table of the strongest words, or all, and the legs, above their sum."""
        if not self.matches and not self._fused:
            return "no word in common: score 0"
        if self.counted:
            lines = _align(self._word_rows(top))
        elif self.matches:
            lines = ["words in common add nothing to this score"]
        else:
            lines = ["no word in common"]
        if self.text:
            rows = [(m.word, f"{m.score:.4f}", f"{m.part:.4f}") for m in self.text[:top]]
            lines += ["", *_align([("word of the text", "score", "part"), *rows])]
        if self._fused:
            lines += ["", *_align(self._leg_rows())]
        return "\n".join(lines)

    def picture(
        self, image: ImageSource | None = None, model: Encoder | None = None
    ) -> Image.Image:
        """Draw the counted words as bars, beside the document's image with where they were read.

        Without a model, or if no counted word has a place, the image is drawn as it is;
        `UnsupportedError` if the model has neither maps nor a patch grid.
        """
        words = [(match.word, match.part) for match in self.counted[:MAX_BARS]]
        if rest := self.counted[MAX_BARS:]:
            words.append((f"+{len(rest)} more", sum(match.part for match in rest)))
        return draw(words, self._other_parts, self.score, self._lit(image, model))

    def to_html(self, image: ImageSource | None = None, model: Encoder | None = None) -> str:
        """Return the score's parts as a fragment of HTML that needs no other file.

        The image is that of a `picture`, within the text as a data URL.
        """
        words = [(match.word, match.part) for match in self.counted]
        return explanation_html(words, self._other_parts, self.score, self._lit(image, model))

    def _lit(self, image: ImageSource | None, model: Encoder | None) -> Image.Image | None:
        if image is None:
            return None
        opened = open_image(image)
        if model is None or all(match.patch is None for match in self.counted):
            return fit(opened)
        return heatmap(opened, match_map(model, opened, self))

    @property
    def _other_parts(self) -> list[tuple[str, float]]:
        """What the legs add; the words stand for the lexical one."""
        return [
            (self._name(part), part.part)
            for part in self.parts
            if part.leg != "lexical" or not self.counted
        ]

    def __str__(self) -> str:
        return self.table()

    def _name(self, part: LegPart) -> str:
        """Return a leg's name, with the words of the document's text that it found."""
        words = " ".join(match.word for match in self.text) if part.leg == "text" else ""
        return f"[{part.leg}: {words}]" if words else f"[{part.leg}]"

    @property
    def _fused(self) -> bool:
        return len(self.parts) > 1 or any(part.leg != "lexical" for part in self.parts)

    def _word_rows(self, top: int | None) -> list[tuple[str, ...]]:
        rows: list[tuple[str, ...]] = [("word", "query", "item", "product", "part", "patch")]
        rows += [
            (
                match.word,
                f"{match.query_weight:.4f}",
                f"{match.document_weight:.4f}",
                f"{match.product:.4f}",
                f"{match.part:.4f}",
                "-" if match.patch is None else str(match.patch),
            )
            for match in self.matches[:top]
        ]
        rest = self.matches[len(rows) - 1 :]
        if rest:
            rows.append((f"+{len(rest)} more", "", "", *_sums(rest), ""))
        rows.append(("sum", "", "", *_sums(self.matches), ""))
        if self._fused:
            return rows
        return [(*row[:4], row[5]) for row in rows]

    def _leg_rows(self) -> list[tuple[str, ...]]:
        rows: list[tuple[str, ...]] = [("leg", "score", "rank", "part")]
        rows += [
            (
                part.leg,
                "-" if part.score is None else f"{part.score:.4f}",
                "-" if part.rank is None else str(part.rank),
                f"{part.part:.4f}",
            )
            for part in self.parts
        ]
        rows.append((self.fusion, "", "", f"{self.total():.4f}"))
        return rows


def _rate(leg: Leg, scores: Iterable[float], parts: Sequence[LegPart]) -> float | None:
    """Return what a leg's score of 1 adds to the hit's, or ``None`` if that is 1.

    ``scores`` are those of the leg's words.
    """
    total = math.fsum(scores)
    for part in parts:
        if part.leg == leg and total > 0:
            return part.part / total
    return 0.0 if parts else None


def _sums(matches: Sequence[TermMatch]) -> tuple[str, str]:
    products = math.fsum(match.product for match in matches)
    return f"{products:.4f}", f"{math.fsum(match.part for match in matches):.4f}"


def _align(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for first, *others in rows:
        cells = [first.ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return lines
