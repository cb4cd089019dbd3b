"""Sources of items to index: a folder of images, a manifest of lines, or tar shards."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lexvla.data.webdataset_shards import WebDatasetShards
from lexvla.errors import InputError
from lexvla_indexer.document import Document
from lexvla_indexer.folder_source import FolderSource
from lexvla_indexer.hugging_face_source import HUGGING_FACE, DatasetChoice, HuggingFaceSource
from lexvla_indexer.ir_datasets_source import IR_DATASETS, IrDatasetsSource
from lexvla_indexer.item_source import ItemSource, ListedItem, UnlistedItem
from lexvla_indexer.manifest_rows import READERS
from lexvla_indexer.manifest_source import ManifestSource
from lexvla_indexer.reading import Reading
from lexvla_indexer.report import Reject
from lexvla_indexer.roots import SourcePlace
from lexvla_indexer.text_fields import TextFields

__all__ = ["BEIR_QUERIES", "is_beir", "open_item_source"]

SHARD_SUFFIX = ".tar"
BEIR_CORPUS, BEIR_QUERIES = "corpus.jsonl", "queries.jsonl"


def open_item_source(
    source: str | Path | ItemSource,
    text_field: str | None = None,
    reading: Reading | None = None,
    choice: DatasetChoice | None = None,
) -> ItemSource:
    """Open a source of any kind; one that is open already is returned.

    A folder in the layout of BEIR, with ``corpus.jsonl`` and ``queries.jsonl``, gives the documents
    of the corpus, whose text is ``title+text``. Any other folder gives one item for each image file
    under it, in the order of their names: the id is the path under the folder, as `id_of_path`
    writes it. A manifest is a ``.jsonl`` file of objects ``{"id", "image", "text", "metadata"}``:
    an id, and at least one of image (a path from the manifest's folder) and text; or a ``.csv`` or
    ``.parquet`` file with these columns, whose other columns are metadata. A name or pattern that
    ends in ``.tar`` means shards, as `WebDatasetShards` reads them: the images are encoded, and
    the captions are the documents' texts, a line each.
    ``ir_datasets:NAME`` gives the documents of a collection, as `IrDatasetsSource` reads them, and
    ``hf:NAME`` the rows of a Hugging Face dataset that ``choice`` tells; see `HuggingFaceSource`.

    ``text_field`` holds the text: of a manifest's lines (default ``text``), or of the ``.json``
    files in shards (default ``caption``). Of a manifest it may name several, as `TextFields` reads
    them, and ``metadata.title`` the metadata value ``title``, a string or a list of strings.

    Raises:
        InputError: The source is missing or of another kind, its columns cannot be read, a folder
            is given a text field, or shards several, or anything but a folder patterns to exclude.
        OptionalDependencyError: A parquet file needs pyarrow.
    """
    if isinstance(source, ItemSource):
        return source
    path = Path(source).absolute()
    if choice not in (None, DatasetChoice()) and not str(source).startswith(HUGGING_FACE):
        rule = f"is not {HUGGING_FACE}NAME, so it has no split, configuration, image or id field"
        raise InputError(str(source), rule)
    if path.is_dir() and not is_beir(path):
        if text_field is not None:
            raise InputError(str(source), "a folder of images has no text field")
        return FolderSource(path, reading or Reading())
    if reading is not None and (reading.exclude or not reading.default_excludes):
        raise InputError(
            str(source), "is not a folder of images, and files are excluded only from folders"
        )
    if str(source).startswith(HUGGING_FACE):
        return HuggingFaceSource(str(source), text_field, choice)
    if str(source).startswith(IR_DATASETS):
        return IrDatasetsSource(str(source), text_field)
    if is_beir(path):
        return ManifestSource(path / BEIR_CORPUS, text_field or "title+text")
    return _open_file(str(source), text_field)


def _open_file(source: str, text_field: str | None) -> ItemSource:
    path = Path(source).absolute()
    if path.suffix.lower() == SHARD_SUFFIX:
        if text_field is not None and len(TextFields(text_field).names) > 1:
            raise InputError(source, "shards have one text field, so neither , nor +")
        return _Shards(path, text_field or "caption")
    if not path.exists():
        raise InputError(source, "no such file or folder")
    if path.suffix.lower() not in READERS:
        rule = "must be a folder, a manifest (.jsonl, .csv, .parquet) or shards (.tar)"
        raise InputError(source, rule)
    return ManifestSource(path, text_field or "text")


def is_beir(folder: Path) -> bool:
    """Return whether a folder has the layout of BEIR's collections."""
    return all((folder / name).is_file() for name in (BEIR_CORPUS, BEIR_QUERIES))


class _Shards(ItemSource):
    def __init__(self, pattern: Path, text_key: str) -> None:
        folder = next(path for path in pattern.parents if path.is_dir())  # above any wildcard
        place = SourcePlace(str(folder.resolve()), str(pattern.relative_to(folder)))
        super().__init__(place)
        self._shards = WebDatasetShards(Path(place.path), text_key)

    def entries(self) -> Iterator[ListedItem | UnlistedItem]:
        for number, path in enumerate(self._shards.paths):
            for record in self._shards.read_shard(number):
                try:
                    pair = record()
                    metadata: dict[str, Any] = {}
                    if pair.label is not None:
                        metadata["label"] = pair.label
                    if pair.class_path:
                        metadata["class_path"] = list(pair.class_path)
                    # No uri: nothing can open a member of a tar by a path.
                    document = Document(pair.id, "", "\n".join(pair.texts), metadata)
                except InputError as error:
                    # An error about the whole shard hides what comes after it.
                    whole = error.item in (path.name, str(path)) or error.item.endswith("...")
                    reject = Reject(error.item, error.rule, str(path))
                    yield UnlistedItem(reject, None if whole else error.item)
                else:
                    yield ListedItem(document, pair.image, str(path))

    def count(self) -> int:
        # Headers only: a record's files are read when it is called.
        return sum(1 for n in range(self._shards.shards) for _ in self._shards.read_shard(n))
