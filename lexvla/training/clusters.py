"""Clustering of codes and proxies during a run."""

from __future__ import annotations

import torch
from torch import Tensor

from lexvla.codebook import Codebook
from lexvla.losses import HierarchicalProxy

__all__ = ["forget", "initialise_codes", "recluster_proxies", "reseed_codes"]


@torch.no_grad()
def forget(optimizer: torch.optim.Optimizer, weight: Tensor, rows: Tensor) -> None:
    """Clear the optimiser's moments of rows that were replaced."""
    for moment in optimizer.state.get(weight, {}).values():
        if isinstance(moment, Tensor) and moment.shape == weight.shape:
            moment[rows] = 0


def initialise_codes(codebook: Codebook, rows: Tensor, seed: int) -> None:
    """Set the codes to cluster centres of (n, width) teacher vectors."""
    place = rows.device
    codebook.cpu().initialise(rows.cpu(), torch.Generator().manual_seed(seed))
    codebook.to(place)


def reseed_codes(
    codebook: Codebook, counts: Tensor, rows: Tensor, optimizer: torch.optim.Optimizer, seed: int
) -> None:
    """Replace unused codes by some of the rows, and reset the counts."""
    generator = torch.Generator(rows.device).manual_seed(seed)
    forget(optimizer, codebook.codes, codebook.reseed(counts, rows, generator))
    counts.zero_()


def recluster_proxies(
    proxies: HierarchicalProxy, optimizer: torch.optim.Optimizer, seed: int
) -> None:
    """Recluster proxies without a given tree (HPL)."""
    device = proxies.parents(0).device
    moved = proxies.recluster(torch.Generator(device).manual_seed(seed))
    for level, rows in zip(list(proxies.levels)[1:], moved, strict=True):
        forget(optimizer, level.get_parameter("proxies"), rows)
