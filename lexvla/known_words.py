"""The words that a model knows, looked up as people type them, and those that are near."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator
from functools import cached_property

import numpy as np

from lexvla.data.phrasings import singulars

__all__ = ["KnownWords", "fold"]

LONGEST = 32  # letters of a word that is compared with others


def fold(word: str) -> str:
    """Return a word without case and accents.

    Example:
        >>> fold("Café")
        'cafe'
    """
    if word.isascii():  # most are, and have no accents
        return word.casefold()
    parts = unicodedata.normalize("NFKD", word)
    return "".join(c for c in parts if unicodedata.category(c) != "Mn").casefold()


class KnownWords:
    """Tell which words are known, in any case and with or without accents.

    Args:
        words: The commonest first.
        plurals: Whether their English plurals are known too.
    """

    def __init__(self, words: Iterable[str], plurals: bool = False) -> None:
        self._words = dict.fromkeys(map(fold, words))
        self._plurals = plurals

    def __contains__(self, word: str) -> bool:
        plain = fold(word)
        if plain in self._words:
            return True
        return self._plurals and any(one in self._words for one in singulars(plain))

    def nearest(self, word: str, most: int = 3) -> list[str]:
        """Return the known words nearest to a word, best first: its stem, then by edits.

        An edit inserts, deletes or changes a letter, or swaps two that are next to each other. Two
        are allowed, in words of up to 4 letters one, and in those of up to 2 none. Of words that
        are equally near, the commonest come first.

        References:
            Damerau: A technique for computer detection and correction of spelling errors.
            CACM 1964.
        """
        plain = fold(word)
        forms = [plain, plain[:-1]] if self._plurals and plain.endswith("s") else [plain]
        edits: dict[int, int] = {}
        for form in forms:
            for place, count in self._near(form):
                edits[place] = min(count, edits.get(place, count))
        words = self._table[0]
        near = [words[place] for place in sorted(edits, key=lambda place: (edits[place], place))]
        stems = [stem for stem in _stems(plain) if stem in self._words]
        return list(dict.fromkeys([*stems, *near]))[:most]

    def _near(self, word: str) -> Iterator[tuple[int, int]]:
        """Give the places of near words, with the edits to each."""
        allowed = 0 if len(word) < 3 else 1 if len(word) < 5 else 2
        if not allowed or len(word) > LONGEST:
            return
        _, letters, lengths = self._table
        chosen = np.flatnonzero(np.abs(lengths - len(word)) <= allowed)
        edits = _edits(word, letters[chosen, : len(word) + allowed], lengths[chosen])
        near = edits <= allowed
        yield from zip(chosen[near].tolist(), edits[near].tolist(), strict=True)

    @cached_property
    def _table(self) -> tuple[list[str], np.ndarray, np.ndarray]:
        """The words that may be compared: their (n, 32) code points, and (n) lengths."""
        words = [word for word in self._words if 0 < len(word) <= LONGEST]
        letters = np.array(words, f"U{LONGEST}").view(np.uint32).reshape(len(words), LONGEST)
        return words, letters, np.array(list(map(len, words)), np.int64)


def _stems(word: str) -> list[str]:
    """Return what a verb form may come from: "jumping" from "jump" or "jumpe"."""
    for end in ("ing", "ed"):
        stem = word.removesuffix(end)
        if stem != word and len(stem) > 2:
            single = [stem[:-1]] if stem[-1] == stem[-2] else []
            return [stem, f"{stem}e", *single]
    return []


def _edits(word: str, letters: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Return how many edits a word is from each of n others.

    Args:
        word: The word.
        letters: (n, L) code points of the others, 0 behind their ends.
        lengths: (n) of the others, at most L.
    """
    count, width = letters.shape
    steps = np.arange(width + 1, dtype=np.int16)
    before = last = np.broadcast_to(steps, (count, width + 1))
    for i, letter in enumerate(map(ord, word)):
        row = last + np.int16(1)
        row[:, 1:] = np.minimum(row[:, 1:], last[:, :-1] + (letters != letter))
        if i:
            swapped = (letters[:, 1:] == ord(word[i - 1])) & (letters[:, :-1] == letter)
            row[:, 2:] = np.where(swapped, np.minimum(row[:, 2:], before[:, :-2] + 1), row[:, 2:])
        # Insertions: the least, over all earlier places, of the edits there and the steps from it.
        before, last = last, np.minimum.accumulate(row - steps, axis=1) + steps
    return last[np.arange(count), lengths]
