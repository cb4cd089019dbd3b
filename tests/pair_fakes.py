"""A tiny set of image-text pairs, and the settings of a run on it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from model_fakes import picture

COLOURS = ("red", "blue", "green", "white")
THINGS = ("dog", "cat", "hat", "horse", "birds", "man")
ANIMALS = {"dog", "cat", "horse", "birds"}


def save_captions(folder: Path) -> Path:
    """Write 24 pictures with captions and classes, and one that is broken."""
    lines = []
    for number in range(24):
        thing = THINGS[number // 4]
        picture(number).save(folder / f"{number}.png")
        text = f"a {COLOURS[number % 4]} {thing}"
        above = "animal" if thing in ANIMALS else "other"
        lines.append({"image": f"{number}.png", "text": text, "label": thing, "class_path": above})
    (folder / "broken.png").write_bytes(b"no image")
    lines.append({"image": "broken.png", "text": "a dog", "label": "dog", "class_path": "animal"})
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def pair_sections(text_model: str, vision_model: str, captions: Path) -> dict[str, dict[str, Any]]:
    """Return the settings of a short run of the tiny backbones."""
    return {
        "model": {
            "text_model": text_model,
            "vision_model": vision_model,
            "image_size": 24,
            "adapter_heads": 2,
            "adapter_width": 24,
            "dense_width": 6,
            "codebook_size": 4,
            "lora_rank": 2,
            "vocabulary_chunk": 5,
        },
        "data": {"kind": "captions", "path": str(captions), "batch_size": 6, "workers": 2},
        "loss": {},
        "train": {
            "steps": 6,
            "warmup": 2,
            "save_every": 3,
            "device": "cpu",
            "threads": 1,
            "rate": 3e-3,
        },
    }
