from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from lexvla.errors import ModelError
from lexvla.prompted_words import log1p_relu, weights_of_words, word_pieces, words_of_logits
from lexvla.vocabulary import Vocabulary

PIECES = ["<s>", "▁dog", "dog", "Dog", "▁the", "Ġcat", "x", "▁犬", "▁DOGS", "!"]


def fake_tokenizer() -> Any:
    numbers = {piece: number for number, piece in enumerate(PIECES)}
    return SimpleNamespace(all_special_ids=[0], get_vocab=lambda: numbers)


def test_pieces_of_one_word_are_one() -> None:
    words, columns = word_pieces(fake_tokenizer(), size=12)
    assert words.terms == ("dog", "cat", "dogs")
    assert columns.tolist() == [3, 0, 0, 0, 3, 1, 3, 3, 2, 3, 3, 3]


def test_only_words_of_a_list() -> None:
    words, columns = word_pieces(fake_tokenizer(), 10, Vocabulary(["cat", "horse", "dog"]))
    assert words.terms == ("cat", "dog")
    assert columns.tolist() == [2, 1, 1, 1, 2, 0, 2, 2, 2, 2]
    with pytest.raises(ModelError, match="no piece of the tokenizer is an English word"):
        word_pieces(fake_tokenizer(), 10, Vocabulary(["horse"]))


def test_a_word_has_the_largest_logit_of_its_pieces() -> None:
    _, columns = word_pieces(fake_tokenizer(), 10)
    logits = torch.tensor([[9.0, 1.0, 3.0, 2.0, 9.0, -1.0, 9.0, 9.0, -5.0, 9.0]])
    assert words_of_logits(logits, columns, 3).tolist() == [[3.0, -1.0, -5.0]]


def test_weights_do_not_depend_on_the_level_of_logits() -> None:
    logits = torch.tensor([[5.0, 3.0, 1.0, 2.0]])
    # By hand: 3 and 1 above the first word left out, 2.
    expected = np.log([[4.0, 2.0, 1.0, 1.0]])
    expected /= np.linalg.norm(expected)
    for moved in (0.0, -100.0, 7.0):
        found = weights_of_words(logits + moved, most=2)
        np.testing.assert_allclose(found, expected, atol=1e-6)
    assert (weights_of_words(logits, most=4) > 0).all()
    assert log1p_relu(torch.tensor([-1.0, 0.0])).tolist() == [0.0, 0.0]
