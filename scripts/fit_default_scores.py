"""Calibrate the scores of the default model, and write the result into its configuration.

Words and dense vectors count the same: what fits the training drawings best would trust dense
vectors too much, as their heads were trained on them. So do the documents' texts, of which the
calibration knows nothing: words of the query in a text only make it surer.

How likely a score is right is learned from the training drawings, each as a model sees it that has
not seen its set. Labels ask, tags, and nouns that belong to no drawing. A relevance of 0.5 is the
score from which on four of five hits are right, for labels as for tags: people, whose drawings
differ little, would be taken for each other too surely otherwise. The slope is then the likeliest.

    python scripts/fit_default_scores.py recipes/default.toml lexvla/pretrained

Needs the recipe's data, and the cells that its training left in its output folder.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from scipy import optimize

from lexvla.data.emoji import EmojiDrawings
from lexvla.torch_model import TorchLexVLA
from lexvla.training.feed import own_words
from lexvla.training.recipe import Recipe
from lexvla.training.seen_drawings import SeenDrawings
from lexvla.training.sources import open_source
from lexvla.training.start import start_model

Hits = tuple[np.ndarray, np.ndarray]  # scores, and which are right

WEIGHTS = {"lexical": 0.5, "dense": 0.5}
TRUSTED = 0.8  # share of right hits among those with a relevance above 0.5
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
    model = TorchLexVLA.from_pretrained(asked.model).float()
    # A model as before the first step, whose cells are there, and which is not written.
    seen = SeenDrawings(drawings, recipe, start_model(recipe, drawings, model.device))
    rng = np.random.default_rng(recipe.train.seed)
    kinds: dict[str, list[Hits]] = {}
    for style in np.unique(drawings.style):
        for kind, hits in _hits(model, drawings, seen, style, rng).items():
            kinds.setdefault(kind, []).append(hits)
    by_kind = {kind: _joined(hits) for kind, hits in kinds.items()}
    least = max(_least_trusted(*by_kind[kind]) for kind in ("labels", "tags"))
    slope = _likeliest_slope(*_joined(list(by_kind.values())), least)
    path = asked.model / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["score_weights"] = {**WEIGHTS, "text": max(WEIGHTS.values())}
    config["relevance"] = [round(slope, 3), round(-slope * least, 3)]
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    print(f"relevance {config['relevance']}: 0.5 at a score of {least:.3f}")


def _joined(hits: Sequence[Hits]) -> Hits:
    scores, right = (np.concatenate([each[part].ravel() for each in hits]) for part in range(2))
    return scores, right


def _least_trusted(scores: np.ndarray, right: np.ndarray) -> float:
    """Return the lowest score such that `TRUSTED` of the hits of at least that score are right."""
    order = np.argsort(-scores)
    share = np.cumsum(right[order]) / np.arange(1, len(order) + 1)
    return float(scores[order][share >= TRUSTED][-1])


def _likeliest_slope(scores: np.ndarray, right: np.ndarray, even: float) -> float:
    """Return the best slope of a logistic function that is 0.5 at the score `even`."""

    def loss(slope: float) -> float:
        logits = slope * (scores - even)
        return float(np.mean(np.logaddexp(0, logits) - right * logits))

    return float(optimize.minimize_scalar(loss, bounds=(0.1, 50), method="bounded").x)


def _hits(
    model: TorchLexVLA,
    drawings: EmojiDrawings,
    seen: SeenDrawings,
    style: int,
    rng: np.random.Generator,
) -> dict[str, Hits]:
    """Return the scores of the first hits among a set's drawings, by kind of query.

    A hit is right if its label and tags have all words of the query.
    """
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
    right[range(len(items)), range(len(items))] = True
    asked, images = model.encode_text(texts), seen.encode(model, rows)
    if asked.dense is None or images.dense is None:
        raise SystemExit("the model has no dense vectors")
    scores = WEIGHTS["lexical"] * (asked.lexical @ images.lexical.T).toarray()
    scores += WEIGHTS["dense"] * (asked.dense @ images.dense.T).clip(0)
    best = np.argsort(-scores, axis=1)[:, :SHOWN]
    hits = (np.take_along_axis(each, best, 1) for each in (scores, right.numpy()))
    ends = np.cumsum([len(items), len(tags)])
    parts = zip(*(np.split(each, ends) for each in hits), strict=True)
    return dict(zip(("labels", "tags", "nouns"), parts, strict=True))


if __name__ == "__main__":
    main()
