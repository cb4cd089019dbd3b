"""The folder of a saved model: where it is, and the parts that every runtime reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lexvla.errors import ModelError
from lexvla.vocabulary import Vocabulary

__all__ = ["check_files", "find_folder", "is_hub_id", "read_values", "read_vocabulary"]

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
TOKENIZER_FILE = "tokenizer.json"
VOCABULARY_FILE = "vocabulary.json"
LORA, TEXT_MODEL, VISION_MODEL = "lora", "text_model", "vision_model"
MODEL_TYPE = "lexvla"
_DEFAULT = Path(__file__).parent / "pretrained"


def find_folder(path: str | Path | None, revision: str | None, token: str | None) -> Path:
    """Return the folder of a model: the shipped one, a local one, or a download from the hub."""
    if path is None:
        return _DEFAULT
    folder = Path(path)
    if folder.exists() or not is_hub_id(str(path)):
        return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(snapshot_download(str(path), revision=revision, token=token))
    except (OSError, ValueError, HFValidationError) as error:  # hub errors are OSErrors
        reason = str(error).strip().splitlines()[0]
        raise ModelError(f"{path}: no LexVLA model here, and none on the hub ({reason})") from error


def is_hub_id(name: str) -> bool:
    """Tell whether a name that is not a folder may be a hub id."""
    return name.count("/") == 1 and not name.startswith((".", "/", "~")) and "\\" not in name


def read_values(folder: Path) -> dict[str, Any]:
    """Read the fields of a model's configuration.

    Raises:
        ModelError: There is none, or it is of another kind or of an earlier version.
    """
    if not folder.is_dir():
        raise ModelError(f"{folder}: no LexVLA model here, no such folder")
    check_files(folder, [CONFIG_FILE])
    path = folder / CONFIG_FILE
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        kind = values["model_type"]
    except (OSError, ValueError, TypeError, LookupError) as error:
        raise ModelError(f"{path}: the configuration cannot be read ({error})") from error
    if kind != MODEL_TYPE:
        raise ModelError(f"{path}: describes a {kind} model, not a LexVLA")
    if not values.get("values_sha256"):
        raise ModelError(f"{path}: values_sha256 is missing: this version cannot read the model")
    return values


def check_files(folder: Path, names: list[str]) -> None:
    """Raise `ModelError` if files of a model are missing."""
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise ModelError(f"{folder}: no LexVLA model here, {', '.join(missing)} missing")


def read_vocabulary(folder: Path, sha256: str) -> Vocabulary:
    """Read a model's vocabulary and compare its hash with the configuration."""
    path = folder / VOCABULARY_FILE
    vocabulary = Vocabulary.load(path)
    if vocabulary.sha256 != sha256:
        rule = f"its sha256 is {vocabulary.sha256[:12]}, but {CONFIG_FILE} has"
        raise ModelError(f"{path}: {rule} {sha256[:12]}")
    return vocabulary
