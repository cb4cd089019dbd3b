"""The losses, one file each. Rows are those of all processes: gather them first.

A training run adds them up in `lexvla.training.objective`, by the weights in `Losses` there; a new
one also goes into the rule of `[loss]` in `lexvla.training.recipe`.
"""

from lexvla.losses.class_tree import class_levels
from lexvla.losses.codis import CodisTerms, codis_loss
from lexvla.losses.cross_modal import cross_modal_loss, ramped_alpha
from lexvla.losses.flops import flops_penalty
from lexvla.losses.hierarchical_proxy import HierarchicalProxy, coarse_count
from lexvla.losses.info_nce import CLIP_LIMITS, TCL_LIMITS, InfoNCE, shares
from lexvla.losses.intra_modal import intra_modal_loss
from lexvla.losses.local import local_loss, pool_patches
from lexvla.losses.overuse import overuse_penalty
from lexvla.losses.own_words import own_words_loss
from lexvla.losses.proxy_anchor import ProxyAnchor
from lexvla.losses.proxy_nca import ProxyNCA

__all__ = [
    "CLIP_LIMITS",
    "TCL_LIMITS",
    "CodisTerms",
    "HierarchicalProxy",
    "InfoNCE",
    "ProxyAnchor",
    "ProxyNCA",
    "class_levels",
    "coarse_count",
    "codis_loss",
    "cross_modal_loss",
    "flops_penalty",
    "intra_modal_loss",
    "local_loss",
    "overuse_penalty",
    "own_words_loss",
    "pool_patches",
    "ramped_alpha",
    "shares",
]
