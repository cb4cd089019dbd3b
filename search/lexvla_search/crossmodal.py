"""``lexvla crossmodal``: a model by the field's protocols, with data that one has."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lexvla.encoding import Encoding
from lexvla.errors import InputError
from lexvla_search.commands import load_model
from lexvla_search.console import UsageError, note, print_json, print_numbers
from lexvla_search.evaluation.batches import encode_in_batches
from lexvla_search.evaluation.crossmodal import (
    class_recall,
    paired_recall_any,
    zero_shot,
)
from lexvla_search.evaluation.protocols import (
    CLASSIFIED,
    PAIRED,
    RETRIEVED,
    CaptionedImages,
    Counts,
    LabelledImages,
    export_captions,
    read_captions,
    read_cars,
    read_cub,
    read_folders,
    read_inat,
    read_inshop,
    read_sop,
)

__all__ = ["crossmodal"]

# The depths that papers print.
KS = {
    "cub": (1, 2, 4, 8),
    "cars": (1, 2, 4, 8),
    "sop": (1, 10, 100, 1000),
    "inshop": (1, 10, 20, 30),
    "inat": (1, 4, 16, 32),
    "folders": (1, 5, 10),
}
_READERS: dict[str, Callable[..., LabelledImages]] = {
    "sop": read_sop,
    "inshop": read_inshop,
    "inat": read_inat,
}


def crossmodal(args: argparse.Namespace) -> int:
    """Print the figures of one protocol."""
    if "{}" not in args.prompt:
        raise UsageError("--prompt must have {} in the place of the class name")
    if args.export:
        return _export(args)
    figures = _pairs(args) if args.protocol in PAIRED else _classes(args)
    if args.json:
        print_json(figures)
        return 0
    counts = ", ".join(f"{value:,} {name}" for name, value in figures["counts"].items())
    print(f"{args.protocol}: {counts}; {args.leg}; in percent; ties count against\n")
    rows: list[tuple[str, ...]] = []
    for name, values in figures["figures"].items():
        if isinstance(values, dict):
            if not rows:
                rows.append(("", *(f"@{k}" for k in values)))
            rows.append((name, *(f"{100 * value:.2f}" for value in values.values())))
    print_numbers(rows)
    for name, value in figures["figures"].items():
        if isinstance(value, float):
            print(f"{name} {value:.2f}")
    return 0


def _export(args: argparse.Namespace) -> int:
    if args.protocol not in PAIRED:
        raise UsageError(f"{args.protocol} has no captions")
    files = export_captions(_captions(args), args.export)
    if args.json:
        print_json({"files": [str(file) for file in files]})
    for file in files:
        note(f"lexvla: wrote {file}")
    return 0


def _captions(args: argparse.Namespace) -> CaptionedImages:
    counts = None if args.any_count else PAIRED[args.protocol]
    return read_captions(args.data, args.images, args.split, counts)


def _pairs(args: argparse.Namespace) -> dict[str, Any]:
    if args.zero_shot:
        raise UsageError(f"{args.protocol} has no classes")
    data = _captions(args)
    model = load_model(args.model, args.device)
    texts = _encode(args, model.encode_text, data.texts)
    images = _encode(args, model.encode_image, data.images)
    found = paired_recall_any(texts, images, data.image_of, args.leg)
    return {
        **_head(args, model.name),
        "counts": {"images": len(data.images), "captions": len(data.texts)},
        "figures": {
            "text to image R": found.text_to_image,
            "image to text R": found.image_to_text,
            "RSUM": found.rsum,
        },
    }


def _encode(
    args: argparse.Namespace, encode: Callable[..., Encoding], items: Sequence[Any]
) -> Encoding:
    return encode_in_batches(encode, items, args.batch_size, None, active=args.active)


def _classes(args: argparse.Namespace) -> dict[str, Any]:
    data = _labelled(args)
    if args.zero_shot and not data.class_names:
        raise UsageError(f"{args.protocol} has no class names")
    model = load_model(args.model, args.device)
    images = _encode(args, model.encode_image, data.images)
    sizes = {"images": len(data.images), "classes": len({*data.labels})}
    if args.zero_shot:
        labels = list(data.class_names)
        texts = [args.prompt.replace("{}", data.class_names[label]) for label in labels]
        names = _encode(args, model.encode_text, texts)
        if empty := sum(not row.lexical.nnz for row in names):
            note(f"lexvla: {empty:,} class names have no word that the model knows")
        found = zero_shot(images, data.labels, names, labels, args.leg)
        figures: dict[str, Any] = {
            "zero-shot accuracy": found.accuracy,
            "mean over classes": 100 * found.per_class,
        }
    else:
        gallery = None
        if data.gallery:
            gallery = _encode(args, model.encode_image, data.gallery)
            sizes["gallery images"] = len(data.gallery)
        ks = KS[args.protocol]
        figures = {
            "image to image R": class_recall(
                images, data.labels, gallery, data.gallery_labels, args.leg, ks
            )
        }
    return {**_head(args, model.name), "counts": sizes, "figures": figures}


def _labelled(args: argparse.Namespace) -> LabelledImages:
    name = args.protocol
    published: Counts | None = (CLASSIFIED if args.zero_shot else RETRIEVED).get(name)
    counts = None if args.any_count else published
    if name == "folders":
        if args.images:
            raise InputError(args.images, "folders has its images in DATA")
        return read_folders(args.data)
    if name == "cub":
        return read_cub(args.data, args.images, args.zero_shot, counts)
    if name == "cars":
        return read_cars(Path(args.data), args.images, args.zero_shot, counts)
    return _READERS[name](args.data, args.images, counts)


def _head(args: argparse.Namespace, model: str) -> dict[str, Any]:
    return {"protocol": args.protocol, "model": model, "leg": args.leg, "active": args.active}
