"""Plots of an evaluation: recall against k and against active words, R@1 by groups."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lexvla.errors import InputError, OptionalDependencyError

__all__ = ["check_plot", "plot_evaluation"]

# Okabe and Ito's palette, safe for colour-blind readers.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")


def check_plot(path: str | Path) -> None:
    """Raise, before the work starts, if a plot could not be drawn or written."""
    if importlib.util.find_spec("matplotlib") is None:
        raise OptionalDependencyError("matplotlib", "evaluation")
    if not Path(path).absolute().parent.is_dir():
        raise InputError(str(path), "its folder does not exist")


def plot_evaluation(
    path: str | Path,
    curves: Mapping[str, Sequence[float]],
    by_words: Mapping[str, Mapping[float, float]],
    groups: Mapping[str, Mapping[str, float]] | None = None,
) -> None:
    """Draw an evaluation into a ``.png`` or ``.svg``: two panels, or three with groups.

    Args:
        path: The file to write.
        curves: By system: recall for k from 1.
        by_words: By measure: the value by the mean number of active words of a query.
        groups: By system: R@1 by group.
    """
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError as error:
        raise OptionalDependencyError("matplotlib", "evaluation") from error
    rows = len(next(iter(groups.values()), {})) if groups else 0
    height = max(3.8, 0.22 * rows * (len(groups or ()) + 1))
    figure = Figure(figsize=(4.5 * (3 if groups else 2), height), layout="constrained")
    panels = list(figure.subplots(1, 3 if groups else 2))
    for i, (name, values) in enumerate(curves.items()):
        style = {"color": _COLOURS[i % len(_COLOURS)], "label": name}
        panels[0].plot(range(1, len(values) + 1), [100 * v for v in values], **style)
    for i, (name, points) in enumerate(by_words.items()):
        style = {"color": _COLOURS[i % len(_COLOURS)], "label": name, "marker": "o"}
        panels[1].plot(list(points), [100 * v for v in points.values()], markersize=4, **style)
    for axes, title in zip(panels[:2], ("k", "active words of a query, mean"), strict=True):
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes.set_xlabel(title)
        axes.set_ylim(bottom=0)
        axes.grid(color="0.9")
        axes.legend(loc="lower right")
    panels[0].set_ylabel("recall among the first k, %")
    panels[1].set_ylabel("words alone, %")
    if groups:
        _bars(panels[2], groups)
    is_svg = Path(path).suffix.lower() == ".svg"
    with rc_context({"svg.hashsalt": "lexvla"}):  # same figures, same file
        figure.savefig(path, dpi=120, metadata={"Date": None} if is_svg else None)


def _bars(axes: Any, groups: Mapping[str, Mapping[str, float]]) -> None:
    names = list(next(iter(groups.values())))
    thickness = 0.8 / len(groups)
    for i, (system, values) in enumerate(groups.items()):
        places = [row + i * thickness for row in range(len(names))]
        lengths = [100 * values[name] for name in names]
        colour = _COLOURS[i % len(_COLOURS)]
        axes.barh(places, lengths, thickness, color=colour, label=system)
    axes.set_yticks([row + 0.4 - thickness / 2 for row in range(len(names))], names)
    axes.invert_yaxis()
    axes.set_xlabel("R@1, %")
