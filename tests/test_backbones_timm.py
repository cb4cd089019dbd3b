from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F
from transformers import AutoModel, TimmWrapperConfig

from backbone_fakes import TEXTS, WIDTH, assert_same, small, step
from lexvla import LexVLA
from lexvla.config import LexVLAConfig
from lexvla.errors import InputError, ModelError, OptionalDependencyError
from lexvla.feature_maps import feature_map, measure
from lexvla.preprocessing import preprocess
from lexvla_search.evaluation.patchdis import evaluate_patchdis
from model_fakes import picture

SIDE, STRIDE, GRID = 96, 32, 3
PICTURES = [picture(i, (70, 50)) for i in (1, 2, 3)]
# Channels of the last map, and of the map of half the stride.
WIDTHS = {"test_efficientnet": (256, 48), "test_resnet": (96, 192), "test_convnext": (64, 48)}


def save_network(folder: Path, name: str = "test_efficientnet", **settings: Any) -> str:
    """Write a tiny network of timm with random weights and return the folder."""
    trained = {"input_size": (3, 100, 100), "mean": (0.4, 0.5, 0.6), "std": (0.2, 0.2, 0.3)}
    torch.manual_seed(2)
    model = AutoModel.from_config(
        TimmWrapperConfig(architecture=name, **{"pretrained_cfg": trained, **settings})
    )
    for layer in model.modules():  # as if it had seen images
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.1)
            layer.running_var.uniform_(0.5, 1.5)
    model.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_network(tmp_path_factory.mktemp("timm"))


def settings(**changes: Any) -> dict[str, Any]:
    return small(**{"image_size": SIDE, **changes})


def encode_pictures(model: LexVLA) -> list[np.ndarray]:
    images = model.encode_image(PICTURES)
    assert images.patches is not None
    return [images.lexical.toarray(), images.patches, images.dense]


@pytest.mark.parametrize("name", WIDTHS)
@pytest.mark.parametrize("fine", [False, True])
def test_cells_of_the_last_map_are_patches(
    name: str, fine: bool, text_model: str, tmp_path: Path
) -> None:
    folder = save_network(tmp_path / "timm", name)
    model = LexVLA.from_backbones(text_model, folder, **settings(fine_stage=fine))
    tower, config = model.image_tower, model.config
    last, finer = WIDTHS[name]
    assert config.vision_width == last + 4 * finer * fine
    assert (config.patch_size, model.patch_grid) == (STRIDE, (GRID, GRID))
    # The tower runs with the channels last, which rounds in another order.
    pixels = torch.randn(2, 3, SIDE, 2 * STRIDE).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        cells = tower.cells(pixels)
        own = tower.vision_model(pixel_values=pixels).last_hidden_state
        assert cells.shape == (2, GRID * 2, config.vision_width)
        assert cells.dtype == torch.float32
        # Row by row, and bit by bit what transformers gives.
        assert torch.equal(cells[..., :last].reshape(2, GRID, 2, last).movedim(3, 1), own)
        assert torch.equal(tower(pixels), tower.adapt(cells))
        assert tower(pixels).shape == (2, GRID * 2, WIDTH)
        if fine:
            stages = tower.vision_model.timm_model.forward_intermediates(pixels)[1]
            (stage,) = [s for s in stages if s.shape[-2:] == (2 * GRID, 4)]
            # A cell holds the four cells of the finer map that it covers.
            four = stage[0, :, 2:4, 2:4].reshape(-1)
            assert torch.equal(cells[0, 3, last:], four)
            assert torch.equal(F.pixel_unshuffle(stage, 2)[0, :, 1, 1], four)


@pytest.mark.parametrize("fine", [False, True])
def test_everything_works_on_cells(
    fine: bool, network: str, text_model: str, tmp_path: Path
) -> None:
    model = LexVLA.from_backbones(text_model, network, **settings(fine_stage=fine))
    images = model.encode_image(PICTURES)
    assert images.lexical.nnz
    assert images.patches is not None
    assert set(images.patches.tolist()) <= set(range(GRID**2))
    heat = model.heatmap(PICTURES[0], "dog")
    assert heat.shape == (GRID, GRID)
    column = model.vocabulary.find("dog")
    with torch.no_grad():
        pixels = preprocess(PICTURES[:1], SIDE, model.config.image_mean, model.config.image_std)
        _, place = model.image_logits(pixels)
    assert heat.argmax() == place[0, column]
    # A region has the words of its own cells only.
    region = model.encode_region(PICTURES[:1], [(0, 0, 20, 50)])
    assert set(region.patches.tolist()) <= {0, 3, 6}
    patches = model.encode_patches(PICTURES[:1])
    assert len(patches) == GRID**2
    whole = model.encode_region(PICTURES[:1], [(0, 0, 70, 50)])
    np.testing.assert_allclose(whole.lexical.toarray(), images[0].lexical.toarray(), atol=1e-5)
    mask = np.zeros((50, 70), np.int64)
    mask[20:] = 1
    figures = evaluate_patchdis(model, [(PICTURES[0], mask)], ["dog", "hat"])
    assert (figures.images, figures.patches) == (1, GRID**2)


@pytest.mark.parametrize("fine", [False, True])
def test_saved_by_name_and_whole(fine: bool, network: str, text_model: str, tmp_path: Path) -> None:
    model = LexVLA.from_backbones(text_model, network, **settings(fine_stage=fine))
    model.save_pretrained(tmp_path / "named")
    assert not (tmp_path / "named" / "vision_model").exists()
    loaded = LexVLA.from_pretrained(tmp_path / "named")
    for mine, yours in zip(encode_pictures(loaded), encode_pictures(model), strict=True):
        np.testing.assert_array_equal(mine, yours)
    np.testing.assert_array_equal(
        loaded.encode_text(TEXTS).lexical.toarray(), model.encode_text(TEXTS).lexical.toarray()
    )
    model.config.vision_model = None
    model.save_pretrained(tmp_path / "whole")
    whole = LexVLA.from_pretrained(tmp_path / "whole")
    assert whole.config.vision_model is None
    for mine, yours in zip(encode_pictures(whole), encode_pictures(model), strict=True):
        np.testing.assert_array_equal(mine, yours)
    # The fine stage changes an encoding, and so a model's name.
    name = whole.config.fingerprint
    whole.config.fine_stage = not fine
    assert whole.config.fingerprint != name


def test_half_precision_on_disk_is_float32_in_memory(
    network: str, text_model: str, tmp_path: Path
) -> None:
    model = LexVLA.from_backbones(text_model, network, **settings(fine_stage=True, lora_rank=0))
    model.config.text_model = model.config.vision_model = None
    model.half().save_pretrained(tmp_path)
    loaded = LexVLA.from_pretrained(tmp_path)
    rounded = model.float().state_dict()
    for name, weight in loaded.state_dict().items():
        assert weight.dtype in (torch.float32, torch.int64)
        assert torch.equal(weight, rounded[name])
    for mine, yours in zip(encode_pictures(loaded), encode_pictures(model), strict=True):
        np.testing.assert_array_equal(mine, yours)
    low = LexVLA.from_pretrained(tmp_path, dtype="bfloat16")
    assert low.image_tower.cells(torch.zeros(1, 3, SIDE, SIDE)).dtype == torch.bfloat16
    assert low.encode_image(PICTURES).lexical.shape == (3, len(low.vocabulary))


def test_a_frozen_network_keeps_its_statistics(network: str, text_model: str) -> None:
    model = LexVLA.from_backbones(text_model, network, **settings())
    tower = model.image_tower
    before = {name: part.clone() for name, part in tower.vision_model.state_dict().items()}
    pixels = torch.randn(2, 3, SIDE, SIDE)
    with torch.no_grad():
        cells = tower.cells(pixels)
    model.train()
    assert tower.adapter.training
    assert not any(layer.training for layer in tower.vision_model.modules())
    assert torch.equal(tower.cells(pixels), cells)
    assert not tower.cells(pixels.requires_grad_()).requires_grad  # it runs without a graph
    assert tower(pixels).requires_grad
    gradients = step(model)
    assert any("image_tower.adapter" in name for name in gradients)
    for name, part in tower.vision_model.state_dict().items():
        assert torch.equal(part, before[name])
    # One that is trained is left as torch has it.
    tower.vision_model.requires_grad_(True)
    model.train()
    assert all(layer.training for layer in tower.vision_model.modules())
    assert tower.cells(pixels).requires_grad


def test_size_and_statistics_are_the_networks_own(
    network: str, text_model: str, tmp_path: Path
) -> None:
    config = LexVLA.from_backbones(text_model, network, **settings(image_size=None)).config
    assert (config.image_side, config.patch_grid) == (96, (3, 3))  # 100 is no multiple of 32
    assert (config.image_mean, config.image_std) == ([0.4, 0.5, 0.6], [0.2, 0.2, 0.3])
    given = settings(image_mean=[0.0] * 3)
    assert LexVLA.from_backbones(text_model, network, **given).config.image_mean == [0.0] * 3
    other = Path(save_network(tmp_path))
    values = {"image_mean": [0.1] * 3, "image_std": [0.7] * 3}
    (other / "preprocessor_config.json").write_text(json.dumps(values))
    config = LexVLA.from_backbones(text_model, str(other), **settings()).config
    assert (config.image_mean, config.image_std) == ([0.1] * 3, [0.7] * 3)


def test_sizes_that_the_stride_does_not_divide(network: str, text_model: str) -> None:
    with pytest.raises(ValueError, match=r"image_size=100 must be a multiple of .* stride, 32"):
        LexVLA.from_backbones(text_model, network, **settings(image_size=100))
    with pytest.raises(ValueError, match="image_size=31 is less than a patch of 32"):
        LexVLA.from_backbones(text_model, network, **settings(image_size=31))
    model = LexVLA.from_backbones(text_model, network, **settings())
    with pytest.raises(ModelError, match=r"4 x 3 cells for 100 x 96 pixels.*stride of 32"):
        model.image_tower(torch.zeros(1, 3, 100, 96))
    model = LexVLA.from_backbones(text_model, network, **settings(fine_stage=True))
    with pytest.raises(ModelError, match=r"fine_stage: .* 4 x 3 cells for 100 x 96.* 7 x 6, "):
        model.image_tower(torch.zeros(1, 3, 100, 96))
    with pytest.raises(InputError, match="at least one patch"):
        model.image_logits(torch.zeros(1, 3, 31, 96))
    with pytest.raises(InputError, match="is too small: 40 x 7 pixels, and it needs 8 x 8"):
        model.encode_image([picture(1, (40, 7))])


@pytest.mark.parametrize(
    ("name", "more", "words"),
    [
        ("test_vit", {}, r"\(B, C, h, w\) feature map.*shape \(1, 9, 64\) for 32 x 64 pixels"),
        ("test_mambaout", {}, r"feature map.*shape \(1, 2, 4, 64\) for 64 x 128"),
        ("mixer_s32_224", {}, "feature map.*224"),
        ("test_resnet", {"model_args": {"features_only": True}}, "feature map.*forward_features"),
    ],
)
@pytest.mark.parametrize("fine", [False, True])
def test_networks_without_a_feature_map(
    name: str, more: dict[str, Any], words: str, fine: bool, text_model: str, tmp_path: Path
) -> None:
    folder = save_network(tmp_path, name, **more)
    with pytest.raises(ModelError, match=f"{tmp_path}: {name} gives no .*{words}"):
        LexVLA.from_backbones(text_model, folder, **settings(fine_stage=fine))


def test_features_that_are_pooled_already(network: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = AutoModel.from_pretrained(network)
    assert measure(model) == (256, 32)
    monkeypatch.setattr(model.timm_model, "forward_features", lambda pixels: pixels.mean((2, 3)))
    with pytest.raises(ModelError, match=r"no \(B, C, h, w\) feature map.*shape \(1, 3\)"):
        measure(model)


def test_a_network_without_a_stage_of_half_the_stride(network: str) -> None:
    model = AutoModel.from_pretrained(network)
    model.timm_model.feature_info = model.timm_model.feature_info[-1:]
    with pytest.raises(ModelError, match=r"no stage has half the stride.*\[32\]"):
        measure(model, fine=True)
    assert feature_map(model, torch.zeros(1, 3, 32, 32)).shape == (1, 256, 1, 1)


def test_what_no_network_has(network: str, text_model: str, vision_model: str) -> None:
    with pytest.raises(ModelError, match="pool_cls: timm_wrapper has no CLS token"):
        LexVLA.from_backbones(text_model, network, **settings(pool_cls=True))
    with pytest.raises(ValueError, match="fine_stage are not for dinov2"):
        LexVLA.from_backbones(text_model, vision_model, **small(fine_stage=True))
    with pytest.raises(ValueError, match="timm_wrapper needs map_width and map_stride"):
        LexVLAConfig(vision_config=TimmWrapperConfig())
    with pytest.raises(ValueError, match="names no input size; give an image_size"):
        LexVLAConfig(vision_config=TimmWrapperConfig(), map_width=12, map_stride=32)


def test_a_network_that_cannot_be_built(network: str, text_model: str, tmp_path: Path) -> None:
    values = json.loads((Path(network) / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**values, "architecture": "no_such_net"}))
    with pytest.raises(ModelError, match=r"cannot be loaded .*'no_such_net' is not supported"):
        LexVLA.from_backbones(text_model, str(tmp_path), **settings())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"map_width": 254}, "map_width and map_stride are 254 and 32, but .* has 256 and 32"),
        ({"map_stride": 48}, "are 256 and 48, but test_efficientnet has 256 and 32"),
        ({"map_stride": 0}, "needs map_width and map_stride above 0"),
        ({"map_width": "wide"}, "the configuration cannot be read"),
        ({"fine_stage": True}, "are 256 and 32, but test_efficientnet has 448 and 32"),
    ],
)
def test_an_edited_configuration(
    changes: dict[str, Any], words: str, network: str, text_model: str, tmp_path: Path
) -> None:
    LexVLA.from_backbones(text_model, network, **settings()).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(ModelError, match=rf"config\.json: .*{words}"):
        LexVLA.from_pretrained(tmp_path)


def test_without_timm(
    network: str, text_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    LexVLA.from_backbones(text_model, network, **settings()).save_pretrained(tmp_path)
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(OptionalDependencyError, match=r"timm is not installed.*lexvla\[train\]"):
        LexVLA.from_backbones(text_model, network, **settings())
    with pytest.raises(OptionalDependencyError, match="timm is not installed"):
        LexVLA.from_pretrained(tmp_path)


def test_a_checkpoint_of_timm_itself(text_model: str, tmp_path: Path) -> None:
    # As timm uploads them: weights with the classifier's under its own names, and no model_type.
    torch.manual_seed(2)
    plain = timm.create_model("test_efficientnet").eval()
    save_file(plain.state_dict(), tmp_path / "model.safetensors", metadata={"format": "pt"})
    values = {"architecture": "test_efficientnet", "num_classes": 1000}
    values["pretrained_cfg"] = plain.default_cfg
    (tmp_path / "config.json").write_text(json.dumps(values))
    model = LexVLA.from_backbones(text_model, str(tmp_path), **settings())
    pixels = torch.randn(1, 3, SIDE, SIDE).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        features = plain.forward_features(pixels).flatten(2).transpose(1, 2)
        assert torch.equal(model.image_tower.cells(pixels), features)
    assert not model.config.vision_config.id2label
    assert model.config.image_mean == list(plain.default_cfg["mean"])


def test_transformers_still_give_the_same(text_model: str, vision_model: str) -> None:
    model = LexVLA.from_backbones(text_model, vision_model, **small())
    tower = model.image_tower
    pixels = preprocess(PICTURES, 24)
    with torch.no_grad():
        cells = tower.cells(pixels)
        raw = tower.vision_model(pixel_values=pixels).last_hidden_state
        assert torch.equal(cells, raw)  # CLS is in it
        assert tower.extra_tokens == 1
        assert torch.equal(tower(pixels), tower.adapt(cells))
    model.train()
    assert not tower.vision_model.training
    assert_same(model.eval(), model)
