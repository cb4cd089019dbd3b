"""Phrasings of searches as people type them: "photo of a red heart", "two dogs"."""

from __future__ import annotations

import re

import numpy as np

__all__ = ["FRAMES", "phrase", "plural", "singulars", "title_case", "with_article"]

# {text} is the text, {bare} the text without an article, {a} the bare text after "a" or "an", and
# {plural} its plural.
FRAMES = (
    "photo of {text}",
    "photo of {a}",
    "a photo of {a}.",
    "a photo of a {bare}.",  # as programs write it, "a apple" too
    "picture of {text}",
    "a picture of {a}",
    "picture of two {plural}",
    "a photo of two {plural}",
    "photos of {plural}",
    "pictures of {plural}",
    "an image of the {bare}",
    "image of {text}",
    "drawing of {a}",
    "a drawing of {text}.",
    "emoji of {a}",
    "{bare} picture",
    "{bare} photo",
    "{bare} image",
    "{bare} drawing",
    "{bare} emoji",
    "show me {text}",
    "show me {a}",
    "show me pictures of {plural}",
    "find {text}",
    "i am looking for {a}",
    "{a}",
    "the {bare}",
    "my {bare}",
    "some {plural}",
    "two {plural}",
    "three {plural}",
    "{plural}",
    "{plural}",
    "{plural}",
)
_PLAIN_SHARE = 0.5
_FRAMED_SHARE = 0.8  # of the others; the rest differ in case or by a full stop only
_WRITTEN_SHARE = 0.3  # of the framed, which also differ in case or by a full stop

# fmt: off
_SAME = frozenset({
    "bison", "buffalo", "children", "clothes", "corn", "deer", "dice", "elk", "feet", "geese",
    "lice", "men", "mice", "moose", "offspring", "oxen", "people", "salmon", "scissors", "series",
    "sheep", "shrimp", "species", "squid", "swine", "teeth", "trout", "women",
})
_OES = frozenset({
    "domino", "echo", "hero", "mango", "mosquito", "potato", "superhero", "tomato", "tornado",
    "torpedo", "volcano",
})
_NO_MEN = frozenset({
    "caiman", "german", "human", "norman", "ottoman", "roman", "shaman", "talisman",
})
# Nouns that a label puts before a verb: "woman running".
_DOERS = frozenset({
    "adult", "boy", "cat", "chart", "child", "dog", "face", "girl", "head", "leaf", "man",
    "person", "woman",
})
# fmt: on
_IRREGULAR = {
    "calf": "calves",
    "child": "children",
    "die": "dice",
    "elf": "elves",
    "foot": "feet",
    "gas": "gases",
    "goose": "geese",
    "half": "halves",
    "hoof": "hooves",
    "iris": "irises",
    "knife": "knives",
    "leaf": "leaves",
    "lens": "lenses",
    "life": "lives",
    "loaf": "loaves",
    "louse": "lice",
    "man": "men",
    "mouse": "mice",
    "ox": "oxen",
    "person": "people",
    "quiz": "quizzes",
    "rhinoceros": "rhinoceroses",
    "scarf": "scarves",
    "self": "selves",
    "sheaf": "sheaves",
    "shelf": "shelves",
    "thief": "thieves",
    "tooth": "teeth",
    "wharf": "wharves",
    "wife": "wives",
    "wolf": "wolves",
    "woman": "women",
}
# Ends of compound words: "snowman", "merperson", "grandchild", "eyetooth", "blowfish", "aircraft".
_COMPOUNDS = ("man", "person", "child", "tooth")
_SAME_COMPOUNDS = ("fish", "craft")

# Only the words before this are put into the plural.
_BREAK = re.compile(
    r"\s*[:,(]|\s(?:of|with|without|in|on|at|for|from|to|by|showing|behind|under|over)\s"
)
_VOWELS = "aeiou"
_LETTERS_WITH_AN = frozenset("aefhilmnorsx")
_NUMBERS_WITH_AN = re.compile(r"8\d*$|11$|18$|1[18]\d{3}$")
_SAID_WITH_A = re.compile(r"eu|ewe|once|ones?$|ufo|uk|uni(?![nmd])|uran|us(?:$|[aeu])|ut[eio]")
_SAID_WITH_AN = re.compile(r"hour|honest|honou?r|heir")


def phrase(text: str, rng: np.random.Generator) -> str:
    """Return a random phrasing of a text with the same meaning; half of the time the text itself.

    Otherwise it is put into one of the `FRAMES`, its case is changed, a full stop is added, or
    both. Blank texts stay as they are.
    """
    if not text.strip() or rng.random() < _PLAIN_SHARE:
        return text
    if rng.random() >= _FRAMED_SHARE:
        return _write(text, rng)
    bare = _without_article(text)
    framed = FRAMES[rng.integers(len(FRAMES))].format(
        text=text, bare=bare, a=with_article(bare), plural=plural(bare)
    )
    return _write(framed, rng) if rng.random() < _WRITTEN_SHARE else framed


def plural(text: str) -> str:
    """Return the English plural of a noun phrase, by rules and a list of irregular nouns.

    The last word changes, or the last one before a preposition, colon, comma or bracket; before a
    verb, the first. An unknown word that ends in s counts as a plural.

    Example:
        >>> plural("red heart"), plural("slice of pizza"), plural("woman running")
        ('red hearts', 'slices of pizza', 'women running')
    """
    first, _, rest = text.partition(" ")
    if first.lower() in _DOERS and re.match(r"\w+ing\b", rest):
        return f"{_plural_word(first)} {rest}"
    found = _BREAK.search(text)
    end = found.start() if found else len(text)
    head, tail = text[:end], text[end:]
    match = re.search(r"[^\W\d_]+(?=[^\w]*$)", head)
    if match is None:
        return text
    return head[: match.start()] + _plural_word(match.group()) + head[match.end() :] + tail


def singulars(word: str) -> set[str]:
    """Return the words, in lower case, of which one in lower case may be the English plural.

    Example:
        >>> sorted(singulars("axes")), singulars("wolves"), singulars("cat")
        (['ax', 'axe'], {'wolf'}, set())
    """
    cut = {word.removesuffix("s"), word.removesuffix("es"), f"{word.removesuffix('ies')}y"}
    cut |= {word.removesuffix(many) + one for one, many in _IRREGULAR.items()}
    return {one for one in cut if one != word and _plural_of(one) == word}


def with_article(text: str) -> str:
    """Put "a" or "an" before a text, by how its first word is pronounced.

    Example:
        >>> with_article("apple"), with_article("unicorn"), with_article("x-ray")
        ('an apple', 'a unicorn', 'an x-ray')
    """
    match = re.search(r"[^\W_]+", text)
    return f"an {text}" if match and _takes_an(match.group()) else f"a {text}"


def title_case(text: str) -> str:
    """Capitalise the first letter of each word."""
    return " ".join(word[:1].upper() + word[1:] for word in text.split(" "))


def _takes_an(word: str) -> bool:
    lower = word.lower()
    if lower[0].isdigit():
        return bool(_NUMBERS_WITH_AN.match(lower))
    spelt = len(word) == 1 or (word.isupper() and not set(lower) & set(_VOWELS + "y"))
    if spelt:
        return lower[0] in _LETTERS_WITH_AN
    if _SAID_WITH_A.match(lower):
        return False
    return lower[0] in _VOWELS or bool(_SAID_WITH_AN.match(lower))


def _without_article(text: str) -> str:
    first, _, rest = text.partition(" ")
    return rest if rest and first.lower() in ("a", "an", "the") else text


def _plural_word(word: str) -> str:
    made = _plural_of(word.lower())
    if len(word) > 1 and word.isupper():
        return made.upper()
    return word[:1] + made[1:] if made[:1] == word[:1].lower() else made


def _plural_of(word: str) -> str:
    """Return the plural of a word in lower case."""
    if word in _SAME or word.endswith(_SAME_COMPOUNDS):
        return word
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    for end in _COMPOUNDS:
        if word.endswith(end) and word not in _NO_MEN:
            return word.removesuffix(end) + _IRREGULAR[end]
    if word in _OES or word.endswith(("ss", "us", "x", "z", "ch", "sh")):
        return f"{word}es"
    if word.endswith("s"):
        return word
    if word.endswith("y") and len(word) > 1 and word[-2] not in _VOWELS:
        return f"{word[:-1]}ies"
    return f"{word}s"


def _write(text: str, rng: np.random.Generator) -> str:
    ways = (text.upper(), title_case(text), text[:1].upper() + text[1:], f"{text.rstrip('.')}.")
    return ways[rng.integers(len(ways))]
