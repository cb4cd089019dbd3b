"""Whole runs of the trainer on image-text pairs."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from lexvla import LexVLA, saving
from lexvla.errors import InputError, ModelError
from lexvla.training import checkpoint, trainer
from lexvla.training.checkpoint import load_checkpoint
from lexvla.training.recipe import Recipe
from lexvla.training.run_folder import claimed
from lexvla.training.trainer import Trainer, train
from lexvla_search import cli
from memory_fakes import save_classified
from pair_fakes import THINGS
from training_fakes import ROOT, Recipes, read_log, run_until_killed

# Every term once, with little of everything.
ALL = {
    "own_words": 0.5,
    "image_pairs": 0.5,
    "memory": 0.5,
    "memory_from": 1,
    "dense": 1.0,
    "codis": 0.5,
    "codis_from": 2,
    "reseed_every": 2,
    "tcl_cross": 0.5,
    "tcl_intra": 0.5,
    "tcl_local": 0.5,
    "proxy": 0.5,
    "distil": 0.3,
    "queue": 12,
    "penalty_ramp": 3,
}
TERMS = {
    *("lexical", "penalty_image", "penalty_text", "dense", "distil", "proxy"),
    *("codis", "tcl_cross", "tcl_intra", "tcl_local"),
    *("image_words", "text_words", "image_pairs", "memory", "memory_dense"),
}
pytestmark = pytest.mark.usefixtures("one_thread")


def weights(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*.safetensors"))
    }


@pytest.fixture(scope="module")
def whole(recipes: Recipes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the output of a run with every term that nothing disturbed."""
    output = tmp_path_factory.mktemp("whole")
    recipe = recipes.write(output, loss=ALL, train={"parts": 2, "accumulate": 2})
    assert train(recipe) == output / "model"
    return output


def test_every_term_is_used_and_finite(whole: Path) -> None:
    log = read_log(whole)
    assert [line["step"] for line in log] == list(range(1, 7))
    for line in log:
        assert all(math.isfinite(value) for value in line.values())
        assert line["loss"] == pytest.approx(sum(line.get(term, 0) for term in TERMS), rel=1e-4)
    assert TERMS - log[0].keys() == {
        "codis",
        "memory",
        "memory_dense",
    }  # they begin when something is held
    assert TERMS - log[1].keys() == {"codis"}
    assert log[3].keys() >= TERMS
    assert log[0]["penalty_image"] == 0 < log[5]["penalty_image"]
    assert "dead" not in log[1]
    assert 0 <= log[2]["dead"] <= 4


def test_the_model_is_a_whole_one(whole: Path) -> None:
    model = LexVLA.from_pretrained(whole / "model")
    encoding = model.encode_text(["a red dog"])
    assert encoding.lexical.nnz
    assert encoding.dense.shape == (1, 6)
    assert not (whole / "model" / "text_model").exists()


def test_records_that_are_skipped_are_counted(
    recipes: Recipes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train(recipes.write(tmp_path, train={"steps": 2}))
    lines = (tmp_path / "skipped.jsonl").read_text().splitlines()
    (told,) = [each.getMessage() for each in caplog.records if "skipped" in each.getMessage()]
    path = tmp_path / "skipped.jsonl"
    assert told == f"{len(lines)} times a record was skipped; see {path}"


def test_what_cannot_be_read_is_listed(whole: Path) -> None:
    skipped = [json.loads(line) for line in (whole / "skipped.jsonl").read_text().splitlines()]
    assert skipped
    assert all("broken.png" in line["id"] for line in skipped)


@pytest.mark.parametrize("moment", ["step", "checkpoint"])
def test_a_killed_run_goes_on_as_if_nothing_had_been(
    recipes: Recipes, whole: Path, tmp_path: Path, moment: str
) -> None:
    recipe = recipes.write(tmp_path, loss=ALL, train={"parts": 2, "accumulate": 2})
    run_until_killed(recipe, moment)
    assert not (tmp_path / "model").exists()
    assert load_checkpoint(tmp_path / "checkpoint.pt")["step"] == 3
    assert train(recipe, resume=True) == tmp_path / "model"
    assert weights(tmp_path / "model") == weights(whole / "model")
    assert read_log(tmp_path) == read_log(whole)
    assert (tmp_path / "skipped.jsonl").read_text() == (whole / "skipped.jsonl").read_text()


def test_batch_norms_that_are_trained_go_on_too(recipes: Recipes, tmp_path: Path) -> None:
    model = {"width": 16, "text_layers": 1, "heads": 1, "image_size": 64, "dense_width": 0}
    model |= {"vision_model": str(save_classified(tmp_path / "network")), "vision_frozen": False}
    model |= {"codebook_size": 0}
    sections = Recipes({**recipes.sections, "model": model})
    outputs = tmp_path / "whole", tmp_path / "stopped"
    first, second = (Recipe.load(sections.write(each, train={"save_every": 2})) for each in outputs)
    Trainer(first).run()
    stopped = Trainer(second)
    stopped.train_step()
    stopped.step = 1
    stopped.save_checkpoint()
    assert train(outputs[1] / "recipe.toml", resume=True) == outputs[1] / "model"
    assert weights(outputs[1] / "model") == weights(outputs[0] / "model")


def test_terms_of_weight_0_are_not_computed(
    recipes: Recipes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("a term of weight 0 was computed")

    for name in ("Teacher", "FeatureQueue", "ItemMemory", "code_counts"):
        monkeypatch.setattr(trainer, name, never)
    train(recipes.write(tmp_path, train={"steps": 2}))
    line = read_log(tmp_path)[1]
    assert TERMS & line.keys() == {"lexical", "penalty_image", "penalty_text"}
    # LexVLA alone: heads and codes are not trained, and are as they were at first.
    model = Trainer(Recipe.load(tmp_path / "recipe.toml")).model
    assert not any(p.requires_grad for p in model.image_dense_head.parameters())


def test_steps_learn(recipes: Recipes, tmp_path: Path) -> None:
    settings = {"steps": 60, "rate": 0.02, "crop": 1.0, "bfloat16": False, "save_every": 99}
    train(recipes.write(tmp_path, train=settings, data={"batch_size": 8}))
    losses = [line["lexical"] for line in read_log(tmp_path)]
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


def test_parts_of_a_batch_give_the_same_step(recipes: Recipes, tmp_path: Path) -> None:
    runs = []
    for parts in (1, 3):
        model = {"lora_dropout": 0.0, "dense_width": 6}
        settings = {"parts": parts, "steps": 1, "bfloat16": False}
        output = tmp_path / str(parts)
        train(recipes.write(output, model=model, loss={"dense": 1.0}, train=settings))
        runs.append(LexVLA.from_pretrained(output / "model").image_codebook.detach())
        runs.append(read_log(output)[0])
    assert runs[1]["loss"] == pytest.approx(runs[3]["loss"], rel=1e-5)
    torch.testing.assert_close(runs[0], runs[2], rtol=1e-3, atol=1e-5)


def test_going_on_from_a_saved_model(recipes: Recipes, whole: Path, tmp_path: Path) -> None:
    saved = Recipes({**recipes.sections, "model": {"start": str(whole / "model")}})
    train(saved.write(tmp_path, train={"steps": 2}))
    old, new = (LexVLA.from_pretrained(each / "model") for each in (whole, tmp_path))
    assert old.vocabulary == new.vocabulary
    assert not torch.equal(old.image_codebook, new.image_codebook)


def test_a_given_tree(recipes: Recipes, tmp_path: Path) -> None:
    loss = {"proxy": 1.0, "tree": True}
    found = Trainer(Recipe.load(recipes.write(tmp_path, loss=loss)))
    assert found.feed.classes == sorted(THINGS)
    assert found.objective.proxies is not None
    assert found.objective.proxies.given
    assert len(found.objective.proxies.levels) == 2  # few classes or not


def test_a_full_disk_leaves_the_last_checkpoint(
    recipes: Recipes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipes.write(tmp_path, train={"steps": 6, "save_every": 2})
    real, calls = checkpoint.os.fsync, []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) > 1:
            raise OSError(28, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(checkpoint.os, "fsync", full)
    with pytest.raises(ModelError, match=r"cannot be written .*No space left"):
        train(recipe)
    assert load_checkpoint(tmp_path / "checkpoint.pt")["step"] == 2
    assert not (tmp_path / "checkpoint.tmp").exists()


def test_a_run_without_steps_left_saves_its_model_again(recipes: Recipes, tmp_path: Path) -> None:
    """So a disk that was full at the end costs no step."""
    recipe = recipes.write(tmp_path, train={"steps": 3, "save_every": 99})
    train(recipe)
    found = weights(tmp_path / "model")
    shutil.rmtree(tmp_path / "model")
    assert load_checkpoint(tmp_path / "checkpoint.pt")["step"] == 3
    train(recipe, resume=True)
    assert weights(tmp_path / "model") == found
    assert len(read_log(tmp_path)) == 3


def test_weights_that_cannot_be_written(
    recipes: Recipes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise SafetensorError("No space left on device")

    monkeypatch.setattr(saving, "save_file", full)
    with pytest.raises(ModelError, match=r"model: the weights cannot be written \(No space left"):
        train(recipes.write(tmp_path, train={"steps": 1}))
    assert not (tmp_path / "model" / "config.json").exists()


def test_a_run_that_stopped_is_not_lost_to_one_that_starts_anew(
    recipes: Recipes, tmp_path: Path
) -> None:
    recipe = recipes.write(tmp_path, train={"steps": 3})
    stopped = Trainer(Recipe.load(recipe))
    stopped.step = 2
    stopped.save_checkpoint()
    rule = "stopped after 2 of 3 steps: continue it with --resume, or delete it"
    with pytest.raises(InputError, match=rule):
        train(recipe)
    assert load_checkpoint(tmp_path / "checkpoint.pt")["step"] == 2
    train(recipe, resume=True)
    train(recipe)  # one that ended is replaced


def test_one_run_at_a_time_writes_a_folder(recipes: Recipes, tmp_path: Path) -> None:
    recipe = recipes.write(tmp_path, train={"steps": 1})
    with (
        claimed(tmp_path),
        pytest.raises(InputError, match="another run is writing to this folder"),
    ):
        train(recipe)
    assert not (tmp_path / "log.jsonl").exists()
    assert train(recipe) == tmp_path / "model"


def test_an_os_error_without_a_name_gets_that_of_the_folder(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left") as caught, claimed(tmp_path):
        raise OSError(28, "No space left on device")
    assert caught.value.filename == str(tmp_path)


def test_another_recipe_is_refused_with_the_difference(recipes: Recipes, tmp_path: Path) -> None:
    train(recipes.write(tmp_path, train={"steps": 3}))
    changed = recipes.write(tmp_path, train={"steps": 3, "rate": 0.1}, loss={"dense": 0.5})
    with pytest.raises(ModelError) as caught:
        train(changed, resume=True)
    assert "loss.dense was 0.0 and is 0.5" in str(caught.value)
    assert "train.rate was 0.003 and is 0.1" in str(caught.value)


def test_a_loss_that_is_no_number_ends_the_run(
    recipes: Recipes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Trainer._micro_step

    def broken(self: Trainer, *arguments: Any) -> dict[str, float]:
        return {**step(self, *arguments), "loss": math.nan}

    monkeypatch.setattr(Trainer, "_micro_step", broken)
    with pytest.raises(ModelError, match="step 1: the loss is nan"):
        train(recipes.write(tmp_path))
    assert not (tmp_path / "model").exists()


def test_the_command(recipes: Recipes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = recipes.write(tmp_path, train={"steps": 2})
    assert cli.main(["train", str(recipe), "--json"]) == 0
    folder = json.loads(capsys.readouterr().out)["model"]
    assert LexVLA.from_pretrained(folder).encode_text(["hat"]).lexical.nnz


@pytest.mark.slow
def test_two_processes(recipes: Recipes, tmp_path: Path) -> None:
    """All terms over a global batch of two processes, whose texts are of different lengths."""
    recipe = recipes.write(tmp_path, loss=ALL, train={"parts": 2, "steps": 4, "save_every": 2})
    code = "import sys; from lexvla.training.trainer import train; "
    code += "train(sys.argv[1], len(sys.argv) > 2)"
    (tmp_path / "run.py").write_text(code)

    def launch(*more: str) -> None:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += ["--nproc_per_node=2", str(tmp_path / "run.py"), str(recipe), *more]
        env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, check=False, capture_output=True, cwd=ROOT, env=env)
        assert done.returncode == 0, done.stderr.decode()

    launch()
    log, first = read_log(tmp_path), weights(tmp_path / "model")
    assert [line["step"] for line in log] == [1, 2, 3, 4]
    assert log[3].keys() >= TERMS
    # One checkpoint holds the place of both in the data; one process cannot go on from it.
    assert len(load_checkpoint(tmp_path / "checkpoint.pt")["feeds"]) == 2
    launch("--resume")
    assert weights(tmp_path / "model") == first
    with pytest.raises(ModelError, match="made by 2 processes, and there are 1"):
        train(recipe, resume=True)
