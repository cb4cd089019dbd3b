"""The text tower: a causal language model as lexical predictor.

It gets token ids: `lexvla.tokens.tokenize` puts texts into the prompt, a setting of `LexVLAConfig`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, DynamicCache

from lexvla.config import LexVLAConfig
from lexvla.tokens import common_prefix

__all__ = ["PrefixCache", "TextTower"]


class PrefixCache:
    """Keys and values of the tokens that all texts begin with: the prompt and its example.

    The model is causal, so they do not depend on the rest; they are valid until weights change.
    """

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.layers: list[tuple[Tensor, Tensor]] = []

    def common(self, token_ids: list[list[int]]) -> int:
        """Count the cached tokens that all sequences begin with."""
        held = self.ids[: common_prefix(token_ids)]
        first = token_ids[0]
        return next((i for i, token in enumerate(held) if token != first[i]), len(held))


class TextTower(nn.Module):
    """Return the language model's last state of each text, which predicts the next token.

    The state follows the final norm, so its product with the output embedding is the next-token
    logits (LexVLA section 3.2).

    Args:
        config: Kind and size of the language model.
        language_model: The model; by default one with random weights.
    """

    def __init__(self, config: LexVLAConfig, language_model: Any = None) -> None:
        super().__init__()
        if language_model is None:
            language_model = AutoModelForCausalLM.from_config(config.text_config)
        self.language_model: Any = language_model

    def forward(self, token_ids: list[list[int]], cache: PrefixCache | None = None) -> Tensor:
        """Return (B, d) last states of B token sequences; see `states`."""
        return self.states(token_ids, cache)[0][:, -1]

    def by_length(self, token_ids: list[list[int]], parts: int = 4) -> Tensor:
        """Return (B, d) last states, computed in ``parts`` groups of similar length."""
        order = sorted(range(len(token_ids)), key=lambda row: len(token_ids[row]))
        size = -(-len(order) // parts)
        groups = [order[start : start + size] for start in range(0, len(order), size)]
        states = torch.cat([self([token_ids[row] for row in group]) for group in groups])
        return states[torch.tensor(order, device=states.device).argsort()]

    def states(
        self, token_ids: list[list[int]], cache: PrefixCache | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return (B, L, d) states of what follows the sequences' common prefix.

        The prefix is run once for the whole batch. The rest is padded on the left, so the last
        position is the last token of every row. The second result is the (B, L) mask of real
        tokens.

        Args:
            token_ids: A non-empty sequence for each text.
            cache: Keeps the prefix between calls, as long as weights do not change.
        """
        backbone = self.language_model.get_decoder()
        device = self.language_model.device
        cache = cache if cache is not None else PrefixCache()
        shared = cache.common(token_ids)
        # With gradient checkpointing, no keys and values are kept while training.
        keeps = not (backbone.training and getattr(backbone, "gradient_checkpointing", False))
        if keeps and not shared and (shared := common_prefix(token_ids)):
            cache.ids = token_ids[0][:shared]
            prefix = torch.tensor([cache.ids], device=device)
            once = backbone(input_ids=prefix, use_cache=True).past_key_values
            kept = [(layer.keys, layer.values) for layer in once.layers if hasattr(layer, "keys")]
            whole = [layer for layer in kept if layer[0].shape[2] == shared]
            if len(whole) == len(once.layers):
                cache.layers = whole
            else:  # sliding windows and recurrent layers keep less of a prefix than it takes
                cache.ids, shared = [], 0
        rests = [ids[shared:] for ids in token_ids]
        length = max(map(len, rests))
        batch = len(rests)
        ids = torch.zeros(batch, length, dtype=torch.long)
        mask = torch.zeros(batch, shared + length, dtype=torch.long)
        mask[:, :shared] = 1
        for row, rest in enumerate(rests):
            ids[row, length - len(rest) :] = torch.tensor(rest)
            mask[row, shared + length - len(rest) :] = 1
        ids, mask = ids.to(device), mask.to(device)
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, shared:]
        past = None
        if shared:
            past = DynamicCache(
                [
                    tuple(part[:, :, :shared].expand(batch, -1, -1, -1) for part in layer)
                    for layer in cache.layers
                ]
            )
        output = backbone(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=past,
            use_cache=past is not None,
        )
        return output.last_hidden_state, mask[:, shared:].bool()
