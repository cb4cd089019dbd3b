from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lexvla import vocabulary as module
from lexvla.errors import ModelError
from lexvla.vocabulary import Vocabulary

# Lone surrogates are no text: UTF-8 cannot hold them, and no tokenizer has them.
TERMS = st.lists(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1),
    unique=True,
    max_size=30,
)


@pytest.fixture
def vocabulary() -> Vocabulary:
    return Vocabulary(["▁dog", "dog", "▁Cat", "s", "▁", "<0x0A>"], [10, 11, 12, 13, 14, 15])


def test_columns_terms_and_words(vocabulary: Vocabulary) -> None:
    assert len(vocabulary) == 6
    assert vocabulary.terms[0] == "▁dog"
    assert [vocabulary.word(i) for i in range(6)] == ["dog", "dog", "Cat", "s", "▁", "<0x0A>"]
    assert [vocabulary.id(term) for term in vocabulary.terms] == list(range(6))
    assert vocabulary.token_ids == (10, 11, 12, 13, 14, 15)
    with pytest.raises(KeyError):
        vocabulary.id("cat")
    with pytest.raises(IndexError):
        vocabulary.word(6)


@pytest.mark.parametrize(
    ("terms", "word", "found"),
    [
        (["dog", "▁dog"], "dog", "▁dog"),
        (["dog"], "dog", "dog"),
        (["▁dog", "dog", "Dog", "▁Dog"], "Dog", "▁Dog"),
        (["▁dog", "dog", "Dog"], "Dog", "Dog"),
        (["▁dog", "dog"], "Dog", "▁dog"),
        (["dog"], "DOG", "dog"),
        (["▁Dog"], "dog", None),
        (["▁"], "", "▁"),
        ([], "dog", None),
    ],
)
def test_find_looks_in_the_stated_order(terms: list[str], word: str, found: str | None) -> None:
    column = Vocabulary(terms).find(word)
    assert (None if column is None else terms[column]) == found


def test_sha256_names_terms_and_their_order() -> None:
    expected = hashlib.sha256("▁a\0b".encode()).hexdigest()
    assert Vocabulary(["▁a", "b"]).sha256 == expected
    assert Vocabulary(["▁a", "b"], [1, 2]).sha256 == expected
    assert Vocabulary(["b", "▁a"]).sha256 != expected


def test_equality_is_of_terms() -> None:
    assert Vocabulary(["a", "b"]) == Vocabulary(iter(["a", "b"]), [1, 2])
    assert hash(Vocabulary(["a", "b"])) == hash(Vocabulary(["a", "b"]))
    assert Vocabulary(["a", "b"]) != Vocabulary(["b", "a"])
    assert Vocabulary(["a"]) != ("a",)
    assert repr(Vocabulary(["a"])) == "Vocabulary(1 terms, sha256 ca978112ca1b)"


@pytest.mark.parametrize(
    ("terms", "ids", "message"),
    [
        (["a", "b", "a"], None, "'a' twice"),
        (["a", "b"], [1], "2 terms but 1 token ids"),
        (["a", ""], None, "'' is not a valid term"),
        (["a\0b"], None, "is not a valid term"),
        (["a", 3], None, "3 is not a valid term"),
        ([["a"]], None, "is not a valid term"),
    ],
)
def test_bad_terms_are_refused(terms: list[Any], ids: list[int] | None, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        Vocabulary(terms, ids)


@given(terms=TERMS, with_ids=st.booleans())
def test_save_and_load(
    tmp_path_factory: pytest.TempPathFactory, terms: list[str], with_ids: bool
) -> None:
    path = tmp_path_factory.mktemp("vocabulary") / "vocabulary.json"
    vocabulary = Vocabulary(terms, range(5, 5 + len(terms)) if with_ids else None)
    vocabulary.save(path)
    again = Vocabulary.load(str(path))
    assert again == vocabulary
    assert again.token_ids == vocabulary.token_ids
    assert again.sha256 == vocabulary.sha256


@given(one=TERMS, other=TERMS)
def test_different_vocabularies_have_different_names(one: list[str], other: list[str]) -> None:
    assert (Vocabulary(one).sha256 == Vocabulary(other).sha256) == (one == other)


@given(terms=TERMS)
def test_every_word_is_found_again(terms: list[str]) -> None:
    vocabulary = Vocabulary(terms)
    for column in range(len(vocabulary)):
        word = vocabulary.word(column)
        found = vocabulary.find(word)
        assert found is not None
        assert vocabulary.terms[found] in ("▁" + word, word)


def saved(tmp_path: Path, **changes: Any) -> Path:
    path = tmp_path / "vocabulary.json"
    Vocabulary(["▁a", "b"], [1, 2]).save(path)
    data = json.loads(path.read_text(encoding="utf-8")) | changes
    data = {key: value for key, value in data.items() if value is not ...}
    path.write_text(json.dumps(data), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": module._FORMAT_VERSION + 1}, "newer than this program"),
        ({"terms": ["▁a", "c"]}, "do not match their sha256"),
        ({"terms": ["▁a", "▁a"]}, "twice"),
        ({"terms": [1, 2]}, "is not a valid term"),
        ({"terms": 7}, "the vocabulary cannot be read"),
        ({"terms": ...}, "the vocabulary cannot be read"),
        ({"sha256": ...}, "the vocabulary cannot be read"),
        ({"format_version": "one"}, "the vocabulary cannot be read"),
        ({"token_ids": [1]}, "2 terms but 1 token ids"),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        Vocabulary.load(saved(tmp_path, **changes))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"null"])
def test_files_of_another_kind_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "vocabulary.json"
    path.write_bytes(content)
    with pytest.raises(ModelError, match="the vocabulary cannot be read"):
        Vocabulary.load(path)
    with pytest.raises(ModelError, match="the vocabulary cannot be read"):
        Vocabulary.load(tmp_path / "missing.json")


class Pieces:
    """A tokenizer of given pieces that splits at spaces."""

    all_special_ids = (0, 1)

    def __init__(self, *pieces: str) -> None:
        self.pieces = pieces

    def get_vocab(self) -> dict[str, int]:
        return {piece: i for i, piece in enumerate(self.pieces)}

    def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
        assert not add_special_tokens
        return {"input_ids": [self.pieces.index("▁" + word) for word in text.split()]}


PIECES = Pieces(
    "</s>",
    "unk",
    "▁dog",
    "dog",
    "▁a",
    "▁Cat",
    "Ġhat",
    "<0x0A>",
    "▁naïve",
    "▁8th",
    "▁",
    "▁the",
    "'s",
)


def test_the_rule_letters_keeps_words_of_ascii_letters() -> None:
    vocabulary = Vocabulary.from_tokenizer(PIECES)
    assert vocabulary.terms == ("▁dog", "dog", "▁Cat", "Ġhat", "▁the")
    assert vocabulary.token_ids == (2, 3, 5, 6, 11)
    assert vocabulary.word(3) == "hat"
    assert vocabulary.find("hat") == 3
    assert vocabulary.find("Hat") == 3


def test_the_rule_all_drops_control_pieces() -> None:
    assert Vocabulary.from_tokenizer(PIECES, "all").token_ids == tuple(range(2, 13))


def test_pieces_that_no_text_produces_are_dropped() -> None:
    texts = (text for text in ["the dog", "dog 8th"])
    assert Vocabulary.from_tokenizer(PIECES, texts=texts).terms == ("▁dog", "▁the")


@pytest.mark.parametrize(
    ("rule", "texts", "words"),
    [
        ("letters", [], "'letters' leaves no piece, given these texts"),
        ("letters", ["8th a"], "'letters' leaves no piece, given these texts"),
        ("words", None, "'words': use letters or all"),
    ],
)
def test_a_rule_that_leaves_no_word(rule: str, texts: list[str] | None, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        Vocabulary.from_tokenizer(PIECES, rule, texts)
    with pytest.raises(ModelError, match=r"leaves no piece$"):
        Vocabulary.from_tokenizer(Pieces("</s>", "unk", "8"))
