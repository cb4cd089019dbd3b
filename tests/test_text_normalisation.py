from __future__ import annotations

import string
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lexvla.errors import InputError
from lexvla.text_normalisation import normalise_text
from lexvla.vocabulary import Vocabulary
from lexvla_search import Query
from lexvla_search.encoded_query import encode_query
from lexvla_search.words import PlainWords, column_of, columns_of
from model_fakes import tiny_model
from search_fakes import FakeEncoder

WORDS = st.text(string.ascii_letters + string.digits + string.punctuation, min_size=1)


@pytest.mark.parametrize(
    ("typed", "plain"),
    [
        ("red heart", "red heart"),
        ("", ""),
        (" \t\n", ""),
        ("red\u00a0heart\u3000and\u2028star\r\n", "red heart and star"),
        # Invisible: soft hyphen, zero-width space, joiners, marks of direction, byte order mark.
        ("blow\u00adfish", "blowfish"),
        ("red \u200bheart\u200e", "red heart"),
        ("\u202ared\u202c\u2060 he\u200dar\u200ct\ufeff", "red heart"),
        ("\u200b", ""),
        # Quotes and apostrophes.
        ("\u201cred\u201d", '"red"'),
        ("\u201ered\u201c \u00abheart\u00bb \uff02star\uff02", '"red" "heart" "star"'),
        ("\u2018red\u2019 \u201aheart\u2018 \u2039star\u203a", "'red' 'heart' 'star'"),
        ("woman\u2019s man\u02bcs men\u00b4s 5\u2032 6\u2033", "woman's man's men's 5' 6''"),
        # Dashes.
        ("x\u2010ray x\u2011ray x\u2012ray x\u2013ray", "x-ray x-ray x-ray x-ray"),
        (
            "minus \u2212 dash \u2014 bar \u2015 wide \uff0d small \ufe63",
            "minus - dash - bar - wide - small -",
        ),
        # Compatibility forms and accents.
        ("\uff32\uff25\uff24 \ufb01re \u2122 \u2460 \u2026", "RED fire TM 1 ..."),
        ("cafe\u0301", "caf\u00e9"),
        ("e\u00ad\u0301", "\u00e9"),
        ("\u00c5land \u00d7 \u8d64", "\u00c5land \u00d7 \u8d64"),
    ],
)
def test_values(typed: str, plain: str) -> None:
    assert normalise_text(typed) == plain


@given(st.text())
def test_once_is_enough(text: str) -> None:
    plain = normalise_text(text)
    assert normalise_text(plain) == plain


def test_once_is_enough_for_every_character() -> None:
    text = "".join(f"{chr(i)}e" for i in range(sys.maxunicode + 1) if not 0xD800 <= i < 0xE000)
    plain = normalise_text(text)
    assert normalise_text(plain) == plain


@given(st.lists(WORDS))
def test_plain_words_stay_as_they_are(words: list[str]) -> None:
    assert normalise_text(" ".join(words)) == " ".join(words)


TYPED = ["red dog", "re\u00add \u200bdog", "\uff52ed\u00a0 dog\u200e", "red dog\n"]


def test_texts_are_normalised_before_they_are_tokenised() -> None:
    model = tiny_model()
    first, *others = model.prompt_ids(TYPED)
    assert others == [first] * 3
    curly, straight = model.prompt_ids(["\u201cthe cat\u2019s hat\u201d", '"the cat\'s hat"'])
    assert curly == straight


def test_a_text_of_invisible_characters_between_letters_is_known() -> None:
    encoding = tiny_model().encode_text(TYPED)
    assert encoding.lexical.nnz > 0
    rows = encoding.lexical.toarray()
    assert (rows == rows[0]).all()
    assert tiny_model().encode_text(["z\u00ad!"]).lexical.nnz == 0


def test_invisible_characters_do_not_count_towards_the_limit() -> None:
    model = tiny_model(max_text_tokens=2)
    padded = "\u200b" * 50 + "red" + "\u200b " * 50 + "dog" + " cat" * 9
    assert model.prompt_ids([padded]) == model.prompt_ids(["red dog"])


def test_single_words_are_normalised() -> None:
    rows = tiny_model().encode_words(["bicycle", "bi\u00adcycle", "bicycles", "bi\u200bcycles"])
    table = rows.lexical.toarray()
    assert (table[0] == table[1]).all()
    assert (table[2] == table[3]).all()


def test_words_are_looked_up_as_people_type_them() -> None:
    vocabulary = Vocabulary(["\u2581red", "\u2581T-Rex", "\ufb01re", "\u2581fire", "re\u00add"])
    assert vocabulary.find("r\u00aded") == 0
    assert vocabulary.find("T\u2011Rex") == 1
    # What is there as it was typed comes first.
    assert vocabulary.find("\ufb01re") == 2
    assert vocabulary.find("re\u00add") == 4
    assert vocabulary.find("gr\u00adeen") is None
    assert columns_of(vocabulary, "FI\u200bRE") == {2, 3}
    assert columns_of(vocabulary, " red\u200e") == {0, 4}
    assert column_of(vocabulary, "t\u2010rex") == 1


def test_queries_take_words_as_people_type_them() -> None:
    query = Query(
        text="red green",
        ban=["gr\u00adeen"],
        require=["re\u200bd"],
        boost={"\u200eRED": 2.0},
        terms={"b\uff4cue": 1.0},
    )
    plain = Query(
        text="red green", ban=["green"], require=["red"], boost={"red": 2.0}, terms={"blue": 1.0}
    )
    encoder = FakeEncoder()
    assert encode_query(query, encoder).constraints == encode_query(plain, encoder).constraints
    typed, expected = (
        encode_query(each, encoder).encoding.lexical.toarray() for each in (query, plain)
    )
    assert (typed == expected).all()
    row = PlainWords(encoder.vocabulary).encode_text(["r\u00aded"]).lexical
    assert row.indices.tolist() == [0]


def test_errors_name_the_users_own_text() -> None:
    encoder = FakeEncoder()
    with pytest.raises(InputError) as caught:
        encode_query(Query(text="red", ban=["ze\u00adbra"]), encoder)
    assert caught.value.item == "ze\u00adbra"
    with pytest.raises(InputError) as caught:
        columns_of(encoder.vocabulary, "\u201czebra\u201d")
    assert caught.value.item == "\u201czebra\u201d"


def test_invisible_text_is_blank() -> None:
    assert not Query(text="\u200b \u00ad").is_scored
    with pytest.raises(InputError, match="must not be blank"):
        Query(text="red", ban=["\u200b"])
