"""From a source into a file that another engine loads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from lexvla.encoder import Encoder
from lexvla.encoding import Encoding
from lexvla.errors import UnsupportedError
from lexvla_indexer.document import Document
from lexvla_indexer.durable import naming, replacing
from lexvla_indexer.encoded import NewItems, encode_into
from lexvla_indexer.exports.base import Format, Row
from lexvla_indexer.item_source import ItemSource
from lexvla_indexer.report import Report

__all__ = ["Widths", "export_source"]


@dataclass
class Widths:
    """The widths of a file's vectors, with which their fields must be created.

    ``None`` stands for vectors that are not there.
    """

    lexical: int
    dense: int | None = None


def export_source(
    source: str | Path | ItemSource,
    encoder: Encoder,
    path: str | Path,
    form: Format,
    rejects_path: str | Path | None = None,
    **options: Any,
) -> tuple[Widths, Report]:
    """Encode the items of a source and write each as it comes; the file appears when it is whole.

    The options are those of `encode_into`. Memory does not grow with the source, but for
    its ids. A file of that name is replaced, or left as it was if this fails. Beside a file with
    column numbers for words the vocabulary is written, under its name with ``.vocabulary``.

    Raises:
        UnsupportedError: The engine cannot take the vectors of this encoder.
    """
    path, report = Path(path), Report()
    with replacing(path) as new:
        with new.open("w", encoding="utf-8", newline="\n") as file:
            sink = _Lines(report, file, form, encoder)
            encode_into(sink, source, encoder, rejects_path, **options)
        if form.numbered:
            with replacing(path.with_name(f"{path.name}.vocabulary")) as beside, naming(beside):
                encoder.vocabulary.save(beside)
    return sink.widths, report


@dataclass
class _Lines(NewItems):
    file: TextIO
    form: Format
    encoder: Encoder
    widths: Widths = field(init=False)
    _begun: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self.widths = Widths(len(self.encoder.vocabulary))

    def take(self, documents: Sequence[Document], encoding: Encoding) -> None:
        rows = list(Row.of(encoding, self.encoder.vocabulary))
        # All before any is written: a document that is refused is tried again without the others.
        lines = [self.form.lines(*each) for each in zip(documents, rows, strict=True)]
        dense = None if encoding.dense is None else encoding.dense.shape[1]
        if self._begun and dense != self.widths.dense:
            raise UnsupportedError("the encoder makes dense vectors of some items only")
        head = "" if self._begun else self.form.head(rows[0])
        self.widths.dense, self._begun = dense, True
        self._write(head, *lines)

    def finish(self) -> None:
        self._write(self.form.tail() if self._begun else "")
        with naming(Path(self.file.name)):
            self.file.flush()

    def _write(self, *parts: str) -> None:
        with naming(Path(self.file.name)):
            self.file.writelines(parts)
