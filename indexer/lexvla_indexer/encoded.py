"""Vectors in files: encoded on several machines, then put into one index."""

from __future__ import annotations

import json
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
from scipy import sparse
from tqdm import tqdm

from lexvla.encoder import Encoder
from lexvla.encoding import Encoding
from lexvla.errors import InputError, LexVLAError, VocabularyMismatchError
from lexvla.vocabulary import Vocabulary
from lexvla_indexer.base import Index
from lexvla_indexer.document import Document
from lexvla_indexer.durable import naming, replacing
from lexvla_indexer.entering import enter
from lexvla_indexer.impacts import ImpactQuantizer
from lexvla_indexer.item_source import ItemSource
from lexvla_indexer.legs import stack
from lexvla_indexer.loading import in_shard
from lexvla_indexer.pipeline import IndexSink, Ingest, take_writer_lock
from lexvla_indexer.reading import Reading
from lexvla_indexer.report import Reject, RejectLog, Report
from lexvla_indexer.roots import SourcePlace, key_of
from lexvla_indexer.sources import open_item_source

__all__ = [
    "Encoded",
    "NewItems",
    "Origin",
    "encode_into",
    "encode_source",
    "index_encoded",
    "read_origins",
]

_FORMAT_VERSION = 2
_COLLECTION_SCALE = 100  # the integer of a weight of 1, for Anserini
_CHUNK = 1024  # documents to look up and to add at once


@dataclass(frozen=True)
class Origin:
    """The encoder's name and the terms of the lexical columns of the vectors in a file."""

    model: str
    vocabulary: Vocabulary


@dataclass(frozen=True)
class Encoded:
    """Hold documents with their vectors, row by row, outside any index.

    Attributes:
        place: Where their source lies.
    """

    origin: Origin
    documents: list[Document]
    encoding: Encoding
    place: SourcePlace

    def save(self, path: str | Path) -> None:
        """Write everything into one ``.npz`` file, which `Encoding.load` can read too.

        ``origin`` and ``documents``, JSON as bytes, lie beside the vectors' arrays.
        """
        vocabulary = self.origin.vocabulary
        origin = {
            "format_version": _FORMAT_VERSION,
            "model": self.origin.model,
            "vocabulary_sha256": vocabulary.sha256,
            "terms": vocabulary.terms,
            "token_ids": vocabulary.token_ids,
            "source": self.place._asdict(),
        }
        members = {"origin": origin, "documents": [asdict(each) for each in self.documents]}
        with replacing(Path(path)) as new, naming(new):
            self.encoding.save(new)
            with zipfile.ZipFile(new, "a", zipfile.ZIP_DEFLATED) as archive:
                for name, data in members.items():
                    array = np.frombuffer(json.dumps(data).encode(), "u1")
                    with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                        np.lib.format.write_array(file, array)

    @classmethod
    def load(cls, path: str | Path) -> Encoded:
        """Read what `save` wrote; a damaged, foreign or newer file raises InputError."""
        data = _member(path, "origin")
        origin = _origin(data, path)
        try:
            place = SourcePlace(**data["source"])
            documents = [Document(**each) for each in _member(path, "documents")]
            encoding = Encoding.load(path)
        except (KeyError, ValueError, TypeError) as error:
            raise InputError(str(path), f"is damaged ({error!r})") from error
        if len(documents) != len(encoding):
            rule = f"is damaged ({len(documents)} documents with {len(encoding)} vectors)"
            raise InputError(str(path), rule)
        return cls(origin, documents, encoding, place)

    def save_collection(self, path: str | Path) -> None:
        """Write the words as Anserini reads them, one line a document.

        The vocabulary and the quantization go beside the file, under its name with more suffixes:
        without them an index of it cannot be understood.
        """
        path, vocabulary = Path(path), self.origin.vocabulary
        ids, texts = [each.id for each in self.documents], [each.text for each in self.documents]
        quantizer = ImpactQuantizer.of_scale(_COLLECTION_SCALE, self.encoding.lexical)
        with replacing(path) as new, naming(new):
            self.encoding.to_jsonl(new, ids, vocabulary, _COLLECTION_SCALE, texts)
            with replacing(path.with_name(f"{path.name}.vocabulary")) as beside, naming(beside):
                vocabulary.save(beside)
            with replacing(path.with_name(f"{path.name}.quantization")) as beside, naming(beside):
                ImpactQuantizer.save(beside, {"lexical": quantizer})


def encode_source(
    source: str | Path | ItemSource,
    encoder: Encoder,
    rejects_path: str | Path | None = None,
    **options: Any,
) -> tuple[Encoded, Report]:
    """Encode the items of a source without an index; the options are those of `encode_into`."""
    report = Report()
    sink = _Collection(report)
    place = encode_into(sink, source, encoder, rejects_path, **options)
    nothing = Encoding(sparse.csr_array((0, len(encoder.vocabulary)), dtype=np.float32))
    encoding = stack(sink.parts) if sink.parts else nothing
    origin = Origin(encoder.name, encoder.vocabulary)
    return Encoded(origin, sink.documents, encoding, place), report


@dataclass
class NewItems(ABC):
    """Take what an ingest makes where nothing is known before; ``report`` counts it."""

    report: Report

    def known(self, ids: Sequence[str]) -> dict[str, str]:
        """Return nothing."""
        return {}

    def keep(self, document: Document, known: str) -> None:
        """Raise: nothing is known."""
        raise NotImplementedError

    def reuse(self, document: Document, twin: str) -> None:
        """Raise: nothing is known."""
        raise NotImplementedError

    def store(self, documents: Sequence[Document], encoding: Encoding) -> None:
        """Take documents, and count them."""
        self.take(documents, encoding)
        self.report.added += len(documents)
        self.report.empty += int((np.diff(encoding.lexical.indptr) == 0).sum())

    @abstractmethod
    def take(self, documents: Sequence[Document], encoding: Encoding) -> None:
        """Take documents with their vectors, or raise InputError and take none."""

    @abstractmethod
    def finish(self) -> None:
        """Take note that nothing more comes."""


def encode_into(
    sink: NewItems,
    source: str | Path | ItemSource,
    encoder: Encoder,
    rejects_path: str | Path | None = None,
    *,
    batch_size: int = 64,
    shard: tuple[int, int] = (1, 1),
    text_field: str | None = None,
    show_progress_bar: bool | None = None,
    reading: Reading | None = None,
) -> SourcePlace:
    """Encode the items of a source into a sink, and return where the source lies.

    The arguments are those of `index_source`; ``rejects_path`` is where to list what is left out.
    With ``shard=(i, n)``, i from 1, only the items whose ids hash to part i of n are encoded. The
    parts are the same on every machine and in every order of the source.
    """
    reading, report = reading or Reading(), sink.report
    opened = open_item_source(source, text_field, reading)
    ingest = Ingest(
        opened, encoder, sink, report, batch_size, show_progress_bar, shard, reading=reading
    )
    with RejectLog(None if rejects_path is None else Path(rejects_path), report) as rejects:
        ingest.run(rejects)
    report.skipped = sum(not in_shard(name, shard) for name in ingest.seen)
    return opened.place


@dataclass
class _Collection(NewItems):
    """Keep all vectors in memory."""

    documents: list[Document] = field(default_factory=list)
    parts: list[Encoding] = field(default_factory=list)

    def take(self, documents: Sequence[Document], encoding: Encoding) -> None:
        self.documents += documents
        self.parts.append(encoding)

    def finish(self) -> None:
        pass


def read_origins(files: Sequence[str | Path]) -> Origin:
    """Return the one origin that all files share.

    Raises:
        InputError: A file was not written by `Encoded.save`.
        VocabularyMismatchError: The files differ in model or vocabulary.
    """
    first, *others = [_origin(_member(path, "origin"), path) for path in files]
    for path, other in zip(files[1:], others, strict=True):
        _check_same(str(files[0]), first, str(path), other)
    return first


def index_encoded(
    files: Sequence[str | Path],
    index: Index,
    resume: bool = True,
    show_progress_bar: bool | None = None,
    stop: Event | None = None,
) -> Report:
    """Store what `encode_source` made, as if the sources themselves had been indexed here.

    A repeated id is rejected. One file is in memory at a time. Nothing is stored unless all files
    are of one model. The other arguments are those of `index_source`.

    Raises:
        IndexLockedError: Another writer has the index.
        InputError: A file is damaged, or was not written by `Encoded.save`.
        VocabularyMismatchError: The files or the index differ in model or vocabulary.
    """
    origin = read_origins(files)
    if len(index.vocabulary):
        recorded = Origin(index.model or origin.model, index.vocabulary)
        _check_same("the index", recorded, str(files[0]), origin)
    report = Report()
    sink = IndexSink(index, report, resume)
    take_writer_lock(index)
    seen: set[str] = set()
    disable = None if show_progress_bar is None else not show_progress_bar
    with (
        RejectLog(sink.path("rejected.jsonl"), report) as rejects,
        tqdm(unit=" items", disable=disable) as bar,
    ):
        for path in files:
            encoded = Encoded.load(path)
            entered = enter(index, encoded.place, origin.model, key_of(encoded.place))
            report.absorbed += entered.absorbed
            for start in range(0, len(encoded.documents), _CHUNK):
                if stop is not None and stop.is_set():
                    report.interrupted = f"{len(seen):,} items"
                    break
                documents = list(map(entered.named, encoded.documents[start : start + _CHUNK]))
                known = sink.known([document.id for document in documents])
                rows = []
                for row, document in enumerate(documents):
                    if document.id in seen:
                        rule = "an earlier item has the same id"
                        rejects.add(Reject(document.id, rule, str(path)))
                    elif not encoded.place.name and (rule := entered.refusal(document.id)):
                        rejects.add(Reject(document.id, rule, str(path)))
                    elif document.fingerprint and known.get(document.id) == document.fingerprint:
                        sink.keep(document, document.fingerprint)
                    else:
                        rows.append(row)
                    seen.add(document.id)
                if rows:
                    own = encoded.encoding[[start + row for row in rows]]
                    sink.store([documents[row] for row in rows], own)
                bar.update(len(documents))
            sink.finish()  # the next file's ids depend on those that are there
    return report


def _check_same(name: str, origin: Origin, other_name: str, other: Origin) -> None:
    for what, mine, yours in (
        ("the model", origin.model, other.model),
        ("the vocabulary", origin.vocabulary.sha256[:12], other.vocabulary.sha256[:12]),
    ):
        if mine != yours:
            message = f"{name} has vectors of {what} {mine!r}, {other_name} of {yours!r}"
            raise VocabularyMismatchError(message)


def _member(path: str | Path, name: str) -> Any:
    try:
        # For other files np.load suggests pickle, which is bad advice.
        with Path(path).open("rb") as file:
            if not zipfile.is_zipfile(file):
                raise zipfile.BadZipFile("it is not an .npz archive")
        with np.load(path, allow_pickle=False) as archive:
            return json.loads(archive[name].tobytes())
    except (EOFError, KeyError, ValueError, AttributeError, zipfile.BadZipFile) as error:
        rule = f"is not a whole file of `lexvla encode --out FILE.npz` ({error})"
        raise InputError(str(path), rule) from error


def _origin(data: Any, path: str | Path) -> Origin:
    try:
        if (version := int(data["format_version"])) != _FORMAT_VERSION:
            age = "newer than this program" if version > _FORMAT_VERSION else "old; encode it again"
            raise InputError(str(path), f"its format {version} is {age}")
        vocabulary = Vocabulary(data["terms"], data["token_ids"])
        if vocabulary.sha256 != data["vocabulary_sha256"]:
            raise InputError(str(path), "its terms do not match their sha256")
        return Origin(str(data["model"]), vocabulary)
    except InputError:
        raise
    except (KeyError, TypeError, LexVLAError) as error:
        raise InputError(str(path), f"is damaged ({error!r})") from error
