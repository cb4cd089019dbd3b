"""Known words, and words that are near, against a plain recursion."""

from __future__ import annotations

from functools import cache

from hypothesis import given
from hypothesis import strategies as st

from lexvla.data.phrasings import plural, singulars
from lexvla.known_words import LONGEST, KnownWords, fold
from model_fakes import tiny_model

letters = st.text("abc", max_size=7)


def edits_between(word: str, other: str) -> int:
    """Count insertions, deletions, changes, and swaps of neighbours, as textbooks do."""

    @cache
    def edits(i: int, j: int) -> int:
        if not i or not j:
            return i + j
        same = word[i - 1] == other[j - 1]
        ways = [edits(i - 1, j) + 1, edits(i, j - 1) + 1, edits(i - 1, j - 1) + (not same)]
        if i > 1 and j > 1 and word[i - 2 : i] == other[j - 1] + other[j - 2]:
            ways.append(edits(i - 2, j - 2) + 1)
        return min(ways)

    return edits(len(word), len(other))


@given(letters, st.lists(letters))
def test_near_words_come_by_edits_then_as_they_were_given(word: str, words: list[str]) -> None:
    allowed = {0: 0, 1: 0, 2: 0, 3: 1, 4: 1}.get(len(word), 2)
    near = [each for each in dict.fromkeys(words) if each and edits_between(word, each) <= allowed]
    expected = sorted(near, key=lambda each: edits_between(word, each)) if allowed else []
    assert KnownWords(words).nearest(word, most=99) == expected


def test_words_are_known_in_any_case_and_with_or_without_accents() -> None:
    known = KnownWords(["Café", "dog", "ÑANDÚ"])
    for word in ("cafe", "CAFÉ", "cafe\u0301", "Dog", "nandu"):
        assert word in known
    for word in ("caf", "dogs", "", "собака"):
        assert word not in known
    assert known.nearest("CAFÈS") == ["cafe"]
    assert fold("Straße") == "strasse"


def test_plurals_are_known_only_where_that_is_said() -> None:
    known = KnownWords(["kitten", "wolf", "box", "snowman", "puppy"], plurals=True)
    for word in ("kittens", "Wolves", "boxes", "snowmen", "puppies"):
        assert word in known
    for word in ("kittenes", "wolfs", "boxs", "puppys", "s", "es"):
        assert word not in known
    assert known.nearest("kitens") == ["kitten"]
    assert "kittens" not in KnownWords(["kitten"])


@given(st.from_regex(r"[a-z]{1,9}|[a-z]{1,5}(man|fish|person|tooth|y|ss|z)", fullmatch=True))
def test_a_plural_leads_back_to_its_word(word: str) -> None:
    made = plural(word)
    assert word in singulars(made) | {made}


def test_a_swap_is_one_edit_and_common_words_come_first() -> None:
    assert KnownWords(["bird", "bride", "braid"]).nearest("brid") == ["bird", "bride", "braid"]
    assert KnownWords(["bride", "bird"]).nearest("brid") == ["bride", "bird"]
    assert KnownWords(["ab", "bird"]).nearest("ba") == []
    assert KnownWords(["xx", "dog"]).nearest("xyzzyx") == []


def test_the_stem_of_a_verb_form_is_near() -> None:
    known = KnownWords(["dumping", "jump", "care", "run", "red"])
    assert known.nearest("jumping") == ["jump", "dumping"]
    assert known.nearest("caring")[0] == "care"
    assert known.nearest("running") == ["run"]
    assert known.nearest("red", most=1) == ["red"]


def test_very_long_words_are_compared_with_nothing() -> None:
    long = "a" * (LONGEST + 1)
    known = KnownWords([long, long[1:]])
    assert known.nearest(long[1:] + "b") == []
    assert known.nearest(long[2:]) == [long[1:]]
    assert long in known


def test_a_model_knows_its_vocabulary_and_plurals_but_not_pieces() -> None:
    model = tiny_model()
    known = model.known_words
    assert known is model.known_words is not None
    assert model.tokenizer.tokenize("bicyc") == ["▁bicyc"]  # a piece of "bicycle"
    for word in ("horse", "Birds", "Café", "dogs", "bicycles"):
        assert word in known
    for word in ("bicyc", "bird", "the", "focus", "redhat", "sses"):
        assert word not in known
    assert known.nearest("hosre") == ["horse"]
    assert tiny_model(require_known_word=False).known_words is None


def test_words_of_known_tokens_are_known() -> None:
    plain = tiny_model()
    (token,) = plain.tokenizer.convert_tokens_to_ids(["▁focus"])
    known = tiny_model(known_tokens=(token, token + 1)).known_words
    assert known is not None
    assert "focus" in known
    assert "important" not in known
