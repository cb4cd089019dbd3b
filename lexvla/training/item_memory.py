"""Running averages of every item's text and image vectors."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from lexvla.torch_model import Features

__all__ = ["ItemMemory"]


class ItemMemory:
    """Remember items, so that a batch is contrasted with all of them.

    Meant for thousands of items: it holds two lexical vectors of each.

    Args:
        items: Number of items.
        words: Size of the vocabulary.
        dtype: Type of the vectors.
        device: Device of the vectors.
        dense_width: Width of dense vectors to remember too, in float32, in the memory ``dense``;
            0 for none.

    References:
        Wu et al. 2018, "Unsupervised Feature Learning via Non-Parametric Instance Discrimination",
        arXiv 1805.01978.
    """

    def __init__(
        self,
        items: int,
        words: int,
        dtype: torch.dtype,
        device: torch.device | None = None,
        dense_width: int = 0,
    ) -> None:
        self.texts = torch.zeros(items, words, dtype=dtype, device=device)
        self.images = torch.zeros(items, words, dtype=dtype, device=device)
        self.dense: ItemMemory | None = None
        if dense_width:
            self.dense = ItemMemory(items, dense_width, torch.float32, device)

    def remember(
        self,
        items: Tensor,
        relevance: Tensor,
        image: Features | None,
        text: Features,
        words_stay: bool = False,
    ) -> None:
        """Move the vectors of the batch's items half way to the mean of the new ones.

        Args:
            items: (N,) long.
            relevance: (N, items); weighs each text by its relevance to its item.
            image: Features of N images; None to move the texts' vectors only.
            text: Features of their texts.
            words_stay: Whether all lexical vectors stay as they are.
        """
        if not words_stay:
            self._move(items, relevance, None if image is None else image.lexical, text.lexical)
        if self.dense is not None and text.dense is not None:
            self.dense._move(items, relevance, None if image is None else image.dense, text.dense)

    @torch.no_grad()
    def _move(self, items: Tensor, relevance: Tensor, images: Tensor | None, texts: Tensor) -> None:
        own, place = items.unique(return_inverse=True)
        weight = relevance.gather(1, items[:, None]).float()
        moved = [(self.texts, weight * texts.float())]
        if images is not None:
            moved.append((self.images, images.float()))
        for held, rows in moved:
            fresh = torch.zeros(len(own), rows.shape[1], device=rows.device)
            fresh.index_add_(0, place, rows)
            mixed = held[own].float() + functional.normalize(fresh, dim=1)
            held[own] = functional.normalize(mixed, dim=1).to(held.dtype)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the vectors."""
        own = {"texts": self.texts, "images": self.images}
        if self.dense is not None:
            own |= {f"dense_{name}": rows for name, rows in self.dense.state_dict().items()}
        return own

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Load vectors of `state_dict`."""
        self.texts.copy_(state["texts"])
        self.images.copy_(state["images"])
        if self.dense is not None:
            self.dense.load_state_dict({k: state[f"dense_{k}"] for k in ("texts", "images")})
