"""Configuration of a LexVLA model of any size."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from inspect import signature
from typing import Any, Literal

from transformers import CONFIG_MAPPING, PretrainedConfig

from lexvla.model_settings import ModelSettings, own_side

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
QUANTIZATIONS = ("none", "int8", "nf4")


class LexVLAConfig(ModelSettings, PretrainedConfig):
    """Configuration of towers, adapter, heads, prompt and sparsification.

    A tower with a name, ``text_model`` or ``vision_model``, is a frozen pretrained backbone, loaded
    by that name and not saved with the model. A tower without a name is saved with the model.

    Args:
        text_config: Configuration of the causal language model, as an object or a dict.
        vision_config: Configuration of the vision transformer or timm's convolutional network, as
            an object or a dict.
        text_model: Hub id or path of the pretrained language model, or ``None``.
        text_revision: Its commit on the hub.
        vision_model: Hub id or path of the pretrained vision transformer, or ``None``.
        vision_revision: Its commit on the hub.
        vision_frozen: Whether a vision model that is saved with the model stays as it is when the
            model is trained further; one that a `ConceptMemory` was fitted to always does.
        backbone_dtype: Type of pretrained backbones, and compute type of quantised layers.
        quantization: Quantisation of the pretrained language model by bitsandbytes: ``none``,
            ``int8`` (LLM.int8, arXiv 2208.07339) or ``nf4`` (QLoRA, arXiv 2305.14314).
        double_quantization: Whether ``nf4`` quantises its constants too.
        lora_rank: Rank of LoRA on the pretrained language model (arXiv 2106.09685); 0 for none.
        lora_alpha: LoRA's scale, over the rank.
        lora_targets: Names of the layers that get LoRA, or ``all-linear``.
        lora_dropout: Dropout before LoRA's first matrix.
        prompt: Prompt for a text; ``{text}`` is its place.
        max_text_tokens: Largest number of tokens of a text, without the prompt.
        require_known_word: Whether a text without a piece of the vocabulary gets an empty vector,
            for language models that were trained from scratch on few words.
        known_tokens: Range (start, stop) of token ids that count as known too: words outside the
            vocabulary that the language model learnt to explain by others.
        image_size: Side in pixels that images are resized to; by default the vision model's, for a
            convolutional one rounded down to a multiple of its stride.
        image_mean: Mean of each colour channel, from 0 to 1.
        image_std: Deviation of each colour channel.
        adapter_heads: Attention heads of the adapter.
        adapter_width: Hidden width of the adapter's MLPs.
        concept_items: Concepts known by examples, in a `ConceptMemory` that replaces the adapter of
            a feature map with its fine stage; 0 for none.
        concept_classes: Classes of the vision model's classifier in that memory.
        layout_width: Width of the memory's layout keys.
        local_rank: Rank of the memory's evidence in a patch.
        pool_cls: Whether the CLS token takes part in the maximum over patches, as patch -1.
        map_width: Channels of a cell of a convolutional network; 0 for a transformer. Measured by
            `LexVLA.from_backbones`, like ``map_stride``.
        map_stride: Stride of the cells in pixels; 0 for a transformer.
        fine_stage: Whether a cell's channels include those of its four cells in the stage of half
            the stride.
        dense_width: Width of the dense vectors; 0 for none.
        codebook_size: Codes of the dense codebook (CODIS); 0 for none.
        codes_per_item: Most probable codes to keep of an item.
        code_temperature: Temperature of the assignment to codes.
        vocabulary_rule: Rule of `Vocabulary.from_tokenizer`, if the vocabulary was chosen by one.
        vocabulary_sha256: Hash of the vocabulary, set by `LexVLA`.
        sparsification: Words of a unit vector to keep: those above ``1/sqrt(V)`` (``mean``, LexVLA
            section 4.4), the ``top_k`` largest, or those above ``threshold``.
        kept_words: Number of words for ``top_k``.
        threshold: Smallest weight for ``threshold``.
        max_active_dims: Largest number of words of an item for all rules; ``None`` for no limit.
        vocabulary_chunk: Words whose patch logits are in memory at a time.
        model_name: Name of the model, which indexes record with the fingerprint.
        knowledge: What the model knows and does not, as a sentence without its subject: "knows ...,
            but not ...".
        score_weights: What each leg counts in a search's score: ``lexical``, ``dense``, ``codes``,
            and the documents' ``text``. Those left out count nothing; ``None`` for equal weights.
        relevance: Slope and intercept of the logistic function that makes a relevance from 0 to 1
            of such a score; ``None`` if it was not fitted. `lexvla_search.fitting` fits both.
        weights_sha256: SHA-256 of each file of weights, set by `LexVLA.save_pretrained`.
        values_sha256: SHA-256 of all weights as float16, set likewise.
        graphs: Format and SHA-256 of the ONNX graphs, set by `lexvla.onnx_export`.
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
        vision_frozen: bool = False,
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
        values_sha256: str = "",
        graphs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self.text_config = _sub_config(text_config, "llama")
        self.vision_config = _sub_config(vision_config, "dinov2")
        self.text_model = text_model
        self.text_revision = text_revision
        self.vision_model = vision_model
        self.vision_revision = vision_revision
        self.vision_frozen = vision_frozen or concept_items > 0
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
        self.values_sha256 = values_sha256
        self.graphs = dict(graphs or {})
        self.check()
        super().__init__(**kwargs)

    @classmethod
    def refuse_unknown(cls, names: Iterable[str]) -> None:
        """Raise TypeError if a name is not a field: transformers takes any, misspelt ones too."""
        if unknown := sorted(set(names) - set(signature(cls.__init__).parameters)):
            raise TypeError(f"{cls.__name__} has no field {unknown[0]!r}")

    def check(self) -> None:
        """Raise ValueError if a field is invalid."""
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
            f"image_size={side} must be a multiple of the vision model's stride, {patch}": (
                not self.has_map or side % patch == 0
            ),
            "quantization and LoRA are for a pretrained language model: name it by text_model": (
                self.text_model is not None or (self.quantization == "none" and not self.lora_rank)
            ),
            f"lora_rank must be at least 0, not {self.lora_rank}": self.lora_rank >= 0,
            "image_mean and image_std must be three numbers each, the deviations above 0": (
                len(self.image_mean) == len(self.image_std) == 3
                and all(map(_is_number, (*self.image_mean, *self.image_std)))
                and min(self.image_std) > 0
            ),
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
        """Raise ValueError if a field for convolutional vision models is invalid."""
        kind, sizes = self.vision_config.model_type, (self.map_width, self.map_stride)
        if self.has_map and min(sizes) < 1:
            rule = "needs map_width and map_stride above 0; LexVLA.from_backbones measures them"
            raise ValueError(f"{kind} {rule}")
        if self.has_map and not self.image_size and not own_side(self.vision_config):
            raise ValueError(f"{kind} names no input size; give an image_size")
        if not self.has_map and (any(sizes) or self.fine_stage):
            raise ValueError(f"map_width, map_stride and fine_stage are not for {kind}")
        if self.concept_items and not self.fine_stage:
            raise ValueError("concept_items needs a convolutional vision model with its fine_stage")

    def _check_scores(self) -> None:
        """Raise ValueError where the weights of a score or its calibration are amiss."""
        weights, relevance = self.score_weights, self.relevance
        legs = {"lexical": True, "text": True}
        legs |= {"dense": self.dense_width > 0, "codes": self.codebook_size > 0}
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


def _is_number(value: object) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and math.isfinite(value)  # type: ignore[arg-type]


def _sub_config(config: PretrainedConfig | dict[str, Any] | None, default: str) -> PretrainedConfig:
    if isinstance(config, PretrainedConfig):
        return config
    values = dict(config or {})
    return CONFIG_MAPPING[values.pop("model_type", default)](**values)
