from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from lexvla.errors import InputError, ModelError
from lexvla.model import LexVLA
from lexvla.training import trainer as module
from lexvla.training.checkpoint import load_checkpoint, save_checkpoint
from lexvla.training.recipe import Recipe
from lexvla.training.trainer import Trainer, train
from model_fakes import ITEMS, STYLES, picture, save_drawings
from search import cli

PARTS = {
    *("image_words", "text_words", "overuse"),
    *("text_to_image", "image_to_text", "image_to_image"),
    *("memory_image", "memory_text"),
}
# Dies like a machine that loses power: at the fifth step, or with half a checkpoint written.
KILL = """
import os, signal, sys
from lexvla.training import checkpoint, trainer
def die(*_): os.kill(os.getpid(), signal.SIGKILL)
step = trainer.Trainer.train_step
def step_or_die(self):
    if self.step == 4 and sys.argv[2] == "step": die()
    if self.step == 5 and sys.argv[2] == "checkpoint": checkpoint.os.fsync = die
    return step(self)
trainer.Trainer.train_step = step_or_die
trainer.train(sys.argv[1])
"""


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def drawings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_drawings(tmp_path_factory.mktemp("drawings"))


def write_recipe(drawings: Path, output: Path, **changes: Any) -> Path:
    values = {
        "drawings": str(drawings),
        "styles": list(STYLES),
        "output": str(output),
        "save_every": 3,
        "width": 16,
        "vision_layers": 1,
        "text_layers": 1,
        "heads": 2,
        "sides": [16, 24],
        "sides_from": [0.0, 0.5],
        "pieces_below_words": 60,
        "steps": 8,
        "items_per_step": 4,
        "threads": 1,
        "warmup": 2,
        "contrast_from": 2,
        "memory_from": 4,
        "overuse_ramp": 4,
        **changes,
    }
    output.mkdir(parents=True, exist_ok=True)
    path = output / "recipe.toml"
    lines = [f"{key} = {json.dumps(value)}\n" for key, value in values.items()]
    path.write_text("".join(lines), encoding="utf-8")
    return path


def read_log(output: Path) -> list[dict[str, float]]:
    lines = (output / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [
        {k: v for k, v in json.loads(line).items() if k != "seconds"}  # the one part of chance
        for line in lines
    ]


@pytest.fixture(scope="module")
def whole(drawings: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the output of a run that nothing disturbed."""
    output = tmp_path_factory.mktemp("whole")
    assert train(write_recipe(drawings, output)) == output / "model"
    return output


def test_every_part_of_the_loss_is_used_and_finite(whole: Path) -> None:
    log = read_log(whole)
    assert [line["step"] for line in log] == list(range(1, 9))
    for line in log:
        assert all(math.isfinite(value) for value in line.values())
        parts = PARTS & line.keys()
        assert line["loss"] == pytest.approx(sum(line[part] for part in parts), rel=1e-5)
    assert PARTS & log[1].keys() == {"image_words", "text_words", "overuse"}
    assert PARTS - log[3].keys() == {"memory_image", "memory_text"}
    assert log[4].keys() >= PARTS
    assert log[0]["overuse"] == 0  # the ramp begins at zero


def test_a_finished_run_leaves_a_model(whole: Path) -> None:
    assert load_file(whole / "model/model.safetensors")["image_codebook"].dtype == torch.float16
    model = LexVLA.from_pretrained(whole / "model")
    assert model.dtype == torch.float32
    assert model.patch_grid == (3, 3)
    assert {"▁red", "▁apple", "▁heart", "▁billiards"} <= set(model.vocabulary.terms)
    texts = model.encode_text(["red apple", "frog"])
    images = model.encode_image([picture(1)])
    assert texts.lexical.nnz > 0
    assert images.lexical.nnz > 0
    assert np.isfinite(model.similarity(texts, images)).all()


def test_what_is_saved_is_the_average_in_16_bits(drawings: Path, tmp_path: Path) -> None:
    trainer = Trainer(Recipe.load(write_recipe(drawings, tmp_path, steps=2)))
    first = trainer.average["image_codebook"].clone()
    trainer.run()
    assert not torch.equal(trainer.average["image_codebook"], first)
    saved = LexVLA.from_pretrained(trainer.save())
    assert saved.state_dict().keys() == trainer.average.keys()
    for name, weight in saved.state_dict().items():
        assert torch.equal(weight, trainer.average[name].half().float())


def test_steps_learn(drawings: Path, tmp_path: Path) -> None:
    """On six items with little chance about them, the images' own words soon come first."""
    rates = {"adam_rate": 0.03, "muon_rate": 0.1, "dropout": 0.0, "drop_path": 0.0}
    recipe = write_recipe(
        drawings, tmp_path, **rates, steps=80, augmentation=0.0, contrast_from=99, memory_from=99
    )
    Trainer(Recipe.load(recipe)).run()
    losses = [line["image_words"] for line in read_log(tmp_path)]
    assert np.mean(losses[-5:]) < 0.3 * np.mean(losses[:5])


@pytest.mark.parametrize("moment", ["step", "checkpoint"])
def test_a_killed_run_goes_on_as_if_nothing_had_been(
    drawings: Path, whole: Path, tmp_path: Path, moment: str
) -> None:
    recipe = write_recipe(drawings, tmp_path)
    killed = subprocess.run(
        [sys.executable, "-c", KILL, recipe, moment],
        check=False,
        capture_output=True,
        cwd=Path(__file__).parent.parent,
        env={**os.environ, "PYTHONHASHSEED": "7"},
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert not (tmp_path / "model").exists()
    assert load_checkpoint(tmp_path / "checkpoint.pt")["step"] == 3
    assert train(recipe, resume=True) == tmp_path / "model"
    for name in ("model.safetensors", "tokenizer.json", "vocabulary.json", "config.json"):
        assert (tmp_path / "model" / name).read_bytes() == (whole / "model" / name).read_bytes()
    assert read_log(tmp_path) == read_log(whole)


def test_resume_without_a_checkpoint_starts_anew(
    drawings: Path, whole: Path, tmp_path: Path
) -> None:
    train(write_recipe(drawings, tmp_path), resume=True)
    assert read_log(tmp_path) == read_log(whole)


def test_a_run_without_resume_starts_anew(drawings: Path, tmp_path: Path) -> None:
    recipe = write_recipe(drawings, tmp_path, steps=3)
    train(recipe)
    first = read_log(tmp_path)
    train(recipe)
    assert read_log(tmp_path) == first


def test_the_seed_matters(drawings: Path, whole: Path, tmp_path: Path) -> None:
    train(write_recipe(drawings, tmp_path, seed=1))
    assert read_log(tmp_path) != read_log(whole)


@pytest.fixture
def stopped(drawings: Path, tmp_path: Path) -> Path:
    """Return the output of a run that has a checkpoint."""
    train(write_recipe(drawings, tmp_path, steps=3))
    return tmp_path


def test_a_checkpoint_of_other_settings_is_refused(drawings: Path, stopped: Path) -> None:
    changed = write_recipe(drawings, stopped, steps=3, clip=0.5, seed=9)
    with pytest.raises(ModelError, match="made with other settings of seed, clip"):
        train(changed, resume=True)


def test_a_damaged_checkpoint_is_refused(stopped: Path) -> None:
    path = stopped / "checkpoint.pt"
    data = path.read_bytes()
    for length in (0, 10, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:length])
        with pytest.raises(ModelError, match=r"checkpoint\.pt: no readable checkpoint"):
            train(stopped / "recipe.toml", resume=True)
    torch.save([1, 2], path)
    with pytest.raises(ModelError, match="no checkpoint of a training run"):
        train(stopped / "recipe.toml", resume=True)


def test_a_checkpoint_runs_no_code(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "made"),)

    torch.save({"recipe": Evil()}, tmp_path / "checkpoint.pt")
    with pytest.raises(ModelError, match="no readable checkpoint"):
        load_checkpoint(tmp_path / "checkpoint.pt")
    assert not (tmp_path / "made").exists()


def test_a_checkpoint_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    for step in (1, 2):
        save_checkpoint(path, {"recipe": {}, "step": step})
        assert load_checkpoint(path)["step"] == step
    assert [each.name for each in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_a_loss_that_is_no_number_ends_the_run(
    drawings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "overuse_penalty", lambda vectors: vectors.sum() * math.nan)
    with pytest.raises(ModelError, match="step 1: the loss is nan"):
        train(write_recipe(drawings, tmp_path, save_every=1))
    assert not (tmp_path / "checkpoint.pt").exists()
    assert not (tmp_path / "model").exists()


def test_the_memory_may_begin_before_the_contrast(drawings: Path, tmp_path: Path) -> None:
    train(write_recipe(drawings, tmp_path, steps=3, contrast_from=9, memory_from=1))
    assert PARTS - read_log(tmp_path)[2].keys() == {
        *("text_to_image", "image_to_text", "image_to_image"),
    }


def test_a_step_takes_no_more_items_than_there_are(drawings: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"has {len(ITEMS)} items, and a step takes 7"):
        train(write_recipe(drawings, tmp_path, items_per_step=7))
    train(write_recipe(drawings, tmp_path, items_per_step=6, steps=1))


def test_the_command(
    drawings: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe(drawings, tmp_path)
    assert cli.main(["train", str(recipe), "--json"]) == 0
    folder = Path(json.loads(capsys.readouterr().out)["model"])
    assert LexVLA.from_pretrained(folder).name == LexVLA.from_pretrained(whole / "model").name
    assert cli.main(["train", str(recipe), "--resume"]) == 0
    assert capsys.readouterr().out == f"the model is in {folder}\n"
    assert cli.main(["train", str(tmp_path / "none.toml")]) == 1
    assert "no readable recipe" in capsys.readouterr().err
