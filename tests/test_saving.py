from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import HfApi
from safetensors.torch import load_file, save_file

from backbone_fakes import (
    assert_same,
    encode,
    random_lora,
    save_language_model,
    save_vision_model,
    small,
    step,
)
from lexvla import LexVLA, saving
from lexvla.errors import ModelError, UnsupportedError
from lexvla.saving import values_sha256
from model_fakes import edit_json


@pytest.fixture
def model(text_model: str, vision_model: str) -> LexVLA:
    return random_lora(LexVLA.from_backbones(text_model, vision_model, **small()))


@pytest.mark.parametrize("page", ["docs/quickstart-training.md", "docs/models.md"])
def test_the_assembly_that_is_documented_runs(
    page: str, text_model: str, vision_model: str
) -> None:
    text = (Path(__file__).parent.parent / page).read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (code,) = [block for block in blocks if "from_backbones" in block]
    for there, here in {
        "meta-llama/Llama-2-7b-hf": text_model,
        "facebook/dinov2-base": vision_model,
        "cuda": "cpu",
    }.items():
        assert there in code
        code = code.replace(there, here)
    names: dict[str, Any] = {"LexVLA": LexVLA}
    exec(code, names)
    assert names["model"].config.quantization == "nf4"
    assert names["model"].encode_words(["dog"]).dense.shape == (1, 256)


def test_what_is_written_and_that_peft_reads_it(
    text_model: str, vision_model: str, tmp_path: Path
) -> None:
    from peft import PeftModel
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
    with pytest.raises(ModelError, match=r"vision_model=.* saved with it"):
        LexVLA.from_pretrained(tmp_path, vision_model=vision_model)
    assert loaded.config.text_model == text_model


def test_weights_trained_beside_lora_are_not_lost_silently(
    text_model: str, vision_model: str, tmp_path: Path
) -> None:
    model = LexVLA.from_backbones(text_model, vision_model, **small())
    model.save_pretrained(tmp_path)
    model.text_tower.language_model.get_output_embeddings().requires_grad_(True)
    with pytest.raises(ModelError, match="trained beside LoRA"):
        model.save_pretrained(tmp_path)
    assert_same(LexVLA.from_pretrained(tmp_path), model)  # what was saved before still stands


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


def test_a_real_llama_tokenizer_gives_the_same_ids_after_saving(
    vision_model: str, tmp_path: Path
) -> None:
    from transformers import LlamaTokenizer

    letters = [f"▁{c}" for c in "abcdeghilmnorstuw"] + list("abcdeghilmnorstuwT:.,")
    merges = [("d", "o"), ("▁", "do"), ("▁do", "g"), ("do", "g"), ("h", "a"), ("ha", "t")]
    pieces = ["<unk>", "<s>", "</s>", "▁", '"', *letters, *("".join(pair) for pair in merges)]
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = LlamaTokenizer(vocab=vocabulary, merges=merges, add_bos_token=True)
    text = save_language_model(tmp_path / "text", vocab_size=len(vocabulary))
    tokenizer.save_pretrained(text)
    model = LexVLA.from_backbones(text, vision_model, **small(vocabulary_texts=["dog hat"]))
    assert type(model.tokenizer) is LlamaTokenizer
    assert "▁dog" in model.vocabulary.terms
    model.save_pretrained(tmp_path / "saved")
    loaded = LexVLA.from_pretrained(tmp_path / "saved")
    prompt = loaded.config.prompt
    ids = loaded.tokenizer([prompt, "dog hat"])["input_ids"]
    assert ids == tokenizer([prompt, "dog hat"])["input_ids"]
    assert ids[0][0] == tokenizer.bos_token_id
    assert_same(loaded, model)


def test_the_card_names_what_the_model_is_made_of(model: LexVLA, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    card = tmp_path / "README.md"
    _, header, body = card.read_text(encoding="utf-8").split("---\n", 2)
    values = yaml.safe_load(header)
    assert values["library_name"] == "lexvla"
    assert values["base_model"] == [model.config.text_model, model.config.vision_model]
    assert f"{len(model.vocabulary)} pieces" in body
    assert "LoRA of rank 2" in body
    card.write_text("mine")
    model.save_pretrained(tmp_path)
    assert card.read_text() == "mine"  # a card that someone wrote is not written over


def test_to_the_hub_and_back(
    model: LexVLA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = tmp_path / "hub"
    made = []

    def create_repo(self: HfApi, repo_id: str, **options: object) -> SimpleNamespace:
        made.append((repo_id, options))
        return SimpleNamespace(repo_id=repo_id)

    def upload_folder(self: HfApi, *, repo_id: str, folder_path: str, **options: object) -> str:
        shutil.copytree(folder_path, hub / repo_id)
        return f"https://hub/{repo_id}/commit/1"

    def download(repo_id: str, revision: str | None, token: str | None) -> str:
        assert (revision, token) == ("v1", "secret")
        return str(hub / repo_id)

    monkeypatch.setattr(HfApi, "create_repo", create_repo)
    monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    url = model.push_to_hub("someone/words", private=True)
    assert url == "https://hub/someone/words/commit/1"
    assert made == [("someone/words", {"private": True, "exist_ok": True})]
    assert (hub / "someone/words/README.md").is_file()
    assert_same(LexVLA.from_pretrained("someone/words", revision="v1", token="secret"), model)


@pytest.mark.parametrize("part", ["lora/adapter_model.safetensors", "model.safetensors"])
def test_weights_of_another_model_are_refused(part: str, model: LexVLA, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "one")
    other = random_lora(model, 0.5)
    with torch.no_grad():
        other.image_codebook += 1
    other.save_pretrained(tmp_path / "two")
    shutil.copy(tmp_path / "two" / part, tmp_path / "one" / part)
    with pytest.raises(ModelError, match=f"one/{part}.*sha256"):
        LexVLA.from_pretrained(tmp_path / "one")


def test_values_that_are_not_finite_are_found_when_loading(model: LexVLA, tmp_path: Path) -> None:
    with torch.no_grad():
        model.image_dense_head.projection.bias[0] = torch.inf
    model.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"image_dense_head\.projection\.bias .* not finite"):
        LexVLA.from_pretrained(tmp_path)


def test_a_setting_changes_the_name_and_a_chunk_does_not(model: LexVLA, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    name = model.name
    model.config.vocabulary_chunk = 3
    assert model.name == name
    model.config.max_text_tokens = 3
    assert model.name != name


def test_the_stored_type_does_not_change_the_name(
    text_model: str, vision_model: str, tmp_path: Path
) -> None:
    model = LexVLA.from_backbones(text_model, vision_model, **small(lora_rank=0))
    model.config.text_model = model.config.vision_model = None
    model.half().save_pretrained(tmp_path / "half")
    full = LexVLA.from_pretrained(tmp_path / "half")
    assert full.name == model.name
    full.save_pretrained(tmp_path / "full")
    assert full.name == model.name
    stored = (folder / "model.safetensors" for folder in (tmp_path / "half", tmp_path / "full"))
    kinds = [{weight.dtype for weight in load_file(path).values()} for path in stored]
    assert kinds == [{torch.float16}, {torch.float32}]
    assert LexVLA.from_pretrained(tmp_path / "full").name == model.name


@pytest.mark.parametrize(
    "part",
    [
        "image_codebook",
        "text_tower.language_model.model.norm.weight",
        "image_tower.vision_model.layernorm.bias",
    ],
)
def test_a_changed_weight_changes_the_name(
    part: str, text_model: str, vision_model: str, tmp_path: Path
) -> None:
    model = LexVLA.from_backbones(text_model, vision_model, **small(lora_rank=0))
    model.config.text_model = model.config.vision_model = None
    model.half().save_pretrained(tmp_path)
    name = model.name
    weight = model.get_parameter(part)
    with torch.no_grad():
        weight.view(-1)[0] += 0.01
    model.save_pretrained(tmp_path)
    assert model.name != name


def test_merging_lora_changes_the_name(model: LexVLA, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "one")
    merged = LexVLA.from_pretrained(tmp_path / "one", merge_lora=True)
    merged.save_pretrained(tmp_path / "two")
    assert merged.name != model.name


def test_packed_weights_are_named_by_their_bytes(tmp_path: Path) -> None:
    packed = torch.tensor([1, 2, 255], dtype=torch.uint8)

    def name(weights: dict[str, torch.Tensor]) -> str:
        save_file(weights, tmp_path / "model.safetensors")
        return values_sha256(tmp_path, ["model.safetensors"])

    expected = b"model.safetensors packed torch.uint8 (3,)\n\x01\x02\xff"
    assert name({"packed": packed}) == hashlib.sha256(expected).hexdigest()
    assert name({"packed": packed[[0, 2, 1]]}) != hashlib.sha256(expected).hexdigest()


def test_a_model_without_the_hash_of_its_values_is_refused(model: LexVLA, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    edit_json(tmp_path / "config.json", lambda values: values.pop("values_sha256"))
    with pytest.raises(ModelError, match=r"config\.json: values_sha256 is missing"):
        LexVLA.from_pretrained(tmp_path)


def test_a_save_that_was_cut_short_is_no_model(
    model: LexVLA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model.save_pretrained(tmp_path)

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(saving, "save_file", killed)
    with pytest.raises(KeyboardInterrupt):
        model.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"config\.json missing"):
        LexVLA.from_pretrained(tmp_path)
