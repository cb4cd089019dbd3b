"""Whole runs of the trainer on drawings, by a model of random weights."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from lexvla.errors import InputError, ModelError
from lexvla.torch_model import TorchLexVLA
from lexvla.training import drawing_feed, objective
from lexvla.training.checkpoint import load_checkpoint
from lexvla.training.recipe import Recipe
from lexvla.training.trainer import Trainer, train
from lexvla_search import cli
from model_fakes import ITEMS, picture
from training_fakes import Recipes, read_log, run_until_killed

TERMS = {
    *("image_words", "text_words", "lexical", "image_pairs", "memory"),
    *("penalty_image", "penalty_text"),
}

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def whole(drawing_recipes: Recipes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the output of a run that nothing disturbed."""
    output = tmp_path_factory.mktemp("whole")
    assert train(drawing_recipes.write(output)) == output / "model"
    return output


def test_every_term_is_used_and_finite(whole: Path) -> None:
    log = read_log(whole)
    assert [line["step"] for line in log] == list(range(1, 9))
    for line in log:
        assert all(math.isfinite(value) for value in line.values())
        assert line["loss"] == pytest.approx(sum(line.get(term, 0) for term in TERMS), rel=1e-4)
        known = {"step", "loss", "words", "alike", "gradient"}
        assert line.keys() - known == (TERMS if line["step"] > 4 else TERMS - {"memory"})
    assert log[0]["penalty_image"] == 0 < log[1]["penalty_image"]


def test_a_finished_run_leaves_a_model(whole: Path) -> None:
    assert load_file(whole / "model/model.safetensors")["image_codebook"].dtype == torch.float16
    model = TorchLexVLA.from_pretrained(whole / "model")
    assert model.dtype == torch.float32
    assert model.config.model_name == "tiny"
    assert model.patch_grid == (3, 3)
    assert {"▁red", "▁apple", "▁heart", "▁billiards"} <= set(model.vocabulary.terms)
    texts = model.encode_text(["red apple", "frog"])
    images = model.encode_image([picture(1)])
    assert texts.lexical.nnz > 0
    assert images.lexical.nnz > 0
    assert np.isfinite(model.similarity(texts, images)).all()


@pytest.mark.parametrize("half", [False, True])
def test_what_is_saved_is_the_average(drawing_recipes: Recipes, tmp_path: Path, half: bool) -> None:
    recipe = drawing_recipes.write(tmp_path, train={"steps": 2, "half": half})
    trainer = Trainer(Recipe.load(recipe))
    assert trainer.average is not None
    first = trainer.average.weights["image_codebook"].clone()
    folder = trainer.run()
    assert not torch.equal(trainer.average.weights["image_codebook"], first)
    kind = load_file(folder / "model.safetensors")["image_codebook"].dtype
    assert kind == (torch.float16 if half else torch.float32)
    saved = TorchLexVLA.from_pretrained(folder).state_dict()
    assert saved.keys() == trainer.average.weights.keys()
    for name, weight in trainer.average.weights.items():
        assert torch.equal(saved[name], weight.to(kind).float()), name


def test_the_average_forgets_fast_at_first(drawing_recipes: Recipes, tmp_path: Path) -> None:
    """After the first step it keeps a tenth of the random weights, whatever its decay."""
    trainer = Trainer(Recipe.load(drawing_recipes.write(tmp_path, train={"average": 0.999})))
    first = trainer.model.image_codebook.detach().clone()
    trainer.train_step()
    assert trainer.average is not None
    expected = 0.1 * first + 0.9 * trainer.model.image_codebook.detach()
    torch.testing.assert_close(trainer.average.weights["image_codebook"], expected)


def test_without_an_average_the_trained_weights_are_saved(
    drawing_recipes: Recipes, tmp_path: Path
) -> None:
    recipe = drawing_recipes.write(tmp_path, train={"steps": 2, "average": 0, "half": False})
    trainer = Trainer(Recipe.load(recipe))
    saved = TorchLexVLA.from_pretrained(trainer.run())
    assert torch.equal(saved.image_codebook, trainer.model.image_codebook)


def test_steps_learn(drawing_recipes: Recipes, tmp_path: Path) -> None:
    """On six items with little chance about them, the images' own words soon come first."""
    recipe = drawing_recipes.write(
        tmp_path,
        model={"dropout": 0.0, "drop_path": 0.0},
        loss={"lexical": 0.0, "image_pairs": 0.0, "memory": 0.0},
        train={"rate": 0.03, "muon_rate": 0.1, "steps": 80, "jitter": 0.0, "save_every": 99},
    )
    train(recipe)
    losses = [line["image_words"] for line in read_log(tmp_path)]
    assert np.mean(losses[-5:]) < 0.3 * np.mean(losses[:5])


@pytest.mark.parametrize("moment", ["step", "checkpoint"])
def test_a_killed_run_goes_on_as_if_nothing_had_been(
    drawing_recipes: Recipes, whole: Path, tmp_path: Path, moment: str
) -> None:
    recipe = drawing_recipes.write(tmp_path)
    run_until_killed(recipe, moment)
    assert not (tmp_path / "model").exists()
    assert load_checkpoint(tmp_path / "checkpoint.pt")["step"] == 3
    assert train(recipe, resume=True) == tmp_path / "model"
    for name in ("model.safetensors", "tokenizer.json", "vocabulary.json", "config.json"):
        assert (tmp_path / "model" / name).read_bytes() == (whole / "model" / name).read_bytes()
    assert read_log(tmp_path) == read_log(whole)


def test_resume_without_a_checkpoint_starts_anew(
    drawing_recipes: Recipes, whole: Path, tmp_path: Path
) -> None:
    train(drawing_recipes.write(tmp_path), resume=True)
    assert read_log(tmp_path) == read_log(whole)


def test_a_run_without_resume_starts_anew(drawing_recipes: Recipes, tmp_path: Path) -> None:
    recipe = drawing_recipes.write(tmp_path, train={"steps": 3})
    train(recipe)
    first = read_log(tmp_path)
    train(recipe)
    assert read_log(tmp_path) == first


def test_the_seed_matters(drawing_recipes: Recipes, whole: Path, tmp_path: Path) -> None:
    train(drawing_recipes.write(tmp_path, train={"seed": 1}))
    assert all(a != b for a, b in zip(read_log(tmp_path), read_log(whole), strict=True))


def test_another_recipe_is_refused_with_the_difference(
    drawing_recipes: Recipes, tmp_path: Path
) -> None:
    train(drawing_recipes.write(tmp_path, train={"steps": 3}))
    changes = {"steps": 3, "clip": 0.5, "sides": [24, 24]}
    changed = drawing_recipes.write(tmp_path, train=changes, data_options={"styles": ["flat"]})
    with pytest.raises(ModelError) as caught:
        train(changed, resume=True)
    for difference in (
        "made with other settings",
        "data.options.styles was ['flat', 'round'] and is ['flat']",
        "train.clip was 1.0 and is 0.5",
        "train.sides was [16, 24] and is [24, 24]",
    ):
        assert difference in str(caught.value)


def test_a_damaged_checkpoint_ends_a_resumption(drawing_recipes: Recipes, tmp_path: Path) -> None:
    recipe = drawing_recipes.write(tmp_path)
    (tmp_path / "checkpoint.pt").write_bytes(b"PK")
    with pytest.raises(ModelError, match=r"checkpoint\.pt: the checkpoint cannot be read"):
        train(recipe, resume=True)


def test_a_loss_that_is_no_number_ends_the_run(
    drawing_recipes: Recipes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objective, "overuse_penalty", lambda vectors: vectors.sum() * math.nan)
    with pytest.raises(ModelError, match="step 1: the loss is nan"):
        train(drawing_recipes.write(tmp_path, train={"save_every": 1}))
    assert not (tmp_path / "checkpoint.pt").exists()
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("sides", "sides_from", "expected"),
    [
        ([], [], [24] * 10),  # the model's own
        ([16, 24, 32], [0.0, 0.3, 0.85], [16] * 3 + [24] * 6 + [32]),
        ([16, 24, 32], [0.0, 0.5, 0.5], [16] * 5 + [32] * 5),
    ],
)
def test_sides_take_over_at_their_shares(
    drawing_recipes: Recipes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    sides: list[int],
    sides_from: list[float],
    expected: list[int],
) -> None:
    seen = []
    real = drawing_feed.augment

    def spy(pixels: Tensor, side: int, strength: float, *rest: Any) -> Tensor:
        seen.append(side)
        assert strength == 0.5
        return real(pixels, side, strength, *rest)

    monkeypatch.setattr(drawing_feed, "augment", spy)
    run = {"steps": 10, "sides": sides, "sides_from": sides_from, "jitter": 0.5, "save_every": 99}
    train(drawing_recipes.write(tmp_path, train=run))
    assert seen == expected


def test_the_memory_holds_what_a_batch_drew(drawing_recipes: Recipes, tmp_path: Path) -> None:
    """From the first step on, long before the term that asks for it begins."""
    trainer = Trainer(Recipe.load(drawing_recipes.write(tmp_path, loss={"memory_from": 99})))
    assert trainer.memory is not None
    assert not trainer.memory.texts.any()
    parts = trainer.train_step()
    assert "memory" not in parts
    drawn = trainer.feed.draw(trainer._seed(0, 1)).items
    assert drawn is not None
    for rows in (trainer.memory.texts, trainer.memory.images):
        assert rows.dtype == torch.bfloat16
        held = rows.any(1)
        assert held.nonzero()[:, 0].tolist() == sorted(set(drawn.tolist()))
        assert rows[held].float().norm(dim=1).numpy() == pytest.approx(1, abs=1e-2)


def test_the_queues_hold_the_items_of_their_vectors(
    drawing_recipes: Recipes, tmp_path: Path
) -> None:
    recipe = drawing_recipes.write(
        tmp_path, model={"dense_width": 6}, loss={"tcl_intra": 1.0, "queue": 12}
    )
    trainer = Trainer(Recipe.load(recipe))
    drawn = trainer.feed.draw(trainer._seed(0, 1)).items
    assert drawn is not None
    trainer.train_step()
    assert trainer.queues is not None
    for queue in trainer.queues:
        assert queue.newest_items().tolist() == drawn.tolist()[::-1] + [-1] * 4


@pytest.mark.parametrize(
    ("loss", "terms"),
    [
        ({"own_words": 0.0}, {"image_words", "text_words"}),
        ({"lexical": 0.0}, {"lexical"}),
        ({"image_pairs": 0.0}, {"image_pairs"}),
        ({"memory": 0.0}, {"memory"}),
        ({"penalty_image": 0.0, "penalty_text": 0.0}, {"penalty_image", "penalty_text"}),
    ],
)
def test_terms_of_weight_0_are_left_out(
    drawing_recipes: Recipes, tmp_path: Path, loss: dict[str, float], terms: set[str]
) -> None:
    run = {"steps": 2, "save_every": 99}
    train(drawing_recipes.write(tmp_path, loss={"memory_from": 1, **loss}, train=run))
    assert TERMS & read_log(tmp_path)[1].keys() == TERMS - terms


def test_the_papers_terms_on_drawings(drawing_recipes: Recipes, tmp_path: Path) -> None:
    """An untrained model with dense vectors and codes, and each item in the batch twice."""
    loss = {
        **{"dense": 1.0, "codis": 0.5, "tcl_cross": 0.5, "tcl_intra": 0.5, "tcl_local": 0.5},
        **{"proxy": 0.5, "tree": True, "distil": 0.3, "queue": 16, "memory_from": 1},
    }
    model = {"dense_width": 6, "codebook_size": 4}
    run = {"steps": 3, "parts": 2, "accumulate": 2}
    train(drawing_recipes.write(tmp_path, model=model, loss=loss, train=run))
    more = {"dense", "codis", "tcl_cross", "tcl_intra", "tcl_local", "proxy", "distil"}
    line = read_log(tmp_path)[2]
    assert line.keys() >= TERMS | more
    assert all(math.isfinite(value) for value in line.values())
    saved = TorchLexVLA.from_pretrained(tmp_path / "model")
    assert saved.encode_text(["red apple"]).dense.shape == (1, 6)
    assert saved.codebook is not None
    assert saved.codebook.codes.norm(dim=1).tolist() == pytest.approx([1] * 4, abs=2e-3)


@pytest.mark.parametrize("size", [2 * len(ITEMS) + 2, 7])
def test_a_batch_is_two_drawings_of_some_of_the_items(
    drawing_recipes: Recipes, tmp_path: Path, size: int
) -> None:
    rule = f"batch_size {size}.*must be even and at most 12: each item fills two rows"
    with pytest.raises(InputError, match=rule):
        train(drawing_recipes.write(tmp_path, data={"batch_size": size}))


def test_a_batch_may_hold_all_items(drawing_recipes: Recipes, tmp_path: Path) -> None:
    train(drawing_recipes.write(tmp_path, data={"batch_size": 12}, train={"steps": 1}))
    assert len(read_log(tmp_path)) == 1


def test_the_command(
    drawing_recipes: Recipes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = drawing_recipes.write(tmp_path, train={"steps": 3})
    assert cli.main(["train", str(recipe), "--json"]) == 0
    folder = Path(json.loads(capsys.readouterr().out)["model"])
    assert TorchLexVLA.from_pretrained(folder).name.startswith("tiny@")
    assert cli.main(["train", str(recipe), "--resume"]) == 0
    assert capsys.readouterr().out == f"the model is in {folder}\n"
    assert cli.main(["train", str(tmp_path / "none.toml")]) == 1
    assert "the recipe cannot be read" in capsys.readouterr().err
