"""Recipes, and the settings that a run refuses."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from lexvla.errors import InputError
from lexvla.training.objective import Losses
from lexvla.training.recipe import Data, Recipe, Run
from lexvla.training.trainer import train
from training_fakes import ROOT, Recipes

RECIPES = sorted((ROOT / "recipes").rglob("*.toml"))
LEAST = '[model]\nstart = "m"\n[data]\nkind = "captions"\npath = "x"\n[train]\nsteps = 7\n'


def load(tmp_path: Path, text: str) -> Recipe:
    path = tmp_path / "recipe.toml"
    path.write_text(text, encoding="utf-8")
    return Recipe.load(path)


def refuse(tmp_path: Path, text: str, rule: str) -> None:
    with pytest.raises(InputError, match=rule) as caught:
        load(tmp_path, text)
    assert caught.value.item.startswith(str(tmp_path / "recipe.toml"))


def test_the_least_recipe(tmp_path: Path) -> None:
    assert load(tmp_path, LEAST) == Recipe(
        output="runs/recipe",
        model={"start": "m"},
        data=Data("captions", "x"),
        loss=Losses(),
        train=Run(steps=7),
    )


def test_settings_are_read(tmp_path: Path) -> None:
    text = 'output = "out"\n[loss]\nmemory = 1\npenalty = "flops"\n' + LEAST
    text += "clip = 2\nbfloat16 = false\nmuon_rate = 1\nsides = [16]\nsides_from = [0]\n"
    recipe = load(tmp_path, text)
    assert recipe.output == "out"
    assert recipe.loss == Losses(memory=1.0, penalty="flops")
    assert type(recipe.loss.memory) is float
    assert recipe.train == Run(
        steps=7, clip=2.0, bfloat16=False, muon_rate=1.0, sides=[16], sides_from=[0.0]
    )


@pytest.mark.parametrize(
    ("steps", "line", "expected"),
    [(7, "", 0), (20, "", 2), (9000, "", 500), (20, "warmup = 30", 30)],
)
def test_a_short_run_has_a_short_warm_up(
    tmp_path: Path, steps: int, line: str, expected: int
) -> None:
    text = LEAST.replace("steps = 7", f"steps = {steps}\n{line}")
    assert load(tmp_path, text).train.warmup_steps == expected


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_recipes_that_ship_can_be_read(path: Path) -> None:
    assert Recipe.load(path).output.startswith("runs/")


def test_there_are_recipes_that_ship() -> None:
    assert {path.stem for path in RECIPES} >= {"default", "llama2-dinov2-cc12m"}


def test_the_recipe_of_the_paper_takes_its_pairs() -> None:
    recipe = Recipe.load(ROOT / "recipes" / "llama2-dinov2-cc12m.toml")
    assert recipe.train.steps * recipe.data.batch_size * 8 == pytest.approx(12 * 9.2e6, rel=1e-3)


def test_the_recipe_that_is_documented_can_be_read(tmp_path: Path) -> None:
    page = ROOT / "docs" / "training.md"
    codes = re.findall(r"```toml\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    assert codes
    for code in codes:
        load(tmp_path, code)


@pytest.mark.parametrize("text", ["[data", "a = 1\na = 2", "\x00"])
def test_bad_toml_is_named(tmp_path: Path, text: str) -> None:
    refuse(tmp_path, text, "the recipe cannot be read")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the recipe cannot be read"):
        Recipe.load(tmp_path / "none.toml")
    (tmp_path / "latin.toml").write_bytes(b'output = "\xe9"')
    with pytest.raises(InputError, match="the recipe cannot be read"):
        Recipe.load(tmp_path / "latin.toml")


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("[data]\n", "needs text_model and vision_model, or start, or width"),
        ('[model]\ntext_model = "x"\n', "needs text_model and vision_model"),
        ('[data]\nkind = "captions"\n[model]\nstart = "x"', "missing 1 required.*'path'"),
        ('[data]\nkind="captions"\npath="x"\n[model]\nstart="x"\n', r"\[train\].*is missing"),
        ('[train]\nsteps = 1\n[model]\nstart="x"\n', r"\[data\].*is missing"),
        (LEAST.replace("steps = 7", "rate = 1"), r"\[train\].*missing 1 required.*'steps'"),
        ("[losses]\nx = 1\n", "unknown key 'losses'"),
        ("loss = 3\n" + LEAST, r"\[loss\].*is missing"),
        ("model = 3\n", "model must be dict, not 3"),
        ('output = ["a"]\n', r"output must be str, not \['a'\]"),
        ("output = 3\n", "output must be str, not 3"),
    ],
)
def test_sections_that_are_missing_or_wrong(tmp_path: Path, text: str, rule: str) -> None:
    refuse(tmp_path, text, rule)


@pytest.mark.parametrize(
    ("model", "key"),
    [
        ('start = "x"\nlora_rank = 3', "lora_rank"),
        ('start = "x"\ndtype = "float16"', "dtype"),
        ('start = "x"\nwidth = 8', "width"),
        ('text_model = "x"\nvision_model = "y"\nlora_rang = 3', "lora_rang"),
        ('text_model = "x"\nvision_model = "y"\ndevice = "cpu"', "device"),
        ('text_model = "x"\nvision_model = "y"\ntext_layers = 3', "text_layers"),
        ("width = 8\nlayers = 3", "layers"),
        ('width = 8\ncaptions = "x"', "captions"),
        ('width = 8\ntext_model = "x"', "text_model"),
        ('width = 8\nother_texts = "x"', "other_texts"),
        ("width = 8\nadapter_input = 8", "adapter_input"),
        ("width = 8\nimage_width = 8", "image_width"),
        ('text_model = "x"\nvision_model = "y"\nimage_width = 8', "image_width"),
    ],
)
def test_unknown_keys_of_each_kind_of_model(tmp_path: Path, model: str, key: str) -> None:
    refuse(tmp_path, LEAST.replace('start = "m"', model), rf"\[model\] unknown key '{key}'")


def test_each_kind_of_model_has_its_keys(tmp_path: Path) -> None:
    for model in (
        {"start": "x", "revision": "y"},
        {"text_model": "x", "vision_model": "y", "lora_rank": 2, "dense_width": 8},
        {"width": 8, "heads": 2, "text_layers": 1, "dropout": 0.1, "model_name": "small"},
        {"width": 8, "vision_model": "y", "layout_width": 8, "concept_items": 3},
    ):
        lines = "\n".join(f"{key} = {value!r}" for key, value in model.items())
        assert load(tmp_path, LEAST.replace('start = "m"', lines)).model == model


@pytest.mark.parametrize(
    ("line", "rule"),
    [
        ('steps = "7"', "steps must be int, not '7'"),
        ("steps = 7.5", "steps must be int"),
        ("steps = true", "steps must be int"),
        ("bfloat16 = 1", "bfloat16 must be bool"),
        ("half = 0", "half must be bool"),
        ("clip = false", "clip must be float"),
        ('average = "0.9"', "average must be float"),
        ('muon_rate = "fast"', "muon_rate must be float or NoneType"),
        ("device = 0", "device must be '' or 'cpu', not 0"),
        ('device = "cuda"', "device must be '' or 'cpu', not 'cuda'"),
        ("sides = 32", "sides must be a list of int"),
        ('sides = ["a", "b", "c"]', "sides must be a list of int"),
        ("sides = [1.5]", "sides must be a list of int"),
        ("sides_from = [0.0, true, 0.5]", "sides_from must be a list of float"),
    ],
)
def test_a_wrong_type_is_named(tmp_path: Path, line: str, rule: str) -> None:
    lines = line if line.startswith("steps") else f"steps = 7\n{line}"
    refuse(tmp_path, LEAST.replace("steps = 7", lines), rule)


@pytest.mark.parametrize(
    ("section", "name"),
    [
        (section, each.name)
        for section, kind in (("data", Data), ("loss", Losses), ("train", Run))
        for each in fields(kind)
    ],
)
def test_every_setting_has_a_type_that_is_checked(tmp_path: Path, section: str, name: str) -> None:
    lines = {"data": 'kind = "captions"\npath = "x"', "loss": "", "train": "steps = 1"}
    lines[section] = f"{name} = 2020-01-01"
    text = "".join(f"[{each}]\n{content}\n" for each, content in lines.items())
    refuse(tmp_path, f'[model]\nstart = "m"\n{text}', f"{name} must be ")


@pytest.mark.parametrize(
    ("section", "changes", "words"),
    [
        ("train", {"stepps": 3}, r"\[train\].*unknown key 'stepps'"),
        ("train", {"values": 3}, r"\[train\].*unknown key 'values'"),
        ("train", {"text_first": 1}, r"text_first .* needs \[data\] views and \[loss\] memory"),
        ("train", {"steps": 0}, "must be at least 1"),
        ("train", {"save_every": -2}, "must be at least 1"),
        ("train", {"accumulate": 0}, "must be at least 1"),
        ("train", {"parts": 0}, "must be at least 1"),
        ("train", {"parts": 7}, "parts must not be more than the batch"),
        ("train", {"rate": 0}, "rate and clip must be above 0"),
        ("train", {"clip": -1}, "rate and clip must be above 0"),
        ("train", {"lora_rate": 0}, "lora_rate and muon_rate must be above 0"),
        ("train", {"muon_rate": -1e-3}, "lora_rate and muon_rate must be above 0"),
        ("train", {"weight_decay": -0.1}, "weight_decay and seed must not be below 0"),
        ("train", {"seed": -1}, "weight_decay and seed must not be below 0"),
        ("train", {"crop": 0.0}, "crop must be above 0"),
        ("train", {"crop": 1.1}, "crop must be above 0 and at most 1"),
        ("train", {"jitter": 1.5}, "jitter must be from 0 to 1"),
        ("train", {"warmup": -1}, "must not be below 0"),
        ("train", {"threads": -1}, "must not be below 0"),
        ("train", {"average": 1.0}, "average must be from 0, below 1"),
        ("train", {"average": -0.1}, "average must be from 0, below 1"),
        ("train", {"sides": [16, 24]}, "sides and sides_from must pair up"),
        ("train", {"sides_from": [0.0]}, "sides and sides_from must pair up"),
        ("train", {"sides": [16], "sides_from": [0.5]}, "the latter rise from 0.0"),
        ("train", {"sides": [8, 16, 24], "sides_from": [0, 0.9, 0.1]}, "the latter rise from 0.0"),
        ("train", {"sides": [0], "sides_from": [0.0]}, "sides must be above 0"),
        ("train", {"sides": [-8], "sides_from": [0.0]}, "sides must be above 0"),
        ("loss", {"penalty": "l1"}, "penalty must be 'overuse' or 'flops', not 'l1'"),
        ("loss", {"assignment": 3}, "assignment must be 'sinkhorn' or 'ipot', not 3"),
        ("loss", {"dense": -1.0}, "weights must not be below 0"),
        ("loss", {"own_words": -1.0}, "weights must not be below 0"),
        ("loss", {"lexical": 0}, "all weights are 0"),
        ("loss", {"codis": 1.0, "queue": 5}, "queue must hold a batch"),
        ("loss", {"temperature": 0.0}, "temperature must be above 0"),
        ("loss", {"alpha": 1.5}, "alpha and teacher_decay must be from 0 to 1"),
        ("loss", {"teacher_decay": 1.5}, "alpha and teacher_decay must be from 0 to 1"),
        ("loss", {"recluster_every": 0}, "recluster_every must be at least 1"),
        ("loss", {"codis_from": -1}, "counts of steps must not be below 0"),
        ("loss", {"memory_from": -1}, "counts of steps must not be below 0"),
        ("data", {"batch_size": 1}, "batch_size must be at least 2"),
        ("data", {"views": 2}, "views, patches, folds, class_share and noun_rows are for drawings"),
        ("data", {"workers": -1}, "must not be below 0"),
        ("data", {"kind": "zip"}, "kind must be one of captions, drawings"),
        ("data", {"pth": "x"}, r"\[data\].*unknown key 'pth'"),
    ],
)
def test_values_that_are_refused(
    recipes: Recipes, tmp_path: Path, section: str, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        Recipe.load(recipes.write(tmp_path, **{section: changes}))


@pytest.mark.parametrize("term", ["own_words", "image_pairs", "memory", "dense", "tcl_local"])
def test_any_term_may_stand_alone(recipes: Recipes, tmp_path: Path, term: str) -> None:
    Recipe.load(recipes.write(tmp_path, loss={"lexical": 0, term: 0.5}))


@pytest.mark.parametrize(
    ("section", "changes", "words"),
    [
        ("loss", {"codis": 1.0, "queue": 6, "codis_from": 1}, "codis_from.*12 vectors .* 16 codes"),
        ("loss", {"dense": 1.0}, "need a model with a dense_width"),
        ("loss", {"codis": 1.0, "queue": 6}, "codis needs a model with a codebook_size"),
        ("data", {"batch_size": 40}, "too few records for a batch of 40"),
        ("data", {"path": "none.jsonl"}, "none.jsonl"),
    ],
)
def test_settings_that_do_not_fit_model_or_data(
    recipes: Recipes, tmp_path: Path, section: str, changes: dict[str, Any], words: str
) -> None:
    model = {"codebook_size": 16 if "codis_from" in changes else 0}
    if "dense" in changes:
        model["dense_width"] = 0
    with pytest.raises(InputError, match=words):
        train(recipes.write(tmp_path, **{"model": model, section: changes}))


def test_drawings_need_sets_that_there_are(drawing_recipes: Recipes, tmp_path: Path) -> None:
    for styles, words in (
        ([], "styles must name a drawing set"),
        (["noto"], "no such drawing set; there are flat, round"),
        (None, r"\[data.options\].*'styles'"),
    ):
        with pytest.raises(InputError, match=words):
            train(drawing_recipes.write(tmp_path, data_options={"styles": styles}))
