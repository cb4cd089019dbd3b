"""Test sets of the field as their authors publish them.

Every reader compares what it reads with the published counts, so that a wrong file, an incomplete
download or another split is noticed before hours of encoding. A test, or another version of the
data, passes its own counts, or ``None`` for any. All readers raise `InputError` if a file cannot be
read, images are missing or the counts differ, and `GatheredInputError` for malformed lines. By
default images are looked for in the data's own folder.
"""

from __future__ import annotations

import json
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from lexvla.data.karpathy import read_karpathy
from lexvla.errors import GatheredInputError, InputError
from lexvla.image_formats import IMAGE_SUFFIXES

__all__ = [
    "CLASSIFIED",
    "DEPTHS",
    "PAIRED",
    "PROTOCOLS",
    "RETRIEVED",
    "CaptionedImages",
    "Counts",
    "LabelledImages",
    "export_captions",
    "read_captions",
    "read_cars",
    "read_cub",
    "read_folders",
    "read_inat",
    "read_inshop",
    "read_labelled",
    "read_sop",
]


class Counts(NamedTuple):
    """Published numbers of query images, of their classes (or captions), and of gallery images."""

    images: int
    classes: int
    gallery: int | None = None


# Karpathy's test splits: images and captions, five of each image.
PAIRED = {"flickr30k": Counts(1_000, 5_000), "coco": Counts(5_000, 25_000)}
# Image to image: classes that training does not see. Cars has 16,185 images: the 8,054 of
# the first 98 classes are for training; its 8,041 test images are for classification.
RETRIEVED = {
    "cub": Counts(5_924, 100),
    "cars": Counts(8_131, 98),
    "sop": Counts(60_502, 11_316),
    "inshop": Counts(14_218, 3_985, 12_612),
    "inat": Counts(136_093, 2_452),  # of iNaturalist 2018, as Smooth-AP split it
}
# Classification: test images of all classes.
CLASSIFIED = {"cub": Counts(5_794, 200), "cars": Counts(8_041, 196)}
# Image to image: the depths that papers print.
DEPTHS = {
    "cub": (1, 2, 4, 8),
    "cars": (1, 2, 4, 8),
    "sop": (1, 10, 100, 1000),
    "inshop": (1, 10, 20, 30),
    "inat": (1, 4, 16, 32),
    "folders": (1, 5, 10),
}
PROTOCOLS = (*PAIRED, *DEPTHS)


@dataclass(frozen=True)
class CaptionedImages:
    """Paths of images, all captions image by image, and the image number of each caption."""

    images: tuple[Path, ...]
    texts: tuple[str, ...]
    image_of: tuple[int, ...]


@dataclass(frozen=True)
class LabelledImages:
    """Paths of query images with their classes, and a gallery with its classes.

    If the gallery is empty, each image is searched for among the others. `class_names` has words
    for each class, by label, if the data does.
    """

    images: tuple[Path, ...]
    labels: tuple[str, ...]
    gallery: tuple[Path, ...] = ()
    gallery_labels: tuple[str, ...] = ()
    class_names: Mapping[str, str] = field(default_factory=dict)


def read_captions(
    path: str | Path,
    images: str | Path | None = None,
    split: str = "test",
    counts: Counts | None = None,
) -> CaptionedImages:
    """Read a split of Karpathy's ``dataset_flickr30k.json`` or ``dataset_coco.json``.

    Each image has five captions; `counts` is a member of `PAIRED`. For the folder of images see
    `lexvla.data.karpathy.read_karpathy`.
    """
    pairs = read_karpathy(path, images, split, captions=5)
    if pairs.rejects:
        first = pairs.rejects[0]
        rule = f"{len(pairs.rejects):,} images are missing; the first is {first.id}: {first.rule}"
        raise InputError(str(path), rule)
    rows = [pairs[i] for i in range(len(pairs))]
    found = CaptionedImages(
        tuple(Path(str(row.image)) for row in rows),
        tuple(text for row in rows for text in row.texts),
        tuple(i for i, row in enumerate(rows) for _ in row.texts),
    )
    if counts is not None:
        _expect(path, "images", len(found.images), counts.images)
        _expect(path, "captions", len(found.texts), counts.classes)
    return found


def export_captions(data: CaptionedImages, folder: str | Path) -> tuple[Path, Path, Path]:
    """Write ``manifest.jsonl``, ``captions.tsv`` and ``captions.qrels`` into a folder.

    They are for `lexvla index` and `lexvla evaluate`. An image's id is its file name; a caption's
    id is that name, ``#`` and its number.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    manifest, captions, qrels = [], [], []
    for path in data.images:
        line = {"id": path.name, "image": str(path.absolute())}
        manifest.append(json.dumps(line, ensure_ascii=False) + "\n")
    seen: Counter[int] = Counter()
    for text, image in zip(data.texts, data.image_of, strict=True):
        name = data.images[image].name
        captions.append(f"{name}#{seen[image]}\t{' '.join(text.split())}\n")
        qrels.append(f"{name}#{seen[image]} 0 {name} 1\n")
        seen[image] += 1
    files = folder / "manifest.jsonl", folder / "captions.tsv", folder / "captions.qrels"
    for file, rows in zip(files, (manifest, captions, qrels), strict=True):
        file.write_text("".join(rows), encoding="utf-8", newline="\n")
    return files


def read_labelled(
    protocol: str,
    data: str | Path,
    images: str | Path | None = None,
    classify: bool = False,
    check_counts: bool = True,
) -> LabelledImages:
    """Read the data of a protocol of `DEPTHS`; see its reader for the file or folder.

    `classify` chooses the images for classification, where these differ.
    """
    published = (CLASSIFIED if classify else RETRIEVED).get(protocol)
    counts = published if check_counts else None
    if halved := {"cub": read_cub, "cars": read_cars}.get(protocol):
        return halved(data, images, classify, counts)
    if split := {"sop": read_sop, "inshop": read_inshop, "inat": read_inat}.get(protocol):
        return split(data, images, counts)
    if images is not None:
        raise InputError(str(images), "folders has its images in DATA")
    return read_folders(data)


def read_cub(
    folder: str | Path,
    images: str | Path | None = None,
    classify: bool = False,
    counts: Counts | None = None,
) -> LabelledImages:
    """Read CUB-200-2011: classes 101 to 200, or to classify, the test images of all classes.

    The folder is ``CUB_200_2011``, with ``images.txt``, ``image_class_labels.txt``, ``classes.txt``
    and ``train_test_split.txt``; `counts` is a member of `RETRIEVED` or `CLASSIFIED`.
    """
    folder = Path(folder)
    paths = dict(_columns(folder / "images.txt", 2))
    labels = dict(_columns(folder / "image_class_labels.txt", 2))
    names = dict(_columns(folder / "classes.txt", 2))
    training = dict(_columns(folder / "train_test_split.txt", 2)) if classify else {}
    for label in (*labels.values(), *names):
        if not label.isdecimal():
            raise InputError(str(folder), f"a class must be a number, not {label!r}")
    entries = [
        (path, int(labels.get(number, "0")), training.get(number) == "0")
        for number, path in paths.items()
    ]
    words = {int(label): name.partition(".")[2].replace("_", " ") for label, name in names.items()}
    top = folder / "images" if images is None else Path(images)
    return _halved(folder, top, entries, words, 100, classify, counts)


def read_cars(
    path: str | Path,
    images: str | Path | None = None,
    classify: bool = False,
    counts: Counts | None = None,
) -> LabelledImages:
    """Read Cars196: classes 99 to 196, or to classify, the test images of all classes.

    The file is ``cars_annos.mat``; the folder of images holds ``car_ims``; `counts` is a member of
    `RETRIEVED` or `CLASSIFIED`.
    """
    from scipy.io.matlab import MatReadError, loadmat

    path = Path(path)
    try:
        content = loadmat(path, squeeze_me=True)
        rows = content["annotations"].reshape(-1)
        names = [str(name) for name in content["class_names"].reshape(-1)]
        entries = [
            (str(row["relative_im_path"]), int(row["class"]), bool(row["test"])) for row in rows
        ]
    except (MatReadError, zlib.error, OSError, LookupError, TypeError, ValueError) as error:
        raise InputError(str(path), f"is not a readable cars_annos.mat ({error})") from error
    top = path.parent if images is None else Path(images)
    return _halved(path, top, entries, dict(enumerate(names, 1)), 98, classify, counts)


def _halved(
    source: Path,
    top: Path,
    entries: Sequence[tuple[str, int, bool]],
    names: Mapping[int, str],
    trained: int,
    classify: bool,
    counts: Counts | None,
) -> LabelledImages:
    """Choose the classes not used for training, or to classify, the test images of all.

    Entries are path, class, and whether it is a test image; `trained` is the last training class.
    """
    chosen = [each for each in entries if (each[2] if classify else each[1] > trained)]
    if lacking := [path for path, label, _ in chosen if label not in names]:
        raise InputError(str(source), f"the image {lacking[0]} has no class")
    found = LabelledImages(
        tuple(top / path for path, _, _ in chosen),
        tuple(str(label) for _, label, _ in chosen),
        class_names={str(i): name for i, name in names.items() if classify or i > trained},
    )
    return _checked(source, found, counts)


def read_sop(
    folder: str | Path, images: str | Path | None = None, counts: Counts | None = None
) -> LabelledImages:
    """Read the test set of Stanford Online Products.

    The folder is ``Stanford_Online_Products``, with ``Ebay_test.txt``.
    """
    folder = Path(folder)
    top = folder if images is None else Path(images)
    rows = list(_columns(folder / "Ebay_test.txt", 4, skip=1))
    found = LabelledImages(tuple(top / row[3] for row in rows), tuple(row[1] for row in rows))
    return _checked(folder, found, counts)


def read_inshop(
    folder: str | Path, images: str | Path | None = None, counts: Counts | None = None
) -> LabelledImages:
    """Read queries and gallery of DeepFashion's In-Shop Clothes Retrieval.

    The folder, or its folder ``Eval``, holds ``list_eval_partition.txt``; that of the images
    holds ``img``.
    """
    folder = Path(folder)
    top = folder if images is None else Path(images)
    list_ = folder / "list_eval_partition.txt"
    if not list_.is_file():
        list_ = folder / "Eval" / "list_eval_partition.txt"
    rows = list(_columns(list_, 3, skip=2))
    queries = [row for row in rows if row[2] == "query"]
    gallery = [row for row in rows if row[2] == "gallery"]
    if not gallery:
        raise InputError(str(list_), "has no gallery")
    found = LabelledImages(
        tuple(top / row[0] for row in queries),
        tuple(row[1] for row in queries),
        tuple(top / row[0] for row in gallery),
        tuple(row[1] for row in gallery),
    )
    return _checked(list_, found, counts)


def read_inat(
    folder: str | Path, images: str | Path | None = None, counts: Counts | None = None
) -> LabelledImages:
    """Read the test set of iNaturalist 2018 as Smooth-AP split it by species.

    The folder holds ``Inat_dataset_splits/Inaturalist_test_set1.txt``; that of the images holds
    ``train_val2018``.
    """
    folder = Path(folder)
    top = folder if images is None else Path(images)
    list_ = folder / "Inat_dataset_splits" / "Inaturalist_test_set1.txt"
    paths = [Path(row[0]) for row in _columns(list_, 1)]
    if short := next((path for path in paths if len(path.parts) < 3), None):
        raise InputError(
            str(list_), f"{str(short)!r} is not a path of a group, a species and a file"
        )
    found = LabelledImages(
        tuple(top / path for path in paths), tuple("/".join(path.parts[-3:-1]) for path in paths)
    )
    return _checked(list_, found, counts)


def read_folders(folder: str | Path) -> LabelledImages:
    """Read a folder that has a folder of images for each class, named after it."""
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(str(folder), "no such folder")
    paths = [
        path
        for path in sorted(folder.glob("*/*"))
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
    ]
    labels = tuple(path.parent.name for path in paths)
    names = {label: label.replace("_", " ") for label in labels}
    found = LabelledImages(tuple(paths), labels, class_names=names)
    return _checked(folder, found, None)


def _columns(path: Path, number: int, skip: int = 0) -> Iterator[tuple[Any, ...]]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(str(path), f"cannot be read ({error})") from error
    errors = []
    rows = []
    for at, line in enumerate(lines[skip:], start=skip + 1):
        if not line.strip():
            continue
        # In-Shop pads its columns; no path or class of these sets has spaces.
        fields = tuple(line.split())
        if len(fields) == number:
            rows.append(fields)
        else:
            rule = f"must have {number} fields, not {len(fields)}"
            errors.append(InputError(f"{path}:{at}", rule))
    if errors:
        raise GatheredInputError(errors)
    yield from rows


def _checked(path: str | Path, found: LabelledImages, counts: Counts | None) -> LabelledImages:
    if not found.images:
        raise InputError(str(path), "has no test images")
    if counts is not None:
        _expect(path, "images", len(found.images), counts.images)
        _expect(path, "classes", len(set(found.labels)), counts.classes)
        if counts.gallery is not None:
            _expect(path, "gallery images", len(found.gallery), counts.gallery)
    missing = [path for path in (*found.images, *found.gallery) if not path.is_file()]
    if missing:
        rule = f"{len(missing):,} images are missing; the first is {missing[0]}"
        raise InputError(str(path), rule)
    return found


def _expect(path: str | Path, what: str, found: int, published: int) -> None:
    if found != published:
        rule = f"the test set has {found:,} {what}; {published:,} are published"
        raise InputError(str(path), rule)
