"""The text side: a causal language model as lexical predictor."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedTokenizerBase

from lexvla.config import LexVLAConfig

__all__ = ["TextTower", "tokenize"]


def tokenize(
    tokenizer: PreTrainedTokenizerBase, texts: list[str], prompt: str, max_text_tokens: int
) -> list[list[int]]:
    """Put each text into the prompt and return token ids, the text cut to its limit.

    A text is cut at the character where its last allowed token ends, and the prompt is then put
    around what is left, so the ids are always those of one whole string.
    """
    if not texts:
        return []
    cut = []
    parts = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)
    for text, offsets in zip(texts, parts["offset_mapping"], strict=True):
        long = len(offsets) > max_text_tokens
        cut.append(text[: offsets[max_text_tokens - 1][1]] if long else text)
    before, after = prompt.split("{text}")
    return tokenizer([before + text + after for text in cut])["input_ids"]


class TextTower(nn.Module):
    """Give each text the language model's last state: the one that predicts the next token.

    The state is taken after the final norm, so its product with the output embedding is exactly
    the next-token logits (LexVLA section 3.2).
    """

    def __init__(self, config: LexVLAConfig) -> None:
        super().__init__()
        self.language_model = AutoModelForCausalLM.from_config(config.text_config)

    def forward(self, token_ids: list[list[int]]) -> Tensor:
        """Return (B, d) last states of B token sequences.

        The tokens that all sequences begin with (the prompt and its example) are run once for the
        whole batch; the model is causal, so their states do not depend on what follows. The rest
        is padded on the left, so the last position is the last token of every row.
        """
        backbone = self.language_model.get_decoder()
        device = self.language_model.device
        shared = _common_prefix(token_ids)
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
        cache = None
        if shared:
            prefix = torch.tensor([token_ids[0][:shared]], device=device)
            once = backbone(input_ids=prefix, use_cache=True).past_key_values
            cache = DynamicCache(
                [
                    (layer.keys.expand(batch, -1, -1, -1), layer.values.expand(batch, -1, -1, -1))
                    for layer in once.layers
                ]
            )
        output = backbone(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=cache is not None,
        )
        return output.last_hidden_state[:, -1]


def _common_prefix(token_ids: list[list[int]]) -> int:
    """Count the tokens that all sequences begin with, leaving each at least its last token."""
    shortest, longest = min(token_ids), max(token_ids)
    limit = min(map(len, token_ids)) - 1
    shared = 0
    while shared < limit and shortest[shared] == longest[shared]:
        shared += 1
    return shared
