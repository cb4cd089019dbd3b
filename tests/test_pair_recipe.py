"""Recipes on image-text pairs, and what they open."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from lexvla.data.pairs import ShardedSource
from lexvla.errors import InputError
from lexvla.training.pair_recipe import Data, PairRecipe
from lexvla.training.run import train
from lexvla.training.sources import open_source
from pair_fakes import Recipes


@pytest.mark.parametrize(
    ("section", "changes", "words"),
    [
        ("train", {"stepps": 3}, r"\[train\].*unknown key 'stepps'"),
        ("train", {"steps": "3"}, "steps must be int, not '3'"),
        ("train", {"bfloat16": 1}, "bfloat16 must be bool"),
        ("train", {"steps": 0}, "must be at least 1"),
        ("train", {"parts": 7}, "parts must not be more than the batch"),
        ("train", {"crop": 0.0}, "crop must be above 0"),
        ("loss", {"penalty": "l1"}, "penalty must be 'overuse' or 'flops', not 'l1'"),
        ("loss", {"dense": -1.0}, "weights must not be below 0"),
        ("loss", {"lexical": 0}, "all weights are 0"),
        ("loss", {"codis": 1.0, "queue": 5}, "queue must hold a batch"),
        ("loss", {"codis": 1.0, "queue": 6, "codis_from": 1}, "codis_from.*12 vectors .* 16 codes"),
        ("loss", {"temperature": 0.0}, "temperature must be above 0"),
        ("loss", {"alpha": 1.5}, "alpha and teacher_decay must be from 0 to 1"),
        ("loss", {"recluster_every": 0}, "recluster_every must be at least 1"),
        ("loss", {"codis_from": -1}, "counts of steps must not be below 0"),
        ("train", {"jitter": 1.5}, "jitter must be from 0 to 1"),
        ("train", {"warmup": -1}, "must not be below 0"),
        ("data", {"batch_size": 1}, "batch_size must be at least 2"),
        ("data", {"kind": "zip"}, "kind must be one of captions"),
        ("data", {"batch_size": 40}, "too few records for a batch of 40"),
        ("data", {"path": "none.jsonl"}, "none.jsonl"),
        ("model", {"lora_rang": 3}, "unknown key 'lora_rang'"),
        ("model", {"device": "cpu"}, "unknown key 'device'"),
    ],
)
def test_recipes_that_are_refused(
    recipes: Recipes, tmp_path: Path, section: str, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        model = {"codebook_size": 16} if "codis" in changes else {}
        train(recipes.write(tmp_path, **{"model": model, section: changes}))


def test_a_recipe_without_its_sections(recipes: Recipes, tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    for text, words in (
        ("[data]\n", "needs text_model, or start"),
        ('[data]\nkind = "captions"\n[model]\nstart = "x"', "missing 1 required.*'path'"),
        ('[data]\nkind="captions"\npath="x"\n[model]\nstart="x"\n', r"\[train\].*is missing"),
        ("[data\n", "no readable recipe"),
        ("[data]\n[losses]\nx = 1\n", "unknown key 'losses'"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=words):
            train(path)


def test_terms_that_the_model_has_no_part_for(recipes: Recipes, tmp_path: Path) -> None:
    plain = {"dense_width": 0, "codebook_size": 0}
    with pytest.raises(InputError, match="need a model with a dense_width"):
        train(recipes.write(tmp_path, model=plain, loss={"dense": 1.0}))
    with pytest.raises(InputError, match="codis needs a model with a codebook_size"):
        train(recipes.write(tmp_path, model={"codebook_size": 0}, loss={"codis": 1.0, "queue": 6}))


@pytest.mark.parametrize("name", ["llama2-dinov2-cc12m"])
def test_the_recipes_that_ship_can_be_read(name: str) -> None:
    recipe = PairRecipe.load(Path(__file__).parent.parent / "recipes" / f"{name}.toml")
    assert recipe.output == f"runs/{name}"
    assert recipe.train.steps * recipe.data.batch_size * 8 == pytest.approx(12 * 9.2e6, rel=1e-3)


def test_the_recipe_that_is_documented_can_be_read(tmp_path: Path) -> None:
    page = Path(__file__).parent.parent / "docs" / "training.md"
    (code,) = re.findall(r"```toml\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "recipe.toml").write_text(code, encoding="utf-8")
    recipe = PairRecipe.load(tmp_path / "recipe.toml")
    assert (recipe.loss.dense, recipe.train.parts, recipe.data.batch_size) == (1.0, 8, 256)


def test_columns_of_a_hugging_face_dataset(tmp_path: Path, captions: Path) -> None:
    import datasets

    rows = [json.loads(line) for line in captions.read_text().splitlines()[:8]]
    table = {
        "picture": [str(captions.parent / row["image"]) for row in rows],
        "about": [row["text"] for row in rows],
    }
    datasets.Dataset.from_dict(table).to_parquet(tmp_path / "pairs.parquet")
    options = {"columns": {"image": "picture", "text": "about"}}
    source = open_source(Data("hugging_face", str(tmp_path / "pairs.parquet"), options=options))
    assert not isinstance(source, ShardedSource)
    assert source[3].texts == (rows[3]["text"],)
    with pytest.raises(InputError, match=r"data\.options.*spilt"):
        open_source(Data("captions", str(captions), options={"spilt": "train"}))
