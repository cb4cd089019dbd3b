"""Calibrate the scores of the default model, and write the result into its configuration.

Words and dense vectors count the same: what fits the training drawings best would trust dense
vectors too much, as their heads were trained on them. How likely a score is right is learned from
the training drawings, each as a model sees it that has not seen its set. Labels ask, tags, and
nouns that belong to no drawing.

    python scripts/fit_default_scores.py recipes/default.toml lexvla/pretrained

Needs the recipe's data, and the cells that its training left in its output folder.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from lexvla import LexVLA
from lexvla.data.emoji import EmojiDrawings
from lexvla.training.feed import own_words
from lexvla.training.recipe import Recipe
from lexvla.training.seen_drawings import SeenDrawings
from lexvla.training.sources import open_source
from lexvla.training.start import start_model
from lexvla_search.fitting import fit_relevance

WEIGHTS = {"lexical": 0.5, "dense": 0.5}
SHOWN = 10  # hits of a query that the calibration learns from
TAGGED = range(3, 61)  # how many drawings of a set a tag must be on


def main() -> None:
    """Fit and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("model", type=Path)
    asked = parser.parse_args()
    recipe = Recipe.load(asked.recipe)
    drawings = open_source(recipe.data)
    if not isinstance(drawings, EmojiDrawings):
        raise SystemExit(f"{asked.recipe}: not a recipe of drawings")
    model = LexVLA.from_pretrained(asked.model).float()
    # A model as before the first step, whose cells are there, and which is not written.
    seen = SeenDrawings(drawings, recipe, start_model(recipe, drawings, model.device))
    rng = np.random.default_rng(recipe.train.seed)
    tables = [_table(model, drawings, seen, style, rng) for style in np.unique(drawings.style)]
    widest = max(table[2].shape[1] for table in tables)

    def joined(part: int) -> np.ndarray:
        padded = [np.pad(t[part], ((0, 0), (0, widest - t[part].shape[1]))) for t in tables]
        return np.concatenate(padded)

    lexical, dense, right = (joined(part) for part in range(3))
    scores = WEIGHTS["lexical"] * lexical + WEIGHTS["dense"] * dense.clip(0)
    best = np.argsort(-scores, axis=1)[:, :SHOWN]
    hits = np.take_along_axis(scores, best, 1), np.take_along_axis(right, best, 1) > 0
    slope, intercept = fit_relevance(*hits)
    path = asked.model / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["score_weights"] = WEIGHTS
    config["relevance"] = [round(slope, 3), round(intercept, 3)]
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    print(f"{len(scores):,} queries: relevance {config['relevance']}")


def _table(
    model: LexVLA, drawings: EmojiDrawings, seen: SeenDrawings, style: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (queries, drawings of a set) lexical and dense scores, and which are right."""
    rows = np.flatnonzero((drawings.style == style) & (drawings.tone == 0))
    rows = rows[np.isin(drawings.item[rows], seen.known)]
    items = [drawings.items[number] for number in drawings.item[rows]]
    words = torch.from_numpy(drawings.word_weights(model.vocabulary)[drawings.item[rows]]) > 0
    counts: dict[str, int] = {}
    for item in items:
        for tag in set(item.tags):
            counts[tag] = counts.get(tag, 0) + 1
    tags = sorted(tag for tag, count in counts.items() if count in TAGGED)
    nouns = [drawings.nouns[number][0] for number in rng.permutation(len(drawings.nouns))]
    texts = [*(item.label for item in items), *tags, *nouns[: len(tags)]]
    own = own_words(texts, model.vocabulary)
    right = (own @ words.float().T >= own.sum(1, keepdim=True)) & (own.sum(1, keepdim=True) > 0)
    right = right.numpy().astype(np.float64)
    right[np.arange(len(items)), np.arange(len(items))] = 1
    asked, images = model.encode_text(texts), seen.encode(model, rows)
    if asked.dense is None or images.dense is None:
        raise SystemExit("the model has no dense vectors")
    lexical = (asked.lexical @ images.lexical.T).toarray()
    return lexical, asked.dense @ images.dense.T, right


if __name__ == "__main__":
    main()
