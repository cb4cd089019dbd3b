from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lexvla.config import PROMPT, LexVLAConfig
from lexvla.text_normalisation import normalise_text
from lexvla.tokens import tokenize
from lexvla.torch_model import TorchLexVLA
from model_fakes import tiny_model

TEXTS = [
    "a red dog",
    "hat",
    "two blue birds, flying over the white horse and the man riding a bicycle",
    "",
    'the "green" cat',
    "line\nbreak\ttab",
    "Café CAFÉ",
    "красная собака 赤い犬",
    "🐕🦺 dog",
    "{text}",
    "{text} {0} {} }{",
    "  spaces  ",
]

MODEL = tiny_model()


@pytest.fixture(scope="module")
def model() -> TorchLexVLA:
    return MODEL


def ids_of(model: TorchLexVLA, texts: list[str], limit: int = 64) -> list[list[int]]:
    return tokenize(model.tokenizer, texts, PROMPT, limit)


@torch.no_grad()
def states(model: TorchLexVLA, texts: list[str]) -> Tensor:
    return model.text_tower(ids_of(model, texts))


@torch.no_grad()
def alone(model: TorchLexVLA, text: str) -> Tensor:
    """Run one text through the plain language model: no padding, no cache."""
    whole = PROMPT.replace("{text}", normalise_text(text))
    ids = torch.tensor(model.tokenizer([whole])["input_ids"])
    backbone = model.text_tower.language_model.get_decoder()
    return backbone(input_ids=ids, use_cache=False).last_hidden_state[0, -1]


def close(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_a_batch_gives_each_text_the_state_that_it_has_alone(model: TorchLexVLA) -> None:
    batch = states(model, TEXTS)
    assert batch.shape == (len(TEXTS), 16)
    for row, text in zip(batch, TEXTS, strict=True):
        close(row, alone(model, text))


@pytest.mark.parametrize("text", TEXTS)
def test_a_batch_of_one(model: TorchLexVLA, text: str) -> None:
    close(states(model, [text])[0], alone(model, text))


def test_equal_texts_have_equal_states(model: TorchLexVLA) -> None:
    batch = states(model, ["red dog", "red dog", "red dog"])
    close(batch[1], batch[0])
    close(batch[2], alone(model, "red dog"))


@pytest.mark.parametrize("prompt", ["{text}", "{text} is", "a {text}"])
def test_prompts_that_share_little_or_nothing(prompt: str) -> None:
    model = tiny_model(prompt=prompt)
    texts = ["red dog", "blue", "the man riding a bicycle"]
    batch = model.text_logits(texts)
    for row, text in zip(batch, texts, strict=True):
        close(row, model.text_logits([text])[0])


def test_the_order_of_a_batch_does_not_matter(model: TorchLexVLA) -> None:
    texts = TEXTS[:4]
    expected = dict(zip(texts, states(model, texts), strict=True))
    for order in itertools.islice(itertools.permutations(texts), 1, None, 5):
        for text, state in zip(order, states(model, list(order)), strict=True):
            close(state, expected[text])


@pytest.mark.parametrize("parts", [1, 3, 100])
def test_texts_of_like_length_together_keep_their_order(model: TorchLexVLA, parts: int) -> None:
    ids = ids_of(model, TEXTS)
    with torch.no_grad():
        close(model.text_tower.by_length(ids, parts), model.text_tower(ids))


def test_gradients_reach_the_shared_prompt(model: TorchLexVLA) -> None:
    model.zero_grad()
    model.text_tower(ids_of(model, ["red dog", "blue birds"])).sum().backward()
    gradient = model.text_tower.language_model.get_input_embeddings().weight.grad
    assert gradient is not None
    focus = model.tokenizer.convert_tokens_to_ids("▁focus")
    red, cat = model.tokenizer.convert_tokens_to_ids(["▁red", "▁cat"])
    assert gradient[focus].any()
    assert gradient[red].any()
    assert not gradient[cat].any()
    model.zero_grad()


def test_the_text_is_put_between_the_prompts_halves(model: TorchLexVLA) -> None:
    for text in TEXTS:
        before, after = PROMPT.split("{text}")
        whole = before + normalise_text(text) + after
        assert ids_of(model, [text]) == model.tokenizer([whole])["input_ids"]


def test_a_long_text_is_cut_and_the_prompt_stays_whole(model: TorchLexVLA) -> None:
    (empty,) = ids_of(model, [""])
    (cut,) = ids_of(model, ["red dog blue cat " * 50], limit=6)
    assert cut == ids_of(model, ["red dog blue cat red dog"])[0]
    assert len(cut) == len(empty) + 6
    assert cut[-6:] == empty[-6:]  # " lies on important words:
    # A text of just as many tokens as are allowed stays as it is.
    (fits,) = ids_of(model, ["red dog blue cat red dog"], limit=6)
    assert fits == cut


def test_one_long_text_leaves_the_others_of_its_batch_alone(model: TorchLexVLA) -> None:
    short = ids_of(model, ["hat"], limit=3)
    assert ids_of(model, ["hat", "red " * 500], limit=3)[:1] == short


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60), st.integers(1, 8))
def test_any_text_is_cut_near_its_limit(text: str, limit: int) -> None:
    (alone_ids,) = MODEL.tokenizer([normalise_text(text)], add_special_tokens=False)["input_ids"]
    (cut,) = tokenize(MODEL.tokenizer, [text], "{text}", limit)
    if len(alone_ids) <= limit:
        assert cut == alone_ids
    else:
        # One character may stand for several tokens, and is not cut in two.
        assert cut[:limit] == alone_ids[:limit]
        assert len(cut) <= limit + 18


def test_no_texts(model: TorchLexVLA) -> None:
    assert ids_of(model, []) == []


@pytest.mark.parametrize("prompt", ["no place", "{text} and {text}", ""])
def test_a_prompt_has_one_place_for_the_text(prompt: str) -> None:
    with pytest.raises(ValueError, match=r"must hold \{text\} once"):
        LexVLAConfig(prompt=prompt)
