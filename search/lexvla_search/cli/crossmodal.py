"""``lexvla crossmodal``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from lexvla.encoding import Encoding
from lexvla_search.cli.arguments import (
    JsonOptions,
    ModelOptions,
    flag,
    option,
    positional,
    positive,
)
from lexvla_search.cli.console import UsageError, note, print_json, print_numbers
from lexvla_search.evaluation.batches import encode_in_batches
from lexvla_search.evaluation.crossmodal import (
    MatchedLeg,
    class_recall,
    paired_recall_any,
    zero_shot,
)
from lexvla_search.evaluation.protocols import (
    DEPTHS,
    PAIRED,
    PROTOCOLS,
    CaptionedImages,
    export_captions,
    read_captions,
    read_labelled,
)


@dataclass(frozen=True)
class Options(ModelOptions, JsonOptions):
    """Which protocol to follow, with which data, and how to compare."""

    protocol: str = positional("which data; see docs/reproduce.md", choices=PROTOCOLS)
    data: str = positional("its file or folder, as it is published", metavar="DATA")
    images: str | None = option("the folder of the images, if elsewhere", metavar="DIR")
    split: str = option("which split of Karpathy's files (test)", default="test")
    zero_shot: bool = flag("classify by class names instead of image to image")
    prompt: str = option(
        "text around a class name, such as 'a photo of a {}'", default="{}", metavar="P"
    )
    leg: MatchedLeg = option(
        "compare by words (the default), by dense vectors, or by the sum of both",
        choices=get_args(MatchedLeg),
        default="lexical",
    )
    active: int | None = option("keep N words of each vector", type=positive, metavar="N")
    batch_size: int = option("items in one pass (64)", type=positive, default=64, metavar="N")
    export: str | None = option(
        "only write the captions, for lexvla index and evaluate", metavar="DIR"
    )
    any_count: bool = flag("do not insist on the published counts")


def run(options: Options) -> int:
    """Print the figures of one protocol."""
    if "{}" not in options.prompt:
        raise UsageError("--prompt must have {} in the place of the class name")
    if options.export:
        return _export(options, options.export)
    figures = _pairs(options) if options.protocol in PAIRED else _classes(options)
    if options.json:
        print_json(figures)
        return 0
    counts = ", ".join(f"{value:,} {name}" for name, value in figures["counts"].items())
    print(f"{options.protocol}: {counts}; {options.leg}; in percent; ties count against\n")
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


def _export(options: Options, folder: str) -> int:
    if options.protocol not in PAIRED:
        raise UsageError(f"{options.protocol} has no captions")
    files = export_captions(_captions(options), folder)
    if options.json:
        print_json({"files": [str(file) for file in files]})
    for file in files:
        note(f"lexvla: wrote {file}")
    return 0


def _captions(options: Options) -> CaptionedImages:
    counts = None if options.any_count else PAIRED[options.protocol]
    return read_captions(options.data, options.images, options.split, counts)


def _pairs(options: Options) -> dict[str, Any]:
    if options.zero_shot:
        raise UsageError(f"{options.protocol} has no classes")
    data = _captions(options)
    model = options.load_model()
    texts = _encode(options, model.encode_text, data.texts)
    images = _encode(options, model.encode_image, data.images)
    found = paired_recall_any(texts, images, data.image_of, options.leg)
    return {
        **_head(options, model.name),
        "counts": {"images": len(data.images), "captions": len(data.texts)},
        "figures": {
            "text to image R": found.text_to_image,
            "image to text R": found.image_to_text,
            "RSUM": found.rsum,
        },
    }


def _encode(options: Options, encode: Callable[..., Encoding], items: Sequence[Any]) -> Encoding:
    return encode_in_batches(encode, items, options.batch_size, None, active=options.active)


def _classes(options: Options) -> dict[str, Any]:
    data = read_labelled(
        options.protocol, options.data, options.images, options.zero_shot, not options.any_count
    )
    if options.zero_shot and not data.class_names:
        raise UsageError(f"{options.protocol} has no class names")
    model = options.load_model()
    images = _encode(options, model.encode_image, data.images)
    sizes = {"images": len(data.images), "classes": len({*data.labels})}
    if options.zero_shot:
        labels = list(data.class_names)
        texts = [options.prompt.replace("{}", data.class_names[label]) for label in labels]
        names = _encode(options, model.encode_text, texts)
        if empty := sum(not row.lexical.nnz for row in names):
            note(f"lexvla: {empty:,} class names have no word that the model knows")
        found = zero_shot(images, data.labels, names, labels, options.leg)
        figures: dict[str, Any] = {
            "zero-shot accuracy": found.accuracy,
            "mean over classes": 100 * found.per_class,
        }
    else:
        gallery = None
        if data.gallery:
            gallery = _encode(options, model.encode_image, data.gallery)
            sizes["gallery images"] = len(data.gallery)
        ks = DEPTHS[options.protocol]
        figures = {
            "image to image R": class_recall(
                images, data.labels, gallery, data.gallery_labels, options.leg, ks
            )
        }
    return {**_head(options, model.name), "counts": sizes, "figures": figures}


def _head(options: Options, model: str) -> dict[str, Any]:
    return {
        "protocol": options.protocol,
        "model": model,
        "leg": options.leg,
        "active": options.active,
    }
