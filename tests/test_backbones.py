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
    SIDE,
    TEXT_MODELS,
    VISION_MODELS,
    VISION_WIDTH,
    WIDTH,
    save_language_model,
    save_vision_model,
    small,
)
from lexvla import LexVLA
from lexvla.backbones import check_quantization
from lexvla.config import LexVLAConfig
from lexvla.errors import InputError, ModelError, OptionalDependencyError, UnsupportedError
from lexvla.lexical_head import lexical_vector
from lexvla.losses import InfoNCE, overuse_penalty
from lexvla.preprocessing import preprocess
from lexvla.vocabulary import Vocabulary
from model_fakes import picture

TEXTS = ["a red dog", "two blue birds", "hat"]
PICTURES = [picture(1), picture(2), picture(3)]


@pytest.fixture(scope="module")
def text_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_language_model(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def vision_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_vision_model(tmp_path_factory.mktemp("dinov2"))


def random_lora(model: LexVLA, scale: float = 1.0) -> LexVLA:
    """Set LoRA's second matrices, which start at zero, to something that shows."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.copy_(scale * torch.randn(weight.shape, generator=generator))
    return model


def encode(model: LexVLA) -> list[np.ndarray]:
    texts, images = model.encode_text(TEXTS), model.encode_image(PICTURES)
    assert images.patches is not None
    assert texts.codes is not None
    assert images.codes is not None
    parts = [texts.lexical.toarray(), images.lexical.toarray(), images.patches]
    return [*parts, texts.dense, images.dense, texts.codes.toarray(), images.codes.toarray()]


def assert_same(one: LexVLA, other: LexVLA) -> None:
    for mine, yours in zip(encode(one), encode(other), strict=True):
        np.testing.assert_array_equal(mine, yours)


def step(model: LexVLA, bfloat16: bool = False) -> dict[str, torch.Tensor]:
    """Take one training step and return the gradient of each trained weight."""
    model.train()
    contrast = InfoNCE(0.07)
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW([*trained.values(), *contrast.parameters()], lr=1e-2)
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        image_logits, _ = model.image_logits(preprocess(PICTURES, SIDE))
        states = model.text_states(TEXTS)
        texts = lexical_vector(states.to(model.text_codebook().dtype) @ model.text_codebook().T)
        images = lexical_vector(image_logits)
        loss = contrast(texts @ images.T, torch.arange(3)) + 0.1 * overuse_penalty(images)
    loss.backward()
    optimizer.step()
    model.eval()
    return {n: p.grad for n, p in trained.items() if p.grad is not None}


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
    pixels = model._pixels([Image.new("RGB", (60, 60), "white")])
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


def test_what_is_written_and_that_peft_reads_it(
    text_model: str, vision_model: str, tmp_path: Path
) -> None:
    from peft import PeftModel
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    model = random_lora(LexVLA.from_backbones(text_model, vision_model, **small()))
    step(model)
    model.save_pretrained(tmp_path)
    files = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    assert files == {
        "README.md",
        "config.json",
        "lora/README.md",
        "lora/adapter_config.json",
        "lora/adapter_model.safetensors",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocabulary.json",
    }
    weights = load_file(tmp_path / "model.safetensors")
    assert {name.split(".")[0] for name in weights} == {
        "codebook",
        "image_codebook",
        "image_dense_head",
        "image_tower",
        "text_dense_head",
    }
    assert not any("vision_model" in name for name in weights)
    values = json.loads((tmp_path / "config.json").read_text())
    assert (values["text_model"], values["vision_model"]) == (text_model, vision_model)
    loaded = LexVLA.from_pretrained(tmp_path)
    assert_same(loaded, model)
    assert {n for n, p in loaded.named_parameters() if p.requires_grad} == {
        n for n, p in model.named_parameters() if p.requires_grad
    }
    base = AutoModelForCausalLM.from_pretrained(text_model, dtype=torch.float32)
    plain = PeftModel.from_pretrained(base, str(tmp_path / "lora")).eval()
    ids = torch.tensor([[1, 5, 9]])
    with torch.no_grad():
        expected = model.text_tower.language_model(ids).logits
        torch.testing.assert_close(plain(ids).logits, expected, rtol=0, atol=0)


def test_lora_is_merged_on_request(text_model: str, vision_model: str, tmp_path: Path) -> None:
    model = random_lora(LexVLA.from_backbones(text_model, vision_model, **small()))
    model.save_pretrained(tmp_path / "one")
    merged = LexVLA.from_pretrained(tmp_path / "one", merge_lora=True)
    assert not any("lora_" in name for name, _ in merged.named_parameters())
    np.testing.assert_allclose(encode(merged)[3], encode(model)[3], atol=1e-5)
    # Its language model is no longer the one with a name: it is saved with the rest.
    merged.save_pretrained(tmp_path / "two")
    assert (tmp_path / "two" / "text_model" / "model.safetensors").is_file()
    assert not (tmp_path / "two" / "lora").exists()
    assert_same(LexVLA.from_pretrained(tmp_path / "two"), merged)


def test_a_trained_backbone_is_saved_whole(
    text_model: str, vision_model: str, tmp_path: Path
) -> None:
    model = LexVLA.from_backbones(text_model, vision_model, **small(lora_rank=0))
    model.image_tower.vision_model.requires_grad_(True)
    gradients = step(model)
    assert any("vision_model" in name for name in gradients)
    model.save_pretrained(tmp_path)
    loaded = LexVLA.from_pretrained(tmp_path)
    assert_same(loaded, model)
    assert loaded.config.vision_model is None
    assert loaded.config.text_model == text_model


def test_weights_trained_beside_lora_are_not_lost_silently(
    text_model: str, vision_model: str, tmp_path: Path
) -> None:
    model = LexVLA.from_backbones(text_model, vision_model, **small())
    model.text_tower.language_model.get_output_embeddings().requires_grad_(True)
    with pytest.raises(ModelError, match="trained beside LoRA"):
        model.save_pretrained(tmp_path)


def test_backbones_may_have_moved(text_model: str, tmp_path: Path) -> None:
    vision = Path(save_vision_model(tmp_path / "here"))
    model = LexVLA.from_backbones(text_model, str(vision), **small())
    model.save_pretrained(tmp_path / "saved")
    moved = vision.rename(tmp_path / "there")
    with pytest.raises(ModelError, match="here: cannot be loaded"):
        LexVLA.from_pretrained(tmp_path / "saved")
    loaded = LexVLA.from_pretrained(tmp_path / "saved", vision_model=str(moved))
    assert_same(loaded, model)
    assert loaded.name == model.name


def test_16_bits(text_model: str, vision_model: str, tmp_path: Path) -> None:
    model = LexVLA.from_backbones(text_model, vision_model, **small(), dtype="bfloat16")
    kinds = {n: p.dtype for n, p in model.named_parameters()}
    assert {
        d for n, d in kinds.items() if ".language_model." not in n and ".vision_model." not in n
    } == {torch.float32}
    assert kinds["image_tower.vision_model.layernorm.weight"] == torch.bfloat16
    step(model, bfloat16=True)
    model.save_pretrained(tmp_path)
    assert_same(LexVLA.from_pretrained(tmp_path), model)
    low = LexVLA.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {p.dtype for p in low.parameters()} == {torch.bfloat16}
    assert encode(low)[0].dtype == np.float32
    with pytest.raises(ValueError, match="unknown dtype 'int7'"):
        LexVLA.from_pretrained(tmp_path, dtype="int7")


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_quantised(kind: str, vision_model: str, tmp_path: Path) -> None:
    import bitsandbytes

    sizes = {"hidden_size": 64, "intermediate_size": 64, "initializer_range": 0.1}
    text = save_language_model(tmp_path / "text", **sizes)
    model = LexVLA.from_backbones(text, vision_model, **small(quantization=kind))
    random_lora(model, 0.1)
    layers = {type(m) for m in model.text_tower.modules()}
    layer = {"nf4": bitsandbytes.nn.Linear4bit, "int8": bitsandbytes.nn.Linear8bitLt}[kind]
    assert layer in layers
    assert model.text_codebook().dtype == torch.bfloat16
    encode(model)  # bitsandbytes packs weights when first used on a CPU; training must still work
    gradients = step(model, bfloat16=True)
    assert any("lora_A" in n and g.any() for n, g in gradients.items())
    model.save_pretrained(tmp_path / "saved")
    loaded = LexVLA.from_pretrained(tmp_path / "saved")
    assert layer in {type(m) for m in loaded.text_tower.modules()}
    assert_same(loaded, model)
    with pytest.raises(UnsupportedError, match="merge_lora=False or quantization='none'"):
        LexVLA.from_pretrained(tmp_path / "saved", merge_lora=True)
    # The same weights in full are near those that were quantised.
    full = LexVLA.from_pretrained(tmp_path / "saved", quantization="none", merge_lora=True)
    assert layer not in {type(m) for m in full.text_tower.modules()}
    assert (encode(full)[3] * encode(model)[3]).sum(1).min() > 0.9


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"lora_targets": ["q_proj", "qproj"]}, ModelError, "no layer 'qproj'.*q_proj.*all-linear"),
        ({"lora_targets": []}, ModelError, "lora_targets"),
        ({"vocabulary_texts": ["?!"]}, ModelError, "rule 'letters' leaves no piece"),
        ({"vocabulary_rule": "nouns"}, ModelError, "use letters or all"),
        ({"quantization": "nf5"}, ValueError, "none, int8, nf4, not 'nf5'"),
        ({"adapter_heads": 5}, ValueError, "adapter_heads=5 does not divide the vision width 12"),
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
