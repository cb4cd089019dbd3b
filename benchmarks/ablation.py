"""Train the same small model by each of the papers' losses, and measure what each adds.

    python scripts/build_training_drawings.py
    python benchmarks/ablation.py --out benchmarks/results/ablation.jsonl
    python benchmarks/ablation.py --out benchmarks/results/ablation.jsonl --table --plot all.svg

A contrast alone does not get a tiny model off random weights in this budget, and neither does any
of these losses: the vectors stay alike. So each seed has a warm start by the default model's own
recipe, cut short. From it every run takes the same number of steps on the same batches, and
differs in its losses alone; "no more steps" is the start itself. All train on the drawings of four
emoji sets; the figures are of the Noto drawings that ship with LexVLA, which none has seen. A line
is written after each run, and runs that have a line are skipped, so the command goes on where it
was stopped. Ties count against everywhere. Fused is the sum of both legs' cosines.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from lexvla import Encoding, LexVLA
from lexvla.data.demo_corpus import load_demo_corpus
from lexvla.data.emoji import EmojiDrawings
from lexvla.training.objective import Losses
from lexvla.training.pair_recipe import Data, PairRecipe, Run
from lexvla.training.pair_trainer import PairTrainer
from lexvla.training.recipe import Recipe
from lexvla.training.trainer import Trainer, build_model
from search.evaluation import DemoScenes, evaluate_patchdis, recall_at_k

STYLES = ("twemoji", "openmoji", "fluent-flat", "fluent-3d")
DENSE = {"dense": 1.0}
CODIS = {"codis": 0.5, "codis_from": 40, "reseed_every": 40}
TCL = {"tcl_cross": 0.17, "tcl_intra": 0.17, "tcl_local": 0.17}
FLAT = {"proxy": 0.5, "coarse": 0.0}
START = "no more steps"
VARIANTS: dict[str, dict[str, Any]] = {
    START: {},
    "FLOPs": {"penalty": "flops"},
    "overuse": {},
    "+ dense": DENSE,
    "+ dense, CODIS": {**DENSE, **CODIS},
    "+ dense, TCL": {**DENSE, **TCL},
    "+ dense, proxies": {**DENSE, **FLAT},
    "+ dense, HPL by groups": {**DENSE, **FLAT, "coarse": 0.1, "tree": True},
    "+ dense, HPL by clusters": {**DENSE, **FLAT, "coarse": 0.1, "recluster_every": 40},
    "+ dense, distilled": {**DENSE, "distil": 0.5},
    "all": {**DENSE, **CODIS, **TCL, **FLAT, "coarse": 0.1, "tree": True, "distil": 0.5},
}
COLUMNS = {
    "text -> image R@1": "t->i 1",
    "text -> image R@5": "5",
    "text -> image R@10": "10",
    "image -> text R@1": "i->t 1",
    "image -> text R@5": "5",
    "image -> text R@10": "10",
    "fused text -> image R@1": "fused t->i 1",
    "fused image -> text R@1": "i->t 1",
    "image -> image R@1": "i->i 1",
    "words an image": "words",
    "never used": "never",
    "over-used": "over",
    "dead codes": "dead",
    "PatchDis mIoU": "mIoU",
}
PERCENT = {name for name in COLUMNS if name not in ("words an image", "dead codes")}
OVER_USED = 0.1  # of the images; a word of more of them says little


def write_pairs(drawings: EmojiDrawings, source: Path, folder: Path) -> Path:
    """Write the drawings as PNG files over white, with their texts and classes as JSONL."""
    path = folder / "pairs.jsonl"
    groups = [json.loads(line) for line in (source / "items.jsonl").open(encoding="utf-8")]
    above = {line["id"]: [line["group"], line["subgroup"]] for line in groups}
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for row, (number, pixels) in enumerate(zip(drawings.item, drawings.pixels, strict=True)):
        item = drawings.items[number]
        texts = [item.label, *item.tags]
        if item.tags:
            texts.append(f"{item.label} {' '.join(item.tags[:2])}")
        alpha = pixels[..., 3:].astype(np.float32) / 255
        flat = pixels[..., :3] * alpha + 255 * (1 - alpha)
        name = f"{row}.png"
        Image.fromarray(flat.round().astype(np.uint8)).save(folder / name)
        lines.append(
            {
                "id": str(row),
                "image": name,
                "text": texts,
                "label": item.id,
                "class_path": [*above[item.id], item.id],
            }
        )
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def warm_up(drawings: EmojiDrawings, folder: Path, seed: int, args: argparse.Namespace) -> None:
    """Train a model by the default recipe for some steps, and add untrained heads and codes."""
    with tempfile.TemporaryDirectory() as output:
        recipe = Recipe(
            str(args.drawings),
            list(STYLES),
            output=output,
            save_every=10**9,
            width=args.width,
            sides=[args.side],
            sides_from=[0.0],
            steps=args.warm_steps,
            memory_from=10**9,
            seed=seed,
            threads=args.threads,
        )
        trainer = Trainer(recipe)
        trainer.run()
    torch.manual_seed(seed)
    model = build_model(recipe, drawings, dense_width=64, codebook_size=128)
    model.load_state_dict(trainer.average, strict=False)  # all but heads and codes
    model.save_pretrained(folder)


def train_variant(losses: dict[str, Any], start: Path, pairs: Path, seed: int, args: Any) -> LexVLA:
    """Train a model by some losses and return it."""
    with tempfile.TemporaryDirectory() as output:
        recipe = PairRecipe(
            output=output,
            model={"start": str(start)},
            data=Data("captions", str(pairs), batch_size=args.batch, workers=2),
            loss=Losses(
                penalty_ramp=max(1, args.steps // 2),
                alpha_ramp=max(1, args.steps // 4),
                queue=8 * args.batch,
                **losses,
            ),
            train=Run(
                steps=args.steps,
                rate=args.rate,
                weight_decay=0.05,
                warmup=min(30, args.steps),
                crop=0.6,
                jitter=0.4,
                save_every=10**9,
                seed=seed,
                device=args.device,
                threads=args.threads,
            ),
        )
        trainer = PairTrainer(recipe)
        trainer.run()
        return trainer.model.eval()


def measure(model: LexVLA, drawings: EmojiDrawings) -> dict[str, float]:
    """Return the columns of the table but for time."""
    items = load_demo_corpus()
    images = model.encode_image([item.image for item in items])
    texts = model.encode_text([item.label for item in items])
    own = range(len(items))
    words = texts.lexical @ images.lexical.T
    found = dict(_recalls("", words.toarray(), own))
    if images.dense is not None and texts.dense is not None:
        fused = words.toarray() + texts.dense @ images.dense.T
        found |= dict(_recalls("fused ", fused, own))
    other, places = _other_style(model, drawings, [item.id for item in items])
    queries = images.lexical[[place for place, _ in places]]
    across = (queries @ other.lexical.T).toarray()
    found["image -> image R@1"] = recall_at_k(across, [row for _, row in places], (1,))[1]
    used = np.bincount(images.lexical.indices, minlength=len(model.vocabulary)) / len(items)
    found["words an image"] = images.lexical.nnz / len(items)
    found["never used"] = float((used == 0).mean())
    found["over-used"] = float((used > OVER_USED).mean())
    if images.codes is not None:
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
    """Encode the plain drawings of the first set, and pair them with the items of these ids."""
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


def print_table(lines: list[dict[str, Any]]) -> None:
    """Print mean and spread (largest less smallest) over the seeds as Markdown."""
    print("| losses | seeds | " + " | ".join(COLUMNS.values()) + " |")
    print("|---|--:" + "|--:" * len(COLUMNS) + "|")
    for name in VARIANTS:
        rows = [line for line in lines if line["losses"] == name]
        if rows:
            cells = (
                _cell([row[column] for row in rows if column in row], column) for column in COLUMNS
            )
            print(f"| {name} | {len(rows)} | " + " | ".join(cells) + " |")


def _cell(values: list[float], column: str) -> str:
    if not values:
        return "-"
    scale = 100 if column in PERCENT else 1
    spread = f" ± {scale * (max(values) - min(values)) / 2:.1f}" if len(values) > 1 else ""
    return f"{scale * np.mean(values):.1f}{spread}"


def plot(lines: list[dict[str, Any]], path: str) -> None:
    """Draw R@1 of each variant, a point a seed."""
    import matplotlib.pyplot as plt

    names = [name for name in VARIANTS if any(line["losses"] == name for line in lines)]
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
    axes.set_yticks(range(len(names)), names)
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
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--warm-steps", type=int, default=300)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--side", type=int, default=32, help="pixels of a view")
    parser.add_argument("--device", default="cpu", help="cpu, or empty for what accelerate finds")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
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
    """Train and measure every variant and seed that has no line yet."""
    drawings = EmojiDrawings(args.drawings, list(STYLES))
    keys = ("warm_steps", "steps", "batch", "rate", "width", "side")
    setting = {key: getattr(args, key) for key in keys}
    with tempfile.TemporaryDirectory() as folder:
        pairs = write_pairs(drawings, args.drawings, Path(folder) / "pairs")
        for seed in range(args.seeds):  # a seed of all variants, before the next
            start = Path(folder) / f"start-{seed}"
            waiting = [name for name in args.only if not _is_done(args.out, name, seed)]
            if waiting:
                warm_up(drawings, start, seed, args)
            for name in waiting:
                started = time.monotonic()
                if name == START:
                    model = LexVLA.from_pretrained(start)
                else:
                    model = train_variant(VARIANTS[name], start, pairs, seed, args)
                line = {"losses": name, "seed": seed, **setting, **measure(model, drawings)}
                line["seconds"] = time.monotonic() - started
                with args.out.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")
                print(f"{name}, seed {seed}: {line['seconds']:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
