"""Detection of runs that have gone wrong."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from lexvla.errors import ModelError

__all__ = ["check_health", "signs"]

_FROM = 500  # steps after which vectors are checked for collapse
_ALIKE = 0.9995  # untrained vectors come near 0.998


def signs(vectors: Tensor) -> dict[str, float]:
    """Return the active words of (N, V) unit vectors (``words``) and their mean's norm (``alike``).

    ``alike`` is 1 if all vectors are equal.
    """
    vectors = vectors.detach()
    active = (vectors > vectors.shape[1] ** -0.5).sum(1).float().mean()
    return {"words": float(active), "alike": float(vectors.mean(0).norm())}


def check_health(step: int, parts: Mapping[str, float]) -> None:
    """Raise `ModelError` if the loss is not finite or the vectors have collapsed.

    ``parts`` holds ``loss``, the norm ``gradient``, and the result of `signs`.
    """
    if not math.isfinite(parts["loss"]) or not math.isfinite(parts["gradient"]):
        rule = f"the loss is {parts['loss']} and the gradient {parts['gradient']}"
        raise ModelError(f"step {step}: {rule}; try a lower rate or a longer warmup")
    if step > _FROM and parts["words"] < 1:
        raise ModelError(f"step {step}: vectors have no active word left; try a lower penalty")
    if step > _FROM and parts["alike"] > _ALIKE:
        raise ModelError(f"step {step}: all images have the same vector; try a lower rate")
