"""Normalisation of texts as people type and paste them."""

from __future__ import annotations

import unicodedata

__all__ = ["normalise_text"]

_ACUTE = "\u00b4"  # typed as an apostrophe; NFKC turns it into a space and an accent
_APOSTROPHES = "\u2018\u2019\u201a\u201b\u2032\u2035\u2039\u203a\u02b9\u02bb\u02bc"
_QUOTES = "\u201c\u201d\u201e\u201f\u00ab\u00bb\u301d\u301e\u301f"
_DASHES = "\u2010\u2012\u2013\u2014\u2015\u2043\u2212"
_STRAIGHT = str.maketrans(
    dict.fromkeys(_APOSTROPHES, "'") | dict.fromkeys(_QUOTES, '"') | dict.fromkeys(_DASHES, "-")
)


def normalise_text(text: str) -> str:
    r"""Return a text as it would be typed on a plain keyboard.

    Format characters (category Cf) are removed: soft hyphens, zero-width spaces, direction marks.
    Quotes, apostrophes and dashes become straight ones. Compatibility forms, such as ligatures
    and full-width letters, become plain letters (NFKC). Runs of white space become one space, and
    the ends are stripped. Case and accents stay.

    Example:
        >>> normalise_text("a\u200b woman\u2019s  \u201chat\u201d")
        'a woman\'s "hat"'
        >>> normalise_text("blow\u00adfish \u2013 blue")
        'blowfish - blue'
        >>> normalise_text(" \uff32\uff25\uff24 \ufb01re\n")
        'RED fire'
    """
    if text.isascii():  # most are, and need nothing else
        return " ".join(text.split())
    seen = "".join(c for c in text if unicodedata.category(c) != "Cf").replace(_ACUTE, "'")
    return " ".join(unicodedata.normalize("NFKC", seen).translate(_STRAIGHT).split())
