"""What a frozen network makes of drawings, computed once and kept."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from lexvla.image_tower import ImageTower
from lexvla.preprocessing import preprocess
from lexvla.torch_model import TorchLexVLA
from lexvla.training import cell_cache
from lexvla.training.augment import augment
from lexvla.training.cell_cache import cache_cells
from memory_fakes import CHANNELS, FINE, GRID, SIDE, memory_model
from model_fakes import ITEMS
from training_fakes import ROOT

VIEWS, COUNT, SEED = 3, 7, 5
SHAPE = (VIEWS, COUNT, GRID**2, CHANNELS + 4 * FINE)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model(classified: Path) -> TorchLexVLA:
    return memory_model(classified)


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take six batches, one of them of two views."""
    monkeypatch.setattr(cell_cache, "_BATCH", 4)


def drawings() -> np.ndarray:
    """Return blocks of one colour, half of them translucent."""
    pixels = np.zeros((COUNT, 64, 64, 4), np.uint8)
    for number in range(COUNT):
        colour = ITEMS[number % len(ITEMS)][-1]
        pixels[number, 8 + number : 40, 10:56] = (*colour, 255 if number % 2 else 128)
    return pixels


def run(folder: Path, model: TorchLexVLA, **changes: Any) -> np.ndarray:
    given = {"pixels": drawings(), "views": VIEWS, "strength": 1.0, "seed": SEED, **changes}
    return cache_cells(folder, model.image_tower, model.config, **given)


@pytest.fixture(scope="module")
def whole(model: TorchLexVLA, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("cells")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cell_cache, "_BATCH", 4)
        run(folder, model)
    return folder


def copy_of(whole: Path, folder: Path) -> Path:
    for path in whole.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def count_batches(monkeypatch: pytest.MonkeyPatch, stop_after: int | None = None) -> list[int]:
    """Return a list that grows by the size of each batch; after some, raise."""
    sizes: list[int] = []
    real = ImageTower.cells

    def cells(self: ImageTower, pixels: Tensor) -> Tensor:
        if len(sizes) == stop_after:
            raise RuntimeError("stopped")
        sizes.append(len(pixels))
        return real(self, pixels)

    monkeypatch.setattr(ImageTower, "cells", cells)
    return sizes


def same_bytes(one: Path, other: Path) -> bool:
    return all(
        (one / name).read_bytes() == (other / name).read_bytes()
        for name in ("cells.npy", "cells.json")
    )


# What is kept


def near(found: np.ndarray, expected: Tensor) -> None:
    """Compare to what bfloat16 keeps of some layers."""
    assert found.shape == expected.shape
    difference = torch.from_numpy(found.astype(np.float32)) - expected
    assert difference.norm() < 0.02 * expected.norm()
    assert difference.abs().max() < 0.05 * expected.abs().max()


def on_white(pixels: np.ndarray) -> list[Image.Image]:
    found = []
    for each in pixels:
        share = each[..., 3:].astype(np.float64) / 255
        colour = each[..., :3] * share + 255 * (1 - share)
        found.append(Image.fromarray(colour.round().astype(np.uint8)))
    return found


def test_the_first_view_is_the_drawing_as_the_model_reads_an_image(
    model: TorchLexVLA, whole: Path
) -> None:
    found = np.load(whole / "cells.npy")
    assert (found.shape, found.dtype) == (SHAPE, np.float16)
    config = model.config
    pixels = preprocess(on_white(drawings()), SIDE, config.image_mean, config.image_std)
    with torch.no_grad():
        near(found[0], model.image_tower.cells(pixels))
    assert np.abs(found[0].astype(np.float32)).max() > 0.1


def test_other_views_are_random_ones(model: TorchLexVLA, whole: Path) -> None:
    found = np.load(whole / "cells.npy").astype(np.float32)
    assert not np.array_equal(found[1], found[0])
    for number in range(COUNT):
        assert not np.array_equal(found[1, number], found[2, number])
    # The second view of the second drawing is in the batch that begins at row 8.
    words = np.random.SeedSequence([SEED, 8, 1]).generate_state(1, np.uint64)
    generator = torch.Generator().manual_seed(int(words[0] >> 1))
    config = model.config
    seen = augment(
        torch.from_numpy(drawings()[1:5]), 80, 1.0, generator, config.image_mean, config.image_std
    )
    large = torch.nn.functional.interpolate(
        seen, size=(SIDE, SIDE), mode="bicubic", align_corners=False
    )
    with torch.no_grad():
        near(found[1, 1:5], model.image_tower.cells(large))


def test_what_is_returned_is_the_file(model: TorchLexVLA, whole: Path, tmp_path: Path) -> None:
    found = run(copy_of(whole, tmp_path), model)
    assert isinstance(found, np.memmap)
    assert not found.flags.writeable
    np.testing.assert_array_equal(found, np.load(whole / "cells.npy"))


def test_a_tower_is_left_as_it_was(model: TorchLexVLA, tmp_path: Path) -> None:
    before = {name: part.clone() for name, part in model.state_dict().items()}
    run(tmp_path, model, views=1)
    for name, part in model.state_dict().items():
        assert torch.equal(part, before[name])
        assert part.dtype == before[name].dtype


# A run that was stopped


def test_a_finished_run_is_not_repeated(
    model: TorchLexVLA, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = count_batches(monkeypatch)
    run(copy_of(whole, tmp_path), model)
    assert not sizes
    assert same_bytes(tmp_path, whole)


@pytest.mark.parametrize("stop_after", [0, 1, 2, 4, 6])
def test_a_stopped_run_goes_on_to_the_same_bytes(
    model: TorchLexVLA,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stop_after: int,
) -> None:
    with monkeypatch.context() as patch:
        count_batches(patch, stop_after)
        with pytest.raises(RuntimeError, match="stopped"):
            run(tmp_path, model)
    sizes = count_batches(monkeypatch)
    run(tmp_path, model)
    # The first batch is noted; later ones only now and then.
    assert sum(sizes) == VIEWS * COUNT - (4 if stop_after else 0)
    assert same_bytes(tmp_path, whole)


KILL = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, "tests")
import torch
torch.set_num_threads(1)
import test_cell_cache as tests
from lexvla.image_tower import ImageTower
from lexvla.training import cell_cache
cell_cache._BATCH = 4
model = tests.memory_model(Path(sys.argv[1]))
real, calls = ImageTower.cells, []
def cells(self, pixels):
    calls.append(1)
    if len(calls) == 4: os.kill(os.getpid(), signal.SIGKILL)
    return real(self, pixels)
ImageTower.cells = cells
tests.run(Path(sys.argv[2]), model)
"""


def test_a_killed_run_goes_on_to_the_same_bytes(
    model: TorchLexVLA, classified: Path, whole: Path, tmp_path: Path
) -> None:
    killed = subprocess.run(
        [sys.executable, "-c", KILL, classified, tmp_path],
        check=False,
        capture_output=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert json.loads((tmp_path / "cells.json").read_text())["done"] == 4
    run(tmp_path, model)
    assert same_bytes(tmp_path, whole)


# Other settings


def edited(pixels: np.ndarray) -> np.ndarray:
    pixels[0, 20, 20, 0] ^= 1
    return pixels


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 6},
        {"strength": 0.5},
        {"views": 2},
        {"pixels": edited(drawings())},
        {"pixels": drawings()[:5]},
    ],
    ids=["seed", "strength", "views", "drawing", "fewer"],
)
def test_other_settings_make_it_anew(
    model: TorchLexVLA,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
) -> None:
    sizes = count_batches(monkeypatch)
    found = run(copy_of(whole, tmp_path), model, **changes)
    assert sum(sizes) == found.shape[0] * found.shape[1]
    fresh = tmp_path / "fresh"
    np.testing.assert_array_equal(found, run(fresh, model, **changes))
    assert same_bytes(tmp_path, fresh)


def test_another_weight_makes_it_anew(
    classified: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = memory_model(classified)
    with torch.no_grad():
        next(model.image_tower.vision_model.parameters()).view(-1)[0] += 0.5
    sizes = count_batches(monkeypatch)
    found = run(copy_of(whole, tmp_path), model)
    assert sum(sizes) == VIEWS * COUNT
    assert not np.array_equal(found, np.load(whole / "cells.npy"))


def test_how_images_are_read_is_part_of_it(
    classified: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = memory_model(classified)
    model.config.image_mean = [0.0, 0.0, 0.0]
    sizes = count_batches(monkeypatch)
    run(copy_of(whole, tmp_path), model)
    assert sum(sizes) == VIEWS * COUNT


def test_other_settings_that_were_stopped_at_once_leave_nothing_to_trust(
    model: TorchLexVLA, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old note must not speak of the new, empty file."""
    copy_of(whole, tmp_path)
    with monkeypatch.context() as patch:
        count_batches(patch, stop_after=0)
        with pytest.raises(RuntimeError, match="stopped"):
            run(tmp_path, model, seed=6)
    run(tmp_path, model)
    assert same_bytes(tmp_path, whole)


# Damage


def note(**changes: Any) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        values = json.loads((folder / "cells.json").read_text())
        (folder / "cells.json").write_text(json.dumps({**values, **changes}))

    return damage


def cut(name: str, keep: int) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / name).write_bytes((folder / name).read_bytes()[:keep])

    return damage


def replace(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(content) and None


def array(shape: tuple[int, ...], kind: Any) -> Callable[[Path], None]:
    return lambda folder: np.save(folder / "cells.npy", np.zeros(shape, kind))


@pytest.mark.parametrize(
    "damage",
    [
        cut("cells.json", 0),
        cut("cells.json", 20),
        replace("cells.json", b"[]"),
        replace("cells.json", b"3"),
        replace("cells.json", b"\xff\xfe"),
        replace("cells.json", b'{"done": 21}'),
        note(done="21"),
        note(done=True),
        note(done=-4),
        note(done=22),
        note(done=4.0),
        note(key=None),
        cut("cells.npy", 0),
        cut("cells.npy", 40),
        cut("cells.npy", 5000),
        cut("cells.npy", -2),
        replace("cells.npy", b"PK\x03\x04" + bytes(500)),
        replace("cells.npy", bytes(5000)),
        array(SHAPE[1:], np.float16),
        array((VIEWS - 1, *SHAPE[1:]), np.float16),
        array(SHAPE, np.float32),
        array(SHAPE, np.int16),
    ],
)
def test_damage_is_not_trusted(
    model: TorchLexVLA, whole: Path, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    damage(copy_of(whole, tmp_path))
    run(tmp_path, model)
    assert same_bytes(tmp_path, whole)


@pytest.mark.parametrize("name", ["cells.json", "cells.npy"])
def test_a_file_that_is_gone_is_made_anew(
    model: TorchLexVLA, whole: Path, tmp_path: Path, name: str
) -> None:
    (copy_of(whole, tmp_path) / name).unlink()
    run(tmp_path, model)
    assert same_bytes(tmp_path, whole)
