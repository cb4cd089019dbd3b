"""Weights of queries as integers, what rounding changes, and scores taken apart."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy import sparse

from lexvla.errors import LexVLAError, UnsupportedError
from lexvla_indexer.impacts import ImpactQuantizer

__all__ = [
    "LuceneExplanation",
    "Product",
    "QueryWeights",
    "error_bound",
    "explained",
    "query_weights",
]

# Lucene's scores are float32, which has all whole numbers up to 2^24. With impacts of at most 255
# a sum is exact if the query's integers add up to no more than the second number.
LARGEST_SCORE = 2**24 - 1
LARGEST_SUM = LARGEST_SCORE // 255


class QueryWeights(NamedTuple):
    """A query's integers, and how many of them a weight of 1 is."""

    integers: np.ndarray
    scale: float


def query_weights(query: sparse.csr_array, longest: float | None = None) -> QueryWeights:
    """Return a query's weights as whole numbers from 1 on, as great as exact sums allow.

    Args:
        query: One row.
        longest: The greatest length of a document's impacts as a vector; ``None`` if unknown.

    Raises:
        UnsupportedError: It has over 32,896 words.
    """
    if query.nnz > LARGEST_SUM // 2:
        rule = f"a query of a Lucene index has at most {LARGEST_SUM // 2:,} words"
        raise UnsupportedError(f"{rule}, not {query.nnz:,}")
    if not query.nnz:
        return QueryWeights(np.empty(0, np.int64), 1.0)
    weights = query.data.astype(np.float64)
    scale = (LARGEST_SUM - query.nnz) / float(weights.sum())
    if longest:
        # No product is greater than that of the two lengths, and rounding moves each weight by
        # less than 1: for long queries this allows greater integers than the sum does.
        room = LARGEST_SCORE * (1 - 1e-9) / longest - math.sqrt(query.nnz)
        scale = max(scale, room / float(np.linalg.norm(weights)))
    # A power of 2: weights such as 1, 0.5 and 0.25 become whole numbers without rounding.
    scale = math.ldexp(1.0, math.frexp(scale)[1] - 1)
    return QueryWeights(np.maximum(np.rint(weights * scale), 1).astype(np.int64), scale)


def error_bound(
    query: sparse.csr_array, integers: QueryWeights, quantizer: ImpactQuantizer | None
) -> float:
    """Return what whole numbers can change a document's score for a query by, at the most.

    Args:
        query: One row.
        integers: Its weights as whole numbers.
        quantizer: That of the documents; ``None`` if their weights were whole numbers before.
    """
    whole, scale = integers
    kept = sparse.csr_array((whole / scale, query.indices, query.indptr), shape=query.shape)
    rounding = float(np.abs(query.data - kept.data).sum())
    if quantizer is None:
        return rounding * 255
    highest = max(quantizer.highest, quantizer.top)
    return highest * rounding + (quantizer.bound(kept) if kept.nnz else 0.0)


class Product(NamedTuple):
    """What one term adds to a score: its weights, as the index's integers say, and their product.

    Attributes:
        term: As the vocabulary writes it; of a code, its column number.
        query_weight: The integer of the query, in the units of the query's weights.
        document_weight: The impact, in the units of the documents' weights.
        product: The two multiplied.
    """

    term: str
    query_weight: float
    document_weight: float
    product: float


@dataclass(frozen=True)
class LuceneExplanation:
    """A score as Lucene makes it.

    Attributes:
        id: The document.
        score: Lucene's score, in the units of a dot product; 0 if no term is shared.
        products: Those that `score` is the sum of, the greatest first.
        lucene: Lucene's own explanation, as it prints it. Of each term, Anserini's similarity
            tells the impact there, without the query's weight.
    """

    id: str
    score: float
    products: tuple[Product, ...]
    lucene: str

    def __str__(self) -> str:
        """Render the sum, a term a line."""
        rows = [
            f"{p.product:.6f} = {p.query_weight:.6f} x {p.document_weight:.6f}  {p.term}"
            for p in self.products
        ]
        return "\n".join([f"{self.score:.6f}  {self.id}, the sum of:", *(f"  {r}" for r in rows)])


_WEIGHT = re.compile(r"weight\((?:contents|codes):(.*) in \d+\) \[[^]]*\], result of:", re.DOTALL)


def explained(
    name: str,
    score: float,
    tree: Mapping[str, Any],
    text: str,
    weights: Mapping[str, int],
    terms: Mapping[str, str],
    units: tuple[float, float],
) -> LuceneExplanation:
    """Return Lucene's explanation with what each term adds.

    Args:
        name: The document's id.
        score: What Lucene's search gives it, as a whole number; 0 if it is not found.
        tree: Lucene's explanation as plain values.
        text: The same as Lucene prints it.
        weights: The query's integer of each term, as it stands in the index.
        terms: The same terms as the vocabulary writes them.
        units: The weights that the integer 1 stands for, of the query and of the documents.

    Raises:
        LexVLAError: The terms do not add up to Lucene's score.
    """
    impacts = dict(_impacts(tree)) if tree["match"] else {}
    whole = sum(weights[term] * impact for term, impact in impacts.items())
    if whole != score:
        raise LexVLAError(f"Lucene's score of {name!r} is {score}, and its terms add up to {whole}")
    of_query, of_document = units
    products = [
        Product(
            terms[term],
            weights[term] * of_query,
            impact * of_document,
            weights[term] * impact * of_query * of_document,
        )
        for term, impact in impacts.items()
    ]
    products.sort(key=lambda product: -product.product)
    total = math.fsum(product.product for product in products)
    return LuceneExplanation(name, total, tuple(products), text)


def _impacts(tree: Mapping[str, Any]) -> list[tuple[str, int]]:
    """Return each term that matches, with its impact."""
    named = _WEIGHT.fullmatch(tree["description"])
    if named is not None:
        return [(named[1], int(tree["value"]))]
    parts: Sequence[Mapping[str, Any]] = tree["details"]
    return [found for part in parts for found in _impacts(part)]
