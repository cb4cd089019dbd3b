"""Compare an ingest with encoding the same images, decoded beforehand.

    python benchmarks/ingest.py

The default model encodes the bundled emoji, PNG files in a folder. Both run in turn in one process:
`encode_image` of all images at once, then `index_source` of the folder into a new index, which
lists, reads, hashes, decodes, encodes, stores and commits. The goal is a ratio of wall times of at
most 1.15.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from measuring import describe

from lexvla import LexVLA
from lexvla.data.demo_corpus import load_demo_corpus
from lexvla.images import open_image
from lexvla_indexer import index_source, open_index


def seconds(call: Callable[[], Any]) -> float:
    """Return the seconds of a call."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def measure(count: int, batch_size: int, repeats: int) -> dict[str, Any]:
    """Return the wall times of both, and their ratio."""
    model = LexVLA.from_pretrained()
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home, "images")
        folder.mkdir()
        for item in load_demo_corpus("emoji")[:count]:
            (folder / f"{item.id}.png").write_bytes(item.data)
        decoded = [open_image(path) for path in sorted(folder.iterdir())]

        def ingest(number: int) -> None:
            place = Path(home, f"{number}.lex")
            with open_index(
                place, create=True, vocabulary=model.vocabulary, model=model.name
            ) as index:
                report = index_source(folder, index, model, batch_size=batch_size)
            assert report.added == len(decoded)

        model.encode_image(decoded[:batch_size])  # what is only slow the first time
        alone, whole = [], []
        for number in range(repeats):
            alone.append(seconds(lambda: model.encode_image(decoded, batch_size=batch_size)))
            whole.append(seconds(lambda number=number: ingest(number)))
    return {
        "images": len(decoded),
        "batch_size": batch_size,
        "encode_seconds": statistics.median(alone),
        "ingest_seconds": statistics.median(whole),
        "ratio": statistics.median(w / a for w, a in zip(whole, alone, strict=True)),
        **describe(getattr(model, "device", torch.device("cpu"))),  # ONNX Runtime: the CPU
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(description="Measure an ingest beside encoding alone.")
    parser.add_argument("--images", type=int, default=1906, metavar="N")
    parser.add_argument("--batch-size", type=int, default=64, metavar="N")
    parser.add_argument("--repeats", type=int, default=3, metavar="N")
    args = parser.parse_args(arguments)
    print(json.dumps(measure(args.images, args.batch_size, args.repeats), indent=2))


if __name__ == "__main__":
    main()
