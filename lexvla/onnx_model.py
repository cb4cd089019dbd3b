"""Exported models, run by ONNX Runtime without torch."""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any, Self

import numpy as np

from lexvla.batching import ahead, batches, split
from lexvla.encoding import Encoding
from lexvla.errors import ModelError, UnsupportedError
from lexvla.images import ImageSource
from lexvla.model import LexVLA, check_text, concat
from lexvla.model_folder import (
    CONFIG_FILE,
    TOKENIZER_FILE,
    VOCABULARY_FILE,
    check_files,
    find_folder,
    read_values,
    read_vocabulary,
)
from lexvla.model_settings import SavedSettings
from lexvla.onnx_format import FORMAT_VERSION, GRAPHS, OLDEST_RUNTIME
from lexvla.regions import Region
from lexvla.sparse_rows import elu1p, lexical_vector, sparsify, top_codes
from lexvla.text_normalisation import normalise_text
from lexvla.tokens import FastTokenizer, common_prefix, tokenize
from lexvla.vocabulary import Vocabulary

__all__ = ["OnnxLexVLA"]

_WINDOW = 32  # batches whose texts are sorted by length together
_IMAGES = 8  # in a pass of the image graph: more do not stay in the processor's cache


class OnnxLexVLA(LexVLA):
    """A model on ONNX Runtime; its methods are those of `lexvla.torch_model.TorchLexVLA`.

    Args:
        folder: The model's folder, with its graphs.
        config: Its configuration.
        vocabulary: The kept pieces, with their token ids.
        tokenizer: Its tokenizer.
    """

    def __init__(
        self, folder: Path, config: SavedSettings, vocabulary: Vocabulary, tokenizer: FastTokenizer
    ) -> None:
        self.config = config
        self.vocabulary = vocabulary
        self.tokenizer = tokenizer
        self._graphs = _Graphs(folder, config)

    @classmethod
    def from_pretrained(  # type: ignore[override]  # LexVLA chooses by its options
        cls,
        path: str | Path | None = None,
        *,
        revision: str | None = None,
        token: str | None = None,
    ) -> Self:
        """Load an exported model, or without a path the one that ships with the package.

        Graphs and weights are read, and compared with their hashes, when they are first needed.
        """
        folder = find_folder(path, revision, token)
        values = read_values(folder)
        file = folder / CONFIG_FILE
        graphs = values.get("graphs") or {}
        if not graphs:
            rule = "has no ONNX graphs; write them by: lexvla export, or use runtime='torch'"
            raise ModelError(f"{folder}: {rule}")
        if (version := graphs.get("format_version", 0)) > FORMAT_VERSION:
            raise ModelError(f"{file}: graphs of format {version} are newer than this program")
        check_files(folder, [*GRAPHS, TOKENIZER_FILE, VOCABULARY_FILE])
        try:
            config = SavedSettings(values)
            vocabulary = read_vocabulary(folder, config.vocabulary_sha256)
        except (KeyError, TypeError, AttributeError) as error:
            raise ModelError(f"{file}: the configuration cannot be read ({error})") from error
        return cls(folder, config, vocabulary, FastTokenizer(folder / TOKENIZER_FILE))

    def encode_text(
        self,
        texts: Iterable[str],
        batch_size: int = 64,
        show_progress_bar: bool | None = False,
        max_active_dims: int | None = None,
    ) -> Encoding:
        """Encode texts into lexical vectors, without patches."""
        windows: list[Encoding] = []
        small = batches(texts, batch_size, show_progress_bar, "texts")
        for window in split(small, _WINDOW):
            chosen = [text for batch in window for text in batch]
            for text in chosen:
                check_text(text)
            ids = tokenize(self.tokenizer, chosen, self.config.prompt, self.config.max_text_tokens)
            known = self._known(chosen)
            # Those of like length share a batch; those that cut the prompt otherwise come last.
            whole = [each[: len(self._prefix[0])] == self._prefix[0] for each in ids]
            order = sorted(range(len(ids)), key=lambda i: (not whole[i], len(ids[i])))
            parts = []
            for same in (True, False):
                alike = [i for i in order if whole[i] is same]
                for rows in split(alike, batch_size):
                    found = self._run_text([ids[i] for i in rows])
                    some = None if known is None else known[list(rows)]
                    parts.append(self._encoding(found, max_active_dims, some)[0])
            windows.append(Encoding.concat(parts)[np.argsort(order)])
        return concat(windows, "texts")

    def encode_image(
        self,
        images: Iterable[ImageSource],
        batch_size: int = 64,
        show_progress_bar: bool | None = False,
        max_active_dims: int | None = None,
    ) -> Encoding:
        """Encode images into lexical vectors, each word with its patch."""
        parts = []
        for resized in ahead(
            self._resized, batches(images, batch_size, show_progress_bar, "images")
        ):
            for states in self._states(resized):
                numbers = np.arange(states.shape[1]) - self.config.pool_cls  # CLS has -1
                parts.append(self._image_rows(states, numbers, max_active_dims))
        return concat(parts, "images")

    def encode_words(self, words: Iterable[str], max_active_dims: int | None = None) -> Encoding:
        """Encode single words by their rows of the text codebook, without the language model."""
        columns = {token: i for i, token in enumerate(self.vocabulary.token_ids or ())}
        parts = []
        for batch in batches(words, 256, False, "words"):
            mixtures = np.zeros((len(batch), len(self.vocabulary)), np.float32)
            for row, word in enumerate(batch):
                check_text(word)
                column = self.vocabulary.find(word)
                pieces = self.tokenizer(normalise_text(word), add_special_tokens=False)
                kept = [columns[i] for i in pieces["input_ids"] if i in columns]
                kept = kept if column is None else [column]
                np.add.at(mixtures[row], kept, 1 / max(1, len(kept)))
            found = self._graphs.run("terms.onnx", mixtures=mixtures)
            known = np.asarray(mixtures.any(axis=1))
            parts.append(self._encoding(found, max_active_dims, known)[0])
        return concat(parts, "words")

    def encode_region(
        self,
        images: Sequence[ImageSource],
        regions: Sequence[Region],
        batch_size: int = 64,
        show_progress_bar: bool | None = False,
        max_active_dims: int | None = None,
    ) -> Encoding:
        """Encode a region of each image, with the maximum over its patches only."""
        parts = []
        pairs = list(zip(images, regions, strict=True))
        for batch in ahead(
            lambda pair: self._region(*pair),
            batches(pairs, batch_size, show_progress_bar, "regions"),
        ):
            patches = iter([numbers for _, numbers in batch])
            for states in self._states([pixels for pixels, _ in batch]):
                for own in self._without_cls(states):
                    numbers = next(patches)
                    parts.append(self._image_rows(own[None, numbers], numbers, max_active_dims))
        return concat(parts, "images")

    def encode_patches(
        self,
        images: Iterable[ImageSource],
        batch_size: int = 64,
        show_progress_bar: bool | None = False,
        max_active_dims: int | None = None,
    ) -> Encoding:
        """Encode every patch of images separately (LexVLA section 3.3), as `encode_image`."""
        parts = []
        for resized in ahead(
            self._resized, batches(images, batch_size, show_progress_bar, "images")
        ):
            for states in self._states(resized):
                for own in self._without_cls(states):
                    rows = self._image_rows(own[:, None], np.zeros(1), max_active_dims)
                    place = np.repeat(
                        np.arange(len(own), dtype=np.int16), np.diff(rows.lexical.indptr)
                    )
                    parts.append(replace(rows, patches=place))
        return concat(parts, "images")

    def heatmaps(self, image: ImageSource, words: Sequence[str | int]) -> np.ndarray:
        """Return the `heatmap` of each word, (n, rows, columns), in one pass."""
        columns = self._columns(words)
        (states,) = self._states([self._resized(image)])
        own = self._without_cls(states)[0]
        logits = self._graphs.run("patches.onnx", states=own[:, None])["logits"]
        return elu1p(logits[:, columns].T).reshape(-1, *self.patch_grid)

    @cached_property
    def _prefix(self) -> tuple[list[int], np.ndarray]:
        """Token ids that most texts begin with in the prompt, and their keys and values."""
        ids = tokenize(self.tokenizer, ["a", "the"], self.config.prompt, 1)
        shared = ids[0][: common_prefix(ids)]
        _, (layers, _, _, heads, _, width) = self._graphs.shape("text.onnx", "past")
        none = np.zeros((layers, 2, 1, heads, 0, width), np.float32)
        if not shared:
            return shared, none
        tokens = np.array([shared], np.int64)
        made = self._graphs.run("text.onnx", ids=tokens, mask=np.ones_like(tokens), past=none)
        return shared, np.ascontiguousarray(made["made"])

    def _run_text(self, token_ids: list[list[int]]) -> dict[str, np.ndarray]:
        """Run texts, padded on the left, behind the part of the prefix that they begin with."""
        prefix, past = self._prefix
        shared = common_prefix([[*prefix, -1], *token_ids])
        rests = [ids[shared:] for ids in token_ids]
        length = max(map(len, rests))
        ids = np.zeros((len(rests), length), np.int64)
        mask = np.zeros_like(ids)
        for row, rest in enumerate(rests):
            ids[row, length - len(rest) :] = rest
            mask[row, length - len(rest) :] = 1
        return self._graphs.run("text.onnx", ids=ids, mask=mask, past=past[..., :shared, :])

    def _known(self, texts: list[str]) -> np.ndarray | None:
        """Tell which texts have at least one piece that the vocabulary keeps, or that is known."""
        if not self.config.require_known_word:
            return None
        pieces = tokenize(self.tokenizer, texts, "{text}", self.config.max_text_tokens)
        return np.array([not self._kept.isdisjoint(ids) for ids in pieces])

    @cached_property
    def _kept(self) -> frozenset[int]:
        return frozenset((*(self.vocabulary.token_ids or ()), *range(*self.config.known_tokens)))

    def _states(self, resized: Sequence[np.ndarray]) -> Iterable[np.ndarray]:
        for few in split(resized, _IMAGES):
            yield self._graphs.run("image.onnx", pixels=np.stack(few))["states"]

    def _without_cls(self, states: np.ndarray) -> np.ndarray:
        return states[:, 1:] if self.config.pool_cls else states

    def _image_rows(self, states: np.ndarray, numbers: np.ndarray, limit: int | None) -> Encoding:
        """Encode (B, P, d) states of patches with these P numbers."""
        found = self._graphs.run("patches.onnx", states=states)
        encoding, rows = self._encoding(found, limit)
        positions = found["places"][rows, encoding.lexical.indices]
        return replace(encoding, patches=numbers[positions].astype(np.int16))

    def _encoding(
        self, found: dict[str, np.ndarray], limit: int | None, known: np.ndarray | None = None
    ) -> tuple[Encoding, np.ndarray]:
        """Return sparse rows, and the row of each stored word."""
        config, logits = self.config, found["logits"]
        if not np.isfinite(logits).all():
            fault = "gives logits that are not finite: weights are damaged"
            raise ModelError(f"{config.model_name} {fault}")
        vectors = lexical_vector(logits)
        if known is not None:
            vectors *= known[:, None]
        limits = [each for each in (limit, config.max_active_dims) if each is not None]
        rule = (config.sparsification, config.kept_words, config.threshold)
        lexical = sparsify(vectors, *rule, min(limits, default=None))
        codes = found.get("codes")
        kept = None if codes is None else top_codes(codes, config.codes_per_item)
        rows = np.repeat(np.arange(len(vectors)), np.diff(lexical.indptr))
        return Encoding(lexical, None, kept, found.get("dense")), rows


class _Graphs:
    """The sessions of a model's graphs, opened when first run."""

    def __init__(self, folder: Path, config: SavedSettings) -> None:
        self._folder, self._config = folder, config
        self._sessions: dict[str, Any] = {}
        self._checked: set[str] = set()
        self._lock = Lock()

    def run(self, name: str, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        """Run a graph and return its outputs by name."""
        session = self._session(name)
        outputs = [each.name for each in session.get_outputs()]
        return dict(zip(outputs, session.run(outputs, inputs), strict=True))

    def shape(self, name: str, value: str) -> tuple[str, list[Any]]:
        """Return type and shape of an input of a graph."""
        (found,) = (each for each in self._session(name).get_inputs() if each.name == value)
        return found.type, found.shape

    def _session(self, name: str) -> Any:
        with self._lock:
            if name not in self._sessions:
                self._sessions[name] = self._open(name)
            return self._sessions[name]

    def _open(self, name: str) -> Any:
        runtime = _runtime()
        self._check(name, self._config.graphs["sha256"].get(name))
        for file in GRAPHS[name]:
            self._check(file, self._config.weights_sha256.get(file))
        options = runtime.SessionOptions()
        options.log_severity_level = 3  # errors, which are raised too
        # Waiting threads would spin, and take the processor from others.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            path = str(self._folder / name)
            return runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            reason = str(error).strip().splitlines()[0]
            raise ModelError(f"{self._folder / name}: cannot be run ({reason})") from error

    def _check(self, file: str, digest: str | None) -> None:
        """Compare a file with its hash in the configuration."""
        path = self._folder / file
        if file in self._checked:
            return
        try:
            with path.open("rb") as opened:
                found = hashlib.file_digest(opened, "sha256").hexdigest()
        except OSError as error:
            raise ModelError(f"{path}: cannot be read ({error})") from error
        if found != digest:
            raise ModelError(f"{path}: the sha256 differs from the one in {CONFIG_FILE}")
        self._checked.add(file)


def _runtime() -> Any:
    """Import onnxruntime.

    Raises:
        ModelError: It cannot be loaded.
        UnsupportedError: It is too old, or the machine is.
    """
    if platform.machine() in ("x86_64", "AMD64") and not _has_avx():
        rule = "this processor has no AVX, which onnxruntime needs; use runtime='torch'"
        raise UnsupportedError(rule)
    # Before the import: it would keep a device id and a record of its use in people's cache folder.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        import onnxruntime
    except ImportError as error:
        rule = "pip install onnxruntime, or use runtime='torch'"
        raise ModelError(f"onnxruntime cannot be loaded ({error}); {rule}") from error
    version = onnxruntime.__version__
    if tuple(int(each) for each in version.split(".")[:2]) < OLDEST_RUNTIME:
        wanted = ".".join(map(str, OLDEST_RUNTIME))
        raise UnsupportedError(
            f"onnxruntime {version} is too old: pip install 'onnxruntime>={wanted}'"
        )
    return onnxruntime


def _has_avx() -> bool:
    try:
        return " avx " in Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:  # not Linux: all machines of its supported versions have it
        return True
