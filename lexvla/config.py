"""Configuration of a LexVLA model of any size."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from transformers import CONFIG_MAPPING, PretrainedConfig

__all__ = ["LexVLAConfig"]

# LexVLA section 3.2: one in-context example turns a language model into a lexical predictor.
PROMPT = (
    'The focus of "The man is riding a white horse." lies on important words:'
    '"man", "riding", "white", "horse". The focus of "{text}" lies on important words:'
)
# ImageNet's channel statistics, which DINOv2 was trained with.
IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_STD = (0.229, 0.224, 0.225)
Sparsification = Literal["mean", "top_k", "threshold"]
Quantization = Literal["none", "int8", "nf4"]
# What an encoding follows from beside the weights, and so what the fingerprint names as well.
_SETTINGS = (
    *("text_model", "text_revision", "vision_model", "vision_revision", "vocabulary_sha256"),
    *("prompt", "max_text_tokens", "require_known_word", "known_tokens"),
    *("image_size", "image_mean", "image_std", "pool_cls", "fine_stage"),
    *("sparsification", "kept_words", "threshold", "max_active_dims"),
    *("codes_per_item", "code_temperature"),
)
QUANTIZATIONS = ("none", "int8", "nf4")


class LexVLAConfig(PretrainedConfig):
    """Describe both towers, the adapter, the heads, the prompt and the sparsification.

    A tower whose ``text_model`` or ``vision_model`` is named is a pretrained backbone: it is
    frozen, loaded by that name, and not saved with the model. A tower without a name was trained
    here, and is saved whole.

    Args:
        text_config: Configuration of the causal language model, as an object or a dict.
        vision_config: Configuration of the vision transformer, or of timm's convolutional network,
            as an object or a dict.
        text_model: Hub id or path of the pretrained language model, or ``None``.
        text_revision: Its commit on the hub.
        vision_model: Hub id or path of the pretrained vision transformer, or ``None``.
        vision_revision: Its commit on the hub.
        backbone_dtype: Floating-point type of pretrained backbones, and the type that quantised
            layers compute in.
        quantization: How the pretrained language model is held: ``none``, ``int8`` or ``nf4``
            (LLM.int8, arXiv 2208.07339; QLoRA, arXiv 2305.14314), by bitsandbytes.
        double_quantization: Whether ``nf4`` quantises its constants too.
        lora_rank: Rank of LoRA on the pretrained language model (arXiv 2106.09685); 0 for none.
        lora_alpha: LoRA's scale, over the rank.
        lora_targets: Names of the layers that get LoRA, or ``all-linear``.
        lora_dropout: Dropout before LoRA's first matrix.
        prompt: What the text is put into; ``{text}`` marks the place.
        max_text_tokens: Tokens of a text, the prompt not counted; longer texts are cut.
        require_known_word: Whether a text in which no piece is in the vocabulary gets an empty
            vector: right for a language model that was trained from scratch on a few words.
        known_tokens: First and last but one of the token ids that count as known too: words that
            are not in the vocabulary, and that the language model learnt to explain by others.
        image_size: Side in pixels that images are brought to; ``None`` for the vision model's own,
            for a convolutional one down to a multiple of its stride.
        image_mean: Mean of each colour channel, in 0 to 1.
        image_std: Deviation of each colour channel.
        adapter_heads: Attention heads of the adapter's one self-attention layer.
        adapter_width: Hidden width of the adapter's two MLPs.
        concept_items: Concepts known by examples, for a memory that the patches of a feature map
            with its fine stage read in place of an adapter; 0 for no memory. See `ConceptMemory`.
        concept_classes: Classes of the vision model's own classifier in that memory.
        layout_width: Width of its layout keys.
        local_rank: Rank of its items' evidence in one patch.
        pool_cls: Whether the vision model's CLS token takes part in the maximum over patches. A
            word that was read from it has the patch -1.
        map_width: Channels of a convolutional network's cell, all told; 0 for a transformer.
            `LexVLA.from_backbones` measures it, as the next.
        map_stride: Pixels that its cells are apart; 0 for a transformer.
        fine_stage: Whether a cell of a convolutional network has the four cells of the stage of
            half the stride beside its own channels.
        dense_width: Width of the dense vectors; 0 for none.
        codebook_size: Codes of the dense codebook (CODIS); 0 for none.
        codes_per_item: Codes that an item keeps, the most probable ones.
        code_temperature: Temperature of the assignment to codes.
        vocabulary_rule: By which rule of `Vocabulary.from_tokenizer` the words were kept; empty
            where they were chosen in another way.
        vocabulary_sha256: Names the vocabulary; `LexVLA` sets it.
        sparsification: Which words of a unit vector are kept: those above ``1/sqrt(V)``
            (``mean``, LexVLA section 4.4), the ``top_k`` largest, or those above ``threshold``.
        kept_words: How many words ``top_k`` keeps.
        threshold: Weight above which words are kept by ``threshold``.
        max_active_dims: Words that an item keeps at most, whatever the rule; ``None`` for no limit.
        vocabulary_chunk: Words for which the patch logits are held in memory at one time.
        model_name: What people call the model; an index records it with the fingerprint.
        knowledge: What the model knows and what not, for people to read, as a sentence without the
            model's name: "knows ..., but not ...".
        score_weights: What each leg counts in a search's score: ``lexical``, ``dense``, ``codes``,
            of which those left out count nothing; ``None`` for equal weights.
        relevance: Slope and intercept of the logistic function that makes a relevance from 0 to 1
            of such a score; ``None`` if it was not fitted. `lexvla_search.fitting` fits both.
        weights_sha256: SHA-256 of each file of weights; `LexVLA.save_pretrained` sets it.

    Raises:
        ValueError: The prompt has no one place for the text, or a value is out of its range.
    """

    model_type = "lexvla"

    def __init__(
        self,
        text_config: PretrainedConfig | dict[str, Any] | None = None,
        vision_config: PretrainedConfig | dict[str, Any] | None = None,
        text_model: str | None = None,
        text_revision: str | None = None,
        vision_model: str | None = None,
        vision_revision: str | None = None,
        backbone_dtype: str = "float32",
        quantization: Quantization = "none",
        double_quantization: bool = True,
        lora_rank: int = 0,
        lora_alpha: int = 16,
        lora_targets: str | Sequence[str] = "all-linear",
        lora_dropout: float = 0.05,
        prompt: str = PROMPT,
        max_text_tokens: int = 64,
        require_known_word: bool = False,
        known_tokens: Sequence[int] = (0, 0),
        image_size: int | None = None,
        image_mean: Sequence[float] = IMAGE_MEAN,
        image_std: Sequence[float] = IMAGE_STD,
        adapter_heads: int = 12,
        adapter_width: int = 2304,
        concept_items: int = 0,
        concept_classes: int = 0,
        layout_width: int = 512,
        local_rank: int = 128,
        pool_cls: bool = False,
        map_width: int = 0,
        map_stride: int = 0,
        fine_stage: bool = False,
        dense_width: int = 256,
        codebook_size: int = 4096,
        codes_per_item: int = 8,
        code_temperature: float = 0.07,
        vocabulary_rule: str = "",
        vocabulary_sha256: str = "",
        sparsification: Sparsification = "mean",
        kept_words: int = 512,
        threshold: float = 0.0,
        max_active_dims: int | None = None,
        vocabulary_chunk: int = 2048,
        model_name: str = "lexvla",
        knowledge: str = "",
        score_weights: Mapping[str, float] | None = None,
        relevance: Sequence[float] | None = None,
        weights_sha256: dict[str, str] | None = None,
        **kwargs: Any,
    ) -> None:
        self.text_config = _sub_config(text_config, "llama")
        self.vision_config = _sub_config(vision_config, "dinov2")
        self.text_model = text_model
        self.text_revision = text_revision
        self.vision_model = vision_model
        self.vision_revision = vision_revision
        self.backbone_dtype = backbone_dtype
        self.quantization = quantization
        self.double_quantization = double_quantization
        self.lora_rank = lora_rank
        self.lora_alpha = lora_alpha
        self.lora_targets = lora_targets if isinstance(lora_targets, str) else list(lora_targets)
        self.lora_dropout = lora_dropout
        self.prompt = prompt
        self.max_text_tokens = max_text_tokens
        self.require_known_word = require_known_word
        self.known_tokens = list(known_tokens)
        self.image_size = image_size
        self.image_mean = list(image_mean)
        self.image_std = list(image_std)
        self.adapter_heads = adapter_heads
        self.adapter_width = adapter_width
        self.concept_items = concept_items
        self.concept_classes = concept_classes
        self.layout_width = layout_width
        self.local_rank = local_rank
        self.pool_cls = pool_cls
        self.map_width = map_width
        self.map_stride = map_stride
        self.fine_stage = fine_stage
        self.dense_width = dense_width
        self.codebook_size = codebook_size
        self.codes_per_item = codes_per_item
        self.code_temperature = code_temperature
        self.vocabulary_rule = vocabulary_rule
        self.vocabulary_sha256 = vocabulary_sha256
        self.sparsification = sparsification
        self.kept_words = kept_words
        self.threshold = threshold
        self.max_active_dims = max_active_dims
        self.vocabulary_chunk = vocabulary_chunk
        self.model_name = model_name
        self.knowledge = knowledge
        self.score_weights = None if score_weights is None else dict(score_weights)
        self.relevance = None if relevance is None else list(relevance)
        self.weights_sha256 = dict(weights_sha256 or {})
        self.check()
        super().__init__(**kwargs)

    def check(self) -> None:
        """Raise ValueError where the fields do not go together."""
        self._check_map()
        self._check_scores()
        width, side, patch = self.vision_width, self.image_side, self.patch_size
        rules = {
            f"the prompt must hold {{text}} once: {self.prompt!r}": self.prompt.count("{text}")
            == 1,
            f"quantization must be one of {', '.join(QUANTIZATIONS)}, not {self.quantization!r}": (
                self.quantization in QUANTIZATIONS
            ),
            f"adapter_heads={self.adapter_heads} does not divide the adapter's width {width}": (
                self.concept_items > 0
                or (self.adapter_heads > 0 and width % self.adapter_heads == 0)
            ),
            f"image_size={side} is less than a patch of {patch} pixels": side >= patch,
            f"image_size={side} is no multiple of the vision model's stride, {patch}": (
                not self.has_map or side % patch == 0
            ),
            "quantization and LoRA are for a pretrained language model: name it by text_model": (
                self.text_model is not None or (self.quantization == "none" and not self.lora_rank)
            ),
            f"lora_rank must be at least 0, not {self.lora_rank}": self.lora_rank >= 0,
            f"codebook_size={self.codebook_size} needs a dense_width": (
                self.dense_width > 0 or self.codebook_size == 0
            ),
            f"max_active_dims must be at least 1, not {self.max_active_dims}": (
                self.max_active_dims is None or self.max_active_dims > 0
            ),
            f"code_temperature must be above 0, not {self.code_temperature}": (
                self.code_temperature > 0
            ),
        }
        for rule, kept in rules.items():
            if not kept:
                raise ValueError(rule)

    def _check_map(self) -> None:
        """Raise ValueError where the fields of a convolutional vision model are amiss."""
        kind, sizes = self.vision_config.model_type, (self.map_width, self.map_stride)
        if self.has_map and min(sizes) < 1:
            rule = "needs map_width and map_stride above 0; LexVLA.from_backbones measures them"
            raise ValueError(f"{kind} {rule}")
        if self.has_map and not self.image_size and not _own_side(self.vision_config):
            raise ValueError(f"{kind} names no input size; give an image_size")
        if not self.has_map and (any(sizes) or self.fine_stage):
            raise ValueError(f"map_width, map_stride and fine_stage are not for {kind}")
        if self.concept_items and not self.fine_stage:
            raise ValueError("concept_items needs a convolutional vision model with its fine_stage")

    def _check_scores(self) -> None:
        """Raise ValueError where the weights of a score or its calibration are amiss."""
        weights, relevance = self.score_weights, self.relevance
        legs = {"lexical": True, "dense": self.dense_width > 0, "codes": self.codebook_size > 0}
        for leg, weight in (weights or {}).items():
            if not legs.get(leg):
                raise ValueError(f"score_weights: the model has no leg {leg!r}")
            if not _is_number(weight) or weight < 0:
                rule = f"must be a finite number of at least 0, not {weight!r}"
                raise ValueError(f"score_weights: the weight of the leg {leg} {rule}")
        if weights is not None and not any(weights.values()):
            raise ValueError("score_weights: one must be above 0")
        if relevance is None:
            return
        if weights is None:
            raise ValueError("relevance needs the score_weights that it was fitted to")
        if len(relevance) != 2 or not all(map(_is_number, relevance)) or not relevance[0] > 0:
            rule = "must be two finite numbers, a slope above 0 and an intercept"
            raise ValueError(f"relevance {rule}, not {relevance}")

    @property
    def fingerprint(self) -> str:
        """Name weights and the settings that an encoding follows from; empty if not saved."""
        if not self.weights_sha256:
            return ""
        names = {key: getattr(self, key) for key in (*_SETTINGS, "weights_sha256")}
        return hashlib.sha256(json.dumps(names, sort_keys=True).encode()).hexdigest()

    @property
    def has_map(self) -> bool:
        """Tell whether the vision model is timm's, and patches are the cells of a feature map."""
        return bool(self.vision_config.model_type == "timm_wrapper")

    @property
    def vision_width(self) -> int:
        """Return the channels of a patch, or of a cell of the feature map."""
        return int(self.map_width if self.has_map else self.vision_config.hidden_size)

    @property
    def lexical_width(self) -> int:
        """Return the width of patch states and of the image codebook's rows."""
        concepts = self.concept_items + self.concept_classes
        return concepts + 1 if self.concept_items else int(self.text_config.hidden_size)

    @property
    def patch_size(self) -> int:
        """Return the side of a patch in pixels; of a feature map, its stride."""
        return int(self.map_stride if self.has_map else self.vision_config.patch_size)

    @property
    def smallest_image(self) -> int:
        """Return the least side in pixels that an image must have: a patch, of a map a quarter."""
        return self.patch_size // 4 if self.has_map else self.patch_size

    @property
    def image_side(self) -> int:
        """Return the side in pixels that images are brought to."""
        if self.image_size or not self.has_map:
            return int(self.image_size or self.vision_config.image_size)
        return _own_side(self.vision_config) // self.map_stride * self.map_stride

    @property
    def patch_grid(self) -> tuple[int, int]:
        """Return rows and columns of the patch grid that an image is cut into."""
        side = self.image_side // self.patch_size
        return side, side


def _is_number(value: object) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and math.isfinite(value)  # type: ignore[arg-type]


def _own_side(config: PretrainedConfig) -> int:
    """Return the side of the images that timm's network was trained with; 0 if it does not say."""
    trained = getattr(config, "pretrained_cfg", None) or {}
    return int(trained.get("input_size", [0])[-1])


def _sub_config(config: PretrainedConfig | dict[str, Any] | None, default: str) -> PretrainedConfig:
    if isinstance(config, PretrainedConfig):
        return config
    values = dict(config or {})
    return CONFIG_MAPPING[values.pop("model_type", default)](**values)
