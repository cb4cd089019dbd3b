"""Public models that give words without training: which there are, and how they are loaded."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any

from lexvla.errors import ModelError, UnsupportedError
from lexvla.model_folder import CONFIG_FILE, MODEL_TYPE, is_hub_id
from lexvla.public_settings import SETTINGS_TYPE, PublicSettings

__all__ = ["load_public", "public_type", "unknown_options"]

# Options that change no word, and so go with saved settings.
_OF_RUNNING = {"revision", "token", "device", "dtype", "quantization"}

# By name, as they build on `lexvla.model`, which builds on this module, and need torch.
_CLASSES = {
    "dual-encoder": ("lexvla.dual_encoder", "DualEncoder"),
    "language-model": ("lexvla.language_model", "LanguageModel"),
    "vision-language-model": ("lexvla.vision_language_model", "VisionLanguageModel"),
}


def public_type(
    path: str | Path | None, revision: str | None = None, token: str | None = None
) -> str | None:
    """Return the transformers type of a model that is not a LexVLA; ``None`` for other models."""
    if path is None:
        return None
    place = Path(path)
    if place.suffix == ".gguf":
        return "gguf"
    try:
        if not place.exists() and is_hub_id(str(path)):
            from huggingface_hub import hf_hub_download

            place = Path(hf_hub_download(str(path), CONFIG_FILE, revision=revision, token=token))
        else:
            place = place / CONFIG_FILE
        kind = json.loads(place.read_text(encoding="utf-8"))["model_type"]
    except (OSError, ValueError, LookupError, TypeError):
        return None  # who loads it as a LexVLA says what is wrong
    return None if kind == MODEL_TYPE or not isinstance(kind, str) else kind


def load_public(path: str | Path, kind: str, **options: Any) -> Any:
    """Load a public model by the class for its kind.

    Raises:
        ModelError: It cannot be loaded, or gives no words.
        UnsupportedError: An option is not for this kind of model, or is one of the saved settings.
    """
    folder = Path(path)
    if kind == SETTINGS_TYPE:
        settings, vocabulary = PublicSettings.load(folder)
        if fixed := sorted(options.keys() - _OF_RUNNING):
            rule = f"the saved settings cannot be changed; load {settings.model} with others"
            raise UnsupportedError(f"{folder}: {', '.join(fixed)}: {rule}")
        load = _loader(settings.kind)
        _check_options(load, options, settings.kind)
        options = {"revision": settings.revision, **options}
        options |= {"settings": settings, "vocabulary": vocabulary}
        return load(settings.model, **options)
    found = _kind_of(str(path), kind, options)
    load = _loader(found)
    _check_options(load, options, found)
    return load(str(path), **options)


def unknown_options(load: Callable[..., Any], options: Iterable[str]) -> list[str]:
    """Return which options a function does not take."""
    known = signature(load).parameters
    return [name for name in options if name not in known]


def _check_options(load: Callable[..., Any], options: dict[str, Any], kind: str) -> None:
    if unknown := unknown_options(load, options):
        named = kind.replace("-", " ")
        raise UnsupportedError(f"{', '.join(unknown)}: a {named} takes no such option")


def _kind_of(name: str, kind: str, options: dict[str, Any]) -> str:
    """Tell which of our kinds a model of transformers is."""
    if kind == "gguf":
        return "language-model"
    from transformers import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
        MODEL_MAPPING,
        AutoConfig,
    )

    from lexvla.backbones import named

    with named(name):
        config = AutoConfig.from_pretrained(
            name, revision=options.get("revision") or "main", token=options.get("token")
        )
    made = MODEL_MAPPING.get(type(config), None)
    made = made[0] if isinstance(made, tuple) else made
    if hasattr(made, "get_text_features") and hasattr(made, "get_image_features"):
        return "dual-encoder"
    if type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        return "vision-language-model"
    heads = getattr(config, "architectures", None) or [""]
    if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING and heads[0].endswith(
        ("CausalLM", "LMHeadModel")
    ):
        return "language-model"
    sides = "text side" if hasattr(config, "image_size") else "image side"
    rule = f"a {kind} model has no {sides} that gives words"
    raise ModelError(f"{name}: {rule}; use a dual encoder such as CLIP, or a language model")


def _loader(kind: str) -> Any:
    if kind not in _CLASSES:
        raise ModelError(f"models of the kind {kind!r} are unknown to this program")
    module, name = _CLASSES[kind]
    return getattr(import_module(module), name).from_pretrained
