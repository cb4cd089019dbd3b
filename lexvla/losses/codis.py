"""Codebook alignment: each modality predicts the codes of the other's teacher (CODIS)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from lexvla.codebook import sinkhorn
from lexvla.losses.precision import at_least_float32, dot_products

__all__ = ["CodisTerms", "codis_loss"]


class CodisTerms(NamedTuple):
    """The four scalar terms of CODIS's codebook loss."""

    image_transport: Tensor
    text_transport: Tensor
    text_to_codes: Tensor
    image_to_codes: Tensor


def codis_loss(
    images: Tensor,
    texts: Tensor,
    image_teacher: Tensor,
    text_teacher: Tensor,
    codes: Tensor,
    temperature: float | Tensor,
    image_queue: Tensor | None = None,
    text_queue: Tensor | None = None,
    solver: Callable[[Tensor], Tensor] = sinkhorn,
) -> CodisTerms:
    """Return the transport cost of the teachers' vectors, and the swapped predictions.

    The teacher's vectors Z of a modality are assigned to the codes C by a balanced plan T, at the
    cost ``L_ot = <T, 1 - cos(Z, C)>``; the student of the other modality learns T by cross entropy
    (L_t2p, L_i2p). No gradient reaches the teachers or T: L_ot moves the codes only, the swapped
    terms the students and the codes.

    The plan is solved over the batch plus queue rows up to K/2: with fewer rows than codes, equal
    shares for all codes would be noise.

    Args:
        images: (N, d) student's unit vectors of the global batch.
        texts: (N, d) likewise; row i belongs to image i.
        image_teacher: (N, d) teacher's unit vectors of the images.
        text_teacher: (N, d) teacher's unit vectors of the texts.
        codes: (K, d), as `Codebook.codes`; normalised here.
        temperature: Divides the students' cosines.
        image_queue: (Q, d) earlier vectors of the image teacher, newest first.
        text_queue: (Q, d) earlier vectors of the text teacher, newest first.
        solver: Maps cosines (M, K) to a plan: `sinkhorn`, or ``lambda s: ipot(1 - s)``.

    References:
        Duan et al. 2022, "Multi-modal Alignment using Representation Codebook", CVPR,
        arXiv 2203.00048.
    """
    codes = functional.normalize(at_least_float32(codes), dim=1)
    image_cost, image_target = _assign(image_teacher, image_queue, codes, solver)
    text_cost, text_target = _assign(text_teacher, text_queue, codes, solver)
    return CodisTerms(
        image_transport=image_cost,
        text_transport=text_cost,
        text_to_codes=_predict(texts, codes, image_target, temperature),
        image_to_codes=_predict(images, codes, text_target, temperature),
    )


def _assign(
    teacher: Tensor, queue: Tensor | None, codes: Tensor, solver: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Return the transport cost, and the batch's assignments (N, K), rows summing to 1."""
    rows = [teacher]
    if queue is not None:
        rows.append(queue[: max(0, (len(codes) + 1) // 2 - len(teacher))])
    cosines = dot_products(torch.cat([part.detach() for part in rows]), codes)
    plan = solver(cosines.detach()).to(cosines.dtype)
    batch = plan[: len(teacher)]
    # N * T, up to what IPOT's rows lack of 1/N.
    return (plan * (1 - cosines)).sum(), batch / batch.sum(dim=1, keepdim=True)


def _predict(student: Tensor, codes: Tensor, target: Tensor, temperature: float | Tensor) -> Tensor:
    logits = dot_products(student, codes) / temperature
    return functional.cross_entropy(logits, target.to(logits.dtype))
