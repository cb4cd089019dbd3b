"""Exported models, run by ONNX Runtime without torch."""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any, Self

import numpy as np

from lexvla import sparse_rows
from lexvla.batching import split
from lexvla.errors import ModelError, UnsupportedError
from lexvla.images import ImageSource
from lexvla.model import Found, Item, LexVLA, Made
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
from lexvla.tokens import FastTokenizer, common_prefix
from lexvla.vocabulary import Vocabulary

__all__ = ["OnnxLexVLA"]

_THREADS = os.cpu_count() or 1
_IMAGES = 8  # in a pass of the image graph: more do not stay in the processor's cache


class OnnxLexVLA(LexVLA):
    """A model on ONNX Runtime; its methods are those of `lexvla.torch_model.TorchLexVLA`.

    Args:
        folder: The model's folder, with its graphs.
        config: Its configuration.
        vocabulary: The kept pieces, with their token ids.
        tokenizer: Its tokenizer.
    """

    _rows = sparse_rows
    _texts = 32  # each part in a thread of its own

    def __init__(
        self, folder: Path, config: SavedSettings, vocabulary: Vocabulary, tokenizer: FastTokenizer
    ) -> None:
        self.config = config
        self.vocabulary = vocabulary
        self.tokenizer = tokenizer
        self._graphs = _Graphs(folder, config)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}>"

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
        if (version := graphs.get("format_version", 0)) != FORMAT_VERSION:
            rule = f"graphs of format {version}, and this program runs format {FORMAT_VERSION}"
            raise ModelError(f"{file}: {rule}; write them by: lexvla export")
        check_files(folder, [*GRAPHS, TOKENIZER_FILE, VOCABULARY_FILE])
        try:
            config = SavedSettings(values)
            vocabulary = read_vocabulary(folder, config.vocabulary_sha256)
        except (KeyError, TypeError, AttributeError) as error:
            raise ModelError(f"{file}: the configuration cannot be read ({error})") from error
        return cls(folder, config, vocabulary, FastTokenizer(folder / TOKENIZER_FILE))

    def heatmaps(self, image: ImageSource, words: Sequence[str | int]) -> np.ndarray:
        """Return the `heatmap` of each word, (n, rows, columns), in one pass."""
        columns = self._columns(words)
        (states,) = self._run_images([self._resized(image)])
        logits = self._run_patches(self._without_cls(states)[0][:, None]).logits
        return sparse_rows.elu1p(logits[:, columns].T).reshape(-1, *self.patch_grid)

    def _running(self) -> AbstractContextManager[ThreadPoolExecutor]:
        return ThreadPoolExecutor(_THREADS)

    def _each(
        self, work: Callable[[Item], Made], parts: Sequence[Item], running: ThreadPoolExecutor
    ) -> Iterable[Made]:
        return running.map(work, parts) if len(parts) > 1 else map(work, parts)

    def _run_texts(self, ids: list[list[int]], running: ThreadPoolExecutor) -> Found:
        """Run texts, padded on the left, behind the part of the prefix that they begin with."""
        shared = common_prefix([[*self._prefix, -1], *ids])
        rests = [own[shared:] for own in ids]
        length = max(map(len, rests))
        numbers = np.zeros((len(rests), length), np.int64)
        mask = np.zeros_like(numbers)
        for row, rest in enumerate(rests):
            numbers[row, length - len(rest) :] = rest
            mask[row, length - len(rest) :] = 1
        past = self._past[..., :shared, :]
        return self._graphs.find("text.onnx", ids=numbers, mask=mask, past=past)

    @cached_property
    def _past(self) -> np.ndarray:
        """Keys and values of the prefix."""
        parts, heads, _, width = self._graphs.shape("text.onnx", "past")
        none = np.zeros((parts, heads, 0, width), np.float32)
        if not self._prefix:
            return none
        tokens = np.array([self._prefix], np.int64)
        mask = np.ones_like(tokens)
        made = [f"made{place}" for place in range(parts)]
        return np.concatenate(self._graphs.run("text.onnx", made, ids=tokens, mask=mask, past=none))

    def _run_words(self, columns: list[list[int]], running: None) -> Found:
        mixtures = np.zeros((len(columns), len(self.vocabulary)), np.float32)
        for row, kept in enumerate(columns):
            np.add.at(mixtures[row], kept, 1 / max(1, len(kept)))
        return self._graphs.find("terms.onnx", mixtures=mixtures)

    def _run_images(self, resized: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
        for few in split(resized, _IMAGES):
            yield from self._graphs.run("image.onnx", ["states"], pixels=np.stack(few))

    def _run_patches(self, states: np.ndarray) -> Found:
        return self._graphs.find("patches.onnx", states=states)


class _Graphs:
    """The sessions of a model's graphs, opened when first run."""

    def __init__(self, folder: Path, config: SavedSettings) -> None:
        self._folder, self._config = folder, config
        self._sessions: dict[str, Any] = {}
        self._checked: set[str] = set()
        self._lock = Lock()

    def find(self, name: str, **inputs: np.ndarray) -> Found:
        """Run a graph for all that it finds."""
        session = self._session(name)
        names = {each.name for each in session.get_outputs()}
        there = [field for field in Found._fields if field in names]
        return Found(**dict(zip(there, session.run(there, inputs), strict=True)))

    def run(self, name: str, outputs: list[str], **inputs: np.ndarray) -> list[np.ndarray]:
        """Run a graph for some outputs."""
        made: list[np.ndarray] = self._session(name).run(outputs, inputs)
        return made

    def shape(self, name: str, value: str) -> list[Any]:
        """Return the shape of an input of a graph."""
        (found,) = (each for each in self._session(name).get_inputs() if each.name == value)
        shape: list[Any] = found.shape
        return shape

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
        # Of a few texts there is too little to share: threads would wait for each other.
        options.intra_op_num_threads = 1 if name == "text.onnx" else 0  # as many as processors
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
