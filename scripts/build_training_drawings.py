"""Build the training drawings of the default model from four npm packages.

Fetch Twemoji, OpenMoji and the flat and 3D Fluent emoji with `npm pack`, render every drawing at
64 px and write them beside the English metadata of `emojibase-data`. The Noto drawings are the
test set and are not touched here.

    python scripts/build_training_drawings.py --out data/emoji
"""

from __future__ import annotations

import argparse
import io
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from fetch_packages import fetch_npm
from PIL import Image
from resvg_py import svg_to_bytes
from tqdm import tqdm

SIDE = 64
METADATA = "emojibase-data@17.0.0"
# name of the set -> (package, folder of its drawings)
DRAWING_SETS = {
    "twemoji": ("emoji-datasource-twitter@16.0.0", "img/twitter/64"),
    "openmoji": ("openmoji@17.0.0", "color/svg"),
    "fluent-flat": ("@lobehub/fluent-emoji-modern@1.0.0", "assets"),
    "fluent-3d": ("@lobehub/fluent-emoji-3d@1.1.0", "assets"),
}
MIXED_TONES = 6  # two people of different skin tones; 0 is none, 1 to 5 light to dark


def plain(hexcode: str) -> str:
    """Return a code point sequence in the form shared by all sets: lower case, no FE0F."""
    return hexcode.lower().replace("-fe0f", "")


def render(path: Path) -> np.ndarray:
    """Return a drawing as (64, 64, 4) uint8, straight alpha."""
    if path.suffix == ".svg":
        data = svg_to_bytes(svg_path=str(path), width=SIDE, height=SIDE, skip_system_fonts=True)
        image = Image.open(io.BytesIO(bytes(data)))
    else:
        image = Image.open(path)
    image = image.convert("RGBA")
    if image.size != (SIDE, SIDE):
        image = image.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    return np.asarray(image)


def variants(entry: dict) -> Iterator[tuple[str, int]]:
    """Yield hexcode and skin tone of an emoji and its variants."""
    yield plain(entry["hexcode"]), 0
    for skin in entry.get("skins", []):
        tone = skin["tone"]
        yield plain(skin["hexcode"]), tone if isinstance(tone, int) else MIXED_TONES


def main() -> None:
    """Write items.jsonl and drawings.npz."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("data/emoji"))
    parser.add_argument("--packages", type=Path, help="keep the unpacked packages here")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        packages = arguments.packages or Path(temporary)
        packages.mkdir(parents=True, exist_ok=True)
        english = fetch_npm(METADATA, packages) / "en"
        messages = json.loads((english / "messages.json").read_text())
        groups = {g["order"]: g["key"] for g in messages["groups"]}
        subgroups = {g["order"]: g["key"] for g in messages["subgroups"]}
        entries = json.loads((english / "data.json").read_text())
        entries = [e for e in entries if "group" in e]
        files = {}
        for name, (package, folder) in DRAWING_SETS.items():
            root = fetch_npm(package, packages) / folder
            files[name] = {plain(p.stem): p for p in root.iterdir() if p.suffix}
        items, pixels, item, style, tone = [], [], [], [], []
        for entry in tqdm(entries, desc="items"):
            found = [
                (number, skin_tone, files[name][code])
                for code, skin_tone in variants(entry)
                for number, name in enumerate(DRAWING_SETS)
                if code in files[name]
            ]
            if not found:
                continue
            for number, skin_tone, path in found:
                pixels.append(render(path))
                item.append(len(items))
                style.append(number)
                tone.append(skin_tone)
            line = {
                "id": entry["hexcode"].lower(),
                "label": entry["label"],
                "tags": entry.get("tags", []),
                "group": groups[entry["group"]],
                "subgroup": subgroups[entry["subgroup"]],
            }
            items.append(json.dumps(line, ensure_ascii=False))
    (arguments.out / "items.jsonl").write_text("\n".join(items) + "\n", encoding="utf-8")
    np.savez(
        arguments.out / "drawings.npz",
        pixels=np.stack(pixels),
        item=np.array(item, np.int32),
        style=np.array(style, np.int8),
        tone=np.array(tone, np.int8),
        style_names=np.array(list(DRAWING_SETS)),
    )
    counts = np.bincount(style, minlength=len(DRAWING_SETS))
    named = ", ".join(f"{n} {c}" for n, c in zip(DRAWING_SETS, counts, strict=True))
    print(f"{len(items)} items, {len(pixels)} drawings: {named}")


if __name__ == "__main__":
    main()
