"""What a commit says of itself, in Lucene's user data: model, vocabulary, widths, quantisers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from scipy import sparse

from lexvla.encoding import Encoding
from lexvla.errors import IndexCorruptError, IndexVersionError
from lexvla_indexer.impacts import ImpactQuantizer
from lexvla_indexer.legs import widths_of

__all__ = ["FORMAT_VERSION", "KEY", "LegState", "State"]

FORMAT_VERSION = 1
KEY = "lexvla"


@dataclass(frozen=True)
class LegState:
    """How one leg's weights became integers, and what that changed them by.

    All counts are of the documents that were ever committed, also of those deleted since.

    Attributes:
        quantizer: Its bound holds for all of them.
        longest: The greatest length of a document's impacts as a vector.
        weights: How many weights there are.
        total_error: What these were changed by, added up.
        max_error: The greatest such change.
        clipped: How many weights were above what the greatest integer stands for.
    """

    quantizer: ImpactQuantizer
    longest: float = 0.0
    weights: int = 0
    total_error: float = 0.0
    max_error: float = 0.0
    clipped: int = 0

    def with_rows(self, rows: sparse.csr_array) -> LegState:
        """Return it with the error of more rows, and a quantiser whose bound holds for them."""
        if not rows.nnz:
            return self
        error, old = self.quantizer.error(rows), self.quantizer
        lowest, highest = float(rows.data.min()), float(rows.data.max())
        quantizer = replace(old, lowest=min(old.lowest, lowest), highest=max(old.highest, highest))
        impacts = old.quantize(rows).astype(np.float64)
        length = float(np.sqrt(impacts.multiply(impacts).sum(axis=1).max()))
        return LegState(
            quantizer,
            max(self.longest, length),
            self.weights + rows.nnz,
            self.total_error + error["mean"] * rows.nnz,
            max(self.max_error, error["max"]),
            self.clipped + int((rows.data > old.top).sum()),
        )


@dataclass(frozen=True)
class State:
    """Describe a commit of ours.

    Attributes:
        model: The name of the model whose vectors these are, if it was given.
        vocabulary_sha256: Names the vocabulary; empty before the first vectors, if none was given.
        widths: The legs and their numbers of columns; empty before the first vectors.
        legs: The searched legs that have weights.
        writer_version: The version of the program that made the index.
    """

    model: str | None = None
    vocabulary_sha256: str = ""
    widths: Mapping[str, int] = field(default_factory=dict)
    legs: Mapping[str, LegState] = field(default_factory=dict)
    writer_version: str = ""

    @property
    def quantizers(self) -> dict[str, ImpactQuantizer]:
        """How each leg's weights became integers."""
        return {name: leg.quantizer for name, leg in self.legs.items()}

    def with_rows(self, encoding: Encoding, given: Mapping[str, ImpactQuantizer]) -> State:
        """Return it with more rows: their widths, the legs' quantisers and errors.

        Args:
            encoding: The rows.
            given: Quantisers for legs that have none yet; others are fitted to these rows.
        """
        legs = dict(self.legs)
        for leg, rows in (("lexical", encoding.lexical), ("codes", encoding.codes)):
            if rows is None or not rows.nnz:
                continue
            if leg not in legs:
                legs[leg] = LegState(given.get(leg) or ImpactQuantizer.fit(rows))
            legs[leg] = legs[leg].with_rows(rows)
        return replace(self, widths=widths_of(encoding), legs=legs)

    def dump(self) -> str:
        """Return it as JSON."""
        return json.dumps({"format_version": FORMAT_VERSION, **asdict(self)})

    @classmethod
    def load(cls, place: object, text: str) -> State:
        """Read what `dump` wrote.

        Raises:
            IndexCorruptError: It is not of that form.
            IndexVersionError: A newer program wrote it.
        """
        try:
            values: dict[str, Any] = json.loads(text)
            found = values.pop("format_version")
            if found > FORMAT_VERSION:
                rule = f"format {found} is newer than this program, which reads {FORMAT_VERSION}"
                raise IndexVersionError(f"{place}: {rule}")
            legs = {
                leg: LegState(ImpactQuantizer.from_dict(stored.pop("quantizer")), **stored)
                for leg, stored in values.pop("legs").items()
            }
            return cls(**values, legs=legs)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise IndexCorruptError(f"{place}: the commit's own data is damaged") from error
