from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    CLIPImageProcessor,
    Gemma3TextConfig,
    GitConfig,
)

from backbone_fakes import save_language_model
from dual_fakes import word_file
from lexvla import LexVLA
from lexvla.errors import ModelError, UnsupportedError
from lexvla.language_model import OPEN_PROMPT, LanguageModel
from lexvla.vision_language_model import VisionLanguageModel
from lexvla_search import cli
from model_fakes import picture, tokenizer
from prompted_fakes import GRIDS, save_vision_language_model
from search_fakes import save_pictures

TEXTS = ["a red dog", "two blue birds, flying", "hat"]


def save_gemma(folder: Path) -> str:
    pieces = tokenizer()
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 6, "head_dim": 8}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "sliding_window": 8}
    config = Gemma3TextConfig(vocab_size=len(pieces), **sizes, **heads)
    torch.manual_seed(1)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    pieces.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module", params=["llama", "qwen2", "gemma3"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LexVLA:
    folder = tmp_path_factory.mktemp(request.param)
    kind = request.param
    name = save_gemma(folder) if kind == "gemma3" else save_language_model(folder, kind)
    return LexVLA.from_pretrained(name, max_active_dims=4)


@pytest.fixture(scope="module", params=GRIDS)
def seeing(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LexVLA:
    kind = request.param
    folder = save_vision_language_model(tmp_path_factory.mktemp(kind), kind)
    return LexVLA.from_pretrained(folder, max_active_dims=4)


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> LexVLA:
    folder = save_vision_language_model(tmp_path_factory.mktemp("llava"))
    return LexVLA.from_pretrained(folder, max_active_dims=4)


def likeliest(model: LexVLA, own: Any, text: str) -> list[str]:
    """Return the four words of the model that its own logits say are likeliest after a text."""
    ids = model.tokenizer(OPEN_PROMPT.replace("{text}", text), return_tensors="pt")
    with torch.no_grad():
        logits = own(input_ids=ids["input_ids"]).logits[0, -1]
    heaviest: dict[str, float] = {}
    for piece, number in model.tokenizer.get_vocab().items():
        word = piece.lstrip("▁Ġ").lower()
        heaviest[word] = max(heaviest.get(word, -np.inf), float(logits[number]))
    return sorted(model.vocabulary.terms, key=lambda word: -heaviest[word])[:4]


def test_words_are_those_the_model_would_say_next(model: LexVLA) -> None:
    assert isinstance(model, LanguageModel)
    own = AutoModelForCausalLM.from_pretrained(model.config.model).eval()
    for text, words in zip(TEXTS, model.decode(model.encode_text(TEXTS)), strict=True):
        assert [word for word, _ in words] == likeliest(model, own, text)


def test_saved_settings_give_the_same_words(model: LexVLA, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    loaded = LexVLA.from_pretrained(tmp_path)
    assert loaded.name == model.name
    mine, yours = model.encode_text(TEXTS), loaded.encode_text(TEXTS)
    np.testing.assert_array_equal(mine.lexical.toarray(), yours.lexical.toarray())


def test_images_need_an_image_side(model: LexVLA) -> None:
    with pytest.raises(UnsupportedError, match="has no image side; use a dual encoder"):
        model.encode_image([picture(1)])
    assert model.facts()["patches"] == "none: no image side"


def test_only_the_words_of_a_file(model: LexVLA, tmp_path: Path) -> None:
    path = word_file(tmp_path, ("man", "unheard", "dog"))
    if not {"man", "dog"} <= set(model.vocabulary.terms):
        pytest.skip("the tokenizer cuts these words")
    few = LexVLA.from_pretrained(model.config.model, vocabulary=path)
    assert few.vocabulary.terms == ("man", "dog")
    with pytest.raises(ModelError, match="no piece of the tokenizer"):
        LexVLA.from_pretrained(
            model.config.model, vocabulary=word_file(tmp_path, ("unheard", "unseen"))
        )


def test_bad_input(tmp_path: Path) -> None:
    folder = Path(save_language_model(tmp_path / "m"))
    with pytest.raises(UnsupportedError, match="quantization must be one of none, int8, nf4"):
        LexVLA.from_pretrained(folder, quantization="int4")
    with pytest.raises(ValueError, match="each template must hold"):
        LexVLA.from_pretrained(folder, prompt="no place")
    with pytest.raises(ValueError, match="max_text_tokens must be at least 1, not 0"):
        LexVLA.from_pretrained(folder, max_text_tokens=0)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="cannot be loaded"):
        LexVLA.from_pretrained(folder)
    with pytest.raises(ModelError, match=r"none\.gguf: no such file"):
        LexVLA.from_pretrained(tmp_path / "none.gguf")


def test_a_damaged_gguf_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF123")
    with pytest.raises(ModelError, match=r"m\.gguf: cannot be loaded"):
        LexVLA.from_pretrained(tmp_path / "m.gguf")


def test_a_model_without_tokens_of_images_is_refused(llava: LexVLA, tmp_path: Path) -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
    sizes |= {"num_hidden_layers": 1}
    vision = {**sizes, "image_size": 24, "patch_size": 8}
    config = GitConfig(vision_config=vision, vocab_size=len(llava.tokenizer), **sizes)
    AutoModelForImageTextToText.from_config(config).save_pretrained(tmp_path)
    llava.tokenizer.save_pretrained(tmp_path)
    CLIPImageProcessor().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="a git model has no tokens of images"):
        LexVLA.from_pretrained(tmp_path)


def test_an_image_gives_words_with_patches(seeing: LexVLA) -> None:
    assert isinstance(seeing, VisionLanguageModel)
    grid = GRIDS[AutoConfig.from_pretrained(seeing.config.model).model_type]
    assert seeing.patch_grid == (grid, grid)
    images = [picture(1), picture(2)]
    both = seeing.encode_image(images)
    alone = seeing.encode_image(images[1:])
    np.testing.assert_allclose(both[1].lexical.toarray(), alone.lexical.toarray(), atol=1e-5)
    assert np.diff(both.lexical.indptr).tolist() == [4, 4]
    maps = seeing.heatmaps(images[0], both[0].lexical.indices.tolist())
    assert maps.shape == (4, grid, grid)
    every = seeing.encode_patches(images[:1])
    assert len(every) == grid * grid
    mask = np.zeros((grid, grid), bool)
    mask[2, 1] = True
    one = seeing.encode_region(images[:1], [mask])
    assert set(one.patches.tolist()) == {2 * grid + 1}
    np.testing.assert_allclose(
        one.lexical.toarray(), every[2 * grid + 1].lexical.toarray(), atol=1e-5
    )


def test_a_words_patch_is_where_it_is_likeliest(seeing: LexVLA) -> None:
    own = AutoModelForImageTextToText.from_pretrained(seeing.config.model).eval()
    inputs = seeing._inputs([seeing._resized(picture(1))])
    with torch.no_grad():
        logits = own(**inputs).logits[0]
    shown = logits[inputs["input_ids"][0] == own.config.image_token_id]
    row = seeing.encode_image([picture(1)])
    for column, patch in zip(row.lexical.indices, row.patches, strict=True):
        pieces = (seeing.columns == int(column)).nonzero()[:, 0]
        assert shown[:, pieces].amax(1).argmax() == patch


def test_texts_and_images_share_the_words(seeing: LexVLA, tmp_path: Path) -> None:
    own = AutoModelForImageTextToText.from_pretrained(seeing.config.model).eval()
    for text, words in zip(TEXTS, seeing.decode(seeing.encode_text(TEXTS)), strict=True):
        assert [word for word, _ in words] == likeliest(seeing, own, text)
    seeing.save_pretrained(tmp_path / "saved")
    loaded = LexVLA.from_pretrained(tmp_path / "saved")
    assert loaded.name == seeing.name
    mine, yours = seeing.encode_image([picture(3)]), loaded.encode_image([picture(3)])
    np.testing.assert_array_equal(mine.lexical.toarray(), yours.lexical.toarray())


def test_index_and_explained_search(
    llava: LexVLA, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    llava.save_pretrained(tmp_path / "llava")
    photos, address = save_pictures(tmp_path / "photos"), str(tmp_path / "photos.lex")
    model = ["--model", str(tmp_path / "llava")]
    assert cli.main(["index", str(photos), "--index", address, *model]) == 0
    capsys.readouterr()
    asked = ["search", "a red dog", "--index", address, *model, "--explain", "--json"]
    assert cli.main(asked) == 0
    assert "hits" in json.loads(capsys.readouterr().out)
    assert cli.main(["info", "--index", address, *model]) == 1
    assert "only a dual encoder such as CLIP forms words by" in capsys.readouterr().err
