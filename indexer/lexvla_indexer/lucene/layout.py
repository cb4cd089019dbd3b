"""What a Lucene index stores: its directory, its documents' fields, and its own description.

    vocabulary.json      the terms of the lexical columns
    quantization.json    how weights became integers, for people and other programs; an index of
                         ours repeats it in its commits and goes by these. Its least and greatest
                         weights are those of the commit that fixed the scale
    the other files      are Lucene's; ``write.lock`` is locked by the one writer

A document has the fields of Anserini, and what explanations and filters need:

    id            the id: a string, stored, and its UTF-8 as a binary value that orders ties
    contents      the lexical vector: terms as the vocabulary writes them, frequencies as impacts
    codes         the codes: column numbers as terms, frequencies as impacts
    text          the words of the document's text, with lengths: searched by BM25
    filter        the terms of `lexvla_indexer.filter_terms`
    keys          a binary value: what documents are sorted and counted by, as JSON: the keys of
                  `lexvla_indexer.sort_keys` by metadata field
    fingerprint   a binary value
    raw           stored: id, text (as ``contents``), uri and metadata as JSON
    vectors       stored: the exact rows of all legs; see `lexvla_indexer.packed_rows`

An index that Anserini's own indexer built has ``id`` and ``contents``, and perhaps ``raw``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import sparse

from lexvla.encoding import Encoding
from lexvla.errors import IndexCorruptError, IndexMissingError, IndexVersionError, ModelError
from lexvla.version import program_version
from lexvla.vocabulary import Vocabulary
from lexvla_indexer.document import Document
from lexvla_indexer.durable import naming, replacing
from lexvla_indexer.impacts import ImpactQuantizer
from lexvla_indexer.legs import VectorLeg, widths_of
from lexvla_indexer.lucene.jvm import java_class, java_errors
from lexvla_indexer.sort_keys import keys_of

__all__ = [
    "CODES",
    "END",
    "FIELD_OF",
    "FILTER",
    "FINGERPRINT",
    "FORMAT_VERSION",
    "ID",
    "IMPACT",
    "KEY",
    "KEYS",
    "LEXICAL",
    "RAW",
    "TEXT",
    "VECTORS",
    "Commit",
    "LegState",
    "State",
    "Store",
    "document_of",
    "impact_terms",
    "keys_by_field",
    "raw_of",
]

FORMAT_VERSION = 3
KEY = "lexvla"  # of our own data in Lucene's commits

ID, LEXICAL, CODES, TEXT, FILTER = "id", "contents", "codes", "text", "filter"
KEYS, FINGERPRINT, RAW, VECTORS = "keys", "fingerprint", "raw", "vectors"
FIELD_OF: dict[VectorLeg, str] = {"lexical": LEXICAL, "codes": CODES}

# A null character ends a term, and \x01 precedes its impact. A vocabulary has no null
# characters; the others are so rare that nearly all terms are in the index unchanged.
END, IMPACT = "\0", "\x01"
_SAFE = str.maketrans({"\x01": "\x02\x02", "\x02": "\x02\x03"})

_VOCABULARY = "vocabulary.json"
_QUANTIZATION = "quantization.json"
# What a directory may hold after an interrupted creation of an index.
_BEGUN = ("write.lock", _VOCABULARY, _QUANTIZATION, "_", "segments", "pending_segments")


@dataclass(frozen=True)
class LegState:
    """How one leg's weights became integers, and how far that changed them.

    All counts are over every document ever committed, including those deleted since.

    Attributes:
        quantizer: Its bound holds for all of them.
        longest: The greatest length of a document's impacts as a vector.
        weights: How many weights there are.
        total_error: The sum of their changes.
        max_error: The greatest such change.
        clipped: How many weights exceeded what the greatest integer stands for.
    """

    quantizer: ImpactQuantizer
    longest: float = 0.0
    weights: int = 0
    total_error: float = 0.0
    max_error: float = 0.0
    clipped: int = 0

    def with_rows(self, rows: sparse.csr_array) -> LegState:
        """Return the state with the error of more rows, and a quantiser whose bound covers them."""
        if not rows.nnz:
            return self
        error, old = self.quantizer.error(rows), self.quantizer
        lowest, highest = float(rows.data.min()), float(rows.data.max())
        quantizer = replace(old, lowest=min(old.lowest, lowest), highest=max(old.highest, highest))
        impacts = old.quantize(rows).astype(np.float64)
        length = float(np.sqrt(impacts.multiply(impacts).sum(axis=1).max()))
        return LegState(
            quantizer,
            max(self.longest, length),
            self.weights + rows.nnz,
            self.total_error + error["mean"] * rows.nnz,
            max(self.max_error, error["max"]),
            self.clipped + int((rows.data > old.top).sum()),
        )


@dataclass(frozen=True)
class State:
    """Describe one of our commits, in its user data.

    Attributes:
        vocabulary_sha256: Names the vocabulary; empty before the first vectors, if none was given.
        widths: The number of columns of each leg; empty before the first vectors.
        legs: The searched legs that have weights.
    """

    model: str | None = None
    vocabulary_sha256: str = ""
    widths: Mapping[str, int] = field(default_factory=dict)
    legs: Mapping[str, LegState] = field(default_factory=dict)
    writer_version: str = field(default_factory=program_version)

    @property
    def quantizers(self) -> dict[str, ImpactQuantizer]:
        """How each leg's weights became integers."""
        return {name: leg.quantizer for name, leg in self.legs.items()}

    def with_rows(self, encoding: Encoding, given: Mapping[str, ImpactQuantizer]) -> State:
        """Return the state with more rows: their widths, the legs' quantisers and errors.

        ``given`` has quantisers for legs that have none yet; others are fitted to these rows.
        """
        legs = dict(self.legs)
        for leg, rows in (("lexical", encoding.lexical), ("codes", encoding.codes)):
            if rows is None or not rows.nnz:
                continue
            if leg not in legs:
                legs[leg] = LegState(given.get(leg) or ImpactQuantizer.fit(rows))
            legs[leg] = legs[leg].with_rows(rows)
        return replace(self, widths=widths_of(encoding), legs=legs)

    def dump(self) -> str:
        """Return the state as JSON."""
        return json.dumps({"format_version": FORMAT_VERSION, **asdict(self)})

    @classmethod
    def load(cls, place: object, text: str) -> State:
        """Read what `dump` wrote; another form raises IndexCorruptError."""
        try:
            values: dict[str, Any] = json.loads(text)
            found = values.pop("format_version")
            if found != FORMAT_VERSION:
                age = "newer" if found > FORMAT_VERSION else "older"
                rule = f"format {found} is {age} than this program, which reads {FORMAT_VERSION}"
                if found < FORMAT_VERSION:
                    rule += "; index the items again"
                raise IndexVersionError(f"{place}: {rule}")
            legs = {
                leg: LegState(ImpactQuantizer.from_dict(stored.pop("quantizer")), **stored)
                for leg, stored in values.pop("legs").items()
            }
            return cls(**values, legs=legs)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise IndexCorruptError(f"{place}: the commit's own data is damaged") from error


def impact_terms(vocabulary: Vocabulary) -> list[str]:
    """Return the terms as the index writes them."""
    return [term.translate(_SAFE) for term in vocabulary.terms]


def raw_of(document: Document) -> str:
    """Return what is stored of a document beside its vectors, as ASCII JSON."""
    stored = {"id": document.id, "contents": document.text, "uri": document.uri}
    return json.dumps({**stored, "metadata": dict(document.metadata)})


def keys_by_field(document: Document) -> str:
    """Return what a document is sorted and counted by, as ASCII JSON."""
    return json.dumps({field: keys_of(value) for field, value in document.metadata.items()})


def document_of(raw: str, fingerprint: str) -> Document:
    """Return the document that `raw_of` wrote."""
    kept = json.loads(raw)
    return Document(kept["id"], kept["uri"], kept["contents"], kept["metadata"], fingerprint)


class Commit(NamedTuple):
    """A commit by its number, and by its file: an index that is made anew begins to count again."""

    number: int = 0
    inode: int = 0
    modified: int = 0


class Store:
    """Make, find and describe the files of one directory, which need not exist yet."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._vocabulary = path / _VOCABULARY
        self._quantization = path / _QUANTIZATION
        self._directory: Any = None

    @property
    def exists(self) -> bool:
        """Whether there is an index."""
        return any(self.path.glob("segments_*"))

    def make(self) -> None:
        """Make the directory; IndexCorruptError if it is a file, or holds other things."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise IndexCorruptError(f"{self.path}: is not a directory") from error
        names = [file.name for file in self.path.iterdir()]
        foreign = [name for name in names if not name.startswith(_BEGUN)]
        if foreign and not self.exists:
            rule = f"is not a Lucene index, and holds other files ({min(foreign)})"
            raise IndexCorruptError(f"{self.path}: {rule}; give a new directory")

    def check(self) -> None:
        """Raise IndexMissingError if there is no index."""
        if not self.exists:
            raise IndexMissingError(f"lucene:{self.path}")

    def newest(self) -> Commit:
        """Return the newest commit, which its file is named by.

        IndexCorruptError if there is no index, or a file that Lucene would take for a commit.
        """
        found = []
        for file in self.path.glob("segments_*"):
            try:
                number = int(file.name.removeprefix("segments_"), 36)
                kept = file.stat()
            except ValueError as error:
                rule = "is named like a commit, so Lucene cannot open the index; move it away"
                raise IndexCorruptError(f"{file}: {rule}") from error
            except FileNotFoundError:  # a newer commit has replaced it
                continue
            found.append(Commit(number, kept.st_ino, kept.st_mtime_ns))
        if not found:
            self.check()
        return max(found, default=Commit())

    def directory(self) -> Any:
        """Return Lucene's object for the directory. Java must be running."""
        if self._directory is None:
            folder = java_class("java.nio.file.Paths").get(os.fspath(self.path.absolute()))
            with java_errors(self.path):
                self._directory = java_class("org.apache.lucene.store.FSDirectory").open(
                    folder, signature="(Ljava/nio/file/Path;)Lorg/apache/lucene/store/FSDirectory;"
                )
        return self._directory

    def close(self) -> None:
        """Release Lucene's object for the directory."""
        if self._directory is not None:
            self._directory.close()
            self._directory = None

    def load_vocabulary(self, sha256: str | None = None) -> Vocabulary | None:
        """Read the vocabulary of this hash; ``None`` if there is no file and no hash is given."""
        if sha256 is None and not self._vocabulary.exists():
            return None
        try:
            vocabulary = Vocabulary.load(self._vocabulary)
        except ModelError as error:
            raise IndexCorruptError(str(error)) from error
        if sha256 not in (None, vocabulary.sha256):
            raise IndexCorruptError(f"{self._vocabulary}: is not the vocabulary of this index")
        return vocabulary

    def save_vocabulary(self, vocabulary: Vocabulary) -> None:
        """Write the vocabulary durably, whole or not at all."""
        with replacing(self._vocabulary) as new, naming(new):
            vocabulary.save(new)

    def load_quantizers(self) -> dict[str, ImpactQuantizer]:
        """Read how each leg's weights became integers; return nothing if there is no such file."""
        if not self._quantization.exists():
            return {}
        try:
            return ImpactQuantizer.load(self._quantization)
        except ValueError as error:
            raise IndexCorruptError(str(error)) from error

    def save_quantizers(self, legs: Mapping[str, ImpactQuantizer]) -> None:
        """Write how the legs' weights became integers, durably, whole or not at all."""
        with replacing(self._quantization) as new, naming(new):
            ImpactQuantizer.save(new, legs)
