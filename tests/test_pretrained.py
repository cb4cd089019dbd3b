"""The model that ships with the package does what its card says."""

from __future__ import annotations

import re
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

import lexvla
from lexvla import LexVLA
from lexvla.data.demo_corpus import load_demo_corpus
from lexvla_search.cli.arguments import load_model
from source_tree import ROOT

FOLDER = Path(lexvla.__file__).parent / "pretrained"
POINT = 0.01
MAX_BYTES = 45 * 10**6  # of weights


def card() -> dict[str, float]:
    """Return the figures of emoji in the card's header: name -> value."""
    _, header, _ = (FOLDER / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    results = yaml.safe_load(header)["model-index"][0]["results"]
    (result,) = (each for each in results if each["dataset"]["type"] == "emoji")
    return {metric["name"]: metric["value"] for metric in result["metrics"]}


@cache
def model() -> LexVLA:
    return LexVLA.from_pretrained()


@cache
def figures() -> Any:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    noto = pytest.importorskip("noto_figures", reason="needs a clone: it is in no distribution")
    return noto.evaluate_noto(model(), load_demo_corpus("emoji"))


@pytest.mark.slow
def test_the_card_states_what_the_model_does() -> None:
    found = figures()
    measured = {
        **{f"label to image R@{k}": value for k, value in found.label_to_image.items()},
        **{f"image to label R@{k}": value for k, value in found.image_to_label.items()},
        "tag to images nDCG@10": found.tag_ndcg,
        "tag to images P@10": found.tag_precision,
    }
    assert found.fused_label_to_image is not None
    assert found.fused_image_to_label is not None
    for name, recalls in (
        ("fused label to image", found.fused_label_to_image),
        ("fused image to label", found.fused_image_to_label),
    ):
        measured |= {f"{name} R@{k}": value for k, value in recalls.items()}
    stated = card()
    words = {
        "active words an image": found.words_per_image,
        "active words a label": found.words_per_text,
    }
    assert stated.keys() == measured.keys() | words.keys()
    assert {name: stated[name] for name in measured} == pytest.approx(measured, abs=POINT)
    assert {name: stated[name] for name in words} == pytest.approx(words, rel=0.02)


@pytest.mark.slow
def test_the_figures_are_far_from_chance_and_above_the_floor() -> None:
    found = figures()
    assert found.items == 1906
    assert found.label_to_image[1] > 0.60 > 100 * found.chance_recall[1]
    assert found.label_to_image[10] > 0.85
    assert found.tag_ndcg > 0.70


@pytest.mark.slow
def test_a_label_finds_its_drawing_however_it_is_typed() -> None:
    points = figures().phrasing_points
    assert min(points.values()) >= -2, points


@pytest.mark.slow
def test_codes_carry_what_dense_vectors_do() -> None:
    found = figures()
    assert found.codes_label_to_image is not None
    assert found.dense_label_to_image is not None
    assert found.unused_codes is not None
    assert found.codes_label_to_image[10] >= found.dense_label_to_image[10] / 2
    assert found.unused_codes < 0.05


def test_photographs_of_the_demo_are_found_by_their_words() -> None:
    photographs = load_demo_corpus("photographs")
    images = model().encode_image([item.image for item in photographs])
    for word in ("cat", "coffee", "rocket"):
        scores = model().similarity(model().encode_text([word]), images)[0]
        found = photographs[int(scores.argmax())]
        assert found.id == f"photo-{word}"
        # A tie would be decided by the order alone.
        assert (scores == scores.max()).sum() == 1


def test_no_item_has_more_words_than_the_model_says() -> None:
    items = load_demo_corpus("emoji")[::100] + load_demo_corpus("photographs")
    images = model().encode_image([item.image for item in items])
    counts = images.lexical.indptr[1:] - images.lexical.indptr[:-1]
    assert model().config.max_active_dims == 64
    assert counts.min() > 0
    assert counts.max() <= 64


def test_what_the_model_knows_is_told_where_images_are_indexed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    load_model(None)
    assert capsys.readouterr().err == ""
    load_model(None, introduce=True)
    told = capsys.readouterr().err
    assert told.startswith("lexvla: lexvla-default knows emoji, and animals and things of ImageNet")
    assert "it does not know what people do" in told


def test_texts_of_unknown_words_are_refused_and_of_known_ones_not() -> None:
    texts = model().encode_text(["жжжж", "the of", "labrador", "heart"])
    counts = texts.lexical.indptr[1:] - texts.lexical.indptr[:-1]
    assert counts[:2].tolist() == [0, 0]
    assert counts[2:].min() > 0


def test_the_checkpoint_is_small_and_holds_no_pickle() -> None:
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    weights = [path for path in files if path.suffix == ".safetensors"]
    assert sum(path.stat().st_size for path in weights) < MAX_BYTES
    assert {path.suffix for path in files} <= {".json", ".onnx", ".safetensors", ".md"}
    graphs = [path for path in files if path.suffix == ".onnx"]  # which hold no weights
    assert 0 < sum(path.stat().st_size for path in graphs) < MAX_BYTES / 40


def test_common_words_are_one_piece_each() -> None:
    tokenizer = model().tokenizer
    for word in ("dog", "cat", "heart", "red", "yellow", "fruit", "water", "music", "flag"):
        ids = tokenizer(word, add_special_tokens=False)["input_ids"]
        assert tokenizer.convert_ids_to_tokens(ids) == [f"▁{word}"]
        assert model().vocabulary.find(word) is not None


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("cat face", {"cat", "face"}),
        ("dog face", {"dog", "face"}),
        ("red apple", {"red", "apple"}),
        ("red heart", {"heart"}),  # not red: the card says that the model is weak at colours
        *((word, {word}) for word in ("banana", "fish", "guitar", "house", "pizza", "rocket")),
    ],
)
def test_words_of_a_plain_drawing(label: str, expected: set[str]) -> None:
    drawing = next(item for item in load_demo_corpus("emoji") if item.label == label)
    (words,) = model().decode(model().encode_image([drawing.image]), top_k=8)
    assert expected <= {word for word, _ in words}


def test_the_readmes_figures_are_the_cards() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    table = readme.partition("chance R@1 |\n")[2].partition("\n\n")[0]
    rows = re.findall(r"^\| .* \| ([\d.]+ \| [\d.]+ \| [\d.]+) \| [\d.]+ \|$", table, re.MULTILINE)
    assert len(rows) == 8
    stated = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert [row for row in rows if f"| {row} |" not in stated] == []
