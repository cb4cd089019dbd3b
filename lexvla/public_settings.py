"""The settings of a public model that gives words without training."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from lexvla.errors import ModelError
from lexvla.model_folder import CONFIG_FILE, VOCABULARY_FILE
from lexvla.vocabulary import Vocabulary

__all__ = ["SETTINGS_TYPE", "PublicSettings", "weights_digest"]

SETTINGS_TYPE = "lexvla-public"  # the model type of saved settings
_FORMAT_VERSION = 1
# How each kind makes words of what its model gives. Raise the number with every change after which
# the same settings give other words: indexes of another rule are then refused.
_WORD_RULES = {"dual-encoder": 2, "language-model": 1, "vision-language-model": 1}
_WEIGHTS = ("*.safetensors", "*.bin", "*.gguf")
_SAMPLES, _SAMPLE = 64, 2**16


@dataclass
class PublicSettings:
    """What the words of a public model depend on besides its weights.

    Attributes:
        kind: ``dual-encoder``, ``language-model`` or ``vision-language-model``.
        model: Hub id or path.
        revision: Commit on the hub, if it is from there.
        weights_sha256: `weights_digest` of the model.
        vocabulary_sha256: Hash of the words.
        max_active_dims: The most words of an image, or of a text that a language model reads.
        text_words: The most words of a text of a dual encoder.
        templates: Prompts around a word or, of a language model, around a text.
        penalty: Of the lasso, as a share of the one that leaves no word.
        image_side: Side in pixels that images are resized to; 0 without an image side.
        grid_side: Patches of a side.
        image_mean: Mean of each colour channel, from 0 to 1.
        image_std: Deviation of each colour channel.
        image_centre: Mean vector of images, which is taken off theirs.
        patch_centre: Mean vector of patches, likewise.
        calibrated: Whether the means are those of a user's images.
        max_text_tokens: Largest number of tokens of a text.
        score_weights: What each leg counts in a search's score.
    """

    kind: str
    model: str
    revision: str | None = None
    weights_sha256: str = ""
    vocabulary_sha256: str = ""
    max_active_dims: int = 32
    text_words: int = 256
    templates: list[str] = field(default_factory=lambda: ["{text}"])
    penalty: float = 0.0
    image_side: int = 0
    grid_side: int = 0
    image_mean: list[float] = field(default_factory=list)
    image_std: list[float] = field(default_factory=list)
    image_centre: list[float] = field(default_factory=list)
    patch_centre: list[float] = field(default_factory=list)
    calibrated: bool = False
    max_text_tokens: int = 64
    score_weights: dict[str, float] | None = None

    relevance = None
    knowledge = ""
    require_known_word = False

    def __post_init__(self) -> None:
        for name in ("max_active_dims", "text_words", "max_text_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if not 0 <= self.penalty < 1:
            raise ValueError(f"penalty must be at least 0 and below 1, not {self.penalty}")
        if not self.templates or any(each.count("{text}") != 1 for each in self.templates):
            raise ValueError(f"each template must hold {{text}} once: {self.templates}")

    @property
    def model_name(self) -> str:
        """The last part of the model's name."""
        return Path(self.model).name

    @property
    def fingerprint(self) -> str:
        """Hash of weights, settings and the rule that encodings depend on."""
        ignored = ["model", "revision", "score_weights"]
        if not self.calibrated:  # they follow from the rest, but for the device's rounding
            ignored += ["image_centre", "patch_centre"]
        values = {key: value for key, value in asdict(self).items() if key not in ignored}
        values["word_rule"] = _WORD_RULES[self.kind]
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()

    @property
    def smallest_image(self) -> int:
        """Smallest side of an image in pixels: a patch."""
        return self.image_side // max(1, self.grid_side)

    @property
    def patch_grid(self) -> tuple[int, int]:
        """Rows and columns of an image's patches."""
        return self.grid_side, self.grid_side

    def save(self, folder: Path, vocabulary: Vocabulary) -> None:
        """Write settings and words to a folder; the model's weights stay where they are."""
        folder.mkdir(parents=True, exist_ok=True)
        vocabulary.save(folder / VOCABULARY_FILE)
        values = {"model_type": SETTINGS_TYPE, "format_version": _FORMAT_VERSION, **asdict(self)}
        if (place := Path(self.model)).exists():  # to be found from any folder
            values["model"] = str(place.resolve())
        (folder / CONFIG_FILE).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> tuple[PublicSettings, Vocabulary]:
        """Read what `save` wrote.

        Raises:
            ModelError: It is incomplete or damaged.
        """
        path = folder / CONFIG_FILE
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            if values["format_version"] != _FORMAT_VERSION:
                rule = f"settings of format {values['format_version']} cannot be read"
                raise ModelError(f"{path}: {rule} by this program")
            settings = cls(**{each.name: values[each.name] for each in fields(cls)})
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ModelError(f"{path}: the settings cannot be read ({error})") from error
        vocabulary = Vocabulary.load(folder / VOCABULARY_FILE)
        if vocabulary.sha256 != settings.vocabulary_sha256:
            raise ModelError(f"{folder / VOCABULARY_FILE}: not the words of {CONFIG_FILE}")
        return settings, vocabulary


def weights_digest(place: Path) -> str:
    """Hash samples of a model's files of weights, 4 MiB of each, wherever they lie.

    Training changes all weights, so this tells models apart without reading gigabytes.
    """
    files = [place] if place.is_file() else []
    for pattern in _WEIGHTS:
        files = files or sorted(place.glob(pattern))
    digest = hashlib.sha256()
    for path in files:
        size = path.stat().st_size
        digest.update(f"{size}\0".encode())
        with path.open("rb") as file:
            for number in range(_SAMPLES):
                file.seek(max(0, size - _SAMPLE) * number // (_SAMPLES - 1))
                digest.update(file.read(_SAMPLE))
    if not files:
        raise ModelError(f"{place}: no weights here ({', '.join(_WEIGHTS)})")
    return digest.hexdigest()
