"""The words of the lexical space: kept pieces of a tokenizer, in order."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

from lexvla.errors import ModelError

__all__ = ["Vocabulary"]

WORD_START = "\u2581"  # the mark that Llama's tokenizer puts before a piece that starts a word
_FORMAT_VERSION = 1


class Vocabulary:
    """Map column numbers of a lexical vector to terms and back.

    Args:
        terms: The pieces as the tokenizer writes them (``▁dog``), each once.
        token_ids: The tokenizer's id of each piece, or ``None`` where there is no tokenizer.

    Raises:
        ModelError: A term occurs twice, is empty or no text, or the two lists differ in length.
    """

    def __init__(self, terms: Iterable[str], token_ids: Iterable[int] | None = None) -> None:
        self.terms: tuple[str, ...] = tuple(terms)
        self.token_ids: tuple[int, ...] | None = None if token_ids is None else tuple(token_ids)
        for term in self.terms:
            # The hash joins terms by null characters: with one inside, two lists could share it.
            if not isinstance(term, str) or not term or "\0" in term:
                raise ModelError(f"vocabulary holds {term!r}, which is no term")
        self._ids = {term: i for i, term in enumerate(self.terms)}
        if len(self._ids) != len(self.terms):
            repeated = next(t for i, t in enumerate(self.terms) if self._ids[t] != i)
            raise ModelError(f"vocabulary holds the term {repeated!r} twice")
        if self.token_ids is not None and len(self.token_ids) != len(self.terms):
            raise ModelError(f"{len(self.terms)} terms but {len(self.token_ids)} token ids")

    def __len__(self) -> int:
        return len(self.terms)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Vocabulary) and self.terms == other.terms

    def __hash__(self) -> int:
        return hash(self.terms)

    def __repr__(self) -> str:
        return f"Vocabulary({len(self)} terms, sha256 {self.sha256[:12]})"

    def word(self, index: int) -> str:
        """Return the word that people see for a column: the term without its word-start mark."""
        term = self.terms[index]
        return term[1:] if term.startswith(WORD_START) and len(term) > 1 else term

    def id(self, term: str) -> int:
        """Return the column of a term.

        Raises:
            KeyError: The vocabulary has no such term.
        """
        return self._ids[term]

    def find(self, word: str) -> int | None:
        """Return the column of a word as people type it, or ``None``.

        The piece that starts a word comes before the bare piece, and the given case before the
        lower one: ``Dog`` looks for ``▁Dog``, ``Dog``, ``▁dog``, ``dog``.
        """
        for form in (word, word.lower()):
            for term in (WORD_START + form, form):
                if term in self._ids:
                    return self._ids[term]
        return None

    @cached_property
    def sha256(self) -> str:
        """Name the vocabulary: the hash of its terms, in order."""
        return hashlib.sha256("\0".join(self.terms).encode()).hexdigest()

    def save(self, path: str | Path) -> None:
        """Write the vocabulary as JSON."""
        data = {
            "format_version": _FORMAT_VERSION,
            "sha256": self.sha256,
            "terms": self.terms,
            "token_ids": self.token_ids,
        }
        Path(path).write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Vocabulary:
        """Read a vocabulary that `save` wrote.

        Raises:
            ModelError: The file is missing, damaged, or of a newer format.
        """
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
            version = data["format_version"]
            if version > _FORMAT_VERSION:
                raise ModelError(f"{path}: vocabulary format {version} is newer than this program")
            vocabulary = cls(data["terms"], data["token_ids"])
            named = data["sha256"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ModelError(f"{path}: no readable vocabulary ({error})") from error
        if vocabulary.sha256 != named:
            raise ModelError(f"{path}: the terms do not match their sha256")
        return vocabulary
