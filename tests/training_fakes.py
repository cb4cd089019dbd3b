"""What the tests of the trainer share."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from backbone_fakes import random_lora, small
from lexvla.preprocessing import preprocess
from lexvla.torch_model import Features, TorchLexVLA
from model_fakes import GRID, picture, tiny_model

SIDE = 8 * GRID
CPU = torch.device("cpu")
ROOT = Path(__file__).parent.parent
CAPTIONS = ["a red dog", "hat", "two blue birds, flying"]
PICTURES = [picture(1), picture(2), picture(3)]


def pixels() -> Tensor:
    return preprocess(PICTURES, SIDE)


@cache
def shared_model() -> TorchLexVLA:
    """A model that no test changes."""
    return tiny_model()


def unit(*shape: int, seed: int = 0) -> Tensor:
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return functional.normalize(values, dim=-1)


def all_of(*features: Features) -> list[Tensor]:
    return [part for each in features for part in each if part is not None]


def assert_all_close(found: list[Tensor], expected: list[Tensor], tolerance: float = 1e-6) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=tolerance, rtol=tolerance)


def adapted(text_model: str, vision_model: str) -> TorchLexVLA:
    """A model of frozen towers with LoRA."""
    torch.manual_seed(0)
    model = TorchLexVLA.from_backbones(text_model, vision_model, **small(lora_dropout=0.3))
    return random_lora(model)


class Recipes:
    """Write recipes that are small ones but for some changes.

    Args:
        sections: The settings by section; a change to ``None`` leaves one out.
    """

    def __init__(self, sections: dict[str, dict[str, Any]]) -> None:
        self.sections = sections

    def write(self, output: Path, **changes: dict[str, Any]) -> Path:
        output.mkdir(parents=True, exist_ok=True)
        lines = [f"output = {json.dumps(str(output))}"]
        for name, values in self.sections.items():
            lines.append(f"[{name}]")
            merged = {**values, **changes.get(name.replace(".", "_"), {})}
            lines += [f"{k} = {json.dumps(v)}" for k, v in merged.items() if v is not None]
        path = output / "recipe.toml"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path


def read_log(output: Path) -> list[dict[str, float]]:
    """Return the lines of a run's log, but for the time: the one part of chance."""
    lines = (output / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


# Dies like a machine that loses power: within the fifth step, or with half a checkpoint written.
KILL = """
import os, signal, sys
from lexvla.training import checkpoint, trainer
def die(*_): os.kill(os.getpid(), signal.SIGKILL)
share, save = trainer.Trainer._share_gradients, trainer.Trainer.save_checkpoint
def share_or_die(self):
    if self.step == 4 and sys.argv[2] == "step": die()
    share(self)
def save_and_die(self):
    if self.step == 6: checkpoint.os.fsync = die
    save(self)
trainer.Trainer._share_gradients = share_or_die
trainer.Trainer.save_checkpoint = save_and_die
trainer.train(sys.argv[1])
"""


def run_until_killed(recipe: Path, moment: str) -> None:
    """Run a recipe in another process until it is killed in a ``step`` or a ``checkpoint``."""
    killed = subprocess.run(
        [sys.executable, "-c", KILL, recipe, moment],
        check=False,
        capture_output=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": "7"},
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
