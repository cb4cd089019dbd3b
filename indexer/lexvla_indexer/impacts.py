"""Float weights as small integers, with a stated error."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

__all__ = ["ImpactQuantizer"]

_CHUNK = 1 << 17  # weights at a time: in float64, so many stay in the processor's cache
_FLOAT32 = np.finfo(np.float32)


@dataclass(frozen=True)
class ImpactQuantizer:
    """Turn weights into the integers 1 to 2^bits - 1 and back, on a linear scale.

    Attributes:
        top: The weight that the greatest integer stands for; greater ones are clipped to it.
        lowest: The least weight of the vectors, for `bound`.
        highest: The greatest weight of the vectors, for `bound`.
        bits: The bits of an integer: 1 to 8.
        percentile: The percentile of the weights that became ``top``; 100 is the maximum.
        drop_zero: Leave out weights that round to 0; otherwise they become 1.
    """

    top: float
    lowest: float
    highest: float
    bits: int = 8
    percentile: float = 100.0
    drop_zero: bool = False

    def __post_init__(self) -> None:
        _check_settings(self.bits, self.percentile, self.drop_zero)
        for name in ("top", "lowest", "highest"):
            value = getattr(self, name)
            if not _is_number(value) or not _FLOAT32.smallest_subnormal <= value <= _FLOAT32.max:
                raise ValueError(f"{name} must be a float32 number above 0, not {value!r}")
        if self.lowest > self.highest:
            raise ValueError(f"lowest is {self.lowest}, above highest, {self.highest}")

    @classmethod
    def fit(
        cls,
        matrix: sparse.csr_array,
        bits: int = 8,
        percentile: float = 100.0,
        drop_zero: bool = False,
    ) -> ImpactQuantizer:
        """Choose the scale from the vectors to quantise, whose weights are finite and above 0.

        The settings are those of the class.
        """
        _check_settings(bits, percentile, drop_zero)
        _check_weights(matrix)
        if not matrix.nnz:
            return cls(1.0, 1.0, 1.0, bits, percentile, drop_zero)
        lowest, highest = float(matrix.data.min()), float(matrix.data.max())
        top = highest if percentile == 100 else float(np.percentile(matrix.data, percentile))
        return cls(top, lowest, highest, bits, float(percentile), drop_zero)

    @classmethod
    def of_scale(cls, scale: float, matrix: sparse.csr_array) -> ImpactQuantizer:
        """Return the 8-bit quantiser that turns a weight w into round(w × scale).

        ``matrix`` holds the vectors to quantise, for `bound`.
        """
        _check_weights(matrix)
        if not _is_number(scale) or scale <= 0:
            raise ValueError(f"a scale must be a number above 0, not {scale!r}")
        top = 255 / scale
        if not matrix.nnz:
            return cls(top, top, top)
        return cls(top, float(matrix.data.min()), float(matrix.data.max()))

    @property
    def scale(self) -> float:
        """The integer, before rounding, of a weight of 1."""
        return self.levels / self.top

    @property
    def levels(self) -> int:
        """The greatest integer."""
        return (1 << self.bits) - 1

    @property
    def step(self) -> float:
        """The weight that the integer 1 stands for."""
        return self.top / self.levels

    def quantize(self, matrix: sparse.csr_array) -> sparse.csr_array:
        """Return the vectors with their weights as uint8 integers, rounded to the nearest."""
        _check_weights(matrix)
        impacts = self.impacts(matrix.data)
        columns, starts = matrix.indices, matrix.indptr
        if self.drop_zero:
            kept = impacts > 0
            starts = np.concatenate([[0], np.cumsum(kept)])[starts].astype(starts.dtype)
            impacts, columns = impacts[kept], columns[kept]
        return sparse.csr_array((impacts, columns, starts), shape=matrix.shape)

    def impacts(self, weights: np.ndarray) -> np.ndarray:
        """Return weights, finite and above 0, as uint8 integers; 0 for those to leave out."""
        impacts = np.empty(len(weights), np.uint8)
        for chunk in _chunks(len(weights)):
            impacts[chunk] = self._impacts(weights[chunk])
        return impacts

    def error(self, matrix: sparse.csr_array) -> dict[str, float]:
        """Return the mean and the maximum change that quantising makes to a weight."""
        _check_weights(matrix)
        total, most = 0.0, 0.0
        for chunk in _chunks(matrix.nnz):
            weights = matrix.data[chunk]
            errors = np.abs(weights - self._weights[self._impacts(weights)].astype(np.float64))
            total, most = total + float(errors.sum()), max(most, float(errors.max()))
        return {"mean": total / max(matrix.nnz, 1), "max": most}

    def bound(self, query: sparse.csr_array) -> float:
        """Return the most that quantising can change a document's score for a query, one row.

        It holds for documents whose weights lie between ``lowest`` and ``highest``, as those of
        `fit` do. Proof: a weight that is neither clipped nor lifted to 1 moves by at most half a
        step (a dropped one is no more than that itself), a clipped one by ``highest - top``,
        and one lifted to 1 by ``step - lowest``. Each word of a document is of one of these
        kinds, so it moves by no more than the greatest of the three, and the score by no more
        than that times the sum of the query's weights. The rest is for the rounding of floats.
        """
        _check_weights(query)
        return self.moved * float(query.data.sum(dtype=np.float64))

    @cached_property
    def moved(self) -> float:
        """The most that quantising can change a weight; see `bound`."""
        moved = max(self.step / 2, self.highest - self.top)
        if not self.drop_zero:
            moved = max(moved, self.step - self.lowest)
        rounding = self.highest * float(_FLOAT32.eps) + float(_FLOAT32.smallest_subnormal)
        return moved + rounding

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> ImpactQuantizer:
        """Make the quantiser that `to_dict` describes; other settings raise ValueError."""
        try:
            return cls(**settings)
        except TypeError as error:
            raise ValueError(f"not the settings of a quantiser: {json.dumps(settings)}") from error

    @classmethod
    def save(cls, path: Path, legs: Mapping[str, ImpactQuantizer]) -> None:
        """Write the quantisers of an index's legs as JSON, with the scale of each."""
        data = {leg: {"scale": q.scale, **q.to_dict()} for leg, q in sorted(legs.items())}
        path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> dict[str, ImpactQuantizer]:
        """Read what `save` wrote: a quantiser for each leg. Anything else raises ValueError."""
        try:
            legs = json.loads(path.read_text(encoding="utf-8"))
            for leg in legs.values():
                del leg["scale"]
            return {name: cls.from_dict(leg) for name, leg in legs.items()}
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: holds no quantisers ({error})") from error

    def _impacts(self, weights: np.ndarray) -> np.ndarray:
        rounded = np.divide(weights, self.step, dtype=np.float64)
        np.rint(rounded, out=rounded)
        np.clip(rounded, 0 if self.drop_zero else 1, self.levels, out=rounded)
        return rounded.astype(np.uint8)

    @cached_property
    def _weights(self) -> np.ndarray:
        return (np.arange(self.levels + 1) * self.step).astype(np.float32)


def _chunks(count: int) -> Iterator[slice]:
    return (slice(start, start + _CHUNK) for start in range(0, count, _CHUNK))


def _is_number(value: object) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and math.isfinite(value)  # type: ignore[arg-type]


def _check_settings(bits: int, percentile: float, drop_zero: bool) -> None:
    if not isinstance(bits, int) or isinstance(bits, bool) or not 1 <= bits <= 8:
        raise ValueError(f"bits must be a whole number from 1 to 8, not {bits!r}")
    if not _is_number(percentile) or not 0 < percentile <= 100:
        raise ValueError(f"percentile must be above 0 and at most 100, not {percentile!r}")
    if not isinstance(drop_zero, bool):
        raise ValueError(f"drop_zero must be true or false, not {drop_zero!r}")


def _check_weights(matrix: sparse.csr_array) -> None:
    # With a NaN among them, min and max are NaN, and neither comparison holds.
    if matrix.nnz and not (matrix.data.min() > 0 and matrix.data.max() <= _FLOAT32.max):
        raise ValueError("weights must be finite float32 numbers above 0")
