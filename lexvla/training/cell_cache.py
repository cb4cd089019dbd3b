"""Cached outputs of a frozen vision model for a few views of each drawing."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from lexvla.config import LexVLAConfig
from lexvla.image_tower import ImageTower
from lexvla.images import resize
from lexvla.preprocessing import to_pixels
from lexvla.training.augment import augment

__all__ = ["cache_cells"]

_BATCH = 32
_VIEW_SIDE = 80  # random views are small, like the drawings, and then enlarged


def cache_cells(
    folder: Path,
    tower: ImageTower,
    config: LexVLAConfig,
    pixels: np.ndarray,
    views: int,
    strength: float,
    seed: int,
) -> np.ndarray:
    """Return the cells of each drawing's views, computed into a folder once.

    The first view is the drawing on white; the others are random. An interrupted computation is
    resumed.

    Args:
        folder: Folder of ``cells.npy`` (float16) and of ``cells.json``, the progress.
        tower: Image tower with a frozen vision model.
        config: The model's configuration.
        pixels: (n, H, W, 4) uint8 drawings, straight alpha.
        views: Number of views.
        strength: Strength of random changes; see `augment`.
        seed: Seed of the views.

    Returns:
        (views, n, T, C) float16, memory-mapped.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path, note = folder / "cells.npy", folder / "cells.json"
    key = _key(tower, config, pixels, views, strength, seed)
    side, count = config.image_side, len(pixels)
    shape = (views, count, (side // config.patch_size) ** 2, config.vision_width)
    done = _done(path, note, key, shape)
    if not done:  # the note must not describe cells that are gone
        note.unlink(missing_ok=True)
    cells = np.lib.format.open_memmap(path, "r+" if done else "w+", np.float16, shape)
    starts = range(done, views * count, _BATCH)
    for number in tqdm(starts, desc="cells", disable=None):
        chosen = range(number, min(number + _BATCH, views * count))
        for view in sorted({each // count for each in chosen}):
            rows = np.array([each % count for each in chosen if each // count == view])
            seen = _view(pixels[rows], view, strength, (seed, number), config)
            cells[view, rows] = _cells(tower, seen).numpy()
        if number % (_BATCH * 64) == 0:
            cells.flush()
            _write(note, key, chosen.stop)
    cells.flush()
    _write(note, key, views * count)
    return np.load(path, mmap_mode="r")


def _done(path: Path, note: Path, key: str, shape: tuple[int, ...]) -> int:
    """Return how many views are done; 0 for other settings or damaged files."""
    try:
        known = json.loads(note.read_text(encoding="utf-8"))
        # Refuses a file that is shorter than its header says.
        cells = np.lib.format.open_memmap(path, "r")
        if known["key"] != key or cells.shape != shape or cells.dtype != np.float16:
            return 0
        done = known["done"]
        return done if type(done) is int and 0 <= done <= shape[0] * shape[1] else 0
    except (OSError, ValueError, LookupError, TypeError):
        return 0


def _write(note: Path, key: str, done: int) -> None:
    beside = note.with_suffix(".tmp")
    beside.write_text(json.dumps({"key": key, "done": done}), encoding="utf-8")
    beside.replace(note)


def _view(
    pixels: np.ndarray, view: int, strength: float, seed: tuple[int, int], config: LexVLAConfig
) -> Tensor:
    side, statistics = config.image_side, (config.image_mean, config.image_std)
    if view == 0:
        return to_pixels([resize(_on_white(each), side) for each in pixels], *statistics)
    state = np.random.SeedSequence([*seed, view]).generate_state(1, np.uint64)[0] >> 1
    generator = torch.Generator().manual_seed(int(state))
    seen = augment(torch.from_numpy(pixels), _VIEW_SIDE, strength, generator, *statistics)
    return functional.interpolate(seen, size=(side, side), mode="bicubic", align_corners=False)


def _on_white(pixels: np.ndarray) -> Image.Image:
    drawing = Image.fromarray(pixels, "RGBA")
    white = Image.new("RGBA", drawing.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, drawing).convert("RGB")


@torch.inference_mode()
def _cells(tower: ImageTower, pixels: Tensor) -> Tensor:
    """Return the tower's `cells`, made in bfloat16, channels last: three times as fast on CPUs."""
    pixels = pixels.contiguous(memory_format=torch.channels_last)
    with torch.autocast(pixels.device.type, torch.bfloat16):
        return tower.cells(pixels).half()


def _key(
    tower: ImageTower,
    config: LexVLAConfig,
    pixels: np.ndarray,
    views: int,
    strength: float,
    seed: int,
) -> str:
    """Return a hash of all that the cells depend on."""
    settings = [config.image_side, config.image_mean, config.image_std, config.fine_stage]
    digest = hashlib.sha256(json.dumps([*settings, views, strength, seed]).encode())
    digest.update(np.ascontiguousarray(pixels).data)
    for name, weight in sorted(tower.vision_model.state_dict().items()):
        digest.update(name.encode() + weight.cpu().float().numpy().tobytes())
    return digest.hexdigest()
