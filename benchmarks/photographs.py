"""Measure a model on photographs of things, on white and in scenery, compared with chance.

    python benchmarks/photographs.py [--model M] [--data DIR] [--json]

The photographs are cut-outs of Debian's `tuxpaint-stamps-default`, the scenery is from
`plasma-workspace-wallpapers`. Both are downloaded once into DIR by `apt-get download`; they are not
part of LexVLA. Images are found by their pixels only. An image ranks behind all others with its
score, those of the same caption too. Captions that name a class of ImageNet are also counted
separately, because backbones trained on ImageNet know these things. JSON has shares from 0 to 1,
the table percent.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from photograph_figures import (
    KS,
    PhotographFigures,
    PictureFigures,
    class_words,
    evaluate_photographs,
    read_photographs,
    read_scenery,
)
from timm.data.imagenet_info import ImageNetInfo

from lexvla import LexVLA
from lexvla.errors import InputError

DATA = Path(__file__).resolve().parent.parent / "data" / "photographs"
STAMPS, WALLPAPERS = "usr/share/tuxpaint/stamps", "usr/share/wallpapers"
PACKAGES = {"tuxpaint-stamps-default": STAMPS, "plasma-workspace-wallpapers": WALLPAPERS}


def get_packages(data: Path) -> None:
    """Download and unpack missing packages."""
    for package, folder in PACKAGES.items():
        if not (data / folder).is_dir():
            _get(package, folder, data)


def imagenet_words() -> frozenset[str]:
    """Return the last words of the names of ImageNet's classes."""
    info = ImageNetInfo()
    return class_words(info.index_to_description(i) for i in range(info.num_classes()))


def print_figures(figures: PhotographFigures, seconds: float) -> None:
    """Print all figures as tables, in percent."""
    print(f"model {figures.model}: {figures.items:,} photographs of things, {seconds:.0f} s\n")
    print(f"{'caption -> image, %':44}" + "".join(f"{f'R@{k}':>8}" for k in KS))
    kinds = {"on white": figures.white, "in scenery": figures.scenery}
    for kind, pictures in kinds.items():
        _print_recall(f"{kind}, by ", pictures.recall)
    _print_recall("", {"chance": figures.chance_recall})
    if figures.class_items:
        print(f"\nthe {figures.class_items:,} captions that name a class of ImageNet, among all")
        for kind, pictures in kinds.items():
            _print_recall(f"{kind}, by ", pictures.class_recall or {})
    print()
    for kind, pictures in kinds.items():
        _print_pointing(kind, pictures)
    print(f"\nactive words: {figures.words_per_text:.1f} a caption", end=", ")
    print(f"{figures.white.words_per_image:.1f} an image on white", end=", ")
    print(f"{figures.scenery.words_per_image:.1f} in scenery")
    words = (f"{word} {share:.0%}" for word, share in figures.frequent_words)
    print(f"on most images on white: {', '.join(words)}")


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", metavar="M", help="a saved model; else the default one")
    parser.add_argument(
        "--data", metavar="DIR", type=Path, default=DATA, help="the packages' folder (%(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    args = parser.parse_args()
    try:
        get_packages(args.data)
        items, scenes = read_photographs(args.data / STAMPS), read_scenery(args.data / WALLPAPERS)
    except InputError as error:
        sys.exit(str(error))
    model = LexVLA.from_pretrained(args.model)
    started = time.perf_counter()
    figures = evaluate_photographs(model, items, scenes, imagenet_words())
    seconds = time.perf_counter() - started
    if args.json:
        json.dump({**figures.to_dict(), "seconds": seconds}, sys.stdout, indent=2)
        print()
    else:
        print_figures(figures, seconds)


def _get(package: str, folder: str, data: Path) -> None:
    by_hand = f"unpack both there by hand (dpkg-deb -x FILE {data}): {' and '.join(PACKAGES)}"
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        raise InputError(str(data), f"lacks {package}, and there is no apt-get here; {by_hand}")
    data.mkdir(parents=True, exist_ok=True)
    # It is moved to its place when it is whole, so that an end in between leaves no half.
    with tempfile.TemporaryDirectory(dir=data) as made:
        try:
            _run("apt-get", "download", package, cwd=made)
            for file in Path(made).glob("*.deb"):
                _run("dpkg-deb", "-x", file.name, ".", cwd=made)
            (data / folder).parent.mkdir(parents=True, exist_ok=True)
            (Path(made) / folder).rename(data / folder)
        except (OSError, subprocess.CalledProcessError) as error:
            raise InputError(str(data), f"lacks {package}: {error}; {by_hand}") from error


def _run(*command: str, cwd: str) -> None:
    # What they say goes to stderr: stdout may be JSON.
    subprocess.run(command, cwd=cwd, check=True, stdout=sys.stderr)  # noqa: S603 - the names above


def _print_recall(beginning: str, rows: dict[str, dict[int, float]]) -> None:
    for name, values in rows.items():
        print(f"{beginning + name:44}" + "".join(f"{100 * values[k]:8.1f}" for k in KS))


def _print_pointing(kind: str, pictures: PictureFigures) -> None:
    if pictures.pointing is not None and pictures.chance_pointing is not None:
        print(f"strongest word's patch on the thing, {kind}: {pictures.pointing:.1%}", end=", ")
        print(f"chance {pictures.chance_pointing:.1%}")


if __name__ == "__main__":
    main()
