from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from lexvla.errors import InputError
from lexvla.training.recipe import Recipe

RECIPES = [
    path
    for path in sorted((Path(__file__).parent.parent / "recipes").glob("*.toml"))
    if "[data]" not in path.read_text(encoding="utf-8")  # those are on pairs: test_pair_recipe.py
]
LEAST = 'drawings = "data"\nstyles = ["flat"]\n'


def load(tmp_path: Path, text: str) -> Recipe:
    path = tmp_path / "recipe.toml"
    path.write_text(text, encoding="utf-8")
    return Recipe.load(path)


def refuse(tmp_path: Path, text: str, rule: str) -> None:
    with pytest.raises(InputError, match=rule) as caught:
        load(tmp_path, text)
    assert caught.value.item == str(tmp_path / "recipe.toml")


def test_only_the_data_must_be_named(tmp_path: Path) -> None:
    recipe = load(tmp_path, LEAST)
    assert recipe == Recipe(drawings="data", styles=["flat"])


def test_settings_are_read(tmp_path: Path) -> None:
    recipe = load(tmp_path, LEAST + 'steps = 7\nclip = 2\nbfloat16 = false\noutput = "out"\n')
    assert (recipe.steps, recipe.clip, recipe.bfloat16, recipe.output) == (7, 2, False, "out")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_shipped_recipes_load(path: Path) -> None:
    assert Recipe.load(path).styles


def test_there_are_shipped_recipes() -> None:
    assert RECIPES


def test_an_unknown_key_is_named(tmp_path: Path) -> None:
    refuse(tmp_path, LEAST + "step = 7\n", "unknown key 'step'")
    refuse(tmp_path, LEAST + "[model]\nwidth = 8\n", "unknown key 'model'")


@pytest.mark.parametrize(
    ("line", "rule"),
    [
        ('steps = "7"', "steps must be of type int"),
        ("steps = 7.5", "steps must be of type int"),
        ("steps = true", "steps must be of type int"),
        ("bfloat16 = 1", "bfloat16 must be of type bool"),
        ("clip = false", "clip must be of type float"),
        ('output = ["a"]', "output must be of type str"),
        ("sides = 32", r"sides must be of type list\[int\]"),
        ('sides = ["a", "b", "c"]', r"sides must be of type list\[int\]"),
        ("sides_from = [0.0, true, 0.5]", r"sides_from must be of type list\[float\]"),
    ],
)
def test_a_wrong_type_is_named(tmp_path: Path, line: str, rule: str) -> None:
    refuse(tmp_path, LEAST + line, rule)


def test_styles_are_names(tmp_path: Path) -> None:
    refuse(tmp_path, 'drawings = "a"\nstyles = [1]', r"styles must be of type list\[str\]")
    refuse(tmp_path, 'drawings = "a"\nstyles = "flat"', r"styles must be of type list\[str\]")
    refuse(tmp_path, 'drawings = "a"\nstyles = []', "styles and sides must not be empty")


def test_missing_keys_are_named(tmp_path: Path) -> None:
    refuse(tmp_path, "", "lacks drawings, styles")
    refuse(tmp_path, 'drawings = "a"', "lacks styles")


@pytest.mark.parametrize("text", ["drawings = ", "a = 1\na = 2", "\x00"])
def test_bad_toml_is_named(tmp_path: Path, text: str) -> None:
    refuse(tmp_path, text, "no readable recipe")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no readable recipe"):
        Recipe.load(tmp_path / "none.toml")
    (tmp_path / "latin.toml").write_bytes(b'drawings = "\xe9"')
    with pytest.raises(InputError, match="no readable recipe"):
        Recipe.load(tmp_path / "latin.toml")


@pytest.mark.parametrize(
    ("lines", "rule"),
    [
        ("sides = [16, 24]", "sides and sides_from must pair up"),
        ("sides = [16]\nsides_from = [0.5]", "the latter rise from 0.0"),
        ("sides = [8, 16, 24]\nsides_from = [0, 0.9, 0.1]", "the latter rise from 0.0"),
        ("sides = []\nsides_from = []", "styles and sides must not be empty"),
        ("sides = [20]\nsides_from = [0]", "sides must be multiples of 8"),
        ("sides = [-8]\nsides_from = [0]", "sides must be multiples of 8"),
        ("width = 24\nheads = 5", "width must be a multiple of twice the heads"),
        ("width = 9\nheads = 3", "width must be a multiple of twice the heads"),
    ],
)
def test_settings_that_do_not_go_together(tmp_path: Path, lines: str, rule: str) -> None:
    refuse(tmp_path, LEAST + lines, rule)


@pytest.mark.parametrize(
    "key", ["save_every", "heads", "patch_size", "steps", "items_per_step", "warmup"]
)
@pytest.mark.parametrize("value", [0, -2])
def test_counts_are_above_zero(tmp_path: Path, key: str, value: int) -> None:
    refuse(tmp_path, f"{LEAST}{key} = {value}", f"{key} must be above zero")


def test_every_setting_has_a_type_that_is_checked(tmp_path: Path) -> None:
    for each in fields(Recipe):
        if each.name not in ("drawings", "styles"):
            refuse(tmp_path, f"{LEAST}{each.name} = 2020-01-01", f"{each.name} must be of type")
