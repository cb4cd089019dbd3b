"""Build the vocabulary of models without a vocabulary: common English words and pairs of words.

Write common concrete nouns of WordNet 3.0, of one or two words, as the default model learns them,
then other nouns, adjectives and verbs that its definitions and tagged texts use most; and a few
words of photographs that it lacks or rarely uses. The commonest come first.

    python scripts/build_common_words.py --out lexvla/common_words.txt [--wordnet FOLDER]

Without --wordnet the script fetches the Debian package wordnet-base with `apt-get download`.
"""

from __future__ import annotations

import argparse
import re
import tempfile
from collections import Counter
from itertools import pairwise
from pathlib import Path

from build_training_words import (
    GENERAL,
    INSULTS,
    OFFENSIVE,
    TAXONOMY,
    Words,
    fetch_wordnet,
    imagenet_ids,
    licence,
    seldom_nouns,
    write,
)
from wordnet import WordNet

from lexvla.data.emoji import words_of
from lexvla.data.emoji_phrases import STOP_WORDS

SIZE = 10_000
PARTS = ("noun", "verb", "adj")
TAGGED = 2.0  # what an occurrence in the tagged texts counts, next to one in a gloss
WORD = re.compile(r"[a-z]{3,}")  # proper names are written with capitals
NOT_SHOWN = frozenset({"make", "say", "more", "other", "form", "use", "some", "any", "especially"})
# fmt: off
# Younger than WordNet, or in few of its texts.
SHOWN = (
    "app", "backpack", "barista", "baseball bat", "baseball glove", "bearded man", "boba",
    "bubble tea", "burger", "cell phone", "cosplay", "dashcam", "dining table", "drone", "e-bike",
    "e-reader", "emoji", "esports", "fire hydrant", "flatscreen", "food truck", "frisbee", "gif",
    "graffiti", "hair dryer", "handbag", "hashtag", "headphones", "hot dog", "hoodie",
    "hoverboard", "influencer", "jeans", "kitten", "livestream", "meme", "palm tree", "parkour",
    "parking meter", "potted plant", "puppy", "remote control", "sandals", "selfie",
    "selfie stick", "skateboard", "skateboarder", "skiing", "skyline", "smartphone", "smartwatch",
    "smoothie", "sneakers", "snowboard", "snowboarder", "soccer ball", "solar panel",
    "sports ball", "stop sign", "sudoku", "suitcase", "sunflower", "sunglasses", "sunrise",
    "sunset", "surfer", "surfing", "sushi", "tablet computer", "tattoo", "tennis racket",
    "toothbrush", "touchscreen", "traffic light", "vape", "webcam", "wetsuit", "wifi",
    "wind turbine", "wine glass", "zipline", "zoom call",
)
# fmt: on


def others(folder: Path) -> tuple[set[str], list[str]]:
    """Return words of all kinds, without offensive ones, and all glosses."""
    words, glosses, refused = set(), [], {*INSULTS, *STOP_WORDS, *GENERAL, *TAXONOMY, *NOT_SHOWN}
    for part in PARTS:
        for line in (folder / f"data.{part}").read_text("utf-8").splitlines():
            if line.startswith("  "):
                continue
            head, _, gloss = line.partition("|")
            glosses.append(gloss)
            fields = head.split()
            found = {
                re.sub(r"\(\w+\)$", "", each) for each in fields[4 : 4 + 2 * int(fields[3], 16) : 2]
            }
            if OFFENSIVE.search(gloss):
                refused |= found
            else:
                words |= {lemma for lemma in found if WORD.fullmatch(lemma)}
    return words - refused, glosses


def concrete(folder: Path, wordnet: WordNet) -> list[str]:
    """Return the concrete nouns of `build_training_words`."""
    known = {above for name in imagenet_ids() for above in wordnet.ancestors(name[1:])}
    lines = Words(wordnet).nouns(known, seldom_nouns(folder / "cntlist.rev"))
    return [line["text"] for line in lines]


def tagged(path: Path) -> Counter[str]:
    """Return how often the tagged texts have each lemma."""
    counts: Counter[str] = Counter()
    for line in path.read_text("utf-8").splitlines():
        key, _, count = line.split()
        counts[key.partition("%")[0].replace("_", " ")] += int(count)
    return counts


def commonest(folder: Path) -> list[str]:
    """Return the words and pairs, the commonest first."""
    wordnet = WordNet(folder)
    more, glosses = others(folder)
    used: Counter[str] = Counter()
    for gloss in glosses:
        parts = words_of(gloss)
        found = {wordnet.base_form(part) or part for part in parts}
        used.update(found.union(*({pair} for pair in map(" ".join, pairwise(parts)))))
    counts = tagged(folder / "cntlist.rev")

    def by_use(lemma: str) -> tuple[float, str]:
        return -(used[lemma] + TAGGED * counts[lemma]), lemma

    chosen = {*concrete(folder, wordnet), *SHOWN}
    chosen |= set(sorted(more - chosen, key=by_use)[: SIZE - len(chosen)])
    return sorted(chosen, key=by_use)


def main() -> None:
    """Write the list."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("lexvla/common_words.txt"))
    parser.add_argument("--wordnet", type=Path, help="folder of WordNet's files")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.wordnet or fetch_wordnet(Path(temporary))
        licence(folder)  # checks the version
        chosen = commonest(folder)
    write(arguments.out, "\n".join(chosen) + "\n")
    print(f"{len(chosen):,} words and pairs: {arguments.out}")


if __name__ == "__main__":
    main()
