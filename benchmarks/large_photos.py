"""Measure the memory of an ingest of large photographs.

    python benchmarks/large_photos.py

200 photographs of 48 megapixels, links to a few JPEG files of noise and colour, are indexed with
the default model by a process of its own. The goal is a peak resident set below 1 GB.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = (8000, 6000)


def save_photos(folder: Path, count: int, different: int = 4) -> None:
    """Write JPEG files, and links to them, as a folder of photographs."""
    rng = np.random.default_rng(0)
    for number in range(count):
        path = folder / f"{number:04}.jpg"
        if number < different:
            small = rng.integers(0, 256, (SIZE[1] // 8, SIZE[0] // 8, 3), np.uint8)
            Image.fromarray(small).resize(SIZE).save(path, quality=90)
        else:
            path.hardlink_to(folder / f"{number % different:04}.jpg")


def main() -> None:
    """Print the counts, the seconds and the peak memory of the ingest."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=200)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home, "photos")
        folder.mkdir()
        save_photos(folder, options.count)
        command = [sys.executable, "-m", "lexvla_search", "index", str(folder)]
        started = time.perf_counter()
        process = subprocess.Popen(  # noqa: S603 - this very program
            [*command, "--index", str(Path(home, "i.lex")), "--json"],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        counts = json.loads(process.stdout.read())
        _, status, used = os.wait4(process.pid, 0)
        figures = {
            "photographs": options.count,
            "pixels": SIZE[0] * SIZE[1],
            "added": counts["added"],
            "exit_status": status,
            "seconds": round(time.perf_counter() - started, 1),
            "peak_megabytes": round(used.ru_maxrss / 1000),
        }
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
