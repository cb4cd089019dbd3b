"""The direct lexical term: logits of an item's own words above zero, others below."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from lexvla.losses.precision import at_least_float32

__all__ = ["own_words_loss"]


def own_words_loss(logits: Tensor, words: Tensor) -> Tensor:
    """Return ``log(1 + sum_other e^x) + log(1 + sum_own w e^-x)``, the mean over the batch.

    An addition of this project: a model with random weights needs it to learn what the columns
    mean before the contrast takes hold. The border of zero fits elu1p, which is ``e^x`` below and
    ``x + 1`` above: the first part is the sum that fills a vector with unrelated words.

    Args:
        logits: (N, V), before elu1p.
        words: (N, V) weights >= 0 of the item's own words, up to about 1.

    References:
        Su et al. 2022, "ZLPR: A Novel Loss for Multi-label Classification", arXiv 2208.02955.
    """
    logits = at_least_float32(logits)
    own = words > 0
    nothing = torch.tensor(-torch.inf, device=logits.device)
    other = torch.where(own, nothing, logits).logsumexp(dim=1)
    missed = torch.where(own, words.log() - logits, nothing).logsumexp(dim=1)
    return (functional.softplus(other) + functional.softplus(missed)).mean()
