"""The nouns of WordNet: senses, definitions, broader terms and base forms."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lexvla.errors import InputError

__all__ = ["Synset", "WordNet"]

# Plural endings and their replacements, from WordNet's morphy.
_ENDINGS = (
    ("s", ""),
    ("ses", "s"),
    ("xes", "x"),
    ("zes", "z"),
    ("ches", "ch"),
    ("shes", "sh"),
    ("men", "man"),
    ("ies", "y"),
)
_QUOTED = re.compile(r'[;"]')
# An irregular plural that is also a lemma ("teeth", "men") is a plural if the singular has this
# many more senses tagged in texts.
_MORE_SENSES = 2


@dataclass(frozen=True)
class Synset:
    """A sense: the lemmas that share it, and its broader senses.

    Attributes:
        offset: Eight digits; ImageNet names the sense "n" and its WordNet 3.0 offset.
        lemmas: Lower case, with spaces.
        lexname: Number of the lexicographer file, such as 5 for animals.
        hypernyms: Offsets of the next broader senses, of classes and of instances.
        gloss: The first definition, without examples.
        spellings: The lemmas as WordNet writes them, proper names capitalised.
        full_gloss: Definitions and examples.
    """

    offset: str
    lemmas: tuple[str, ...]
    lexname: int
    hypernyms: tuple[str, ...]
    gloss: str
    spellings: tuple[str, ...]
    full_gloss: str


class WordNet:
    """The noun files of WordNet: ``data.noun``, ``index.noun`` and ``noun.exc``.

    Args:
        folder: Holds the three files.
    """

    def __init__(self, folder: str | Path) -> None:
        folder = Path(folder)
        self._synsets: dict[str, Synset] = {}
        self._senses: dict[str, tuple[str, ...]] = {}
        self._tagged: dict[str, int] = {}
        self._exceptions: dict[str, tuple[str, ...]] = {}
        self._load_synsets(folder / "data.noun")
        self._load_index(folder / "index.noun")
        path = folder / "noun.exc"
        for number, line in _lines(path):
            plural, *bases = map(_key, line.split())
            if not bases:
                raise _damaged(path, number, "a form without its base form")
            self._exceptions[plural] = tuple(bases)

    def synset(self, offset: str) -> Synset:
        """Return one sense."""
        try:
            return self._synsets[offset]
        except KeyError:
            raise InputError(offset, "no such noun sense in WordNet") from None

    def synsets(self) -> Iterator[Synset]:
        """Yield every sense, in the order of the file."""
        yield from self._synsets.values()

    def lemmas(self) -> Iterator[str]:
        """Yield every lemma, in lower case and with spaces, in the order of the index."""
        yield from self._senses

    def senses(self, lemma: str) -> list[Synset]:
        """Return the senses of a lemma, most frequent first; empty for an unknown one."""
        return [self._synsets[offset] for offset in self._senses.get(_key(lemma), ())]

    def base_form(self, word: str) -> str | None:
        """Return the lemma that a word or phrase is a form of: "goose" for "geese".

        A lemma is its own base form, unless it is better known as an irregular plural.
        """
        word = _key(word)
        bases = [base for base in self._exceptions.get(word, ()) if base in self._senses]
        if word in self._senses:
            for base in bases:
                if self._tagged[base] >= self._tagged[word] + _MORE_SENSES:
                    return base
            return word
        if bases:
            return bases[0]
        for ending, instead in _ENDINGS:
            base = word[: -len(ending)] + instead
            if word.endswith(ending) and base in self._senses:
                return base
        return None

    def ancestors(self, offset: str) -> dict[str, int]:
        """Return the sense and its broader senses with their distances, nearest first."""
        depths = {self.synset(offset).offset: 0}
        waiting = deque(depths)
        while waiting:
            below = waiting.popleft()
            for above in self._synsets[below].hypernyms:
                if above not in depths:
                    depths[above] = depths[below] + 1
                    waiting.append(above)
        return depths

    def _load_synsets(self, path: Path) -> None:
        numbers = {}
        for number, line in _lines(path):
            try:
                synset = _synset(line)
            except (ValueError, IndexError):
                raise _damaged(path, number, "no noun sense") from None
            if synset.offset in self._synsets:
                raise _damaged(path, number, f"sense {synset.offset} a second time")
            self._synsets[synset.offset] = synset
            numbers[synset.offset] = number
        for synset in self._synsets.values():
            for above in synset.hypernyms:
                if above not in self._synsets:
                    raise _damaged(path, numbers[synset.offset], f"no sense {above}")

    def _load_index(self, path: Path) -> None:
        for number, line in _lines(path):
            fields = line.split()
            try:
                # lemma, "n", senses, pointers, the pointers, senses again, tagged, the offsets
                count, pointers = int(fields[2]), int(fields[3])
                tagged, offsets = int(fields[5 + pointers]), fields[6 + pointers :]
            except (ValueError, IndexError):
                raise _damaged(path, number, "no noun and its senses") from None
            if count < 1 or len(offsets) != count:
                raise _damaged(path, number, f"{count} senses and {len(offsets)} offsets")
            for offset in offsets:
                if offset not in self._synsets:
                    raise _damaged(path, number, f"no sense {offset} in data.noun")
            lemma = _key(fields[0])
            self._senses[lemma], self._tagged[lemma] = tuple(offsets), tagged


def _key(lemma: str) -> str:
    return lemma.lower().replace("_", " ")


def _synset(line: str) -> Synset:
    """Parse offset, file, "n", lemmas with their ids, pointers, a bar and the gloss."""
    head, bar, gloss = line.partition("|")
    fields = head.split()
    if not bar or len(fields[0]) != 8 or not fields[0].isdigit() or fields[2] != "n":
        raise ValueError
    count = int(fields[3], 16)
    start = 5 + 2 * count
    pointers = int(fields[start - 1])
    if count < 1 or len(fields) != start + 4 * pointers:
        raise ValueError
    spellings = tuple(word.replace("_", " ") for word in fields[4 : start - 1 : 2])
    # kind of pointer, offset, part of speech, which lemmas
    above = zip(fields[start::4], fields[start + 1 :: 4], strict=True)
    return Synset(
        offset=fields[0],
        lemmas=tuple(word.lower() for word in spellings),
        lexname=int(fields[1]),
        hypernyms=tuple(offset for kind, offset in above if kind in ("@", "@i")),
        gloss=_QUOTED.split(gloss)[0].strip(),
        spellings=spellings,
        full_gloss=gloss.strip(),
    )


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield numbered lines of a file, without the licence, which is indented."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise InputError(str(path), f"cannot be read ({error.strerror})") from error
    for number, line in enumerate(lines, start=1):
        if line.strip() and not line.startswith(b"  "):
            try:
                yield number, line.decode("utf-8")
            except UnicodeDecodeError:
                raise _damaged(path, number, "not UTF-8") from None


def _damaged(path: Path, number: int, what: str) -> InputError:
    return InputError(f"{path}:{number}", f"damaged: {what}")
