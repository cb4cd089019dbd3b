from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lexvla.data.phrasings import FRAMES, phrase, plural, title_case, with_article


@pytest.mark.parametrize(
    ("one", "more"),
    [
        ("red heart", "red hearts"),
        ("dog", "dogs"),
        # Rules of spelling.
        ("bus", "buses"),
        ("wine glass", "wine glasses"),
        ("fox", "foxes"),
        ("peach", "peaches"),
        ("toothbrush", "toothbrushes"),
        ("strawberry", "strawberries"),
        ("monkey", "monkeys"),
        ("potato", "potatoes"),
        ("taco", "tacos"),
        ("giraffe", "giraffes"),
        ("roof", "roofs"),
        ("octopus", "octopuses"),
        # Irregular nouns, and compounds of them.
        ("child", "children"),
        ("man", "men"),
        ("pregnant woman", "pregnant women"),
        ("person", "people"),
        ("merperson", "merpeople"),
        ("snowman", "snowmen"),
        ("human", "humans"),
        ("foot", "feet"),
        ("tooth", "teeth"),
        ("goose", "geese"),
        ("mongoose", "mongooses"),
        ("computer mouse", "computer mice"),
        ("maple leaf", "maple leaves"),
        ("kitchen knife", "kitchen knives"),
        ("wolf", "wolves"),
        ("ox", "oxen"),
        ("game die", "game dice"),
        # Alike, or plural already.
        ("sheep", "sheep"),
        ("tropical fish", "tropical fish"),
        ("blowfish", "blowfish"),
        ("aircraft", "aircraft"),
        ("crossed fingers", "crossed fingers"),
        ("people with bunny ears", "people with bunny ears"),
        # The word that names the things is not always the last.
        ("slice of pizza", "slices of pizza"),
        ("face with tears of joy", "faces with tears of joy"),
        ("woman running", "women running"),
        ("face blowing a kiss", "faces blowing a kiss"),
        ("flag: South Korea", "flags: South Korea"),
        ("A button (blood type)", "A buttons (blood type)"),
        ("family: man, woman, boy", "families: man, woman, boy"),
        ("classical building", "classical buildings"),
        ("jack-o-lantern", "jack-o-lanterns"),
        ("keycap: #", "keycaps: #"),
        # Case and what is no word.
        ("Man", "Men"),
        ("WOLF", "WOLVES"),
        ("Person", "People"),
        ("T-Rex", "T-Rexes"),
        ("a dog.", "a dogs."),
        ("10", "10"),
        ("", ""),
    ],
)
def test_plural(one: str, more: str) -> None:
    assert plural(one) == more


@pytest.mark.parametrize(
    "expected",
    [
        "an apple",
        "a red apple",
        "an eye",
        "an ogre",
        "an umbrella",
        "a unicorn",
        "a uniform",
        "an unidentified object",
        "an unlocked door",
        "a ukulele",
        "a US flag",
        "an usher",
        "a euro banknote",
        "a ewe",
        "a one-piece swimsuit",
        "an onion",
        "an hourglass",
        "a house",
        "an x-ray",
        "a t-shirt",
        "an e-mail",
        "an A button",
        "a B button",
        "an NG button",
        "an OK hand",
        "an 8 ball",
        "an 18 button",
        "a 1st place medal",
        "a “here” button",
        "a #",
    ],
)
def test_with_article(expected: str) -> None:
    assert with_article(expected.split(" ", 1)[1]) == expected


def phrases(text: str, count: int = 8000) -> Counter[str]:
    rng = np.random.default_rng(0)
    return Counter(phrase(text, rng) for _ in range(count))


def test_half_of_the_phrases_are_plain() -> None:
    found = phrases("red heart")
    assert 0.47 < found["red heart"] / found.total() < 0.53


def test_all_ways_are_used() -> None:
    found = phrases("an old wolf")
    assert found.keys() >= {
        "photo of an old wolf",
        "a photo of an old wolf.",
        "a photo of a old wolf.",
        "a picture of an old wolf",
        "picture of two old wolves",
        "an image of the old wolf",
        "drawing of an old wolf",
        "old wolf picture",
        "old wolf photo",
        "show me an old wolf",
        "two old wolves",
        "old wolves",
        "my old wolf",
        "the old wolf",
        "AN OLD WOLF",
        "An Old Wolf",
        "An old wolf",
        "an old wolf.",
    }
    # Both at once.
    assert {"PHOTO OF AN OLD WOLF", "Old Wolves", "My old wolf", "two old wolves."} <= found.keys()
    frames = {
        frame.format(text="an old wolf", bare="old wolf", a="an old wolf", plural="old wolves")
        for frame in FRAMES
    }
    assert frames <= found.keys()


def test_a_seed_gives_the_same_phrases() -> None:
    one, other = np.random.default_rng(7), np.random.default_rng(7)
    assert [phrase("cat", one) for _ in range(50)] == [phrase("cat", other) for _ in range(50)]


def test_a_blank_text_stays_as_it_is() -> None:
    assert phrases("", 100) == {"": 100}
    assert phrases("  ", 100) == {"  ": 100}


@given(st.text(), st.integers(0, 2**32))
def test_any_text_has_phrases(text: str, seed: int) -> None:
    assert phrase(text, np.random.default_rng(seed)).strip() or not text.strip()


def test_title_case() -> None:
    assert title_case("the man’s T-rex  hat") == "The Man’s T-rex  Hat"
    assert title_case("") == ""
