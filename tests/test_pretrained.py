"""The model that ships with the package does what its card says."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import yaml

import lexvla
from lexvla import LexVLA
from lexvla.data.demo_corpus import load_demo_corpus
from search.evaluation import NotoFigures, evaluate_noto

FOLDER = Path(lexvla.__file__).parent / "pretrained"
POINT = 0.01
MAX_BYTES = 16 * 2**20


def card() -> dict[str, float]:
    """Return the figures in the card's header: name -> value."""
    _, header, _ = (FOLDER / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    (result,) = yaml.safe_load(header)["model-index"][0]["results"]
    return {metric["name"]: metric["value"] for metric in result["metrics"]}


@cache
def model() -> LexVLA:
    return LexVLA.from_pretrained()


@cache
def figures() -> NotoFigures:
    return evaluate_noto(model(), load_demo_corpus("emoji"))


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
    assert found.label_to_image[1] > 0.40 > 100 * found.chance_recall[1]
    assert found.label_to_image[10] > 0.75
    assert found.tag_ndcg > 0.35


def test_the_checkpoint_is_small_and_holds_no_pickle() -> None:
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < MAX_BYTES
    assert {path.suffix for path in files} <= {".json", ".safetensors", ".md"}


def test_common_words_are_one_piece_each() -> None:
    tokenizer = model().tokenizer
    for word in ("dog", "cat", "heart", "red", "yellow", "fruit", "water", "music", "flag"):
        assert tokenizer.tokenize(word) == [f"▁{word}"]
        assert model().vocabulary.find(word) is not None


def test_words_of_a_plain_drawing() -> None:
    heart = next(item for item in load_demo_corpus("emoji") if item.label == "red heart")
    (words,) = model().decode(model().encode_image([heart.image]), top_k=8)
    assert {"heart", "red"} <= {word for word, _ in words}
