"""The benchmarks of the encode API and of the full architecture, at a very small size."""

from __future__ import annotations

import importlib
import json
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import Dinov2Config, LlamaConfig

from lexvla.config import LexVLAConfig
from lexvla.text_tower import PrefixCache
from lexvla.tokens import tokenize
from lexvla.vocabulary import Vocabulary

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
QUANTIZATION = "nf4" if find_spec("bitsandbytes") and find_spec("accelerate") else "none"


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Import a module as it is imported where a script of its folder runs."""
    monkeypatch.syspath_prepend(BENCHMARKS)

    def by_name(name: str) -> ModuleType:
        return importlib.import_module(name)

    return by_name


@pytest.fixture(scope="module")
def backbones(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("backbones")


def test_encode_prints_a_table_and_writes_json(load, backbones, tmp_path, capsys) -> None:
    encode = load("encode")
    out = tmp_path / "figures.json"
    arguments = ["--device", "cpu", "--size", "tiny", "--seconds", "0", "--matmul-side", "64"]
    arguments += ["--batch-sizes", "1", "3", "--backbones", str(backbones)]
    encode.main([*arguments, "--quantization", "none", "--json", "--out", str(out)])
    printed = capsys.readouterr().out
    assert out.read_text(encoding="utf-8") == printed
    data = json.loads(printed)
    (model,) = data["models"]
    assert (model["quantization"], model["words"]) == ("none", 500)
    rates = {"encode", "flop", "flop_per_s", "product_flop_per_s", "share", "peak_gib"}
    more = {"in_full", "once_a_batch", "cached", "gain_once_a_batch", "gain_cached"}
    for kind, keys in (("texts", rates | more), ("images", rates | {"forward"})):
        assert [row["batch"] for row in model[kind]] == [1, 3]
        assert all(row[key] > 0 for row in model[kind] for key in keys)
    assert model["texts"][0]["prompt_tokens"] == 39
    table = encode.to_markdown(data)
    assert "**Texts, quantisation: none.**" in table
    assert table.count("\n| 3 |") == 2


def test_out_of_memory_is_an_empty_place(load) -> None:
    measuring, encode = load("measuring"), load("encode")
    lexvla_errors = load("lexvla.errors")
    calls = []

    def too_large() -> None:
        calls.append(1)
        if len(calls) > 2:  # fits at first
            raise torch.OutOfMemoryError

    def wrapped() -> None:
        raise lexvla_errors.ModelError("no memory") from torch.OutOfMemoryError()

    def broken() -> None:
        raise lexvla_errors.ModelError("not finite")

    clock = measuring.Clock(torch.device("cpu"), 0)
    late, fine, never = clock.medians(too_large, lambda: None, wrapped)
    assert late is None and never is None and fine > 0
    assert len(calls) == 3
    with pytest.raises(lexvla_errors.ModelError, match="finite"):
        clock.medians(broken)
    row = dict.fromkeys(["forward", "encode", "flop_per_s", "share"])
    row |= {"batch": 8, "flop": 1, "product_flop_per_s": 1e12, "peak_gib": 1.5}
    figures = {"words": 5, "texts": [], "images": [row]}
    data = {"size": "tiny", "dtype": "float32", "matmul_side": 8}
    data |= dict.fromkeys(["device", "torch", "transformers", "bitsandbytes"], "x")
    table = encode.to_markdown(data | {"models": [figures | {"quantization": "none"}]})
    memory = "out of memory"
    assert f"| 8 | {memory} | {memory} | {memory} | 1 | {memory} | 1.5 |" in table


def test_three_ways_to_run_the_prompt_agree(load, backbones) -> None:
    encode, random_backbones = load("encode"), load("random_backbones")
    size = random_backbones.SIZES["tiny"]
    text, vision = random_backbones.write_backbones(size, backbones)
    model = encode.TorchLexVLA.from_backbones(text, vision, lora_rank=0, **size.settings())
    texts = random_backbones.make_captions(model.vocabulary, 5)
    ids = tokenize(model.tokenizer, texts, model.config.prompt, 64)
    kept = PrefixCache()
    with torch.inference_mode():
        full = encode.run_in_full(model, ids)
        once = model.text_tower(ids, kept)
        again = model.text_tower(ids, kept)
    assert torch.allclose(full, once, atol=1e-4)
    assert torch.allclose(full, again, atol=1e-4)


def test_backbones_are_written_once(load, tmp_path) -> None:
    random_backbones = load("random_backbones")
    size = random_backbones.SIZES["tiny"].cut(1)
    text, _ = random_backbones.write_backbones(size, tmp_path)
    first = Path(text, "model.safetensors.index.json").stat().st_mtime_ns
    random_backbones.write_backbones(size, tmp_path)
    assert Path(text, "model.safetensors.index.json").stat().st_mtime_ns == first
    random_backbones.write_backbones(random_backbones.SIZES["tiny"], tmp_path)
    assert json.loads(Path(text, "config.json").read_text())["num_hidden_layers"] == 2


def test_full_vocabulary_is_as_large_as_the_papers(load) -> None:
    random_backbones = load("random_backbones")
    full = random_backbones.FULL
    tokenizer = random_backbones.build_tokenizer(full.pieces, full.words)
    vocabulary = Vocabulary.from_tokenizer(tokenizer)
    assert (len(tokenizer), len(vocabulary)) == (32000, 17149)
    captions = random_backbones.make_captions(vocabulary, 20)
    assert all(10 <= len(caption.split()) <= 15 for caption in captions)
    pieces = tokenizer(captions, add_special_tokens=False)["input_ids"]
    assert all(tokenizer.unk_token_id not in row for row in pieces)
    assert 12 < sum(map(len, pieces)) / 20 < 19


def test_flop_of_hand_computed_shapes(load) -> None:
    flop = load("flop")
    text = LlamaConfig(
        hidden_size=4,
        intermediate_size=6,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=9,
    )
    # A layer has 4x4 weights for queries and for the output, 4x2 for keys and for values, and
    # 3 of 4x6. Three tokens after two see 3 + 4 + 5 = 12 tokens.
    assert flop.language_flop(text, 3, past=2) == 2 * (2 * 120 * 3 + 4 * 4 * 12)
    vision = Dinov2Config(
        hidden_size=4,
        num_hidden_layers=3,
        num_attention_heads=2,
        mlp_ratio=2,
        image_size=4,
        patch_size=2,
    )
    config = LexVLAConfig(
        text, vision, adapter_heads=2, adapter_width=5, dense_width=3, codebook_size=7
    )
    # Four patches of 12 numbers; five tokens; attention 4x4x4 and MLP 2 of 4x8.
    assert flop.vision_flop(vision, 4) == 2 * 4 * 12 * 4 + 3 * (2 * 5 * 128 + 4 * 4 * 25)
    # Attention 4x4x4, then 4x5, 5x4, 4x5 and 5x4 into the lexical width.
    assert flop.adapter_flop(config, 5) == 2 * 5 * (64 + 80) + 4 * 4 * 25
    assert flop.head_flop(config, 11, states=4) == 2 * (4 * 4 * 11 + 4 * 3 + 3 * 7)
    whole = flop.vision_flop(vision, 4) + flop.adapter_flop(config, 5)
    assert flop.image_flop(config, 11) == whole + flop.head_flop(config, 11, 4)
    assert flop.text_flop(config, 11, 1, 5) == 2 * (2 * 120 + 4 * 4 * 6) + 2 * (44 + 12 + 21)


def test_flop_of_the_papers_backbones_are_two_a_weight(load) -> None:
    flop, full = load("flop"), load("random_backbones").FULL
    text = LlamaConfig(hidden_size=full.width, intermediate_size=full.inner)
    weights = 6_738_415_616 - 2 * 32000 * 4096 - 65 * 4096  # without embeddings and norms
    assert flop.language_flop(text, 1) == 2 * weights + 4 * 4096 * 32


def test_full_size_passes_its_checks(load, backbones, capsys) -> None:
    arguments = ["--device", "cpu", "--tiny", "--pairs", "2", "--quantization", QUANTIZATION]
    with pytest.raises(SystemExit) as caught:
        load("full_size").main([*arguments, "--backbones", str(backbones)])
    printed = capsys.readouterr().out
    assert caught.value.code == 0, printed
    assert printed.count("- ok: ") == 12
    assert printed.endswith("All checks passed.\n")


def test_full_size_fails_where_a_frozen_weight_changes(
    load, backbones, monkeypatch, capsys
) -> None:
    module = load("full_size")
    train = module.train

    def with_a_leak(model, *rest):
        model.image_tower.vision_model.embeddings.cls_token.data += 1
        return train(model, *rest)

    monkeypatch.setattr(module, "train", with_a_leak)
    arguments = ["--device", "cpu", "--tiny", "--pairs", "2", "--quantization", "none"]
    with pytest.raises(SystemExit) as caught:
        module.main([*arguments, "--backbones", str(backbones)])
    assert caught.value.code == 1
    printed = capsys.readouterr().out
    assert "FAILED: none of" in printed and "embeddings.cls_token" in printed
