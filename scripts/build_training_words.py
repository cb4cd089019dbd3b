"""Build the words of the default model: ImageNet's classes and common nouns.

Read the nouns of WordNet 3.0 and write the names, the definition and the weighted words of each
of the 1,000 classes of ImageNet, in the order of a classifier's outputs, and the weighted words of
common concrete nouns.

    python scripts/build_training_words.py --out data/words [--wordnet FOLDER]

Without --wordnet the script fetches the Debian package wordnet-base with `apt-get download`.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable
from importlib.util import find_spec
from itertools import islice, pairwise
from pathlib import Path

from wordnet import Synset, WordNet

from lexvla.data.emoji import words_of
from lexvla.data.emoji_phrases import STOP_WORDS

PACKAGE = "wordnet-base"
VERSION = "WordNet 3.0"
CLASSES = 1000
STEP = 0.5  # weight of a broader term by the next narrower one's
SEVERAL = 0.7  # of a word in a term of several words
KIND = 0.125  # of the word for a whole lexicographer file, at least
FLOOR = 0.06  # smallest weight to keep
STEPS_ABOVE = 3  # broader terms listed for a class
RARE = 3  # glosses that a word of a broader term must occur in
COMMON = 4  # glosses that a noun must occur in
SELDOM = 2  # a word this many times as frequent as verb or adjective is left out
# Lexicographer files: animal, artifact, body, food, object, person, phenomenon, plant, shape,
# substance.
CONCRETE = frozenset({5, 6, 8, 13, 17, 18, 19, 20, 25, 27})
# Words that people type, however many steps above.
KINDS = {5: "animal", 13: "food", 18: "person", 20: "plant"}
NOUN = re.compile(r"[a-z]+(?: [a-z]+)?")
OFFENSIVE = re.compile(r"offensive|slur\b|disparag|obscene|vulgar|derogatory|pejorative")
INSULTS = frozenset({"fatty", "homo", "retard", "stupid", "stupid person"})
# fmt: off
# Uninformative words of broader terms.
GENERAL = frozenset({
    "abstraction", "agent", "animate", "artefact", "artifact", "attribute", "being", "causal",
    "cause", "entity", "feature", "group", "individual", "instrumentality", "instrumentation",
    "living", "matter", "measure", "mortal", "object", "organism", "part", "physical", "process",
    "psychological", "relation", "somebody", "someone", "soul", "thing", "unit", "whole",
})
# Words of broader terms that are rare in glosses, but typed.
TYPED = frozenset({
    "aeroplane", "armour", "auto", "burger", "bullterrier", "cookware", "corgi", "defence", "gator",
    "jewellery", "mag", "motorbike", "motorcar", "nightwear", "pc", "pinscher", "possum",
    "pullover", "raptor", "rattler", "retriever", "setter", "sledge", "sleepwear", "swimsuit",
    "swimwear", "theatre", "veggie", "waistcoat", "waterfowl", "wolfhound",
})
# Words of broader terms that are in glosses, but not typed.
TAXONOMY = frozenset({
    "anapsid", "angiosperm", "anthropoid", "archosaurian", "basidiomycete", "basidiomycetous",
    "bovid", "ceratopsian", "chordate", "coelenterate", "cruciferous", "decapod", "diapsid",
    "dipterous", "drygoods", "echinoderm", "edentate", "elapid", "gallinaceous", "gnawing",
    "lense", "mammalian", "monotreme", "musteline", "mustelid", "ornithischian", "passerine",
    "percoid", "perissodactyl", "phalanger", "placental", "ratite", "sirenian", "solanaceous",
    "teleost", "viverrine",
})
# fmt: on
NOTICE = """\
WordNet
=======

classes.jsonl and nouns.jsonl were made from WordNet 3.0: they hold names, definitions and broader
terms of it. The names of the 1,000 classes are those of ImageNet. The license of WordNet:

"""


class Words:
    """Weighted words of WordNet's senses.

    Args:
        wordnet: The nouns.

    Attributes:
        gloss_counts: In how many glosses each noun of one or two words occurs.
    """

    def __init__(self, wordnet: WordNet) -> None:
        self.wordnet = wordnet
        self.gloss_counts: Counter[str] = Counter()
        for synset in wordnet.synsets():
            words = words_of(synset.full_gloss)
            phrases = {f"{a} {b}" for a, b in pairwise(words)}
            bases = (wordnet.base_form(phrase) or phrase for phrase in phrases.union(words))
            self.gloss_counts.update(set(bases))

    def says_something(self, term: str) -> bool:
        """Tell whether a broader term has common and specific words."""
        words = content(term)
        return bool(words) and all(
            self._glosses(word) >= RARE and word not in GENERAL and word not in TAXONOMY
            for word in words
        )

    def _glosses(self, word: str) -> int:
        return RARE if word in TYPED else self.gloss_counts[self.wordnet.base_form(word) or word]

    def above(self, offset: str, steps: int) -> list[str]:
        """Return the informative broader terms of a sense, nearest first."""
        depths = self.wordnet.ancestors(offset)
        found = (self.wordnet.synset(o).lemmas for o, depth in depths.items() if 0 < depth <= steps)
        return [term for lemmas in found for term in lemmas if self.says_something(term)]

    def weights(self, offset: str, lemma: str = "") -> dict[str, float]:
        """Return weighted words of a sense and its broader terms, largest weight first.

        Args:
            offset: The sense.
            lemma: All of its words weigh 1.
        """
        sense = self.wordnet.synset(offset)
        weights = dict.fromkeys(content(lemma), 1.0)
        if sense.lexname in KINDS:
            weights.setdefault(KINDS[sense.lexname], KIND)

        def add(word: str, weight: float) -> None:
            if weight >= FLOOR:
                weights[word] = round(max(weights.get(word, 0.0), weight), 4)

        for term in sense.lemmas:
            words = content(term)
            for word in words:
                add(word, 1.0 if len(words) == 1 else SEVERAL)
        for above, weight in self._weights_above(sense).items():
            for term in filter(self.says_something, self.wordnet.synset(above).lemmas):
                *before, last = term.split()
                # The kind is last, as in "hunting dog", or anywhere, as in "place of worship".
                for word in content(last):
                    add(word, SEVERAL * weight if "of" in before else weight)
                for word in content(" ".join(w for w in before if "-" not in w)):
                    add(word, SEVERAL * weight)
        return dict(sorted(weights.items(), key=lambda pair: (-pair[1], pair[0])))

    def _weights_above(self, sense: Synset) -> dict[str, float]:
        """Return the broader senses and their weights, which fall with each informative step.

        A step from "golden retriever" to "retriever" says little, so it has a word's weight.
        """
        own = set(content(" ".join(sense.lemmas)))
        best: dict[str, float] = {}
        waiting = [(above, 1.0) for above in sense.hypernyms]
        while waiting:
            offset, weight = waiting.pop()
            synset = self.wordnet.synset(offset)
            if not own.isdisjoint(synset.lemmas):
                weight *= SEVERAL
            elif any(map(self.says_something, synset.lemmas)):
                weight *= STEP
            if weight >= FLOOR and weight > best.get(offset, 0.0):
                best[offset] = weight
                waiting += [(above, weight) for above in synset.hypernyms]
        return best

    def imagenet_class(self, name: str) -> dict:
        """Return the line of one class of ImageNet."""
        synset = self.wordnet.synset(name[1:])
        return {
            "id": name,
            "label": synset.lemmas[0],
            "names": list(synset.lemmas),
            "above": self.above(synset.offset, STEPS_ABOVE),
            "gloss": synset.gloss,
            "words": self.weights(synset.offset),
        }

    def nouns(self, known: set[str], others: set[str]) -> list[dict]:
        """Return the lines of common concrete nouns, by name.

        Args:
            known: Offsets of senses with common lemmas.
            others: Words that are rarely nouns, left out unless known.
        """
        lines = []
        for lemma in sorted(self.wordnet.lemmas()):
            synset = self.wordnet.senses(lemma)[0]
            if not fits(lemma, synset):
                continue
            common = self.gloss_counts[lemma] >= COMMON and lemma not in others
            if synset.offset in known or common:
                lines.append({"text": lemma, "words": self.weights(synset.offset, lemma)})
        return lines


def content(text: str) -> list[str]:
    """Return the words of a text without stop words."""
    return [word for word in words_of(text) if word not in STOP_WORDS]


def fits(lemma: str, synset: Synset) -> bool:
    """Tell whether a lemma is concrete, not a proper name and not offensive."""
    return (
        synset.lexname in CONCRETE
        and len(lemma) > 2
        and NOUN.fullmatch(lemma) is not None
        and lemma in synset.spellings
        and not set(content(lemma)) <= GENERAL
        and lemma not in INSULTS
        and not OFFENSIVE.search(synset.full_gloss)
    )


def seldom_nouns(path: Path) -> set[str]:
    """Return words that WordNet's counts have far more often as verbs or adjectives."""
    nouns: Counter[str] = Counter()
    others: Counter[str] = Counter()
    for line in path.read_text(encoding="utf-8").splitlines():
        # "cat%1:05:00:: 1 18": 1 is a noun; sense 1 occurred 18 times
        key, _, count = line.split()
        lemma, _, rest = key.partition("%")
        (nouns if rest.startswith("1") else others)[lemma.replace("_", " ")] += int(count)
    return {word for word, count in others.items() if count > SELDOM * nouns[word]}


def imagenet_ids() -> list[str]:
    """Return the names of ImageNet's classes in the order of a classifier's outputs."""
    spec = find_spec("timm")
    if spec is None or spec.origin is None:
        raise SystemExit("timm is not installed; it has the names of ImageNet's classes")
    path = Path(spec.origin).parent / "data" / "_info" / "imagenet_synsets.txt"
    names = path.read_text(encoding="utf-8").split()
    if len(names) != CLASSES:
        raise SystemExit(f"{path}: {len(names)} classes, not {CLASSES}")
    return names


def fetch_wordnet(folder: Path) -> Path:
    """Download WordNet and return the folder of its files."""
    for command in (["apt-get", "download", PACKAGE], ["dpkg-deb", "-x"]):
        if command[0] == "dpkg-deb":
            command += [str(path) for path in folder.glob("*.deb")] + [str(folder)]
        subprocess.run(command, cwd=folder, check=True, capture_output=True)  # noqa: S603 - above
    return folder / "usr" / "share" / "wordnet"


def licence(folder: Path) -> str:
    """Return the licence at the start of WordNet's files."""
    with (folder / "data.noun").open(encoding="utf-8") as file:
        lines = [line for line in islice(file, 40) if line.startswith("  ")]
    text = "\n".join(re.sub(r"^ +\d+ ", "", line).strip() for line in lines)
    if VERSION not in text:
        raise SystemExit(f"{folder}: not {VERSION}, whose senses ImageNet's classes are")
    return text + "\n"


def write(path: Path, text: str) -> None:
    """Write a file atomically."""
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def as_lines(records: Iterable[dict]) -> str:
    """Return records as lines of JSON."""
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def main() -> None:
    """Write classes.jsonl, nouns.jsonl and NOTICE.txt."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("data/words"))
    parser.add_argument("--wordnet", type=Path, help="folder of WordNet's files")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.wordnet or fetch_wordnet(Path(temporary))
        wordnet = WordNet(folder)
        notice = NOTICE + licence(folder)
        others = seldom_nouns(folder / "cntlist.rev")
    words = Words(wordnet)
    names = imagenet_ids()
    classes = [words.imagenet_class(name) for name in names]
    known = {above for name in names for above in wordnet.ancestors(name[1:])}
    nouns = words.nouns(known, others)
    arguments.out.mkdir(parents=True, exist_ok=True)
    write(arguments.out / "classes.jsonl", as_lines(classes))
    write(arguments.out / "nouns.jsonl", as_lines(nouns))
    write(arguments.out / "NOTICE.txt", notice)
    vocabulary = {word for line in classes + nouns for word in line["words"]}
    print(f"{len(classes)} classes, {len(nouns)} nouns, {len(vocabulary)} different words")


if __name__ == "__main__":
    main()
