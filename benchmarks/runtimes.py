"""Measure the default model by ONNX Runtime beside torch, and compare what they give.

    python benchmarks/runtimes.py --threads 2

Single texts, batches of texts and images of the demo corpus, with the runtimes in turn, so that
other load slows both. Medians are printed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch

from lexvla import Encoding, LexVLA
from lexvla.data.demo_corpus import load_demo_corpus


def seconds(work: Callable[[], object]) -> float:
    """Return the time that a call takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def compare(mine: Encoding, yours: Encoding) -> dict[str, object]:
    """Return the share of items with the same words, and the largest relative difference."""
    same, apart, places = 0, 0.0, 0.0
    for one, other in zip(mine, yours, strict=True):
        if one.lexical.indices.tolist() != other.lexical.indices.tolist():
            continue
        same += 1
        if len(other.lexical.data):
            differences = np.abs(one.lexical.data / other.lexical.data - 1)
            apart = max(apart, float(differences.max()))
        if one.patches is not None and other.patches is not None:
            places += float((one.patches != other.patches).sum())
    return {"same_words": f"{same} of {len(mine)}", "apart": apart, "other_patches": int(places)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a line for each kind of work."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, help="of torch; ONNX Runtime takes the machine's")
    parser.add_argument("--items", type=int, default=256)
    parser.add_argument("--runs", type=int, default=5)
    args = parser.parse_args(arguments)
    if args.threads:
        torch.set_num_threads(args.threads)
    models = {name: LexVLA.from_pretrained(runtime=name) for name in ("onnx", "torch")}
    corpus = load_demo_corpus()
    items = corpus[:: max(1, len(corpus) // args.items)]
    texts, images = [item.label for item in items], [item.image for item in items]
    kinds: dict[str, tuple[int, Callable[[LexVLA], object]]] = {
        "single texts": (20, lambda model: [model.encode_text([text]) for text in texts[:20]]),
        "texts": (len(texts), lambda model: model.encode_text(texts)),
        "images": (len(images), lambda model: model.encode_image(images)),
    }
    for kind, (count, work) in kinds.items():
        times: dict[str, list[float]] = {name: [] for name in models}
        for run in range(args.runs + 1):
            for name, model in models.items():
                spent = seconds(lambda model=model, work=work: work(model))
                if run:  # the first warms up
                    times[name].append(spent)
        ms = {name: 1000 * statistics.median(runs) / count for name, runs in times.items()}
        shown = {f"{name}_ms": round(value, 2) for name, value in ms.items()}
        print(json.dumps({"kind": kind, **shown, "times": round(ms["torch"] / ms["onnx"], 1)}))
    mine, yours = models["onnx"], models["torch"]
    for kind, found in (
        ("texts", compare(mine.encode_text(texts), yours.encode_text(texts))),
        ("images", compare(mine.encode_image(images), yours.encode_image(images))),
    ):
        print(json.dumps({"compared": kind, **found}))


if __name__ == "__main__":
    main()
