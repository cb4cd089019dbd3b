"""Pretrained backbones by name: loading, quantisation and LoRA."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PretrainedConfig,
    PreTrainedTokenizerBase,
)
from transformers.utils import cached_file, logging

from lexvla.config import LexVLAConfig
from lexvla.errors import ModelError, OptionalDependencyError, UnsupportedError
from lexvla.feature_maps import measure

__all__ = [
    "add_lora",
    "as_device",
    "as_dtype",
    "check_complete",
    "image_statistics",
    "load_language_model",
    "load_lora",
    "load_tokenizer",
    "load_vision_model",
    "named",
    "quantization_options",
    "read_backbone_config",
    "vision_fields",
]

TIMM = "timm_wrapper"  # the model type of timm networks in transformers

# What transformers and the hub raise for a name that is missing, gated, offline, damaged, or of a
# kind that the installed packages do not know.
_LOAD_ERRORS = (
    *(OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, ImportError),
    *(EOFError, SafetensorError, UnpicklingError, struct.error),
)


def read_backbone_config(
    name: str, revision: str | None = None, token: str | None = None
) -> PretrainedConfig:
    """Return the configuration of a hub id or folder; for an image-text model, its vision part."""
    try:
        with named(name):
            config = AutoConfig.from_pretrained(name, revision=revision or "main", token=token)
            if config.model_type == TIMM:
                import timm  # noqa: F401 - transformers needs it
    except ModelError as error:
        if isinstance(error.__cause__, ImportError):  # only timm can be missing here
            raise OptionalDependencyError("timm", "train") from error
        raise
    commit = getattr(config, "_commit_hash", None)
    config = getattr(config, "vision_config", config)
    if config.model_type == TIMM:
        config.id2label = {}  # the classifier is not loaded
    config._commit_hash = commit
    return config


def vision_fields(
    name: str, vision_config: PretrainedConfig, revision: str | None, token: str | None, fine: bool
) -> dict[str, Any]:
    """Return the fields of `LexVLAConfig` that depend on a vision model.

    ``fine`` asks for the finer stage of a convolutional network too.
    """
    fields: dict[str, Any] = {}
    statistics = image_statistics(name, revision, token)
    if vision_config.model_type == TIMM:
        with named(name), torch.device("meta"):  # no weights are needed
            network = AutoModel.from_config(vision_config)
        try:
            fields["map_width"], fields["map_stride"] = measure(network, fine)
        except ModelError as error:
            raise ModelError(f"{name}: {error}") from error
        trained = getattr(vision_config, "pretrained_cfg", None) or {}
        if statistics is None and {"mean", "std"} <= trained.keys():
            statistics = list(trained["mean"]), list(trained["std"])
    else:
        for field in ("hidden_size", "patch_size", "image_size"):
            if not isinstance(getattr(vision_config, field, None), int):
                rule = f"{vision_config.model_type} has no {field}"
                raise ModelError(f"{name}: {rule}; a ViT with patch tokens is needed")
    if statistics is not None:
        fields["image_mean"], fields["image_std"] = statistics
    return fields


def load_tokenizer(
    name: str, revision: str | None = None, token: str | None = None
) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a language model."""
    with named(name):
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision or "main", token=token)
    if not tokenizer.is_fast:
        raise ModelError(f"{name}: needs a fast tokenizer (a tokenizer.json)")
    return tokenizer


def image_statistics(
    name: str, revision: str | None = None, token: str | None = None
) -> tuple[list[float], list[float]] | None:
    """Return channel means and deviations that a vision model was trained with, if recorded."""
    with named(name):
        for file in ("preprocessor_config.json", "processor_config.json"):
            path = cached_file(
                name,
                file,
                revision=revision or "main",
                token=token,
                _raise_exceptions_for_missing_entries=False,
            )
            values = json.loads(Path(path).read_text(encoding="utf-8")) if path else {}
            values = values.get("image_processor", values)
            mean, deviation = (values.get(key) for key in ("image_mean", "image_std"))
            if mean and deviation:
                return list(mean), list(deviation)
        return None


def load_language_model(
    config: LexVLAConfig, name: str, device: torch.device, dtype: torch.dtype, token: str | None
) -> Any:
    """Load a causal language model with the revision and quantisation of the configuration.

    Args:
        config: The model's configuration.
        name: Hub id or path.
        device: Device to load it on.
        dtype: Type of its weights, and compute type of quantised layers.
        token: Hub token for gated models; by default the one huggingface_hub finds.
    """
    more = quantization_options(config.quantization, device, dtype, config.double_quantization)
    revision = config.text_revision or "main"
    with named(name):
        model, found = AutoModelForCausalLM.from_pretrained(
            name, revision=revision, token=token, dtype=dtype, output_loading_info=True, **more
        )
    check_complete(name, found)
    if model.get_output_embeddings() is None:
        raise ModelError(f"{name}: has no output embedding, which the words are taken from")
    for layer in model.modules():
        # bitsandbytes repacks 4-bit weights for CPUs at first use. Gradients then stop silently,
        # and unpacking rounds the scales once more.
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False
    return model if config.quantization != "none" else model.to(device)


def load_vision_model(
    config: LexVLAConfig, name: str, device: torch.device, dtype: torch.dtype, token: str | None
) -> Any:
    """Load a vision transformer or a timm network; see `load_language_model`."""
    revision = config.vision_revision or "main"
    # The configuration selects the class: of an image-text model, the vision part only.
    vision = read_backbone_config(name, revision, token)
    with named(name):
        model, found = AutoModel.from_pretrained(
            name,
            config=vision,
            revision=revision,
            token=token,
            dtype=dtype,
            output_loading_info=True,
        )
    check_complete(name, found)
    return model.to(device)


def check_complete(name: str, found: dict[str, Any]) -> None:
    """Refuse a checkpoint that leaves weights random, of which transformers only warns."""
    for kind in ("missing", "mismatched"):
        if keys := sorted(map(str, found[f"{kind}_keys"])):
            raise ModelError(f"{name}: weights {kind}: {', '.join(keys[:3])}")


def check_quantization(kind: str, device: torch.device) -> None:
    """Raise an error if bitsandbytes cannot run on a device."""
    try:
        import accelerate  # noqa: F401 - transformers needs it to place quantised layers
        import bitsandbytes
    except ImportError as error:
        raise OptionalDependencyError(error.name or "bitsandbytes", "gpu") from error
    known = sorted(getattr(bitsandbytes, "supported_torch_devices", {"cuda"}))
    if device.type not in known:
        rule = f"bitsandbytes has no backend for {device.type}, only for {', '.join(known)}"
        raise UnsupportedError(f"quantization={kind!r}: {rule}; use quantization='none'")


def quantization_options(
    kind: str, device: torch.device, dtype: torch.dtype, double: bool = True
) -> dict[str, Any]:
    """Return what transformers is told for ``none``, ``int8`` or ``nf4``."""
    if kind == "none":
        return {}
    check_quantization(kind, device)
    settings = BitsAndBytesConfig(load_in_8bit=True)
    if kind == "nf4":
        settings = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=double,
            bnb_4bit_compute_dtype=dtype,
        )
    return {"quantization_config": settings, "device_map": {"": device}}


def add_lora(model: nn.Module, config: LexVLAConfig) -> Any:
    """Wrap a language model with untrained LoRA (arXiv 2106.09685), in float32."""
    peft = _peft()
    targets = config.lora_targets
    if not isinstance(targets, str):
        layers = [name for name, _ in model.named_modules()]
        for target in targets:
            if not any(name == target or name.endswith(f".{target}") for name in layers):
                linear = {n.split(".")[-1] for n, m in model.named_modules() if _is_linear(m)}
                rule = f"the language model has {', '.join(sorted(linear))}"
                raise ModelError(f"lora_targets: no layer {target!r}; {rule}, or use 'all-linear'")
    settings = peft.LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        target_modules=targets,
        lora_dropout=config.lora_dropout,
        bias="none",
        task_type="CAUSAL_LM",
        revision=config.text_revision,
    )
    try:
        return peft.get_peft_model(model, settings)
    except ValueError as error:
        raise ModelError(f"lora_targets={targets!r}: {error}") from error


def load_lora(model: nn.Module, folder: Path) -> Any:
    """Wrap a language model with the LoRA that PEFT saved in a folder; it stays trainable."""
    peft = _peft()
    with named(str(folder)):
        return peft.PeftModel.from_pretrained(model, str(folder), is_trainable=True).eval()


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise OptionalDependencyError("peft", "gpu") from error
    return peft


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear)


@contextmanager
def named(name: str) -> Iterator[None]:
    """Turn errors of loading into a `ModelError` with the name, and silence transformers."""
    try:
        with quiet():
            yield
    except _LOAD_ERRORS as error:
        raise ModelError(f"{name}: cannot be loaded ({error})") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers' progress bars and reports: faults are raised as errors."""
    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def as_device(device: str | torch.device) -> torch.device:
    """Return a device after checking that it can be used."""
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UnsupportedError(f"device {str(device)!r} cannot be used ({reason})") from error
    return found


def as_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """Return a floating-point type by its name."""
    if dtype is None or isinstance(dtype, torch.dtype):
        return dtype
    found = getattr(torch, dtype, None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError(f"unknown dtype {dtype!r}: use float32, float16 or bfloat16")
    return found
