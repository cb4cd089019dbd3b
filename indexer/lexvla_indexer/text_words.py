"""The words of a text, as the leg ``text`` of every engine stores and looks them up."""

from __future__ import annotations

import unicodedata

__all__ = ["MAX_WORD_LENGTH", "text_words"]

MAX_WORD_LENGTH = 255  # letters; so that every word is a term that Lucene can store


def text_words(text: str) -> list[str]:
    """Return the words of a text in order, without case and accents.

    A word is a run of letters and digits of any script, cut off after 255; a Chinese character or a
    hiragana sign is a word of its own, as in Lucene's StandardTokenizer. Plurals and other
    inflections are words of their own too.

    Example:
        >>> text_words("A Café's 2 toucans, 鳥の絵")
        ['a', 'cafe', 's', '2', 'toucans', '鳥', 'の', '絵']
    """
    plain = unicodedata.normalize("NFKD", text).casefold()
    return [word[:MAX_WORD_LENGTH] for word in plain.translate(_LETTERS).split()]


class _Letters(dict[int, str]):
    """Map letters and digits to themselves, accents to nothing, and all else to spaces."""

    def __missing__(self, code: int) -> str:
        letter = chr(code)
        name = unicodedata.name(letter, "")
        if name.startswith("COMBINING"):
            mapped = ""
        elif unicodedata.category(letter)[0] not in "LMN":
            mapped = " "
        elif name.startswith(("CJK UNIFIED", "CJK COMPATIBILITY", "HIRAGANA")):
            mapped = f" {letter} "
        else:
            mapped = letter
        self[code] = mapped
        return mapped


_LETTERS = _Letters()
