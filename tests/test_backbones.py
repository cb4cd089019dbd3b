from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from backbone_fakes import (
    PATCH,
    PICTURES,
    SIDE,
    TEXT_MODELS,
    TEXTS,
    VISION_MODELS,
    VISION_WIDTH,
    WIDTH,
    assert_same,
    random_lora,
    save_language_model,
    save_vision_model,
    small,
    step,
)
from lexvla import LexVLA
from lexvla.backbones import check_quantization
from lexvla.config import LexVLAConfig
from lexvla.errors import InputError, ModelError, OptionalDependencyError, UnsupportedError
from lexvla.lexical_head import lexical_vector
from lexvla.preprocessing import preprocess
from lexvla.vocabulary import Vocabulary
from model_fakes import picture


@pytest.mark.parametrize("kind", TEXT_MODELS)
@pytest.mark.parametrize("tied", [True, False])
def test_any_causal_language_model(
    kind: str, tied: bool, vision_model: str, tmp_path: Path
) -> None:
    text = save_language_model(tmp_path / "text", kind, tie_word_embeddings=tied)
    model = random_lora(LexVLA.from_backbones(text, vision_model, **small()))
    rows = model.text_tower.language_model.get_output_embeddings().weight
    kept = rows[list(model.vocabulary.token_ids or ())]
    assert torch.equal(model.text_codebook(), kept)
    assert torch.equal(model.image_codebook, kept)
    # The state is that of the whole prompt run by itself, whatever is cached and padded.
    whole = model.encode_text(TEXTS, batch_size=2)
    for row, one in zip(whole, TEXTS, strict=True):
        ids = model.tokenizer([model.config.prompt.replace("{text}", one)])["input_ids"]
        with torch.no_grad():
            logits = model.text_tower.language_model(torch.tensor(ids)).logits[0, -1]
        vector = lexical_vector(logits[list(model.vocabulary.token_ids or ())]).numpy()
        vector[vector <= len(vector) ** -0.5] = 0
        vector /= np.linalg.norm(vector)
        np.testing.assert_allclose(row.lexical.toarray()[0], vector, atol=1e-5)
    model.save_pretrained(tmp_path / "saved")
    assert_same(LexVLA.from_pretrained(tmp_path / "saved"), model)


@pytest.mark.parametrize("kind", VISION_MODELS)
def test_any_vision_transformer_with_patch_tokens(
    kind: str, text_model: str, tmp_path: Path
) -> None:
    vision = save_vision_model(tmp_path / "vision", kind)
    model = LexVLA.from_backbones(text_model, vision, **small())
    pixels = preprocess(PICTURES, SIDE)
    with torch.no_grad():
        states = model.patch_states(pixels)
        raw = model.image_tower.vision_model(pixel_values=pixels).last_hidden_state
        assert states.shape == (3, 9, WIDTH)
        # Of CLS and registers nothing is left; the patches are the last tokens of all kinds.
        torch.testing.assert_close(states, model.image_tower.adapter(raw)[:, -9:])
        larger = model.image_tower(torch.zeros(1, 3, 2 * SIDE, SIDE))
        assert larger.shape == (1, 18, WIDTH)
    assert model.config.vision_config.hidden_size == VISION_WIDTH
    model.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved" / "vision_model").exists()
    assert_same(LexVLA.from_pretrained(tmp_path / "saved"), model)


def test_images_are_brought_to_the_size_and_statistics_asked_for(
    text_model: str, tmp_path: Path
) -> None:
    vision = Path(save_vision_model(tmp_path / "vision", "siglip"))
    processor = {
        "image_processor_type": "SiglipImageProcessor",
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.25, 0.5, 0.5],
    }
    (vision / "preprocessor_config.json").write_text(json.dumps(processor))
    model = LexVLA.from_backbones(text_model, str(vision), **small(image_size=48))
    assert model.patch_grid == (6, 6)
    assert model.config.image_mean == [0.5, 0.5, 0.5]
    assert model.config.image_std == [0.25, 0.5, 0.5]
    given: list[torch.Tensor] = []
    model.image_tower.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    model.encode_image([Image.new("RGB", (60, 60), "white")])
    (pixels,) = given
    assert pixels.shape == (1, 3, 48, 48)
    assert pixels[0, :, 0, 0].tolist() == [2, 1, 1]


def test_pooling_with_cls(text_model: str, vision_model: str, tmp_path: Path) -> None:
    model = LexVLA.from_backbones(text_model, vision_model, **small(pool_cls=True))
    pixels = preprocess(PICTURES, SIDE)
    with torch.no_grad():
        tower = model.image_tower
        raw = tower.adapter(tower.vision_model(pixel_values=pixels).last_hidden_state)
        model.image_codebook[0] = 9 * raw[0, 0]  # a word that CLS says more strongly than patches
        best = (raw @ model.image_codebook.T).max(dim=1)
        logits, place = model.image_logits(pixels)
    torch.testing.assert_close(logits, best.values)
    assert place.tolist() == (best.indices - 1).tolist()
    patches = model.encode_image(PICTURES).patches
    assert patches is not None
    assert -1 in patches
    assert patches.max() < 9
    # A region and a patch have no CLS of their own.
    assert model.encode_region([PICTURES[0]], [(0, 0, 40, 30)]).patches.min() >= 0
    assert model.encode_patches(PICTURES[:1]).patches.tolist() == sorted(
        model.encode_patches(PICTURES[:1]).patches
    )
    assert model.heatmap(PICTURES[0], "dog").shape == (3, 3)
    other = save_vision_model(tmp_path / "siglip", "siglip")
    with pytest.raises(ModelError, match="siglip_vision_model has no CLS token"):
        LexVLA.from_backbones(text_model, other, **small(pool_cls=True)).encode_image(PICTURES)


def test_only_the_small_parts_are_trained(text_model: str, vision_model: str) -> None:
    model = LexVLA.from_backbones(text_model, vision_model, **small())
    frozen = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    gradients = step(model)
    for name, weight in model.named_parameters():
        backbone = name.startswith(("text_tower.language_model", "image_tower.vision_model"))
        assert weight.requires_grad == ("lora_" in name or not backbone)
        if name in frozen:
            assert torch.equal(weight, frozen[name])
    # Of LoRA, the second matrices have a gradient at once; the first only when those are not 0.
    parts = ("lora_B", "adapter", "image_codebook")
    for part in parts:
        found = [g for n, g in gradients.items() if part in n]
        assert found
        assert all(g.isfinite().all() and g.any() for g in found)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"lora_targets": ["q_proj", "qproj"]}, ModelError, "no layer 'qproj'.*q_proj.*all-linear"),
        ({"lora_targets": []}, ModelError, "lora_targets"),
        ({"vocabulary_texts": ["?!"]}, ModelError, "rule 'letters' leaves no piece"),
        ({"vocabulary_rule": "nouns"}, ModelError, "use letters or all"),
        ({"quantization": "nf5"}, ValueError, "none, int8, nf4, not 'nf5'"),
        ({"adapter_heads": 5}, ValueError, "adapter_heads=5 does not divide the adapter's"),
        ({"image_size": 7}, ValueError, "image_size=7 is less than a patch of 8"),
        ({"dense_width": 0}, ValueError, "codebook_size=4 needs a dense_width"),
        ({"code_temperature": 0}, ValueError, "code_temperature must be above 0"),
        ({"lora_rank": -1}, ValueError, "lora_rank must be at least 0"),
        ({"vocabulary": Vocabulary(["dog"], [99999])}, ModelError, "token ids that the language"),
        ({"vocabulary": Vocabulary([], [])}, ModelError, "at least one term"),
    ],
)
def test_what_cannot_be_assembled(
    changes: dict[str, Any],
    error: type[Exception],
    words: str,
    text_model: str,
    vision_model: str,
) -> None:
    with pytest.raises(error, match=words):
        LexVLA.from_backbones(text_model, vision_model, **small(**changes))


def test_backbones_that_cannot_be_loaded(
    text_model: str, vision_model: str, tmp_path: Path
) -> None:
    none = str(tmp_path / "none")
    for text, vision in ((none, vision_model), (text_model, none)):
        with pytest.raises(ModelError, match="none: cannot be loaded"):
            LexVLA.from_backbones(text, vision, **small())
    # A hub id without a connection: the error says what is missing and where.
    with pytest.raises(ModelError, match="meta-llama/Llama-2-7b-hf: cannot be loaded"):
        LexVLA.from_backbones("meta-llama/Llama-2-7b-hf", vision_model, **small())
    with pytest.raises(ModelError, match="someone/some-model"):
        LexVLA.from_pretrained("someone/some-model")


def test_a_backbone_without_all_its_weights(
    text_model: str, vision_model: str, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    # A checkpoint of the bare decoder: its output embedding would be made up.
    decoder = AutoModelForCausalLM.from_pretrained(text_model).get_decoder()
    decoder.save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((Path(text_model) / name).read_bytes())
    with pytest.raises(ModelError, match=r"weights missing: lm_head\.weight"):
        LexVLA.from_backbones(str(tmp_path), vision_model, **small())


def test_a_vision_model_without_patch_tokens(text_model: str, tmp_path: Path) -> None:
    from transformers import AutoModel, ResNetConfig

    config = ResNetConfig(embedding_size=4, hidden_sizes=[4, 4, 4, 4], depths=[1, 1, 1, 1])
    AutoModel.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"resnet.*patch"):
        LexVLA.from_backbones(text_model, str(tmp_path), **small())


def test_quantisation_needs_bitsandbytes_and_its_device(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnsupportedError, match=r"no backend for meta.*quantization='none'"):
        check_quantization("nf4", torch.device("meta"))
    monkeypatch.setitem(__import__("sys").modules, "bitsandbytes", None)
    with pytest.raises(OptionalDependencyError, match=r"bitsandbytes.*lexvla\[gpu\]"):
        check_quantization("nf4", torch.device("cpu"))


@pytest.mark.parametrize("device", ["nowhere", "cuda", "cuda:9"], ids=["unknown", "none", "few"])
def test_a_device_that_is_not_there(device: str, text_model: str, vision_model: str) -> None:
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("needs a machine without a GPU")
    with pytest.raises(UnsupportedError, match=f"device '{device}' cannot be used"):
        LexVLA.from_pretrained(device=device)
    with pytest.raises(UnsupportedError, match=f"device '{device}' cannot be used"):
        LexVLA.from_backbones(text_model, vision_model, **small(), device=device)


def test_gradient_checkpointing_gives_the_same_gradients(
    text_model: str, vision_model: str
) -> None:
    found = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        changes = small(lora_dropout=0.0)
        model = random_lora(LexVLA.from_backbones(text_model, vision_model, **changes))
        if checkpointing:
            model.gradient_checkpointing_enable()
            assert model.is_gradient_checkpointing
        found.append(step(model))
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-3, atol=1e-5)


def test_the_rule_is_recorded_where_it_chose(text_model: str, vision_model: str) -> None:
    model = LexVLA.from_backbones(text_model, vision_model, **small())
    assert model.config.vocabulary_rule == "letters"
    given = small(vocabulary=model.vocabulary)
    assert LexVLA.from_backbones(text_model, vision_model, **given).config.vocabulary_rule == ""


def test_lora_and_quantisation_are_for_a_named_language_model() -> None:
    with pytest.raises(ValueError, match="name it by text_model"):
        LexVLAConfig(lora_rank=4)


def test_damaged_weights_do_not_make_empty_vectors(text_model: str, vision_model: str) -> None:
    model = LexVLA.from_backbones(text_model, vision_model, **small())
    with torch.no_grad():
        model.image_codebook[0, 0] = torch.nan
    with pytest.raises(ModelError, match="not finite"):
        model.encode_image(PICTURES)
    assert model.encode_text(TEXTS).lexical.nnz


def test_an_image_smaller_than_a_patch(text_model: str, vision_model: str) -> None:
    model = LexVLA.from_backbones(text_model, vision_model, **small())
    with pytest.raises(InputError, match=f"40 x 7 pixels.*{PATCH} x {PATCH}"):
        model.encode_image([picture(1, (40, 7))])
    with pytest.raises(InputError, match="at least one patch"):
        model.image_logits(torch.zeros(1, 3, 7, 24))
