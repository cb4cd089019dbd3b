"""What a run does to codes and proxies beside gradient steps."""

from __future__ import annotations

import torch
from torch import Tensor

from lexvla.codebook import Codebook
from lexvla.losses import HierarchicalProxy

__all__ = ["forget", "initialise_codes", "recluster_proxies", "reseed_codes"]


@torch.no_grad()
def forget(optimizer: torch.optim.Optimizer, weight: Tensor, rows: Tensor) -> None:
    """Clear the moments of rows that were set anew: they belong to what stood there."""
    for moment in optimizer.state.get(weight, {}).values():
        if isinstance(moment, Tensor) and moment.shape == weight.shape:
            moment[rows] = 0


def initialise_codes(codebook: Codebook, rows: Tensor, seed: int) -> None:
    """Set the codes to the centres of clusters of rows (n, width), the teacher's vectors."""
    place = rows.device
    codebook.cpu().initialise(rows.cpu(), torch.Generator().manual_seed(seed))
    codebook.to(place)


def reseed_codes(
    codebook: Codebook, counts: Tensor, rows: Tensor, optimizer: torch.optim.Optimizer, seed: int
) -> None:
    """Let codes that no item had start anew at some of the rows, and count from zero."""
    generator = torch.Generator(rows.device).manual_seed(seed)
    forget(optimizer, codebook.codes, codebook.reseed(counts, rows, generator))
    counts.zero_()


def recluster_proxies(
    proxies: HierarchicalProxy, optimizer: torch.optim.Optimizer, seed: int
) -> None:
    """Cluster the proxies anew where no tree is given (HPL)."""
    device = proxies.parents(0).device
    moved = proxies.recluster(torch.Generator(device).manual_seed(seed))
    for level, rows in zip(list(proxies.levels)[1:], moved, strict=True):
        forget(optimizer, level.get_parameter("proxies"), rows)
