"""Saving models as folders, and checking them when loaded.

    config.json              LexVLAConfig
    model.safetensors        adapter or memory of concepts, image codebook, dense heads and codes
    tokenizer.json           and tokenizer_config.json, of the language model
    vocabulary.json          the kept pieces
    lora/                    LoRA in PEFT's layout, if any
    text_model/              the language model, unless frozen and named
    vision_model/            likewise the vision model
    README.md                the model card

Frozen pretrained backbones are not written: config.json has their names and revisions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from lexvla.backbones import load_language_model, load_lora, load_vision_model, quiet
from lexvla.config import LexVLAConfig
from lexvla.errors import ModelError
from lexvla.image_tower import is_frozen
from lexvla.model_folder import (
    CONFIG_FILE,
    LORA,
    TEXT_MODEL,
    TOKENIZER_FILE,
    VISION_MODEL,
    VOCABULARY_FILE,
    WEIGHTS_FILE,
    check_files,
    read_values,
)
from lexvla.vocabulary import Vocabulary

__all__ = [
    "moved",
    "read_config",
    "read_tokenizer",
    "read_towers",
    "read_weights",
    "values_sha256",
    "write_model",
]

CODEBOOK = "image_codebook"
_SPARSE = ("counts", "columns", "values")
TOWERS = ("text_tower.language_model.", "image_tower.vision_model.")


def write_model(
    folder: Path,
    config: LexVLAConfig,
    vocabulary: Vocabulary,
    tokenizer: PreTrainedTokenizerBase,
    towers: tuple[Any, Any],
    weights: dict[str, Tensor],
) -> None:
    """Write a model into a folder, config.json last: without it, the folder is incomplete.

    Backbones that are saved lose their names in ``config``, and it gets the hashes of all weights.

    Args:
        folder: Made if it is not there.
        config: The model's settings.
        vocabulary: Its pieces.
        tokenizer: That of the language model.
        towers: Language model (with LoRA) and vision model.
        weights: Those outside the backbones, as `small_parts` returns them.
    """
    language_model, vision_model = towers
    if config.lora_rank:
        _check_lora_alone(language_model)  # before an earlier save is touched
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG_FILE).unlink(missing_ok=True)
    with quiet():
        if config.lora_rank:
            language_model.save_pretrained(folder / LORA)
        elif config.text_model is None or not is_frozen(language_model):
            config.text_model = config.text_revision = None
            language_model.save_pretrained(folder / TEXT_MODEL)
        if config.vision_model is None or not is_frozen(vision_model):
            config.vision_model = config.vision_revision = None
            vision_model.save_pretrained(folder / VISION_MODEL)
        tokenizer.save_pretrained(folder)
    weights = {name: part.contiguous() for name, part in weights.items()}
    if config.concept_items:  # most concepts do not bear a word
        weights.update(_sparse_parts(weights.pop(CODEBOOK)))
    save_file(weights, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    vocabulary.save(folder / VOCABULARY_FILE)
    config.weights_sha256 = {name: _sha256(folder / name) for name in _weight_files(config)}
    config.graphs = {}  # of other weights
    config.values_sha256 = values_sha256(folder, config.weights_sha256)
    config.save_pretrained(folder)


def _check_lora_alone(language_model: nn.Module) -> None:
    for name, parameter in language_model.named_parameters():
        if parameter.requires_grad and "lora_" not in name:
            rule = "is trained beside LoRA and would be lost: freeze it, or merge LoRA"
            raise ModelError(f"{name}: {rule}")


def _sparse_parts(matrix: Tensor) -> dict[str, Tensor]:
    """Return a matrix as the values that are not 0, and the places of each row's."""
    rows, columns = matrix.nonzero(as_tuple=True)
    parts = (rows.bincount(minlength=len(matrix)).int(), columns.int(), matrix[rows, columns])
    return {f"{CODEBOOK}.{name}": part for name, part in zip(_SPARSE, parts, strict=True)}


def _dense(parts: dict[str, Tensor], like: Tensor) -> Tensor:
    """Return the matrix that `_sparse_parts` took apart.

    Raises:
        ValueError: The parts do not fit together, or to the shape wanted.
    """
    counts, columns, values = (parts.pop(f"{CODEBOOK}.{name}", None) for name in _SPARSE)
    if counts is None or columns is None or values is None:
        raise ValueError("parts are missing")
    height, width = like.shape
    lengths = len(columns), len(values), int(counts.sum())
    if len(counts) != height or counts.min() < 0 or len(set(lengths)) > 1:
        raise ValueError("parts are not of one length")
    if len(columns) and not 0 <= int(columns.min()) <= int(columns.max()) < width:
        raise ValueError(f"a column is not below {width}")
    matrix = torch.zeros(height, width, dtype=values.dtype)
    matrix[torch.arange(height).repeat_interleave(counts), columns.long()] = values
    return matrix


def small_parts(model: nn.Module) -> dict[str, Tensor]:
    """Return the weights outside the towers' backbones."""
    return {k: v for k, v in model.state_dict().items() if not k.startswith(TOWERS)}


def read_config(folder: Path) -> LexVLAConfig:
    """Read a model's configuration, and check that all its files are present and unchanged."""
    path, values = folder / CONFIG_FILE, read_values(folder)
    try:
        config = LexVLAConfig.from_dict(values)
    except (
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
        StrictDataclassError,
    ) as error:
        raise ModelError(f"{path}: the configuration cannot be read ({error})") from error
    files = _weight_files(config)
    # Folders of towers and of LoRA have a configuration beside the weights.
    settings = [str(Path(name).with_name(CONFIG_FILE)) for name in files]
    if config.lora_rank:
        settings[-1] = f"{LORA}/adapter_config.json"
    check_files(folder, [*settings, *files, TOKENIZER_FILE, VOCABULARY_FILE])
    for name in files:
        if _sha256(folder / name) != config.weights_sha256.get(name):
            rule = f"the sha256 differs from the one in {CONFIG_FILE}"
            raise ModelError(f"{folder / name}: {rule}")
    return config


def _weight_files(config: LexVLAConfig) -> list[str]:
    files = [WEIGHTS_FILE]
    if config.text_model is None:
        files.append(f"{TEXT_MODEL}/{WEIGHTS_FILE}")
    if config.vision_model is None:
        files.append(f"{VISION_MODEL}/{WEIGHTS_FILE}")
    if config.lora_rank:
        files.append(f"{LORA}/adapter_model.safetensors")
    return files


def _sha256(path: Path) -> str:
    """Return the hash of a file of weights, if it can be opened."""
    try:
        with safe_open(path, framework="pt"), path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path}: the weights cannot be read ({error})") from error


def values_sha256(folder: Path, files: Iterable[str]) -> str:
    """Return the hash of all weights of a model, rounded to float16.

    It is the same for every type that holds the values: a model loaded from float16 and saved in
    float32 keeps its name. Packed weights count by their bytes.
    """
    digest = hashlib.sha256()
    for file in sorted(files):
        weights = load_file(folder / file)
        rounded = {k: w.half() if w.is_floating_point() else w for k, w in weights.items()}
        _drop_zeros(rounded)
        for name, weight in sorted(rounded.items()):
            digest.update(f"{file} {name} {weight.dtype} {tuple(weight.shape)}\n".encode())
            digest.update(weight.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _drop_zeros(parts: dict[str, Tensor]) -> None:
    """Leave out of `_sparse_parts` the values that rounding made 0."""
    names = [f"{CODEBOOK}.{name}" for name in _SPARSE]
    if parts.keys() >= set(names):
        counts, columns, values = (parts[name] for name in names)
        rows = torch.arange(len(counts)).repeat_interleave(counts)[values != 0]
        left = (
            rows.bincount(minlength=len(counts)).int(),
            columns[values != 0],
            values[values != 0],
        )
        parts.update(zip(names, left, strict=True))


def read_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Read a model's tokenizer."""
    try:
        # Not AutoTokenizer, which also reads config.json and warns that it is not Llama's.
        with quiet():
            return PreTrainedTokenizerFast.from_pretrained(folder)
    except (OSError, ValueError, TypeError, LookupError) as error:
        path = folder / TOKENIZER_FILE
        raise ModelError(f"{path}: the tokenizer cannot be read ({error})") from error


def read_towers(
    folder: Path,
    config: LexVLAConfig,
    names: tuple[str | None, str | None],
    device: torch.device,
    dtype: torch.dtype | None,
    token: str | None,
) -> tuple[Any, Any]:
    """Load language model (with LoRA) and vision model, by name or from the folder."""
    named = getattr(torch, config.backbone_dtype)
    towers = []
    for name, part, load in (
        (names[0], TEXT_MODEL, load_language_model),
        (names[1], VISION_MODEL, load_vision_model),
    ):
        kind = dtype or (named if name else torch.float32)
        tower = load(config, name or str(folder / part), device, kind, token)
        towers.append(tower.requires_grad_(name is None))
    if config.vision_frozen:
        towers[1].requires_grad_(False)
    if config.lora_rank:
        towers[0] = load_lora(towers[0], folder / LORA)
    return towers[0], towers[1]


def moved(named: str | None, now: str | None, part: str) -> str | None:
    """Return the current path of a named backbone."""
    if now is not None and named is None:
        raise ModelError(
            f"{part}={now!r}: this model's own is saved with it and cannot be replaced"
        )
    return now or named


def read_weights(folder: Path, config: LexVLAConfig, own: dict[str, Tensor]) -> None:
    """Load the weights outside the backbones into a model's ``own``, its `small_parts`."""
    path = folder / WEIGHTS_FILE
    weights = load_file(path)
    if config.concept_items:
        try:
            weights[CODEBOOK] = _dense(weights, own[CODEBOOK])
        except (ValueError, TypeError, RuntimeError) as error:
            raise ModelError(f"{path}: {CODEBOOK}: {error}") from error
    kinds = {
        "missing": own.keys() - weights.keys(),
        "unexpected": weights.keys() - own.keys(),
        "mismatched": {k for k in own.keys() & weights.keys() if own[k].shape != weights[k].shape},
    }
    for kind, names in kinds.items():
        if names:
            rule = f"{kind} for {CONFIG_FILE} and {VOCABULARY_FILE}"
            shown = [_with_shapes(name, own, weights) for name in sorted(names)[:3]]
            raise ModelError(f"{path}: weights {rule}: {', '.join(shown)}")
    for name, weight in weights.items():
        if not weight.isfinite().all():
            raise ModelError(f"{path}: {name} holds values that are not finite")
    with torch.no_grad():
        for name, weight in weights.items():
            own[name].copy_(weight)


def _with_shapes(name: str, own: dict[str, Tensor], weights: dict[str, Tensor]) -> str:
    shapes = [str(tuple(parts[name].shape)) for parts in (weights, own) if name in parts]
    return f"{name} {' instead of '.join(shapes)}"
