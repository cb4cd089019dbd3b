from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from lexvla.config import PROMPT
from lexvla.tokens import cut
from lexvla.training.tokenizer import build_vocabulary, train_tokenizer
from lexvla.vocabulary import Vocabulary
from model_fakes import CAPTIONS, STOP_WORDS, tokenizer


@pytest.fixture(scope="module")
def pieces() -> PreTrainedTokenizerFast:
    return tokenizer()


def test_every_word_of_the_captions_is_one_piece(pieces: PreTrainedTokenizerFast) -> None:
    assert pieces.tokenize("two blue birds, flying") == ["▁two", "▁blue", "▁birds", "▁,", "▁flying"]
    assert pieces.tokenize("the cat's green hat") == ["▁the", "▁cat", "▁'", "▁s", "▁green", "▁hat"]


def test_a_word_is_one_piece_wherever_it_stands(pieces: PreTrainedTokenizerFast) -> None:
    assert pieces.tokenize('"dog", dog\tdog\n') == ['▁"', "▁dog", '▁"', "▁,", "▁dog", "▁dog"]
    assert pieces.tokenize("dog-dog(dog)").count("▁dog") == 3


def test_case_and_accents_are_taken_off(pieces: PreTrainedTokenizerFast) -> None:
    assert pieces.tokenize("CAFÉ Cafe\u0301 cafe") == ["▁cafe"] * 3


def test_unknown_words_are_split_into_known_pieces(pieces: PreTrainedTokenizerFast) -> None:
    split = pieces.tokenize("redhat")
    assert len(split) > 1
    assert "".join(split) == "▁redhat"
    assert pieces.convert_tokens_to_ids("<unk>") in pieces("собака")["input_ids"]


def test_a_rare_whole_word_wins_over_frequent_parts() -> None:
    # "sunflower" occurs once, "sun" and "flower" often: it is one piece all the same.
    captions = ["sun", "flower"] * 50 + ["sunflower"]
    assert train_tokenizer(captions, 30).tokenize("sunflower") == ["▁sunflower"]


def test_the_smaller_pieces_are_letters_first_and_then_what_words_share() -> None:
    pieces = train_tokenizer(["walking talking"], 11).get_vocab()
    letters = {"▁", *"aiklngtw"}
    assert pieces.keys() == {
        *("<unk>", "<s>", "</s>", "▁walking", "▁talking"),
        *(letters | {"alking", "alkin"}),
    }


def test_special_tokens_come_first(pieces: PreTrainedTokenizerFast) -> None:
    assert pieces.convert_ids_to_tokens([0, 1, 2]) == ["<unk>", "<s>", "</s>"]
    assert (pieces.unk_token, pieces.bos_token, pieces.eos_token) == ("<unk>", "<s>", "</s>")


def test_texts_come_back(pieces: PreTrainedTokenizerFast) -> None:
    ids = pieces("two blue birds")["input_ids"]
    assert pieces.decode(ids) == "two blue birds"


def test_the_vocabulary_keeps_what_names_things(pieces: PreTrainedTokenizerFast) -> None:
    vocabulary = build_vocabulary(pieces, CAPTIONS, STOP_WORDS)
    words = {vocabulary.word(i) for i in range(len(vocabulary))}
    # Neither stop words, nor the comma and quote, nor words of the prompt alone ("focus").
    assert sorted(words) == [
        *("bicycle", "birds", "blue", "cafe", "cat", "dog", "flying", "green", "hat", "horse"),
        *("man", "red", "riding", "two", "white"),
    ]
    assert all(term.startswith("▁") for term in vocabulary.terms)
    assert vocabulary.token_ids is not None
    assert pieces.convert_ids_to_tokens(list(vocabulary.token_ids)) == list(vocabulary.terms)


def test_words_of_other_scripts_are_no_terms() -> None:
    captions = ["dog собака", "犬 7 dog2"]
    vocabulary = build_vocabulary(train_tokenizer(captions, 40), captions, frozenset())
    assert set(vocabulary.terms) == {"▁dog", "▁7", "▁dog2"}


def test_a_saved_tokenizer_gives_the_same_ids(
    pieces: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    pieces.save_pretrained(tmp_path)
    loaded = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    texts = [*CAPTIONS, PROMPT, "redhat", "собака", "", "</s>"]
    assert loaded(texts)["input_ids"] == pieces(texts)["input_ids"]
    assert len(loaded) == len(pieces)


def test_two_trainings_give_the_same_tokenizer() -> None:
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdeimnorst"), rng.integers(3, 9))) for _ in range(600)]
    captions = [" ".join(rng.choice(words, 3)) for _ in range(1000)]
    trained = [train_tokenizer(captions, 200) for _ in range(3)]
    assert len({each.backend_tokenizer.to_str() for each in trained}) == 1


def test_a_vocabulary_of_its_tokenizer_can_be_saved(
    pieces: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    vocabulary = build_vocabulary(pieces, CAPTIONS, STOP_WORDS)
    vocabulary.save(tmp_path / "vocabulary.json")
    loaded = Vocabulary.load(tmp_path / "vocabulary.json")
    assert (loaded.terms, loaded.token_ids) == (vocabulary.terms, vocabulary.token_ids)


def test_known_words_are_whole_and_in_one_row_behind_those_of_the_captions() -> None:
    texts = ["a zebra’s savanna", "okapi, dog"]
    pieces = train_tokenizer(CAPTIONS, 60, texts)
    assert pieces.tokenize("zebra okapi savanna") == ["▁zebra", "▁okapi", "▁savanna"]
    ids = sorted(pieces.convert_tokens_to_ids(["▁zebra", "▁okapi", "▁savanna"]))
    assert ids == list(range(ids[0], ids[0] + 3))
    own = set(pieces(list(CAPTIONS))["input_ids"][0])
    assert max(own) < ids[0]
    assert pieces.convert_tokens_to_ids("d") > ids[-1]  # smaller pieces come last
    assert not {"▁zebra", "▁okapi"} & set(build_vocabulary(pieces, CAPTIONS, STOP_WORDS).terms)


def test_known_words_leave_the_others_as_they_were(pieces: PreTrainedTokenizerFast) -> None:
    more = train_tokenizer([*CAPTIONS, PROMPT], 60, ["zebra", "dog", "xylophone"])
    for text in (*CAPTIONS, "redhat", "catbird"):
        assert more.tokenize(text) == pieces.tokenize(text)
    assert more.tokenize("xylophone") == ["▁xylophone"]


def test_words_are_those_of_normalised_text() -> None:
    """As the model reads them: with straight quotes, and without what is not seen."""
    pieces = train_tokenizer(["the cat’s blow\u00adfish", "\uff32\uff25\uff24 hat"], 20)
    assert pieces.tokenize("cat's blowfish red hat") == [
        *("▁cat", "▁'", "▁s", "▁blowfish", "▁red", "▁hat"),
    ]
    assert "▁’" not in pieces.get_vocab()


def test_short_texts_are_not_tokenized_to_be_cut() -> None:
    calls: list[list[str]] = []

    class Letters:
        def __call__(self, texts: list[str], **_: bool) -> dict[str, list[list[tuple[int, int]]]]:
            calls.append(texts)
            marked = [[(i, i + half) for i in range(len(t)) for half in (0, 1)] for t in texts]
            return {"offset_mapping": marked}

    assert cut(Letters(), [" a  b "], 7) == ["a b"]
    assert calls == []
    assert cut(Letters(), ["a bc"], 7) == ["a b"]
    assert cut(Letters(), ["a b"], 6) == ["a b"]
    assert cut(Letters(), ["\u00fc"], 7) == ["\u00fc"]
    assert calls == [["a bc"], ["a b"], ["\u00fc"]]
