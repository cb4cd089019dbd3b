"""``lexvla sparsity``."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import get_args

from lexvla.data.demo_corpus import load_demo_corpus
from lexvla_search.cli.arguments import (
    JsonOptions,
    ModelOptions,
    option,
    plot_file,
    positional,
)
from lexvla_search.cli.console import note, print_json, print_numbers
from lexvla_search.evaluation.figures import check_plot
from lexvla_search.evaluation.pairs import Pairs, read_pairs
from lexvla_search.evaluation.sparsity import (
    Side,
    SparsityFigures,
    SparsityPoint,
    evaluate_sparsity,
    plot_sparsity,
)


@dataclass(frozen=True)
class Options(ModelOptions, JsonOptions):
    """What to measure on, and whose vectors to cut."""

    source: str | None = positional(
        "a JSONL manifest of images with texts (default: the demo's drawings with their labels)",
        metavar="SOURCE",
        nargs="?",
    )
    side: Side = option("whose vectors to cut (both)", choices=get_args(Side), default="both")
    plot: str | None = option("draw a .png or .svg", type=plot_file, metavar="FILE")


def run(options: Options) -> int:
    """Print, and draw, how retrieval keeps up as vectors keep fewer words."""
    if options.plot is not None:
        check_plot(options.plot)  # before the study, which takes minutes
    if options.source is None:
        items = load_demo_corpus("emoji")
        labels = [item.label for item in items]
        pairs = Pairs([item.image for item in items], labels, list(range(len(items))), [])
    else:
        pairs = read_pairs(options.source)
    if pairs.rejects:
        first, count = pairs.rejects[0], len(pairs.rejects)
        note(f"lexvla: rejected {first.item!r}: {first.rule}; {count:,} rejected in all")
    if not pairs.texts:
        note(f"lexvla: error: nothing in {options.source} could be measured")
        return 1
    figures = evaluate_sparsity(
        options.load_model(),
        pairs.images,
        pairs.texts,
        pairs.image_of,
        side=options.side,
        show_progress_bar=None,
    )
    if options.plot is not None:
        plot_sparsity(figures, options.plot)
    if options.json:
        rejected = [asdict(reject) for reject in pairs.rejects]
        print_json({**figures.to_dict(), "rejected": rejected, "plot": options.plot})
        return 0
    _print(figures)
    if options.plot is not None:
        note(f"lexvla: drew {options.plot}")
    return 0


def _print(figures: SparsityFigures) -> None:
    print(
        f"model {figures.model}: {figures.texts:,} texts, {figures.images:,} images,"
        f" {figures.vocabulary:,} words; cut: {figures.side}; in percent\n"
    )
    depths = [f"R@{k}" for k in figures.own.text_to_image]
    head = ("kept", "a text", "an image", "sparse")
    rows = [(*head, *(f"t>i {k}" for k in depths), *(f"i>t {k}" for k in depths))]
    rows += [_row(f"{point.kept:,}", point) for point in figures.points]
    rows.append(_row("the model's rule", figures.own))
    print_numbers(rows)
    if not figures.complete:
        note("lexvla: there was no memory to keep more words")


def _row(name: str, point: SparsityPoint) -> tuple[str, ...]:
    recalls = (*point.text_to_image.values(), *point.image_to_text.values())
    return (
        name,
        f"{point.words_per_text:,.1f}",
        f"{point.words_per_image:,.1f}",
        *(f"{100 * value:.2f}" for value in (point.sparsity_ratio, *recalls)),
    )
