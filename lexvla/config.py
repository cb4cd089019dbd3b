"""Configuration of a LexVLA model of any size."""

from __future__ import annotations

from typing import Any, Literal

from transformers import CONFIG_MAPPING, PretrainedConfig

__all__ = ["LexVLAConfig"]

# LexVLA section 3.2: one in-context example turns a language model into a lexical predictor.
PROMPT = (
    'The focus of "The man is riding a white horse." lies on important words:'
    '"man", "riding", "white", "horse". The focus of "{text}" lies on important words:'
)
Sparsification = Literal["mean", "top_k", "threshold"]


class LexVLAConfig(PretrainedConfig):
    """Describe both towers, the adapter, the prompt and the sparsification.

    Args:
        text_config: Configuration of the causal language model, as an object or a dict.
        vision_config: Configuration of the vision transformer, as an object or a dict.
        prompt: What the text is put into; ``{text}`` marks the place.
        max_text_tokens: Tokens of a text, the prompt not counted; longer texts are cut.
        adapter_heads: Attention heads of the adapter's one self-attention layer.
        adapter_width: Hidden width of the adapter's two MLPs.
        sparsification: Which words of a unit vector are kept: those above ``1/sqrt(V)``
            (``mean``, LexVLA section 4.4), the ``top_k`` largest, or those above ``threshold``.
        kept_words: How many words ``top_k`` keeps.
        threshold: Weight above which words are kept by ``threshold``.
        model_name: What people call the model; an index records it with the fingerprint.
        fingerprint: SHA-256 of the weights file; `LexVLA.save_pretrained` sets it.
        vocabulary_chunk: Words for which the patch logits are held in memory at one time.

    Raises:
        ValueError: The prompt has no one place for the text.
    """

    model_type = "lexvla"

    def __init__(
        self,
        text_config: PretrainedConfig | dict[str, Any] | None = None,
        vision_config: PretrainedConfig | dict[str, Any] | None = None,
        prompt: str = PROMPT,
        max_text_tokens: int = 64,
        adapter_heads: int = 12,
        adapter_width: int = 2304,
        sparsification: Sparsification = "mean",
        kept_words: int = 512,
        threshold: float = 0.0,
        vocabulary_chunk: int = 2048,
        model_name: str = "lexvla",
        fingerprint: str = "",
        **kwargs: Any,
    ) -> None:
        self.text_config = _sub_config(text_config, "llama")
        self.vision_config = _sub_config(vision_config, "dinov2")
        if prompt.count("{text}") != 1:
            raise ValueError(f"the prompt must hold {{text}} once: {prompt!r}")
        self.prompt = prompt
        self.max_text_tokens = max_text_tokens
        self.adapter_heads = adapter_heads
        self.adapter_width = adapter_width
        self.sparsification = sparsification
        self.kept_words = kept_words
        self.threshold = threshold
        self.vocabulary_chunk = vocabulary_chunk
        self.model_name = model_name
        self.fingerprint = fingerprint
        super().__init__(**kwargs)

    @property
    def patch_grid(self) -> tuple[int, int]:
        """Return rows and columns of the patch grid that an image is cut into."""
        side = self.vision_config.image_size // self.vision_config.patch_size
        return side, side


def _sub_config(config: PretrainedConfig | dict[str, Any] | None, default: str) -> PretrainedConfig:
    if isinstance(config, PretrainedConfig):
        return config
    values = dict(config or {})
    return CONFIG_MAPPING[values.pop("model_type", default)](**values)
