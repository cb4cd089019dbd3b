"""Train the same small model with the losses of each paper, and measure what each adds.

    python scripts/build_training_drawings.py
    python benchmarks/ablation.py --out benchmarks/results/ablation.jsonl
    python benchmarks/ablation.py --out benchmarks/results/ablation.jsonl --table --plot all.svg

Each row is a recipe of `recipes/ablation`. In short runs from random weights, contrast alone stayed
at chance, so each seed has a common start: the default model's recipe, cut to 600 steps and small
views. From it, all rows of a seed take the same number of steps on the same batches and differ only
in their losses. They train on the drawings of four emoji sets and are measured on the Noto drawings
that ship with LexVLA. A line is written after each run, and runs that have a line are skipped, so
the command can be resumed, and seeds may run in parallel. An item ranks
behind all others with its score. Fused is the sum of both legs' cosines.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lexvla import Encoding, LexVLA
from lexvla.data.demo_corpus import load_demo_corpus
from lexvla.data.emoji import EmojiDrawings
from lexvla.training.objective import Losses
from lexvla.training.recipe import Recipe
from lexvla.training.trainer import Trainer
from lexvla_search.evaluation import DemoScenes, evaluate_patchdis, recall_at_k

RECIPES = Path(__file__).parent.parent / "recipes" / "ablation"
ROWS = {
    "start": "no more steps",
    "contrast-alone": "LexVLA's terms alone",
    "flops": "base, FLOPs for overuse",
    "overuse": "base",
    "no-memory": "base, no item memory",
    "dense": "base + dense",
    "codis": "+ dense, CODIS",
    "tcl": "+ dense, TCL",
    "proxies": "+ dense, proxies",
    "hpl-groups": "+ dense, HPL by groups",
    "hpl-clusters": "+ dense, HPL by clusters",
    "distil": "+ dense, distilled",
    "all": "all",
}
COLUMNS = {
    "text -> image R@1": "t->i 1",
    "text -> image R@5": "5",
    "text -> image R@10": "10",
    "image -> text R@1": "i->t 1",
    "image -> text R@5": "5",
    "image -> text R@10": "10",
    "dense text -> image R@1": "dense t->i 1",
    "fused text -> image R@1": "fused t->i 1",
    "fused image -> text R@1": "fused i->t 1",
    "image -> image R@1": "i->i 1",
    "words an image": "words",
    "never used": "never",
    "over-used": "over",
    "dead codes": "dead",
    "PatchDis mIoU": "mIoU",
}
PLAIN = {"words an image", "dead codes"}  # all others are shares
OVER_USED = 0.1  # of the images; a word of more of them says little


def train(name: str, seed: int, args: argparse.Namespace) -> LexVLA:
    """Run a recipe and return the model; an existing start is reused."""
    recipe = Recipe.load(RECIPES / f"{name}.toml")
    output = args.runs / f"{name}-{seed}"
    model = dict(recipe.model)
    if name != "start":
        start = args.runs / f"start-{seed}" / "model"
        if not start.exists():
            train("start", seed, args)
        model["start"] = str(start)
    elif (output / "model").exists():
        return LexVLA.from_pretrained(output / "model")
    run = replace(recipe.train, seed=seed, threads=args.threads, device=args.device)
    data = replace(recipe.data, path=str(args.drawings))
    Trainer(replace(recipe, output=str(output), model=model, train=run, data=data)).run()
    found = LexVLA.from_pretrained(output / "model")
    if name != "start":
        shutil.rmtree(output)
    return found


def measure(model: LexVLA, drawings: EmojiDrawings, losses: Losses) -> dict[str, float]:
    """Return the columns of the table, except time."""
    items = load_demo_corpus("emoji")
    images = model.encode_image([item.image for item in items])
    texts = model.encode_text([item.label for item in items])
    own = range(len(items))
    words = texts.lexical @ images.lexical.T
    found = dict(_recalls("", words.toarray(), own))
    # A start has heads and codes for all rows; what a row did not train says nothing.
    if losses.needs_dense and images.dense is not None and texts.dense is not None:
        dense = texts.dense @ images.dense.T
        found |= dict(_recalls("dense ", dense, own))
        found |= dict(_recalls("fused ", words.toarray() + dense, own))
    other, places = _other_style(model, drawings, [item.id for item in items])
    queries = images.lexical[[place for place, _ in places]]
    across = (queries @ other.lexical.T).toarray()
    found["image -> image R@1"] = recall_at_k(across, [row for _, row in places], (1,))[1]
    used = np.bincount(images.lexical.indices, minlength=len(model.vocabulary)) / len(items)
    found["words an image"] = images.lexical.nnz / len(items)
    found["never used"] = float((used == 0).mean())
    found["over-used"] = float((used > OVER_USED).mean())
    if losses.codis and images.codes is not None:
        best = np.array([row.codes.indices[row.codes.data.argmax()] for row in images])
        found["dead codes"] = float(images.codes.shape[1] - len(np.unique(best)))
    scenes = DemoScenes(items, count=200)
    figures = evaluate_patchdis(model, scenes, scenes.class_names, names="text")
    found["PatchDis mIoU"] = figures.present.miou
    return found


def _recalls(prefix: str, scores: np.ndarray, own: range) -> Iterator[tuple[str, float]]:
    for name, matrix in (("text -> image", scores), ("image -> text", scores.T)):
        for k, value in recall_at_k(matrix, own, (1, 5, 10)).items():
            if not prefix or k == 1:
                yield f"{prefix}{name} R@{k}", value


def _other_style(
    model: LexVLA, drawings: EmojiDrawings, ids: list[str]
) -> tuple[Encoding, list[tuple[int, int]]]:
    """Encode the plain drawings of the first set, paired with the items of these ids."""
    rows = np.flatnonzero((drawings.style == 0) & (drawings.tone == 0))
    place = {drawings.items[drawings.item[row]].id: i for i, row in enumerate(rows)}
    images = []
    for row in rows:
        image = Image.fromarray(drawings.pixels[row])
        images.append(Image.alpha_composite(Image.new("RGBA", image.size, "white"), image))
    pairs = [(number, place[name]) for number, name in enumerate(ids) if name in place]
    return model.encode_image(images), pairs


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the finished runs."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def print_table(lines: Sequence[dict[str, Any]]) -> None:
    """Print mean and standard deviation over the seeds as Markdown; shares in percent."""
    print("| losses | seeds | " + " | ".join(COLUMNS.values()) + " |")
    print("|---|--:" + "|--:" * len(COLUMNS) + "|")
    for name, title in ROWS.items():
        rows = [line for line in lines if line["losses"] == name]
        if rows:
            cells = (_cell([r[column] for r in rows if column in r], column) for column in COLUMNS)
            print(f"| {title} | {len(rows)} | " + " | ".join(cells) + " |")


def _cell(values: list[float], column: str) -> str:
    if not values:
        return "-"
    scale = 1 if column in PLAIN else 100
    spread = f" ± {scale * np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
    return f"{scale * np.mean(values):.1f}{spread}"


def plot(lines: list[dict[str, Any]], path: str) -> None:
    """Plot R@1 of each variant, with a point for each seed."""
    import matplotlib.pyplot as plt

    names = [name for name in ROWS if any(line["losses"] == name for line in lines)]
    figure, axes = plt.subplots(figsize=(8, 0.45 * len(names) + 1.2))
    for column, mark, colour in (
        ("text -> image R@1", "o", "#0072b2"),
        ("image -> text R@1", "s", "#d55e00"),
        ("fused text -> image R@1", "^", "#009e73"),
    ):
        points = [
            (100 * line[column], names.index(line["losses"])) for line in lines if column in line
        ]
        axes.plot(*zip(*points, strict=True), mark, color=colour, label=column, alpha=0.75)
    axes.set_yticks(range(len(names)), [ROWS[name] for name in names])
    axes.invert_yaxis()
    axes.set_xlabel("R@1 on unseen drawings, percent; a point a seed")
    axes.grid(axis="x", alpha=0.3)
    axes.legend(fontsize="small")
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--drawings", type=Path, default=Path("data/emoji"))
    parser.add_argument("--out", type=Path, required=True, help="a line a run; runs in it are done")
    parser.add_argument("--runs", type=Path, default=Path("runs/ablation"), help="keeps the starts")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--device", default="cpu", help="cpu, or empty for what accelerate finds")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--table", action="store_true", help="train nothing, print what is there")
    parser.add_argument("--plot", metavar="FILE", help="draw what is there")
    args = parser.parse_args()
    if not args.table:
        run_all(args)
    lines = read_lines(args.out)
    print_table(lines)
    if args.plot:
        plot(lines, args.plot)


def _is_done(path: Path, name: str, seed: int) -> bool:
    return any(line["losses"] == name and line["seed"] == seed for line in read_lines(path))


def run_all(args: argparse.Namespace) -> None:
    """Train and measure every recipe and seed without a line."""
    styles = Recipe.load(RECIPES / "overuse.toml").data.options["styles"]
    drawings = EmojiDrawings(args.drawings, styles)
    for seed in args.seeds:  # a seed of all recipes, before the next
        for name in args.only:
            if _is_done(args.out, name, seed):
                continue
            started = time.monotonic()
            model = train(name, seed, args)
            line = {"losses": name, "seed": seed, "threads": args.threads}
            losses = Recipe.load(RECIPES / f"{name}.toml").loss
            line |= measure(model, drawings, losses)
            line["seconds"] = time.monotonic() - started
            with args.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            print(f"{name}, seed {seed}: {line['seconds']:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
