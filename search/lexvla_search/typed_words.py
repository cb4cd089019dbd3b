"""Which words of a query's text its encoder knows, and what unknown ones may be meant to be."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lexvla.data.phrasings import FRAMES
from lexvla.encoder import Encoder
from lexvla.known_words import KnownWords, fold
from lexvla.text_normalisation import normalise_text
from lexvla_indexer.text_words import text_words

if TYPE_CHECKING:
    from lexvla_search import schema

__all__ = ["WORD", "UnknownWord", "did_you_mean", "say_unknown", "telling", "understood"]

WORD = re.compile(r"(?:[^\W_]|[\u0300-\u036f])+")  # letters and digits, and accents of letters
_NEAREST = 3
_COMPARED = 16  # unknown words; any further ones, in a long text, get no suggestions

# Words that mean nothing by themselves, besides those of "a photo of ..." and the like, with
# pieces of "don't" and "they're".
_FUNCTION_WORDS = """
    about after all also am and any are aren as at be been before being but by can could d did didn
    do does doesn doing don for from had has have having he her here hers him his how if in into is
    isn it its just ll m may me might most must mine near no not off on onto or other our ours out
    over please re s search shall she should so such t than that their them then there these they
    this those through to too under until up upon us used very ve was wasn we were what when where
    which while who whom whose why will with within without would you your yours
    drawings emojis icon icons images photograph photographs
"""
_FRAME_WORDS = re.sub(r"{.*?}", " ", " ".join(FRAMES))
_FILLERS = frozenset(WORD.findall(f"{_FUNCTION_WORDS} {_FRAME_WORDS}"))


@dataclass(frozen=True)
class UnknownWord:
    """A word of a query's text that the encoder does not know.

    `nearest` are known words that may be meant, the likeliest first; there may be none.
    """

    word: str
    nearest: tuple[str, ...]

    def to_dict(self) -> schema.UnknownWord:
        """Return plain values for JSON."""
        return {"word": self.word, "nearest": list(self.nearest)}

    def __str__(self) -> str:
        return f"{self.word}{did_you_mean(' (', self.nearest, ')')}"


def did_you_mean(before: str, nearest: Sequence[str], after: str = "") -> str:
    """Return "did you mean bird or bride?" between two texts; nothing if `nearest` is empty."""
    if not nearest:
        return ""
    listed = " or ".join(filter(None, [", ".join(nearest[:-1]), nearest[-1]]))
    return f"{before}did you mean {listed}?{after}"


def say_unknown(unknown: Iterable[UnknownWord]) -> str:
    """Return a sentence that names the unknown words."""
    return f"no such word: {', '.join(map(str, unknown))}"


def telling(text: str, banned: Iterable[str] = ()) -> str:
    """Return the words of a text to look for in documents' texts.

    Banned words are left out, and function words and those of "a photo of" too, unless there are no
    others.
    """
    not_asked = {part for word in banned for part in text_words(word)}
    words = [word for word in text_words(text) if word not in not_asked]
    return " ".join([word for word in words if word not in _FILLERS] or words)


def understood(text: str, encoder: Encoder) -> tuple[str, tuple[UnknownWord, ...]]:
    """Return the part of a text that an encoder understands, and the words that it does not know.

    A text whose words are all known is left as it is, as is any text if the encoder has no
    ``known_words``. Otherwise unknown words are removed: a tokenizer would read their pieces as
    other words. The result is empty if only words such as "a photo of" are left. Function words
    are never reported as unknown.
    """
    known: KnownWords | None = getattr(encoder, "known_words", None)
    if known is None:
        return text, ()
    plain = normalise_text(text)
    words = {fold(word): word for word in WORD.findall(plain)}
    meant = [word for word in words if word in known]
    missing = [word for word in words if word not in known and word not in _FILLERS]
    if missing:
        meant = [word for word in meant if word not in _FILLERS]
        text = WORD.sub(lambda found: "" if fold(found[0]) in missing else found[0], plain)
    unknown = []
    for place, word in enumerate(missing):
        nearest = known.nearest(word, _NEAREST) if place < _COMPARED else ()
        unknown.append(UnknownWord(words[word], tuple(nearest)))
    return text if meant else "", tuple(unknown)
