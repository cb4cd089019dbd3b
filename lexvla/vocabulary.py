"""The words of the lexical space: pieces of a tokenizer, in order."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

from lexvla.errors import ModelError
from lexvla.text_normalisation import normalise_text

__all__ = ["Vocabulary"]

WORD_START = "\u2581"  # Llama's mark of a piece that starts a word
_WORD_STARTS = (WORD_START, "\u0120")  # and that of byte-level BPE: GPT-2, Qwen, Llama 3
RULES = ("letters", "all")
_FORMAT_VERSION = 1


class Vocabulary:
    """Map column numbers of a lexical vector to terms and back.

    Args:
        terms: Unique pieces as the tokenizer writes them (``▁dog``).
        token_ids: The tokenizer's id of each piece, if there is a tokenizer.
    """

    def __init__(self, terms: Iterable[str], token_ids: Iterable[int] | None = None) -> None:
        self.terms: tuple[str, ...] = tuple(terms)
        self.token_ids: tuple[int, ...] | None = None if token_ids is None else tuple(token_ids)
        for term in self.terms:
            # The hash joins terms by null characters, so a term must not hold one.
            if not isinstance(term, str) or not term or "\0" in term:
                raise ModelError(f"vocabulary: {term!r} is not a valid term")
        self._ids = {term: i for i, term in enumerate(self.terms)}
        if len(self._ids) != len(self.terms):
            repeated = next(t for i, t in enumerate(self.terms) if self._ids[t] != i)
            raise ModelError(f"vocabulary holds the term {repeated!r} twice")
        if self.token_ids is not None and len(self.token_ids) != len(self.terms):
            raise ModelError(f"{len(self.terms)} terms but {len(self.token_ids)} token ids")

    @classmethod
    def from_tokenizer(
        cls, tokenizer: Any, rule: str = "letters", texts: Iterable[str] | None = None
    ) -> Vocabulary:
        """Keep the pieces of a tokenizer that can stand for a word.

        The paper keeps 17,149 of Llama 2's 32,000 pieces and does not say by which rule.

        Args:
            tokenizer: A tokenizer of transformers.
            rule: ``letters`` keeps pieces of two or more ASCII letters after the word-start mark;
                ``all`` keeps all but control pieces.
            texts: Keep only pieces that these texts, such as training captions, produce.
        """
        if rule not in RULES:
            raise ModelError(f"unknown vocabulary rule {rule!r}: use {' or '.join(RULES)}")
        control = set(tokenizer.all_special_ids)
        pieces = {i: piece for piece, i in tokenizer.get_vocab().items() if i not in control}
        if texts is not None:
            seen: set[int] = set()
            for text in texts:
                seen.update(tokenizer(text, add_special_tokens=False)["input_ids"])
            pieces = {i: piece for i, piece in pieces.items() if i in seen}
        if rule == "letters":
            pieces = {i: piece for i, piece in pieces.items() if _is_word(_bare(piece))}
        if not pieces:
            where = "" if texts is None else ", given these texts"
            raise ModelError(f"the vocabulary rule {rule!r} leaves no piece{where}")
        ids = sorted(pieces)
        return cls([pieces[i] for i in ids], ids)

    def __len__(self) -> int:
        return len(self.terms)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Vocabulary) and self.terms == other.terms

    def __hash__(self) -> int:
        return self._hash

    def __repr__(self) -> str:
        return f"Vocabulary({len(self)} terms, sha256 {self.sha256[:12]})"

    def word(self, index: int) -> str:
        """Return the word or phrase shown for a column: the term without word-start marks."""
        return self._words[index]

    def id(self, term: str) -> int:
        """Return the column of a term; raise `KeyError` if there is none."""
        return self._ids[term]

    def find(self, word: str) -> int | None:
        """Return the column of a word as people type it, or ``None``.

        ``Dog`` is looked up as ``▁Dog``, ``Dog``, ``▁dog``, ``dog``; then the same after
        `normalise_text`.
        """
        plain = normalise_text(word)
        typed = (word, word.lower(), plain, plain.lower())
        for form in (each for one in typed for each in (one, one.replace(" ", WORD_START))):
            for term in (*(mark + form for mark in _WORD_STARTS), form):
                if term in self._ids:
                    return self._ids[term]
        return None

    @cached_property
    def _hash(self) -> int:
        return hash(self.terms)  # that of a tuple is not kept, and goes through all of them

    @cached_property
    def _words(self) -> list[str]:
        return [_bare(term) for term in self.terms]

    @cached_property
    def sha256(self) -> str:
        """The hash of the terms, in order."""
        return hashlib.sha256("\0".join(self.terms).encode()).hexdigest()

    @cached_property
    def kept_ids(self) -> frozenset[int]:
        """The token ids as a set; empty without any."""
        return frozenset(self.token_ids or ())

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
            raise ModelError(f"{path}: the vocabulary cannot be read ({error})") from error
        if vocabulary.sha256 != named:
            raise ModelError(f"{path}: the terms do not match their sha256")
        return vocabulary


def _bare(term: str) -> str:
    if not term.strip(WORD_START):
        return term
    bare = term[1:] if term.startswith(_WORD_STARTS) and len(term) > 1 else term
    return bare.replace(WORD_START, " ")


def _is_word(word: str) -> bool:
    return len(word) > 1 and word.isascii() and word.isalpha()
