from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lexvla.errors import InputError
from lexvla.regions import region_patches


@pytest.mark.parametrize(
    ("box", "patches"),
    [
        ((0, 0, 90, 60), [0, 1, 2, 3, 4, 5]),  # the whole image
        ((0, 0, 30, 30), [0]),  # a patch to its edge
        ((0, 0, 30.5, 30), [0, 1]),  # and a little more
        ((35, 35, 1, 1), [4]),
        ((29, 29, 2, 2), [0, 1, 3, 4]),  # around a corner of four
        ((89.9, 59.9, 0.1, 0.1), [5]),
        ([60, 0, 30, 60], [2, 5]),
    ],
)
def test_a_box_covers_the_patches_that_it_touches(box: tuple, patches: list[int]) -> None:
    assert region_patches(box, (90, 60), (2, 3)).tolist() == patches


def test_a_mask_of_patches() -> None:
    mask = np.array([[False, True, False], [True, False, True]])
    assert region_patches(mask, (7, 5), (2, 3)).tolist() == [1, 3, 5]


@pytest.mark.parametrize(
    ("region", "rule"),
    [
        ((0, 0, 91, 10), "must lie within the image of 90 x 60"),
        ((-1, 0, 10, 10), "within"),
        ((0, 55, 10, 10), "within"),
        ((0, 0, 0, 10), "no area"),
        ((0, 0, 10, -1), "no area"),
        ((0, 0, math.nan, 10), "no area"),
        ((0, 0, math.inf, 10), "no area"),
        ((1, 2, 3), "x, y, width, height"),
        (("a", "b", "c", "d"), "x, y, width, height"),
        (np.zeros((2, 3), bool), "no patch"),
        (np.ones((3, 2), bool), r"shape \(2, 3\), not \(3, 2\)"),
    ],
)
def test_regions_that_are_refused(region: tuple, rule: str) -> None:
    with pytest.raises(InputError, match=rule):
        region_patches(region, (90, 60), (2, 3))


sides = st.integers(1, 200)


@given(sides, sides, st.integers(1, 20), st.integers(1, 20), st.data())
def test_every_box_has_patches_and_they_hold_it(
    width: int, height: int, rows: int, columns: int, data: st.DataObject
) -> None:
    x, y = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    w, h = data.draw(st.integers(1, width - x)), data.draw(st.integers(1, height - y))
    patches = region_patches((x, y, w, h), (width, height), (rows, columns))
    assert len(set(patches.tolist())) == len(patches) > 0
    found_rows, found_columns = np.divmod(patches, columns)
    assert 0 <= found_rows.min() <= found_rows.max() < rows
    # The patches' pixels hold the box.
    assert found_columns.min() * width <= x * columns
    assert (found_columns.max() + 1) * width >= (x + w) * columns - 1e-6
    assert found_rows.min() * height <= y * rows
    assert (found_rows.max() + 1) * height >= (y + h) * rows - 1e-6
