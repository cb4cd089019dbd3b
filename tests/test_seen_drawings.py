"""Drawings that a frozen network sees: what a step gets of them, and whole runs."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from lexvla.concept_memory import with_level
from lexvla.data.emoji import EmojiDrawings
from lexvla.data.phrasings import phrase
from lexvla.errors import InputError, ModelError
from lexvla.image_tower import CachedCells, ImageTower
from lexvla.lexical_head import lexical_vector
from lexvla.torch_model import TorchLexVLA
from lexvla.training.checkpoint import load_checkpoint
from lexvla.training.class_prototypes import ClassPrototypes
from lexvla.training.concept_start import (
    directions,
    fill_codebook,
    held_out_cosines,
    pool,
    rare_first,
    read_classifier,
)
from lexvla.training.drawing_feed import DrawingFeed
from lexvla.training.feed import ItemVectors
from lexvla.training.recipe import Recipe
from lexvla.training.seen_drawings import SeenDrawings
from lexvla.training.sources import open_source
from lexvla.training.trainer import Trainer, train
from memory_fakes import CHANNELS, CLASSES, FINE, GRID, NAMES, save_classified
from model_fakes import ITEMS, LONELY, PERSON, picture
from training_fakes import Recipes, read_log, run_until_killed

TERMS = {"text_words", "lexical", "memory", "other_texts"}
VIEWS, PATCHES, DRAWN = 3, 4, 11  # eleven drawings without skin tones

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def whole(seen_recipes: Recipes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the output of a run that nothing disturbed."""
    output = tmp_path_factory.mktemp("whole")
    assert train(seen_recipes.write(output)) == output / "model"
    return output


@pytest.fixture(scope="module")
def trainer(
    seen_recipes: Recipes, tmp_path_factory: pytest.TempPathFactory, one_thread: Iterator[None]
) -> Trainer:
    """Return a trainer before its first step."""
    return Trainer(Recipe.load(seen_recipes.write(tmp_path_factory.mktemp("seen"))))


@pytest.fixture(scope="module")
def feed(trainer: Trainer) -> DrawingFeed:
    assert isinstance(trainer.feed, DrawingFeed)
    return trainer.feed


@pytest.fixture(scope="module")
def seen(feed: DrawingFeed) -> SeenDrawings:
    assert feed._seen is not None
    return feed._seen


@pytest.fixture(scope="module")
def cells(trainer: Trainer) -> np.ndarray:
    """Return what the network made of each view."""
    return np.load(trainer.output / "cells" / "cells.npy")


# What a step gets


def test_a_draw_has_emoji_classes_and_nouns(feed: DrawingFeed) -> None:
    labels = [each[1] for each in ITEMS] + list(NAMES)
    labels[PERSON] = "pe"  # of whom there may be two people
    for seed in range(12):
        draw = feed.draw(seed)
        assert draw.items is not None
        assert draw.items.shape == (8,)
        assert torch.equal(draw.items[:4], draw.items[4:])
        assert (draw.items[:3] < len(ITEMS)).all()
        assert (draw.items[3:4] >= len(ITEMS)).all()
        assert LONELY not in draw.items  # one fold alone draws it
        for item, text in zip(draw.items[:4].tolist(), draw.texts[:4], strict=True):
            assert labels[item].split()[-1][:4] in text.lower()
        assert len(draw.texts) == 8
        assert len(draw.other_texts) == 2
        assert draw.relevance is not None
        assert draw.relevance.shape == (8, len(ITEMS) + CLASSES)
        torch.testing.assert_close(draw.relevance.sum(1), torch.ones(8))


def test_words_of_classes_and_of_nouns(feed: DrawingFeed) -> None:
    words = feed.vocabulary
    expected = {
        "kitten": {"tabby": 1.0, "animal": 0.6},
        "orchard": {"apple": 0.8, "fruit": 0.5},
        "goblin": {},  # whose words no drawing has
    }
    met = set()
    for seed in range(12):
        draw = feed.draw(seed)
        assert draw.other_words is not None
        for text, row in zip(draw.other_texts, draw.other_words, strict=True):
            name = next(noun for noun in expected if noun[:-1] in text.lower())
            met.add(name)
            found = {words.word(int(c)): float(row[c]) for c in row.nonzero()[:, 0]}
            assert found == pytest.approx(expected[name])
        assert draw.items is not None
        assert draw.image_words is not None
        if draw.items[3] == len(ITEMS):  # the tabby: twice its words' weights
            row = draw.image_words[3]
            assert row[words.find("tabby")] == 2
            assert row[words.find("animal")] == 1
            assert row.sum() == 3
    assert met == set(expected)


def test_texts_are_put_as_people_put_them(
    feed: DrawingFeed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what they mean stays that of their words."""
    said = feed.draw(3)
    monkeypatch.setattr("lexvla.training.drawing_feed.phrase", lambda text, _: text)
    plain = feed.draw(3)
    assert said.texts != plain.texts
    for name in ("items", "relevance", "image_words", "text_words", "other_words"):
        assert torch.equal(getattr(said, name), getattr(plain, name)), name
    monkeypatch.undo()
    assert phrase("", np.random.default_rng(0)) == ""


def test_views_are_rows_of_what_the_network_made(
    seen: SeenDrawings, cells: np.ndarray, feed: DrawingFeed
) -> None:
    assert cells.shape == (VIEWS, DRAWN, GRID**2, CHANNELS + 4 * FINE)
    rows = np.array([[0, 2, 4], [1, 3, 5]])
    met = set()
    for seed in range(5):
        found = seen.views(rows, torch.tensor([], dtype=torch.long), seed)
        assert isinstance(found, CachedCells)
        assert found.cells.shape == (6, PATCHES, cells.shape[3])
        assert found.whole is not None
        assert found.whole.shape == (6, len(ITEMS) + CLASSES)
        for number, drawing in enumerate(rows.flatten()):
            # Some patches of one view, in their order, each once.
            matches = [
                view
                for view in range(VIEWS)
                if (places := places_of(found.cells[number], cells[view, drawing]))
                and places == sorted(set(places))
            ]
            assert len(matches) == 1
            met.add(matches[0])
    assert met == set(range(VIEWS))


def places_of(some: torch.Tensor, all_cells: np.ndarray) -> list[int]:
    """Return where each row is among the cells; nothing if one is not."""
    full = torch.from_numpy(all_cells.astype(np.float32))
    equal = (some[:, None] == full[None]).all(-1)
    return equal.int().argmax(1).tolist() if equal.any(1).all() else []


def test_an_image_is_compared_by_those_that_have_not_seen_its_style(
    seen: SeenDrawings, cells: np.ndarray, feed: DrawingFeed, classified: Path
) -> None:
    drawings = feed.drawings
    pooled = pool(cells.reshape(VIEWS * DRAWN, *cells.shape[2:]), CHANNELS)
    item = torch.from_numpy(drawings.item.astype(np.int64)).repeat(VIEWS)
    style = torch.from_numpy(drawings.style.astype(np.int64)).repeat(VIEWS)
    weight, bias = read_classifier(classified)
    rows = np.array([[0], [1]])  # the two drawings of the apple
    found = seen.views(rows, torch.tensor([], dtype=torch.long), 4)
    assert found.whole is not None
    for number, drawing in enumerate(rows.flatten()):
        others = style != int(drawings.style[drawing])
        looks = directions(pooled.looks[others], item[others], len(ITEMS))
        shape = directions(pooled.layout[others], item[others], len(ITEMS), 4)
        mine = slice(drawing, None, DRAWN)
        cosines = 0.6 * looks.cosines(pooled.looks[mine]) + shape.cosines(pooled.layout[mine])
        logits = pooled.means[mine] @ weight.T + bias
        views = torch.cat([cosines, logits], dim=1)
        assert (views - found.whole[number]).abs().amax(1).min() < 5e-3


def test_classes_are_made_up_between_the_drawings(
    seen: SeenDrawings, trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    real = ClassPrototypes.make

    def spy(self: ClassPrototypes, *args: Any) -> torch.Tensor:
        made.append(real(self, *args))
        return made[-1]

    monkeypatch.setattr(ClassPrototypes, "make", spy)
    found = seen.views(np.array([[0, 2], [1, 3]]), torch.tensor([1, 3, 0]), 6)
    assert found.cells.shape == (10, PATCHES, CHANNELS + 4 * FINE)
    assert found.whole is not None
    memory = trainer.model.image_tower.memory
    assert memory is not None
    first, second = made
    assert not torch.equal(first, second)
    for span, maps in ((slice(2, 5), first), (slice(7, 10), second)):
        with torch.no_grad():
            assert torch.equal(found.whole[span], memory.whole(maps))
        for some, full in zip(found.cells[span], maps, strict=True):
            assert places_of(some, full.numpy())


def test_views_follow_from_their_seed(feed: DrawingFeed) -> None:
    draw = feed.draw(2)
    one, same, other = (draw.images(number, 96) for number in (5, 5, 6))
    assert torch.equal(one.cells, same.cells)
    assert torch.equal(one.whole, same.whole)
    assert not torch.equal(one.cells, other.cells)
    assert len(one) == len(draw.texts)
    again = feed.draw(2)
    assert again.texts == draw.texts
    assert torch.equal(again.images(5, 96).cells, one.cells)


def test_all_patches_without_a_number(seen_recipes: Recipes, tmp_path: Path) -> None:
    recipe = seen_recipes.write(tmp_path, data={"patches": 0, "class_share": 0.0})
    views = Trainer(Recipe.load(recipe)).feed.draw(1).images(1, 96)
    assert views.cells.shape == (8, GRID**2, CHANNELS + 4 * FINE)


def test_the_vision_model_does_not_run_in_a_step(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("the network ran")

    monkeypatch.setattr(ImageTower, "cells", refuse)
    memory = trainer.model.image_tower.memory
    assert memory is not None
    model = trainer.model
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert trained
    assert all(name.startswith("text_tower.") for name in trained)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    # It learns of texts that belong to no image too, by a term of their own.
    parts = trainer.train_step()
    assert parts.keys() >= TERMS
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, before[name]) == (name not in trained), name
    assert memory.whiten.weight.any()
    assert memory.item_keys.any()


def test_the_model_says_a_drawings_own_words(trainer: Trainer, feed: DrawingFeed) -> None:
    model, words = trainer.model, feed.drawings.word_weights(trainer.model.vocabulary)
    assert not model.image_codebook.requires_grad
    expected = torch.zeros(len(model.vocabulary), len(ITEMS) + CLASSES + 1)
    fill_codebook(expected, torch.from_numpy(words))
    assert torch.equal(model.image_codebook, expected)
    # The average that is saved in the end has no other of its own.
    assert trainer.average is not None
    assert all(name.startswith("text_tower.") for name in trainer.average.weights)
    # An image that is surely of an item says all of the item's words, the strongest first.
    states = torch.eye(len(ITEMS) + CLASSES, len(ITEMS) + CLASSES + 1)
    states[:, -1] = 1
    with torch.no_grad():
        logits, _ = model.words_of_patches(states[:, None])
    for row, weights in zip(logits, words, strict=True):
        assert (row > -4).tolist() == (weights > 0).tolist()


# Whole runs


def test_every_term_is_used_and_finite(whole: Path) -> None:
    log = read_log(whole)
    assert [line["step"] for line in log] == list(range(1, 9))
    for line in log:
        assert all(math.isfinite(value) for value in line.values())
        assert line.keys() - {"step", "loss", "words", "alike", "gradient"} == TERMS
        assert line["loss"] == pytest.approx(sum(line[term] for term in TERMS), rel=1e-4)


@pytest.mark.parametrize("moment", ["step", "checkpoint"])
def test_a_killed_run_goes_on_as_if_nothing_had_been(
    seen_recipes: Recipes, whole: Path, tmp_path: Path, moment: str
) -> None:
    recipe = seen_recipes.write(tmp_path)
    run_until_killed(recipe, moment)
    assert not (tmp_path / "model").exists()
    assert load_checkpoint(tmp_path / "checkpoint.pt")["step"] == 3
    assert train(recipe, resume=True) == tmp_path / "model"
    names = [path.relative_to(whole) for path in (whole / "model").rglob("*") if path.is_file()]
    assert Path("model/vision_model/model.safetensors") in names
    for name in names:
        assert (tmp_path / name).read_bytes() == (whole / name).read_bytes(), name
    assert read_log(tmp_path) == read_log(whole)


def test_texts_come_first_and_a_killed_run_goes_on(
    seen_recipes: Recipes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five steps of texts alone, by what the model says of the items before the first step."""
    run, dense = {"text_first": 5}, {"dense_width": 6}
    outputs = tmp_path / "whole", tmp_path / "killed"
    recipes = [
        seen_recipes.write(output, train=run, model=dense, loss={"dense": 0.3})
        for output in outputs
    ]
    looks = []
    real = SeenDrawings.views
    monkeypatch.setattr(SeenDrawings, "views", lambda *args: looks.append(1) or real(*args))
    train(recipes[0])
    assert len(looks) == 3  # in the last three steps of eight
    run_until_killed(recipes[1], "step")
    train(recipes[1], resume=True)
    log = read_log(outputs[0])
    for line in log:
        assert all(math.isfinite(value) for value in line.values())
        assert line.keys() >= TERMS | {"dense", "memory_dense"}
        assert "image_words" not in line
    assert read_log(outputs[1]) == log
    found, expected = (output / "model" / "model.safetensors" for output in outputs)
    assert found.read_bytes() == expected.read_bytes()


def test_a_checkpoint_leaves_out_what_stays(whole: Path) -> None:
    names = load_checkpoint(whole / "checkpoint.pt")["model"].keys()
    assert names
    assert all(name.startswith("text_tower.") for name in names)


def vectors_of(feed: DrawingFeed, model: TorchLexVLA, seed: int) -> ItemVectors:
    found = feed.item_vectors(model, seed)
    assert found is not None
    return found


def test_items_are_what_the_model_says_of_their_drawings(
    trainer: Trainer, feed: DrawingFeed, cells: np.ndarray, classified: Path
) -> None:
    """By memories that have not seen the style, each image as it would be encoded."""
    model, drawings = trainer.model, feed.drawings
    texts, found, dense = vectors_of(feed, model, 3)
    assert dense is None
    own = rare_first(torch.from_numpy(drawings.word_weights(model.vocabulary)))
    torch.testing.assert_close(texts, functional.normalize(own, dim=1))
    assert found.shape == (len(ITEMS) + CLASSES, len(model.vocabulary))
    assert found.norm(dim=1).tolist() == pytest.approx([1] * 10, abs=1e-5)
    pooled = pool(cells.reshape(VIEWS * DRAWN, *cells.shape[2:]), CHANNELS)
    item = torch.from_numpy(drawings.item.astype(np.int64)).repeat(VIEWS)
    fold = torch.from_numpy(drawings.style.astype(np.int64)).repeat(VIEWS)
    cosines, _ = held_out_cosines(pooled, item, fold, len(ITEMS), 4)
    weight, bias = read_classifier(classified)
    logits = (pooled.means @ weight.T + bias).half()
    items, classes = (20 * cosines.float()).softmax(1), (0.7 * logits.float()).softmax(1)
    sure = items.amax(1, keepdim=True) ** 0.2
    shares = torch.cat([sure * items, (1 - sure) * classes], dim=1)
    shares = shares.where(shares >= 0.001, 0)
    rows = lexical_vector(with_level(shares) @ model.image_codebook.detach().T)
    rows = rows.where(rows > len(model.vocabulary) ** -0.5, 0)
    rows = functional.normalize(rows, dim=1)
    for number in range(len(ITEMS)):
        expected = functional.normalize(rows[item == number].sum(0), dim=0)
        torch.testing.assert_close(found[number], expected, atol=1e-5, rtol=1e-5)
    # Of classes there are made-up maps, which follow from the seed.
    same, other = (vectors_of(feed, model, seed).images for seed in (3, 4))
    assert torch.equal(same, found)
    assert torch.equal(other[: len(ITEMS)], found[: len(ITEMS)])
    assert not torch.equal(other[len(ITEMS) :], found[len(ITEMS) :])


def test_the_items_vectors_are_remembered_before_the_first_step(
    seen_recipes: Recipes, tmp_path: Path
) -> None:
    recipe = seen_recipes.write(
        tmp_path, model={"dense_width": 6}, loss={"dense": 0.3}, train={"seed": 5}
    )
    trainer = Trainer(Recipe.load(recipe))
    memory, model = trainer.memory, trainer.model
    assert memory is not None
    assert memory.dense is not None
    assert not memory.images.any()
    trainer.prepare()
    assert isinstance(trainer.feed, DrawingFeed)
    texts, words, dense = vectors_of(trainer.feed, model, 5)
    assert dense is not None
    images = words.to(memory.images.dtype)
    assert torch.equal(memory.images, images)
    assert torch.equal(memory.texts, texts.to(memory.texts.dtype))
    assert torch.equal(memory.dense.images, dense)
    assert not memory.dense.texts.any()
    # Dense vectors are those of the same images, by the head as it is before the first step.
    assert dense.norm(dim=1).tolist() == pytest.approx([1] * 10, abs=1e-5)
    seen = trainer.feed._seen
    assert seen is not None
    assert model.image_dense_head is not None
    whole = torch.cat([seen._cosines, seen._logits], dim=1).float()
    with torch.no_grad():
        rows = model.image_dense_head(with_level(model.image_tower.memory.shares(whole)))
    for number in range(len(ITEMS)):
        expected = functional.normalize(rows[seen._item == number].sum(0), dim=0)
        torch.testing.assert_close(dense[number], expected, atol=1e-5, rtol=1e-5)
    # In a step dense vectors move; the words of items and of images stay.
    trainer.train_step()
    assert torch.equal(memory.images, images)
    assert torch.equal(memory.texts, texts.to(memory.texts.dtype))
    assert memory.dense.texts.any()
    assert not torch.equal(memory.dense.images, dense)


def test_without_a_loss_by_memory_nothing_is_remembered(
    seen_recipes: Recipes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then texts learn from the words of the batch's images."""
    recipe = seen_recipes.write(tmp_path, loss={"memory": 0.0}, train={"steps": 1})
    monkeypatch.setattr(DrawingFeed, "item_vectors", lambda *_: pytest.fail("not asked for"))
    train(recipe)
    more = {"image_words", "image_pairs", "penalty_image", "penalty_text"}
    assert read_log(tmp_path)[0].keys() >= TERMS - {"memory"} | more


def test_a_loss_that_asks_for_the_words_of_images_gets_them(
    seen_recipes: Recipes, tmp_path: Path
) -> None:
    loss = {"dense": 0.3, "distil": 0.2}
    run = {"steps": 2, "bfloat16": False}
    train(seen_recipes.write(tmp_path, model={"dense_width": 6}, loss=loss, train=run))
    for line in read_log(tmp_path):
        assert line.keys() >= TERMS | {"dense", "memory_dense", "distil"}
        assert math.isfinite(line["distil"])


def test_a_batch_in_parts(seen_recipes: Recipes, tmp_path: Path) -> None:
    """The image side gives no gradient, and texts get theirs part by part."""
    logs = []
    for parts in (1, 2):
        output = tmp_path / str(parts)
        changes = {"parts": parts, "steps": 2, "bfloat16": False}
        model = {"dropout": 0.0}
        train(seen_recipes.write(output, model=model, data={"noun_rows": 0}, train=changes))
        logs.append(read_log(output))
    for one, other in zip(*logs, strict=True):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-5)


def test_the_saved_model_needs_nothing_but_its_folder(
    seen_recipes: Recipes, tmp_path: Path
) -> None:
    network = save_classified(tmp_path / "network")
    recipe = seen_recipes.write(
        tmp_path, model={"vision_model": str(network)}, train={"steps": 2, "half": False}
    )
    trainer = Trainer(Recipe.load(recipe))
    folder = trainer.run().rename(tmp_path / "moved")
    shutil.rmtree(network)
    shutil.rmtree(tmp_path / "cells")
    model = TorchLexVLA.from_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    assert config["vision_model"] is None
    assert str(network) not in (folder / "config.json").read_text()
    assert config["concept_items"] == len(ITEMS)
    own = trainer.model.state_dict()
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, own[name]), name
    pictures = [picture(1, (70, 50)), picture(2, (70, 50))]
    found, expected = model.encode_image(pictures), trainer.model.encode_image(pictures)
    assert found.lexical.nnz
    np.testing.assert_array_equal(found.lexical.toarray(), expected.lexical.toarray())
    # A noun is known, and a word of no list is not.
    counts = np.diff(model.encode_text(["kitten", "wyx"]).lexical.indptr)
    assert counts[0] > 0 == counts[1]


def test_a_run_in_half_precision_leaves_a_model(whole: Path) -> None:
    model = TorchLexVLA.from_pretrained(whole / "model")
    images = model.encode_image([picture(1, (70, 50))])
    texts = model.encode_text(["red apple", "kitten"])
    assert (np.diff(texts.lexical.indptr) > 0).all()
    assert np.isfinite(model.similarity(texts, images)).all()


def test_the_cells_are_made_once(
    seen_recipes: Recipes, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(whole / "cells", tmp_path / "cells")
    recipe = Recipe.load(seen_recipes.write(tmp_path))

    def refuse(*_: Any) -> None:
        raise AssertionError("the network ran")

    monkeypatch.setattr(ImageTower, "cells", refuse)
    Trainer(recipe)


def test_nouns_may_be_left_out(seen_recipes: Recipes, tmp_path: Path) -> None:
    recipe = seen_recipes.write(tmp_path, data_options={"nouns": None}, train={"steps": 1})
    train(recipe)
    assert "other_texts" not in read_log(tmp_path)[0]


def test_dense_terms_and_codes(seen_recipes: Recipes, tmp_path: Path) -> None:
    """The teacher looks at another view, and waits until its queue must fill."""
    recipe = seen_recipes.write(
        tmp_path,
        model={"dense_width": 6, "codebook_size": 4},
        loss={"dense": 0.3, "codis": 0.2, "codis_from": 5, "queue": 16},
        train={"steps": 7},
    )
    trainer = Trainer(Recipe.load(recipe))
    looks = []
    real = trainer._look
    trainer._look = lambda *args: looks.append(real(*args)) or looks[-1]  # type: ignore[method-assign]
    trainer.run()
    # Two batches fill the queue of 16; the first three are not looked at.
    assert [each is None for each in looks] == [True] * 3 + [False] * 4
    log = read_log(tmp_path)
    assert ["codis" in line for line in log] == [False] * 5 + [True] * 2
    assert all(math.isfinite(value) for line in log for value in line.values())


# Settings that are refused


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"train": {"parts": 2}}, "parts must be 1 with .* noun_rows"),
        ({"loss": {"own_words": 0.0}}, "noun_rows need .* own_words"),
        ({"data": {"views": -1}}, "views, patches and noun_rows must not be below 0"),
        ({"data": {"patches": -1}}, "views, patches and noun_rows must not be below 0"),
        ({"data": {"noun_rows": -1}}, "views, patches and noun_rows must not be below 0"),
        ({"train": {"text_first": -1}}, "text_first must not be below 0"),
        ({"train": {"text_first": 2}, "loss": {"memory": 0.0}}, "needs .* views and .* memory"),
        ({"train": {"text_first": 2}, "data": {"views": 0}}, "needs .* views and .* memory"),
        ({"loss": {"item_words": 1.0, "memory": 0.0}}, "item_words need .* views and .* memory"),
        ({"loss": {"item_words": 1.0}, "data": {"views": 0}}, "item_words need .* views"),
        ({"data": {"class_share": 1.0}}, "class_share must be from 0, below 1"),
        ({"data": {"class_share": -0.1}}, "class_share must be from 0, below 1"),
        ({"data": {"folds": ["flat"]}}, "folds must be a list of a list of str"),
    ],
)
def test_values_that_are_refused(
    seen_recipes: Recipes, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        Recipe.load(seen_recipes.write(tmp_path, **changes))


@pytest.mark.parametrize(
    ("changes", "item", "words"),
    [
        ({"data": {"views": 0}}, "classes", "need a model with a memory of concepts"),
        ({"model": {"concept_items": 0}}, "views", "need a model with a memory of concepts"),
        ({"model": {"concept_items": 7}}, "concept_items", "must be 6 and 4"),
        ({"model": {"concept_classes": 3}}, "concept_items", "must be 6 and 4"),
        ({"model": {"fine_stage": False}}, "[model]", "concept_items needs"),
        ({"model": {"layout_width": 481}}, "layout_width", "at most 480, not 481"),
        ({"model": {"local_rank": 7}}, "local_rank", "at most 6, not 7"),
        ({"data": {"folds": [["flat", "round"]]}}, "folds", "at least two groups"),
        ({"data": {"folds": [["noto"]]}}, "folds", "there is no style 'noto'"),
        ({"data": {"views": 1}}, "views", "must show an item twice"),
        ({"data": {"batch_size": 16}}, "batch_size 16", "need 6 emoji, and there are 5"),
        (
            {"data": {"batch_size": 16, "class_share": 0.8}},
            "batch_size 16",
            "need 6 classes, and there are 4",
        ),
    ],
)
def test_what_does_not_go_together(
    seen_recipes: Recipes, tmp_path: Path, changes: dict[str, Any], item: str, words: str
) -> None:
    with pytest.raises(InputError, match=words) as caught:
        Trainer(Recipe.load(seen_recipes.write(tmp_path, **changes)))
    assert item in caught.value.item


@pytest.mark.parametrize("name", ["classes", "nouns"])
def test_a_missing_list_is_named(seen_recipes: Recipes, tmp_path: Path, name: str) -> None:
    lost = str(tmp_path / f"{name}.jsonl")
    with pytest.raises(InputError, match="make it with scripts/build_training_words") as caught:
        train(seen_recipes.write(tmp_path, data_options={name: lost}))
    assert caught.value.item == lost


def test_a_missing_vision_model_is_named(seen_recipes: Recipes, tmp_path: Path) -> None:
    lost = str(tmp_path / "lost")
    with pytest.raises(ModelError, match=f"{lost}: cannot be loaded"):
        train(seen_recipes.write(tmp_path, model={"vision_model": lost}))


def test_a_classifier_of_other_classes_is_named(seen_recipes: Recipes, tmp_path: Path) -> None:
    network = str(save_classified(tmp_path / "network", classes=9))
    with pytest.raises(InputError, match=r"its classifier has 9 classes of 256.*memory 4 of 256"):
        train(seen_recipes.write(tmp_path, model={"vision_model": network}))


def test_a_saved_model_to_go_on_from_names_no_folder(
    seen_recipes: Recipes, whole: Path, tmp_path: Path
) -> None:
    sections = {**seen_recipes.sections, "model": {"start": str(whole / "model")}}
    with pytest.raises(InputError, match=r"vision_model.*must name a folder") as caught:
        train(Recipes(sections).write(tmp_path))
    assert "[model]" in caught.value.item


def test_the_source_holds_drawings_classes_and_nouns(seen_recipes: Recipes, tmp_path: Path) -> None:
    source = open_source(Recipe.load(seen_recipes.write(tmp_path)).data)
    assert isinstance(source, EmojiDrawings)
    assert (source.drawn, len(source.items), len(source.nouns)) == (6, 10, 3)
