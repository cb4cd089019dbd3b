"""What a run begins with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lexvla.data.emoji import EmojiDrawings
from lexvla.errors import InputError
from lexvla.lexical_head import lexical_vector
from lexvla.torch_model import TorchLexVLA
from lexvla.training.drawing_feed import DrawingFeed
from lexvla.training.objective import Losses, Objective
from lexvla.training.pair_feed import PairFeed
from lexvla.training.recipe import Recipe, Run
from lexvla.training.sources import open_source
from lexvla.training.start import open_feed, optimizers, start_model
from lexvla.training.untrained import untrained_model
from memory_fakes import memory_model, save_classified
from model_fakes import CAPTIONS, STYLES, tiny_model
from pair_fakes import COLOURS, THINGS
from training_fakes import CPU, Recipes, adapted, pixels

pytestmark = pytest.mark.usefixtures("one_thread")

SIZES = {
    "width": 16,
    "vision_layers": 1,
    "text_layers": 1,
    "heads": 2,
    "patch_size": 8,
    "image_size": 24,
    "pieces_below_words": 60,
    "dense_width": 0,
    "codebook_size": 0,
}


def begin(path: Path) -> TorchLexVLA:
    recipe = Recipe.load(path)
    return start_model(recipe, open_source(recipe.data), CPU)


# A model of random weights


def test_an_untrained_model_reads_the_words_of_its_captions() -> None:
    model = untrained_model(CAPTIONS, **SIZES)
    words = {term.removeprefix("▁") for term in model.vocabulary.terms}
    assert {"red", "dog", "cat", "hat", "two", "birds", "flying", "cafe"} <= words
    assert not {"a", "the", "and", "s", "lies", "focus"} & words
    config = model.config
    assert config.require_known_word
    assert (config.adapter_heads, config.adapter_width, config.patch_grid) == (2, 48, (3, 3))
    assert all(weight.requires_grad for weight in model.parameters())
    image, text = model.eval()(pixels(), model.prompt_ids(["hat"]), logits=True)
    assert image.lexical.shape == (3, len(words))
    assert text.lexical.isfinite().all()
    for each in (image, text):
        torch.testing.assert_close(lexical_vector(each.logits), each.lexical)


def test_words_of_other_texts_are_known() -> None:
    model = untrained_model(CAPTIONS, ["a zebra", "okapi; hat"], **SIZES).eval()
    counts = model.encode_text(["zebra", "an okapi", "hat", "the x"]).lexical.sum(axis=1)
    assert (counts[:3] > 0).all()
    assert counts[3] == 0
    assert not {"▁zebra", "▁okapi"} & set(model.vocabulary.terms)
    assert untrained_model(CAPTIONS, **SIZES).config.known_tokens == [0, 0]


def test_other_settings_reach_the_config() -> None:
    sizes = {**SIZES, "dense_width": 6, "codebook_size": 4}
    model = untrained_model(iter(CAPTIONS), **sizes, model_name="small", adapter_heads=1)
    assert model.config.model_name == "small"
    assert model.config.adapter_heads == 1
    assert model.codebook is not None
    assert model.codebook.codes.shape == (4, 6)


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"width": 18}, "width must be a multiple of twice the heads"),
        ({"heads": 3}, "width must be a multiple of twice the heads"),
        ({"image_size": 20}, "image_size of patch_size"),
        ({"width": 0}, "width must be a whole number above 0, not 0"),
        ({"width": "16"}, "width must be a whole number above 0, not '16'"),
        ({"width": 16.0}, "width must be a whole number"),
        ({"heads": 0}, "heads must be a whole number above 0"),
        ({"heads": True}, "heads must be a whole number above 0, not True"),
        ({"heads": -2}, "heads must be a whole number above 0, not -2"),
        ({"vision_layers": 0}, "vision_layers must be a whole number above 0"),
        ({"text_layers": -1}, "text_layers must be a whole number above 0"),
        ({"patch_size": 0}, "patch_size must be a whole number above 0"),
        ({"image_size": -24}, "image_size must be a whole number above 0"),
        ({"pieces_below_words": 0}, "pieces_below_words must be a whole number above 0"),
        ({"drop_path": 1.0}, "drop_path and dropout must be from 0, below 1"),
        ({"dropout": -0.1}, "drop_path and dropout must be from 0, below 1"),
        ({"dropout": "much"}, "'<=' not supported"),
        ({"adapter_heads": 3}, "adapter_heads=3 does not divide"),
        ({"codebook_size": 4, "dense_width": 0}, "codebook_size=4 needs a dense_width"),
        ({"image_mean": [0.5]}, "image_mean and image_std must be three numbers each"),
        ({"image_std": [0.2, 0.2, 0]}, "image_mean and image_std must be three numbers each"),
        ({"lora_rank": 2}, "LoRA are for a pretrained language model"),
        ({"prompt": "no place"}, "the prompt must hold"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(
    drawing_recipes: Recipes, tmp_path: Path, changes: dict[str, Any], rule: str
) -> None:
    with pytest.raises(InputError, match=rule) as caught:
        begin(drawing_recipes.write(tmp_path, model=changes))
    assert caught.value.item == "[model]"


def test_a_misspelt_field_is_no_field_of_the_config(text_model: str, vision_model: str) -> None:
    with pytest.raises(TypeError, match="LexVLAConfig has no field 'lora_rang'"):
        TorchLexVLA.from_backbones(text_model, vision_model, lora_rang=3)
    with pytest.raises(TypeError, match="LexVLAConfig has no field 'dense_widht'"):
        untrained_model(CAPTIONS, **SIZES, dense_widht=3)


def test_no_captions_give_no_model() -> None:
    with pytest.raises(ValueError, match="captions must not be empty"):
        untrained_model([], **SIZES)


def test_an_untrained_model_on_pairs(recipes: Recipes, tmp_path: Path) -> None:
    untrained = Recipes({**recipes.sections, "model": SIZES})
    model = begin(untrained.write(tmp_path))
    terms = {term.removeprefix("▁") for term in model.vocabulary.terms}
    assert terms == {*COLOURS, *THINGS}


def test_the_same_seed_gives_the_same_weights() -> None:
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found.append(untrained_model(CAPTIONS, **SIZES).image_codebook.detach())
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


# What is trained


@pytest.mark.parametrize(
    ("loss", "trained"),
    [
        ({}, {"image_codebook"}),
        ({"dense": 1.0}, {"image_codebook", "text_dense_head", "image_dense_head"}),
        (
            {"codis": 1.0, "queue": 12},
            {"image_codebook", "text_dense_head", "image_dense_head", "codebook"},
        ),
        (
            {"lexical": 0, "penalty_image": 0, "dense": 1.0},
            {"text_dense_head", "image_dense_head"},
        ),
        ({"lexical": 0, "penalty_image": 0, "own_words": 1.0}, {"image_codebook"}),
        ({"lexical": 0, "penalty_image": 0, "memory": 1.0}, {"image_codebook"}),
    ],
)
def test_parts_that_no_term_uses_are_not_trained(
    recipes: Recipes, tmp_path: Path, loss: dict[str, float], trained: set[str]
) -> None:
    model = begin(recipes.write(tmp_path, loss=loss))
    named = ("image_codebook", "text_dense_head", "image_dense_head", "codebook")
    found = set()
    for name in named:
        part = getattr(model, name)
        weights = [part] if isinstance(part, nn.Parameter) else list(part.parameters())
        if all(weight.requires_grad for weight in weights):
            found.add(name)
        else:
            assert not any(weight.requires_grad for weight in weights)
    assert found == trained


def test_the_source_decides_the_feed(
    recipes: Recipes, drawing_recipes: Recipes, drawings_folder: Path, tmp_path: Path
) -> None:
    recipe = Recipe.load(drawing_recipes.write(tmp_path))
    drawings = EmojiDrawings(drawings_folder, list(STYLES))
    feed = open_feed(drawings, recipe, tiny_model(), 0, 1)
    assert isinstance(feed, DrawingFeed)
    feed.close()
    seen = replace(recipe, data=replace(recipe.data, views=2))
    with pytest.raises(InputError, match=r"views.: are for one process, and there are 2"):
        open_feed(drawings, seen, tiny_model(), 0, 2)
    recipe = Recipe.load(recipes.write(tmp_path))
    feed = open_feed(open_source(recipe.data), recipe, tiny_model(), 0, 1)
    assert isinstance(feed, PairFeed)
    feed.close()


# Optimisers

Names = dict[int, str]


def named(model: TorchLexVLA, objective: Objective) -> Names:
    names = {id(weight): name for name, weight in model.named_parameters()}
    return names | {id(weight): f"loss.{name}" for name, weight in objective.named_parameters()}


def groups(made: torch.optim.Optimizer, names: Names) -> list[tuple[set[str], float, float]]:
    """Return names, rate and decay of each group."""
    return [
        ({names[id(weight)] for weight in group["params"]}, group["lr"], group["weight_decay"])
        for group in made.param_groups
    ]


def test_without_muon_all_is_adamws_and_only_matrices_decay() -> None:
    model, objective = untrained_model(CAPTIONS, **SIZES), Objective(Losses())
    names = named(model, objective)
    (adam,) = optimizers(model, objective, Run(steps=1, rate=0.02, weight_decay=0.1))
    assert isinstance(adam, torch.optim.AdamW)
    matrices, rest = groups(adam, names)
    assert matrices[1:] == (0.02, 0.1)
    assert rest[1:] == (0.02, 0.0)
    assert matrices[0] == {n for n, p in model.named_parameters() if p.ndim > 1}
    assert matrices[0] | rest[0] == set(names.values())
    assert {"loss.lexical.log_scale", "loss.pairs.log_scale"} <= rest[0]


def test_muon_takes_the_matrices_inside_and_adamw_the_tables() -> None:
    sizes = {**SIZES, "dense_width": 6, "codebook_size": 4}
    model, objective = untrained_model(CAPTIONS, **sizes), Objective(Losses())
    names = named(model, objective)
    run = Run(steps=1, rate=0.02, muon_rate=0.3, weight_decay=0.1)
    adam, muon = optimizers(model, objective, run)
    assert isinstance(muon, torch.optim.Muon)
    ((inner, rate, decay),) = groups(muon, names)
    assert (rate, decay) == (0.3, 0.1)
    matrices, rest = groups(adam, names)
    tables = {name for name in names.values() if "embed_tokens" in name or "lm_head" in name}
    assert len(tables) == 2
    assert matrices[0] >= tables | {"image_codebook", "codebook.codes"}
    weights = dict(model.named_parameters())
    assert {name for name in matrices[0] if weights[name].ndim == 2} == (
        tables | {"image_codebook", "codebook.codes"}
    )
    assert inner == {n for n, p in weights.items() if p.ndim == 2} - matrices[0]
    for part in ("self_attn.q_proj", "mlp", "image_tower.vision_model", "image_tower.adapter"):
        assert any(part in name for name in inner), part
    assert not (inner & matrices[0] or inner & rest[0])
    assert inner | matrices[0] | rest[0] == set(names.values())


def test_lora_has_a_rate_of_its_own(text_model: str, vision_model: str) -> None:
    model, objective = adapted(text_model, vision_model), Objective(Losses())
    names = named(model, objective)
    for muon_rate in (None, 0.3):
        run = Run(steps=1, rate=0.02, lora_rate=0.005, muon_rate=muon_rate, weight_decay=0.1)
        adam = optimizers(model, objective, run)[0]
        lora, matrices, rest = groups(adam, names)
        assert lora == ({n for n in names.values() if "lora_" in n}, 0.005, 0.1)
        assert matrices[1] == rest[1] == 0.02
    same = optimizers(model, objective, Run(steps=1, rate=0.02))[0]
    assert groups(same, names)[0][1] == 0.02
    frozen = {id(weight) for weight in model.parameters() if not weight.requires_grad}
    assert frozen
    held = {id(weight) for group in same.param_groups for weight in group["params"]}
    assert not frozen & held


def test_a_step_of_both_moves_every_weight() -> None:
    torch.manual_seed(0)
    model, objective = untrained_model(CAPTIONS, **SIZES), Objective(Losses())
    made = optimizers(model, objective, Run(steps=1, muon_rate=0.1))
    before = [weight.detach().clone() for weight in model.parameters()]
    for weight in model.parameters():
        weight.grad = torch.randn(weight.shape)
    for optimizer in made:
        optimizer.step()
    for weight, old in zip(model.parameters(), before, strict=True):
        assert not torch.equal(weight, old)


def test_sides_are_multiples_of_the_patch(recipes: Recipes, tmp_path: Path) -> None:
    run = {"sides": [16, 20], "sides_from": [0.0, 0.5]}
    with pytest.raises(InputError, match="20 must be a multiple of the patch, 8"):
        begin(recipes.write(tmp_path, train=run))


def test_a_saved_model_trains_with_the_faster_attention(recipes: Recipes, tmp_path: Path) -> None:
    model = begin(recipes.write(tmp_path))
    for tower in (model.text_tower.language_model, model.image_tower.vision_model):
        assert tower.config._attn_implementation == "eager"


# Models that are trained further


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_classified(tmp_path_factory.mktemp("network"))


def test_a_network_that_was_frozen_stays_so(
    recipes: Recipes, network: Path, tmp_path: Path
) -> None:
    """Its batch norms too: a memory of concepts was fitted to it."""
    for name, changes in (("memory", {}), ("adapter", {"concept_items": 0, "adapter_heads": 1})):
        memory_model(network, **changes).save_pretrained(tmp_path / name)
        sections = {**recipes.sections, "model": {"start": str(tmp_path / name)}}
        model = begin(Recipes(sections).write(tmp_path)).train()
        vision = model.image_tower.vision_model
        assert not any(weight.requires_grad for weight in vision.parameters())
        assert not any(part.training for part in vision.modules())
        assert all(weight.requires_grad for weight in model.text_tower.parameters())


def test_a_saved_tower_that_was_trained_is_trained_further(
    recipes: Recipes, tmp_path: Path
) -> None:
    untrained_model(CAPTIONS, **SIZES).save_pretrained(tmp_path / "start")
    sections = {**recipes.sections, "model": {"start": str(tmp_path / "start")}}
    model = begin(Recipes(sections).write(tmp_path))
    assert all(weight.requires_grad for weight in model.image_tower.parameters())


def test_what_was_said_of_a_model_does_not_hold_after_training(
    recipes: Recipes, tmp_path: Path
) -> None:
    config = {
        "model_name": "old",
        "knowledge": "knows hats",
        "score_weights": {"lexical": 1.0},
        "relevance": [2.0, -1.0],
    }
    untrained_model(CAPTIONS, **SIZES, **config).save_pretrained(tmp_path / "start")
    for options, name, knowledge in (
        ({}, "lexvla", ""),
        ({"model_name": "new", "knowledge": "knows dogs"}, "new", "knows dogs"),
    ):
        model = {"start": str(tmp_path / "start"), **options}
        found = begin(Recipes({**recipes.sections, "model": model}).write(tmp_path)).config
        assert (found.model_name, found.knowledge, found.relevance) == (name, knowledge, None)
        assert found.score_weights == {"lexical": 1.0}
