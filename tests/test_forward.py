"""What a forward pass gives to the losses."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from backbone_fakes import TEXTS
from lexvla.errors import ModelError
from lexvla.lexical_head import lexical_vector
from lexvla.torch_model import TorchLexVLA
from model_fakes import GRID, tiny_model
from training_fakes import (
    CAPTIONS,
    PICTURES,
    SIDE,
    adapted,
    all_of,
    assert_all_close,
    pixels,
    shared_model,
)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("pool_cls", [False, True])
def test_forward_is_what_encode_computes(pool_cls: bool) -> None:
    model = tiny_model(pool_cls=pool_cls)
    with torch.no_grad():
        image, text = model(pixels(), model.prompt_ids(CAPTIONS), dense=True)
        assert_all_close(
            [image.lexical, text.lexical],
            [
                lexical_vector(model.image_logits(pixels())[0]),
                lexical_vector(model.text_logits(CAPTIONS)),
            ],
        )
    np.testing.assert_allclose(image.dense, model.encode_image(PICTURES).dense, atol=1e-6)
    np.testing.assert_allclose(text.dense, model.encode_text(CAPTIONS).dense, atol=1e-6)
    assert image.locals is None
    assert text.locals is None
    assert all_of(image, text)[0].dtype == torch.float32


def test_forward_gives_no_more_than_is_asked_for() -> None:
    model = shared_model()
    image, text = model(pixels(), model.prompt_ids(CAPTIONS))
    assert set(image[1:] + text[1:]) == {None}


def test_the_words_of_images_may_be_left_out() -> None:
    model = shared_model()
    ids = model.prompt_ids(CAPTIONS)
    with torch.no_grad():
        image, text = model(pixels(), ids, dense=True, logits=True, image_words=False)
        whole, other = model(pixels(), ids, dense=True, logits=True)
    assert image.lexical.shape == image.logits.shape == (len(PICTURES), 0)
    assert torch.equal(image.dense, whole.dense)
    assert_all_close(all_of(text), all_of(other))


def test_words_and_states_of_texts_alone() -> None:
    model = shared_model()
    with torch.no_grad():
        logits, states = model.words_of_texts(model.prompt_ids(CAPTIONS))
        expected = model.text_logits(CAPTIONS), model.text_states(CAPTIONS)
    assert_all_close([logits, states], list(expected), 1e-5)


def test_forward_without_dense_heads() -> None:
    model = tiny_model(dense_width=0, codebook_size=0)
    ids = model.prompt_ids(CAPTIONS)
    assert model(pixels(), ids)[0].dense is None
    with pytest.raises(ModelError, match="dense_width"):
        model(pixels(), ids, dense=True)


@pytest.mark.parametrize("pool_cls", [False, True])
def test_image_locals_are_the_patches_without_cls(pool_cls: bool) -> None:
    model = tiny_model(pool_cls=pool_cls)
    with torch.no_grad():
        image, _ = model(pixels(), model.prompt_ids(CAPTIONS), dense=True, locals=True)
        assert model.image_dense_head is not None
        expected = model.image_dense_head(model.patch_states(pixels())[:, -GRID * GRID :])
    assert image.locals is not None
    assert image.mask is None
    assert image.locals.shape == (3, GRID * GRID, 6)
    torch.testing.assert_close(image.locals, expected)
    torch.testing.assert_close(image.locals.norm(dim=2), torch.ones(3, GRID * GRID))


def own_tokens(model: TorchLexVLA, texts: list[str]) -> list[list[str]]:
    """Return the tokens that the mask of the texts' locals leaves."""
    ids = model.prompt_ids(texts)
    images = torch.zeros(len(texts), 3, SIDE, SIDE)
    with torch.no_grad():
        _, text = model(images, ids, dense=True, locals=True)
    assert text.mask is not None
    assert text.locals is not None
    assert text.mask.dtype == torch.bool
    assert text.locals.shape[:2] == text.mask.shape
    length = text.mask.shape[1]
    return [
        [
            str(model.tokenizer.convert_ids_to_tokens(row[place - length]))
            for place in range(length)
            if text.mask[number, place]
        ]
        for number, row in enumerate(ids)
    ]


def test_text_locals_are_the_texts_own_tokens() -> None:
    """Neither padding, nor the prompt before a text, nor its end behind."""
    found = own_tokens(shared_model(), CAPTIONS)
    assert found == [
        ["▁a", "▁red", "▁dog"],
        ["▁hat"],
        ["▁two", "▁blue", "▁birds", "▁,", "▁flying"],
    ]


def test_what_all_texts_begin_with_is_no_local() -> None:
    """It is run once for the whole batch, with the prompt."""
    assert own_tokens(shared_model(), ["a red dog", "a red hat"]) == [["▁dog"], ["▁hat"]]
    assert own_tokens(shared_model(), ["a", "a red"]) == [[], ["▁red"]]
    assert own_tokens(shared_model(), ["hat", "hat"]) == [[], []]


def test_text_locals_under_another_prompt() -> None:
    bare = tiny_model(prompt="{text}")
    # The last token gives the text's own vector.
    assert own_tokens(bare, ["a red dog", "hat"]) == [["▁a", "▁red"], []]
    ended = tiny_model(prompt="the {text} :")
    assert own_tokens(ended, ["red dog", "hat"]) == [["▁red", "▁dog"], ["▁hat"]]


def test_text_locals_do_not_depend_on_the_other_texts() -> None:
    model = shared_model()
    with torch.no_grad():
        _, text = model(pixels(), model.prompt_ids(CAPTIONS), dense=True, locals=True)
        assert model.text_dense_head is not None
        for number, ids in enumerate(model.prompt_ids(CAPTIONS)):
            backbone = model.text_tower.language_model.get_decoder()
            states = backbone(input_ids=torch.tensor([ids])).last_hidden_state[0]
            end = len(ids) - model._prompt_end
            own = text.locals[number][text.mask[number]]
            expected = model.text_dense_head(states[end - len(own) : end])
            torch.testing.assert_close(own, expected, atol=1e-5, rtol=1e-5)


def test_gradient_reaches_all_that_is_trained(text_model: str, vision_model: str) -> None:
    model = adapted(text_model, vision_model).train()
    image, text = model(pixels(), model.prompt_ids(TEXTS), dense=True, locals=True)
    assert image.dense is not None
    assert text.dense is not None
    ((image.lexical * text.lexical).sum() + (image.dense * text.dense).sum()).backward()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    for part in ("lora_A", "lora_B", "adapter", "image_codebook", "text_dense", "image_dense"):
        found = [p.grad for name, p in trained.items() if part in name]
        assert found, part
        assert all(grad is not None and grad.abs().sum() > 0 for grad in found), part
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)
