"""Hugging Face datasets: from the hub, a folder or parquet files; loaded or streamed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lexvla.data.pairs import (
    Pair,
    Record,
    Skipped,
    as_class_path,
    as_label,
    as_texts,
    bad_record,
    fingerprint_of,
    matching,
)
from lexvla.errors import InputError, OptionalDependencyError

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

__all__ = [
    "Columns",
    "HuggingFaceStream",
    "HuggingFaceTable",
    "class_name",
    "image_of",
    "load_dataset",
    "load_hugging_face",
    "undecoded",
]


@dataclass(frozen=True)
class Columns:
    """Column names of a dataset.

    Attributes:
        image: An Image feature, the bytes of a file, or a path.
        text: A string or a list of strings.
        id: By default, a record is named by its row number.
        label: A string, an integer or a ClassLabel.
        class_path: A list of strings, or a string with slashes.
        folder: Folder that image paths are relative to.
    """

    image: str = "image"
    text: str = "text"
    id: str | None = None
    label: str | None = None
    class_path: str | None = None
    folder: str | Path = "."


class HuggingFaceTable:
    """An `IndexedSource` of a ``datasets.Dataset``; ``name`` is for errors."""

    def __init__(
        self, dataset: Dataset, columns: Columns | None = None, name: str = "<dataset>"
    ) -> None:
        self.name = name
        self.rejects: tuple[Skipped, ...] = ()
        self._rows = _Rows(dataset, columns or Columns(), name)
        self._data = self._rows.used(dataset)
        if not len(dataset):
            raise InputError(name, "has no records")
        id_column = self._rows.columns.id
        names = list(dataset[id_column]) if id_column else []
        seen: set[Any] = set()
        for number, each in enumerate(names):
            if each in seen:
                raise InputError(name, f"row {number}: the id {each!r} occurs twice")
            seen.add(each)
        shape = [str(len(dataset)), *dataset.column_names, *map(str, names)]
        self.fingerprint = fingerprint_of(shape)

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, number: int) -> Pair:
        return self._rows.pair(self._data[number], f"row {number}")

    def classes(self) -> set[str | None]:
        """Return the labels; ``None`` is among them if a record has none."""
        column = self._rows.columns.label
        if column is None:
            return {None}
        return {self._rows.label(value, column) for value in self._data.unique(column)}


class HuggingFaceStream:
    """A `ShardedSource` of an unshuffled ``datasets.IterableDataset``, mostly a file a shard."""

    def __init__(
        self, dataset: IterableDataset, columns: Columns | None = None, name: str = "<dataset>"
    ) -> None:
        self.name = name
        if dataset.features is None:
            dataset = dataset._resolve_features()  # reads the first rows
        self._rows = _Rows(dataset, columns or Columns(), name)
        self._data = self._rows.used(dataset)
        self.shards: int = dataset.num_shards
        self.fingerprint = fingerprint_of([str(self.shards), *(dataset.column_names or ())])

    def read_shard(self, number: int) -> Iterator[Record]:
        """Yield a shard's records; where reading fails, an error record."""
        shard = self._data.shard(num_shards=self.shards, index=number)
        try:
            for place, row in enumerate(shard):
                yield partial(self._rows.pair, row, f"shard {number} row {place}")
        except (ConnectionError, TimeoutError):
            raise  # not the data's fault: the run ends and can be resumed
        except (OSError, ValueError, RuntimeError) as error:  # what pyarrow raises
            yield bad_record(InputError(f"shard {number}", f"cannot be read on ({error})"))


class _Rows:
    """Turn rows into pairs."""

    def __init__(self, dataset: Any, columns: Columns, name: str) -> None:
        self.columns = columns
        self._features = dataset.features
        there = list(dataset.column_names or ())
        for option in ("image", "text", "id", "label", "class_path"):
            column = getattr(columns, option)
            if column is not None and column not in there:
                raise InputError(name, f"has no column {column!r}; it has {', '.join(there)}")

    def used(self, dataset: Any) -> Any:
        """Return the dataset with images as bytes or paths, and without unused columns."""
        columns = self.columns
        chosen = [columns.image, columns.text, columns.id, columns.label, columns.class_path]
        dataset = dataset.select_columns(list(dict.fromkeys(each for each in chosen if each)))
        return undecoded(dataset, columns.image)

    def pair(self, row: dict[str, Any], place: str) -> Pair:
        columns = self.columns
        name = place if columns.id is None or row[columns.id] is None else str(row[columns.id])
        return Pair(
            name,
            self._image(row, name),
            as_texts(row[columns.text], name),
            None if columns.label is None else self.label(row[columns.label], name),
            as_class_path(row[columns.class_path] if columns.class_path else None, name),
        )

    def label(self, value: Any, name: str) -> str | None:
        return as_label(class_name(self._features[self.columns.label], value), name)

    def _image(self, row: dict[str, Any], name: str) -> bytes | Path:
        image = image_of(row[self.columns.image], name, self.columns.folder)
        if image is None:
            raise InputError(name, "has no image")
        return image


def undecoded(dataset: Any, image: str | None) -> Any:
    """Return a dataset whose column of images has the bytes or paths of files."""
    from datasets import Image

    if image is not None and isinstance(dataset.features[image], Image):
        return dataset.cast_column(image, Image(decode=False))
    return dataset


def image_of(value: Any, name: str, folder: str | Path = ".") -> bytes | Path | None:
    """Return the file of an undecoded image, of bytes or of a path from the folder, if any."""
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if not value:
        return None
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return Path(folder, value)
    raise InputError(name, "the image must be bytes or a path")


def class_name(feature: Any, value: Any) -> Any:
    """Return the name of a class if the column is of numbered ones, else the value itself."""
    from datasets import ClassLabel

    if isinstance(feature, ClassLabel) and isinstance(value, int):
        return None if value < 0 else feature.int2str(value)  # -1 stands for none
    return value


def load_hugging_face(
    name: str | Path,
    split: str = "train",
    columns: Columns | None = None,
    streaming: bool = False,
    config: str | None = None,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
) -> HuggingFaceTable | HuggingFaceStream:
    """Load image-text pairs; ``columns`` names where they are, and the rest is of `load_dataset`.

    `InputError` if a column is missing or an id occurs twice.
    """
    loaded = load_dataset(name, split, streaming, config, revision, cache_dir)
    kind = HuggingFaceStream if streaming else HuggingFaceTable
    return kind(loaded, columns, str(name))


def load_dataset(
    name: str | Path,
    split: str = "train",
    streaming: bool = False,
    config: str | None = None,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
) -> Any:
    """Load a split of a dataset.

    Args:
        name: A parquet file, a pattern such as ``data/*.parquet``, a folder in the hub's layout, or
            a name on the hub. Parquet files are the split ``train``.
        split: Name of the split.
        streaming: Read shard by shard, without a local copy.
        config: Name of the dataset's configuration, if it has several.
        revision: Commit on the hub, for reproducible runs.
        cache_dir: Folder of the local copy.

    Raises:
        OptionalDependencyError: The ``datasets`` library is missing.
        InputError: The dataset cannot be read.
    """
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise OptionalDependencyError(error.name or "datasets", "hugging-face") from error
    title = str(name)
    options: dict[str, Any] = {"split": split, "streaming": streaming}
    options["cache_dir"] = None if cache_dir is None else str(cache_dir)
    if title.endswith(".parquet"):
        files = [str(path) for path in matching(title)] or [title]
        options |= {"path": "parquet", "data_files": files}
    else:
        options |= {"path": title, "name": config, "revision": revision}
    try:
        return datasets.load_dataset(**options)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise InputError(
            title, f"the dataset or split does not exist or cannot be read ({error})"
        ) from error
