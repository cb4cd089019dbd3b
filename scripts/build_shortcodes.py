"""Build benchmarks/shortcodes.json: what people type for an emoji instead of its label.

    python scripts/build_shortcodes.py [--package FOLDER] [--out FILE]

The shortcodes are those of GitHub, Slack (iamcal), JoyPixels and Emojibase, in the npm package
emojibase-data. A shortcode is kept as a phrase if it shares no word with the label of its emoji in
the demo corpus, so that only the meaning links the two. Words of one or two letters, mostly country
codes, are left out.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from pathlib import Path

from build_demo_corpus import ROOT, WORDS, bare
from fetch_packages import fetch_npm

from lexvla.data.demo_corpus import load_demo_corpus

SETS = ("github", "iamcal", "joypixels", "emojibase")
NOTICE = (
    "Shortcodes of the npm package {package}, Copyright (c) 2017-2019 Miles Johnson, used under "
    "the MIT License, which is below. Underscores are spaces here; those that share a word with "
    "the emoji's label are left out."
)


def phrases(shortcode: str) -> str:
    """Return a shortcode as words, or "" unless all have three letters or more."""
    words = re.split(r"[_\-\s]+", shortcode.lower())
    if words[0] == "flag" or not all(re.fullmatch(r"[a-z]{3,}", word) for word in words):
        return ""
    return " ".join(words)


def collect(package: Path) -> dict[str, list[str]]:
    """Return the sorted phrases of the demo corpus's items, by id."""
    found: dict[str, set[str]] = {}
    for name in SETS:
        table = json.loads((package / "en" / "shortcodes" / f"{name}.json").read_text("utf-8"))
        for code, given in table.items():
            for shortcode in [given] if isinstance(given, str) else given:
                found.setdefault(bare(code), set()).add(phrases(shortcode))
    kept = {}
    for item in load_demo_corpus("emoji"):
        own = set(re.findall(r"[a-z]+", item.label.lower()))
        others = [
            phrase
            for phrase in sorted(found.get(bare(item.id), ()))
            if phrase and own.isdisjoint(phrase.split())
        ]
        if others:
            kept[item.id] = others
    return kept


def main() -> int:
    """Write the file and print its size."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--package", type=Path, help="the folder of the unpacked package")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "shortcodes.json")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        package = arguments.package or fetch_npm("@".join(WORDS), Path(temporary))
        kept = collect(package)
        licence = (package / "LICENSE").read_text(encoding="utf-8")
    content = {
        "notice": NOTICE.format(package="@".join(WORDS)),
        "licence": licence,
        "shortcodes": kept,
    }
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    arguments.out.write_text(text, encoding="utf-8")
    print(f"{arguments.out}: {sum(map(len, kept.values()))} phrases of {len(kept)} emoji")
    return 0


if __name__ == "__main__":
    sys.exit(main())
