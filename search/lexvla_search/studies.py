"""``lexvla patchdis`` and ``lexvla sparsity``: what a model's patches and words are worth."""

from __future__ import annotations

import argparse
import importlib.util
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lexvla.data.demo_corpus import load_demo_corpus
from lexvla.errors import InputError, OptionalDependencyError
from lexvla_search.commands import load_model
from lexvla_search.console import UsageError, note, print_json, print_numbers

if TYPE_CHECKING:
    from lexvla_indexer.report import Reject
    from lexvla_search.evaluation.patchdis import PatchDisFigures
    from lexvla_search.evaluation.sparsity import SparsityFigures, SparsityPoint

__all__ = ["check_plot", "patchdis", "sparsity"]

PLOTS = (".png", ".svg")


def patchdis(args: argparse.Namespace) -> int:
    """Print how well patches are classified by class names."""
    from lexvla_search.evaluation.coco import CocoScenes, read_coco
    from lexvla_search.evaluation.patchdis import evaluate_patchdis
    from lexvla_search.evaluation.scenes import DemoScenes

    if (args.annotations is None) != (args.images is None):
        raise UsageError("--annotations and --images go together")
    scenes: CocoScenes | DemoScenes
    if args.annotations is None:
        scenes = DemoScenes(load_demo_corpus("emoji"))
    else:
        scenes = read_coco(args.annotations, args.images)
    model = load_model(args.model, args.device)
    figures = evaluate_patchdis(
        model, scenes, scenes.class_names, names=args.names, show_progress_bar=None
    )
    if args.json:
        print_json(figures.to_dict())
    else:
        _print_patchdis(figures)
    return 0


def sparsity(args: argparse.Namespace) -> int:
    """Print, and draw, how retrieval keeps up as vectors keep fewer words."""
    from lexvla_search.evaluation.sparsity import evaluate_sparsity, plot_sparsity

    if args.plot is not None:
        check_plot(Path(args.plot))  # before the minutes that the study takes
    rejects: list[Reject] = []
    if args.source is None:
        items = load_demo_corpus("emoji")
        images: list[Any] = [item.image for item in items]
        texts, image_of = [item.label for item in items], list(range(len(items)))
    else:
        images, texts, image_of = _read_pairs(args.source, rejects)
    if rejects:
        first = rejects[0]
        note(f"lexvla: rejected {first.item!r}: {first.rule}; {len(rejects):,} rejected in all")
    if not texts:
        note(f"lexvla: error: nothing in {args.source} could be measured")
        return 1
    model = load_model(args.model, args.device)
    figures = evaluate_sparsity(
        model, images, texts, image_of, side=args.side, show_progress_bar=None
    )
    if args.plot is not None:
        plot_sparsity(figures, args.plot)
    if args.json:
        found = [asdict(reject) for reject in rejects]
        print_json({**figures.to_dict(), "rejected": found, "plot": args.plot})
        return 0
    _print_sparsity(figures)
    if args.plot is not None:
        note(f"lexvla: drew {args.plot}")
    return 0


def _read_pairs(
    source: str, rejects: list[Reject]
) -> tuple[list[Path | bytes], list[str], list[int]]:
    """Return the readable images, each once, the texts, and the number of each text's image."""
    from lexvla.images import open_image
    from lexvla_indexer.report import Reject
    from lexvla_indexer.sources import Unlisted, open_item_source

    numbers: dict[Path | bytes, int | str] = {}  # of an image that cannot be read, the reason
    images: list[Path | bytes] = []
    texts: list[str] = []
    image_of: list[int] = []
    for item in open_item_source(source).entries():
        if isinstance(item, Unlisted):
            rejects.append(item.reject)
            continue
        name, text, path = item.document.id, item.document.text, item.image
        if path is None or not text.strip():
            rejects.append(Reject(name, "needs an image and a text", item.where))
            continue
        if path not in numbers:
            try:
                open_image(path, name)
                numbers[path] = len(images)
                images.append(path)
            except InputError as error:
                numbers[path] = error.rule
        number = numbers[path]
        if isinstance(number, str):
            rejects.append(Reject(name, number, item.where))
        else:
            texts.append(text)
            image_of.append(number)
    return images, texts, image_of


def check_plot(path: Path) -> None:
    """Refuse a plot that could not be drawn, before anything takes time.

    Raises:
        InputError: The plot's folder does not exist.
        OptionalDependencyError: matplotlib is missing.
        UsageError: The name ends in neither ``.png`` nor ``.svg``.
    """
    if path.suffix.lower() not in PLOTS:
        raise UsageError(f"--plot must name a file that ends in {' or '.join(PLOTS)}")
    if importlib.util.find_spec("matplotlib") is None:
        raise OptionalDependencyError("matplotlib", "evaluation")
    if not path.absolute().parent.is_dir():
        raise InputError(str(path), "its folder does not exist")


def _print_patchdis(figures: PatchDisFigures) -> None:
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


def _print_sparsity(figures: SparsityFigures) -> None:
    print(
        f"model {figures.model}: {figures.texts:,} texts, {figures.images:,} images,"
        f" {figures.vocabulary:,} words; cut: {figures.side}; in percent\n"
    )
    depths = [f"R@{k}" for k in figures.own.text_to_image]
    head = ("kept", "a text", "an image", "sparse")
    rows = [(*head, *(f"t>i {k}" for k in depths), *(f"i>t {k}" for k in depths))]
    rows += [_sparsity_row(f"{point.kept:,}", point) for point in figures.points]
    rows.append(_sparsity_row("the model's rule", figures.own))
    print_numbers(rows)
    if not figures.complete:
        note("lexvla: the study ends where memory does; more words were not kept")


def _sparsity_row(name: str, point: SparsityPoint) -> tuple[str, ...]:
    recalls = (*point.text_to_image.values(), *point.image_to_text.values())
    return (
        name,
        f"{point.words_per_text:,.1f}",
        f"{point.words_per_image:,.1f}",
        *(f"{100 * value:.2f}" for value in (point.sparsity_ratio, *recalls)),
    )
