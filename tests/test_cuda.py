"""What runs on a GPU gives what runs on the CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from backbone_fakes import (
    PICTURES,
    TEXTS,
    assert_same,
    random_lora,
    save_language_model,
    save_vision_model,
    small,
    step,
)
from lexvla import Encoding, LexVLA
from lexvla.data.demo_corpus import load_demo_corpus

pytestmark = pytest.mark.cuda


def cosines(one: Encoding, other: Encoding) -> np.ndarray:
    lengths = [np.sqrt(e.lexical.multiply(e.lexical).sum(axis=1)) for e in (one, other)]
    return one.lexical.multiply(other.lexical).sum(axis=1) / lengths[0] / lengths[1]


def test_the_default_model() -> None:
    items = load_demo_corpus("emoji")[:100]
    images, labels = [item.image for item in items], [item.label for item in items]
    on_cpu, on_gpu = LexVLA.from_pretrained(), LexVLA.from_pretrained(device="cuda")
    assert on_gpu.device.type == "cuda"
    low = LexVLA.from_pretrained(device="cuda", dtype="bfloat16")
    for one, least in ((on_gpu, 0.9999), (low, 0.99)):
        assert cosines(one.encode_image(images), on_cpu.encode_image(images)).min() > least
        assert cosines(one.encode_text(labels), on_cpu.encode_text(labels)).min() > least
    same = on_gpu.encode_image(images).patches, on_cpu.encode_image(images).patches
    if len(same[0]) == len(same[1]):  # a word on the edge of the rule may fall on either side
        assert (same[0] == same[1]).mean() > 0.99


def test_backbones(tmp_path: Path) -> None:
    text, vision = save_language_model(tmp_path / "text"), save_vision_model(tmp_path / "vision")
    model = random_lora(LexVLA.from_backbones(text, vision, **small(), device="cuda"))
    assert {p.device.type for p in model.parameters()} == {"cuda"}
    gradients = step(model, bfloat16=True)
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    model.save_pretrained(tmp_path / "saved")
    assert_same(LexVLA.from_pretrained(tmp_path / "saved", device="cuda"), model)


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_quantised(kind: str, tmp_path: Path) -> None:
    sizes = {"hidden_size": 64, "intermediate_size": 64, "initializer_range": 0.1}
    text = save_language_model(tmp_path / "text", **sizes)
    vision = save_vision_model(tmp_path / "vision")
    changes = small(quantization=kind)
    model = random_lora(LexVLA.from_backbones(text, vision, **changes, device="cuda"), 0.1)
    model.encode_text(TEXTS)
    gradients = step(model, bfloat16=True)
    assert any("lora_A" in name and gradient.any() for name, gradient in gradients.items())
    model.save_pretrained(tmp_path / "saved")
    assert_same(LexVLA.from_pretrained(tmp_path / "saved", device="cuda"), model)
    # From GPU to CPU: the same 4-bit weights, other kernels.
    moved = LexVLA.from_pretrained(tmp_path / "saved", device="cpu")
    for mine, yours in ((moved.encode_text(TEXTS), model.encode_text(TEXTS)),):
        assert (mine.dense * yours.dense).sum(axis=1).min() > 0.98
    assert torch.isfinite(torch.from_numpy(moved.encode_image(PICTURES).dense)).all()
