"""``lexvla patchdis``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lexvla.data.demo_corpus import load_demo_corpus
from lexvla_search.cli.arguments import JsonOptions, ModelOptions, option
from lexvla_search.cli.console import UsageError, print_json, print_numbers
from lexvla_search.evaluation.coco import CocoScenes, read_coco
from lexvla_search.evaluation.patchdis import PatchDisFigures, evaluate_patchdis
from lexvla_search.evaluation.scenes import DemoScenes


@dataclass(frozen=True)
class Options(ModelOptions, JsonOptions):
    """Which scenes to measure on."""

    annotations: str | None = option("COCO instances (default: scenes of the demo)", metavar="FILE")
    images: str | None = option("the folder of the annotated images", metavar="DIR")
    names: Literal["words", "text"] = option(
        "encode class names by their rows of the codebook (the default), or as texts",
        choices=("words", "text"),
        default="words",
    )


def run(options: Options) -> int:
    """Print how well patches are classified by class names."""
    if (options.annotations is None) != (options.images is None):
        raise UsageError("--annotations and --images go together")
    scenes: CocoScenes | DemoScenes
    if options.annotations is None or options.images is None:
        scenes = DemoScenes(load_demo_corpus("emoji"))
    else:
        scenes = read_coco(options.annotations, options.images)
    figures = evaluate_patchdis(
        options.load_model(),
        scenes,
        scenes.class_names,
        names=options.names,
        show_progress_bar=None,
    )
    if options.json:
        print_json(figures.to_dict())
    else:
        _print(figures)
    return 0


def _print(figures: PatchDisFigures) -> None:
    print(f"model {figures.model}, class names as {figures.names}: {figures.images:,} images,")
    print(
        f"{figures.patches:,} patches of {figures.occurring:,} classes"
        f" ({figures.wordless:,} of {figures.classes:,} names without a known word), in percent\n"
    )
    rows: list[tuple[str, ...]] = [
        ("candidates", "mIoU", "chance", "patches right", "chance", "undecided")
    ]
    for name, score in (("of the image", figures.present), ("all classes", figures.all)):
        values = (score.miou, score.chance_miou, score.accuracy, score.chance_accuracy)
        rows.append((name, *(f"{100 * value:.2f}" for value in (*values, score.undecided))))
    print_numbers(rows)
