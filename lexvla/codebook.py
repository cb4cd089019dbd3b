"""The dense codebook: a learnt dictionary shared by images and texts (CODIS)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = [
    "Codebook",
    "code_counts",
    "count_dead_codes",
    "ipot",
    "sinkhorn",
    "spherical_kmeans",
    "usage_entropy",
]


class Codebook(nn.Module):
    """Assign dense vectors softly to codes (Duan et al., CVPR 2022, arXiv 2203.00048).

    Args:
        size: Number K of codes.
        width: Width of the dense vectors.
        temperature: Temperature of the softmax over cosines.
    """

    def __init__(self, size: int, width: int, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature
        self.codes = nn.Parameter(functional.normalize(torch.randn(size, width), dim=1))

    def forward(self, dense: Tensor) -> Tensor:
        """Map unit vectors (n, width) to float32 probabilities of the codes (n, K)."""
        codes = functional.normalize(self.codes.float(), dim=1)
        return (dense.float() @ codes.T / self.temperature).softmax(dim=1)

    @torch.no_grad()
    def initialise(self, features: Tensor, generator: torch.Generator | None = None) -> None:
        """Set the codes to cluster centres of (n, width) teacher vectors, n >= K.

        The generator must be on the features' device.
        """
        centres, _ = spherical_kmeans(features, len(self.codes), generator=generator)
        self.codes.copy_(centres)

    @torch.no_grad()
    def reseed(
        self, counts: Tensor, queue: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """Replace each unused code by a random vector of the queue.

        Args:
            counts: (K,) items per code, as from `code_counts`.
            queue: (Q, width) teacher vectors; each row is used at most once.
            generator: Random generator on the queue's device.

        Returns:
            Numbers of the replaced codes, at most Q; clear their optimiser state.
        """
        order = torch.randperm(len(queue), generator=generator, device=queue.device)
        empty = (counts == 0).nonzero()[: len(queue), 0]
        seeds = functional.normalize(queue[order[: len(empty)]].float(), dim=1)
        self.codes[empty] = seeds.to(self.codes.dtype)
        return empty

    @torch.no_grad()
    def renormalise(self) -> None:
        """Bring the codes back to unit length, after each step (SwAV)."""
        self.codes.copy_(functional.normalize(self.codes, dim=1))


@torch.no_grad()
def sinkhorn(scores: Tensor, epsilon: float = 0.05, rounds: int = 3) -> Tensor:
    """Assign rows to codes so that every code gets an equal share (SwAV).

    Args:
        scores: (N, K) cosines of the global batch.
        epsilon: Softness: the smaller, the closer to one code a row.
        rounds: Alternations of scaling columns, then rows.

    Returns:
        (N, K) float32 plan without gradient. Rows sum to 1/N, columns approximately to 1/K.

    References:
        Cuturi 2013, arXiv 1306.0895; Caron et al. 2020 (SwAV), arXiv 2006.09882.
    """
    rows, columns = scores.shape
    plan = scores.float() / epsilon  # in logarithms: exp(1 / epsilon) may overflow
    for _ in range(rounds):
        plan = plan - plan.logsumexp(dim=0) - math.log(columns)
        plan = plan - plan.logsumexp(dim=1, keepdim=True) - math.log(rows)
    return plan.exp()


@torch.no_grad()
def ipot(cost: Tensor, beta: float = 0.5, iterations: int = 50) -> Tensor:
    """Assign rows to codes by optimal transport (IPOT), every code with an equal share.

    Unlike `sinkhorn`, whose plan stays as soft as epsilon, it converges to the optimum.

    Args:
        cost: (N, K), such as one minus cosines, of the global batch.
        beta: Proximal step size: smaller is faster and less stable.
        iterations: Proximal steps, each with one inner scaling.

    Returns:
        (N, K) float32 plan without gradient. Columns sum to 1/K, rows approximately to 1/N.

    References:
        Xie et al. 2019, "A Fast Proximal Point Method for Computing Exact Wasserstein Distance",
        arXiv 1802.04307.
    """
    rows, columns = cost.shape
    kernel = -cost.float() / beta  # all in logarithms
    plan = torch.zeros_like(kernel)
    sigma = torch.full_like(kernel[0], -math.log(columns))
    for _ in range(iterations):
        plan = plan + kernel
        delta = -math.log(rows) - (plan + sigma).logsumexp(dim=1, keepdim=True)
        sigma = -math.log(columns) - (plan + delta).logsumexp(dim=0)
        plan = plan + delta + sigma
    return plan.exp()


@torch.no_grad()
def spherical_kmeans(
    vectors: Tensor,
    count: int,
    rounds: int = 25,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Cluster vectors by direction, initialised as in k-means++ with cosine distance.

    An empty cluster restarts at the vector that fits its own centre worst.

    Args:
        vectors: (n, d), non-zero.
        count: Clusters, at most n.
        rounds: Maximum number of iterations.
        generator: Random generator on the vectors' device.

    Returns:
        The float32 unit centres (count, d), and the cluster (n,) of each vector.
    """
    if not 1 <= count <= len(vectors):
        raise ValueError(f"{count} clusters of {len(vectors)} vectors")
    vectors = functional.normalize(vectors.float(), dim=1)
    centres = _spread(vectors, count, generator)
    nearest = _nearest(vectors, centres)
    for _ in range(rounds):
        sums = torch.zeros_like(centres).index_add_(0, nearest, vectors)
        lengths = sums.norm(dim=1, keepdim=True)
        centres = torch.where(lengths > 1e-6, sums / lengths, centres)
        empty = (nearest.bincount(minlength=count) == 0).nonzero()[:, 0]
        if len(empty):
            worst = (vectors * centres[nearest]).sum(dim=1).topk(len(empty), largest=False)
            centres[empty] = vectors[worst.indices]
        before, nearest = nearest, _nearest(vectors, centres)
        if torch.equal(before, nearest):
            break
    return centres, nearest


def _spread(vectors: Tensor, count: int, generator: torch.Generator | None) -> Tensor:
    """Draw centres among unit vectors, distant ones with greater probability."""
    weights = torch.ones_like(vectors[:, 0])
    chosen = []
    for _ in range(count):
        chosen.append(torch.multinomial(weights, 1, generator=generator))
        distance = 1 - vectors @ vectors[chosen[-1][0]]
        weights = distance if len(chosen) == 1 else torch.minimum(weights, distance)
        weights = weights.clamp(min=1e-9)  # equal vectors can be drawn too
    return vectors[torch.cat(chosen)]


def _nearest(vectors: Tensor, centres: Tensor, chunk: int = 8192) -> Tensor:
    return torch.cat([(part @ centres.T).argmax(dim=1) for part in vectors.split(chunk)])


@torch.no_grad()
def code_counts(vectors: Tensor, codes: Tensor) -> Tensor:
    """Count the vectors (n, d) nearest to each code (K, d): long (K,)."""
    codes = functional.normalize(codes.float(), dim=1)
    return _nearest(vectors.float(), codes).bincount(minlength=len(codes))


def usage_entropy(counts: Tensor) -> float:
    """Return the entropy in nats of (K,) counts of items per code: at most log K."""
    shares = counts.double() / counts.sum().clamp(min=1)
    return float(torch.special.entr(shares).sum())


def count_dead_codes(counts: Tensor) -> int:
    """Return how many codes are unused, from (K,) counts of items per code."""
    return int((counts == 0).sum())
