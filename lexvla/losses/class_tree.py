"""A class tree, given by names, as a list of parents for each level."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from lexvla.errors import InputError

__all__ = ["class_levels"]


def class_levels(
    classes: Sequence[str], parents: Mapping[str, str], levels: int = 2
) -> list[list[int]]:
    """Number the ancestors of classes, level by level.

    Args:
        classes: Names of the fine classes, in the order of their labels.
        parents: Parent of each class, and of each parent if there are more levels.
        levels: Number of levels, including the fine one.

    Returns:
        ``levels - 1`` lists: [l][c] is the parent, on level l + 1, of class c of level l. Coarse
        classes are numbered in the order of their names.

    Example:
        >>> class_levels(["robin", "oak", "rook"], {"robin": "bird", "rook": "bird", "oak": "tree"})
        [[0, 1, 0]]
    """
    if levels < 1 or not classes:
        raise ValueError(f"{levels} levels of {len(classes)} classes")
    _refuse_cycles(parents)
    for name, times in Counter(classes).items():
        if times > 1:
            raise InputError(name, f"is named {times} times")
    names, maps = list(classes), []
    for level in range(levels):
        if len(names) == 1:
            raise InputError(names[0], f"is the only class of level {level}")
        if level + 1 == levels:
            break
        for name in names:
            if name not in parents:
                raise InputError(name, f"has no parent, and is on level {level} of {levels}")
        coarse = sorted({parents[name] for name in names})
        number = {name: i for i, name in enumerate(coarse)}
        maps.append([number[parents[name]] for name in names])
        names = coarse
    return maps


def _refuse_cycles(parents: Mapping[str, str]) -> None:
    safe: set[str] = set()
    for start in parents:
        path: dict[str, None] = {}
        name = start
        while name in parents and name not in safe:
            if name in path:
                raise InputError(name, "is its own ancestor")
            path[name] = None
            name = parents[name]
        safe.update(path)
