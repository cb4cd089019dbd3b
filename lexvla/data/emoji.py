"""Emoji drawings in several styles with texts: training data of the default model."""

from __future__ import annotations

import json
import unicodedata
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lexvla.data.emoji_phrases import COLOURS, KINDS, STOP_WORDS
from lexvla.data.word_lists import ImageClass, read_classes, read_nouns
from lexvla.errors import InputError
from lexvla.vocabulary import Vocabulary

__all__ = ["EmojiDrawings", "Item", "content_columns", "word_columns", "words_of"]

MIN_COLOUR_SHARE = 0.3  # of a drawing's opaque pixels, on average over the sets
_GLOSS_WORDS = 8  # of a class's definition that a text holds
_COLOURLESS = {"people-body", "flags", "component"}  # groups in which a colour says little


@dataclass(frozen=True)
class Item:
    """A subject of texts: an emoji, or a class that a vision model knows.

    Attributes:
        id: Code points in hex, or the WordNet id of a class.
        label: Its name.
        tags: Words that people search for; of a class, its other names.
        kinds: What it is a kind of.
        colours: Colours of its drawings.
        subgroup: Key of its subgroup.
        gloss: Definition of a class.
        words: Words of a class with weights, 1 for those of its names.
    """

    id: str
    label: str
    tags: tuple[str, ...]
    kinds: tuple[str, ...]
    colours: tuple[str, ...] = ()
    subgroup: str = ""
    gloss: str = ""
    words: Mapping[str, float] = field(default_factory=dict)


class EmojiDrawings:
    """Load the drawings that `scripts/build_training_drawings.py` made.

    Args:
        folder: Holds ``items.jsonl`` and ``drawings.npz``.
        styles: Names of the drawing sets to use.
        tones: Whether to use all skin tones, not only the neutral drawings.
        classes: A file of classes from `scripts/build_training_words.py`; they follow the emoji as
            items.
        nouns: A file of nouns from the same script, for the text side only.

    Attributes:
        items: The emoji of the chosen sets, in order, then the classes.
        drawn: Number of emoji among them.
        nouns: The nouns, each with weighted words.
        pixels: (n, 64, 64, 4) uint8, straight alpha.
        item: (n,) item of each drawing.
        style: (n,) drawing set of each, an index of ``style_names``.
        tone: (n,) skin tone, 0 for none.
    """

    def __init__(
        self,
        folder: str | Path,
        styles: list[str],
        tones: bool = True,
        classes: str | None = None,
        nouns: str | None = None,
    ) -> None:
        folder = Path(folder)
        lines = self._load(folder, styles, tones)
        colours = self._colours(len(lines))
        self.items = [_item(line, found) for line, found in zip(lines, colours, strict=True)]
        self.drawn = len(self.items)
        self.items += [_class(each) for each in read_classes(classes)] if classes else []
        self.nouns = read_nouns(nouns) if nouns else []
        # drawings of each item, by set and then base before skin tones
        self.by_item: list[list[np.ndarray]] = [
            [of_item[self.style[of_item] == number] for number in np.unique(self.style[of_item])]
            for of_item in (np.flatnonzero(self.item == i) for i in range(len(lines)))
        ]

    def _load(self, folder: Path, styles: list[str], tones: bool) -> list[dict]:
        """Read the drawings of the chosen sets and return the lines of their items."""
        drawings, table = folder / "drawings.npz", folder / "items.jsonl"
        for path in (table, drawings):
            if not path.is_file():
                rule = "missing; make it with scripts/build_training_drawings.py"
                raise InputError(str(path), rule)
        try:
            with np.load(drawings) as archive:
                names = archive["style_names"].tolist()
                item, style, tone, pixels = (
                    archive[key] for key in ("item", "style", "tone", "pixels")
                )
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise InputError(str(drawings), f"the drawings cannot be read ({error})") from error
        for name in styles:
            if name not in names:
                raise InputError(name, f"no such drawing set; there are {', '.join(names)}")
        self.style_names = names
        chosen = np.isin(style, [names.index(name) for name in styles])
        chosen &= tones | (tone == 0)
        self.pixels, self.style, self.tone = pixels[chosen], style[chosen], tone[chosen]
        # Items without a drawing in the chosen sets are left out, and the rest renumbered.
        shown, self.item = np.unique(item[chosen], return_inverse=True)
        try:
            lines = [json.loads(line) for line in table.read_text(encoding="utf-8").splitlines()]
            return [lines[number] for number in shown]
        except (ValueError, IndexError) as error:
            raise InputError(str(table), f"does not fit the drawings ({error})") from error

    def captions(self) -> list[str]:
        """Return the texts whose words make the vocabulary."""
        texts = []
        for item in self.items[: self.drawn]:
            texts += [item.label, *item.tags, *item.kinds, *item.colours]
        return texts + [word for item in self.items[self.drawn :] for word in item.words]

    def other_texts(self) -> list[str]:
        """Return texts whose words the text side reads, but need not predict."""
        texts = [text for text, _ in self.nouns]
        for item in self.items[self.drawn :]:
            texts += [item.label, *item.tags, *item.kinds, item.gloss]
        return texts

    def sample_drawings(self, items: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Draw two drawings of each item, from two sets if it has them: (2, n) row numbers.

        Of people, a third of the draws have a skin tone.
        """
        pairs = np.empty((2, len(items)), np.int64)
        for column, item in enumerate(items):
            sets = self.by_item[item]
            chosen = rng.permutation(len(sets))[:2]
            for row in range(2):
                drawings = sets[chosen[row % len(chosen)]]
                toned = len(drawings) > 1 and rng.random() < 1 / 3
                pairs[row, column] = drawings[rng.integers(len(drawings))] if toned else drawings[0]
        return pairs

    def sample_text(self, item: Item, rng: np.random.Generator) -> str:
        """Return a random text about an item: tags, label and tags, or kind and colour."""
        draw = rng.random()
        tags, kinds, colours = item.tags, item.kinds, item.colours
        if item.gloss:
            if tags and draw < 0.4:
                return _pick(tags, rng)
            return _pick(kinds, rng) if kinds and draw < 0.7 else _beginning(item.gloss)
        if tags and draw < 0.4:
            return _pick(tags, rng)
        if tags and draw < 0.55:
            return " ".join(rng.permutation(tags)[: rng.integers(2, 4)].tolist())
        if tags and draw < 0.7:
            return f"{item.label} {' '.join(rng.permutation(tags)[:2].tolist())}"
        if not kinds:
            return item.label
        kind = _pick(kinds, rng)
        if colours and rng.random() < 0.6:
            kind = f"{_pick(colours, rng)} {kind}"
        if tags and rng.random() < 0.25:
            kind = f"{_pick(tags, rng)} {kind}"
        indefinite = "an " if kind[0].lower() in "aeiou" else "a "
        return (indefinite, "the ", "")[rng.integers(3)] + kind

    def word_weights(self, vocabulary: Vocabulary) -> np.ndarray:
        """Return (items, V) float32: 2 for words of the label, 1 of tags, 0.5 of kind and colour.

        For a class, twice the weights of its words.
        """
        weights = np.zeros((len(self.items), len(vocabulary)), np.float32)
        for row, item in enumerate(self.items[self.drawn :], self.drawn):
            columns, values = word_columns(item.words, vocabulary)
            weights[row, columns] = 2 * np.array(values, np.float32)
        for row, item in enumerate(self.items[: self.drawn]):
            for weight, texts in (
                (0.5, item.kinds + item.colours),
                (1.0, item.tags),
                (2.0, (item.label,)),
            ):
                columns = content_columns(" ".join(texts), vocabulary)
                weights[row, columns] = weight
        return weights

    def _colours(self, count: int) -> list[list[str]]:
        names = [name for name, points in COLOURS.items() for _ in points]
        points = np.array([p for ps in COLOURS.values() for p in ps], np.float32)
        shares = np.zeros((count, len(points)), np.float32)
        plain = self.tone == 0
        for row in np.flatnonzero(plain):
            pixels = self.pixels[row, ::2, ::2]  # a quarter is enough
            opaque = pixels[pixels[..., 3] > 128][:, :3].astype(np.float32)
            if len(opaque):
                nearest = ((opaque[:, None] - points) ** 2).sum(-1).argmin(1)
                shares[self.item[row]] += np.bincount(nearest, minlength=len(points)) / len(opaque)
        drawn = np.maximum(np.bincount(self.item[plain], minlength=count), 1)
        found: list[list[str]] = []
        for share in shares / drawn[:, None]:
            total: dict[str, float] = {}
            for name, part in zip(names, share, strict=True):
                total[name] = total.get(name, 0.0) + float(part)
            found.append([name for name, part in total.items() if part > MIN_COLOUR_SHARE])
        return found


def content_columns(text: str, vocabulary: Vocabulary) -> list[int]:
    """Return the sorted columns of a text's words, without stop words."""
    words = words_of(text)
    found = (vocabulary.find(word) for word in words if word not in STOP_WORDS)
    return sorted({column for column in found if column is not None})


def word_columns(
    words: Mapping[str, float], vocabulary: Vocabulary
) -> tuple[list[int], list[float]]:
    """Return columns and weights of the words that have a column."""
    found = ((vocabulary.find(word), weight) for word, weight in words.items())
    pairs = [(column, weight) for column, weight in found if column is not None]
    return [column for column, _ in pairs], [weight for _, weight in pairs]


def words_of(text: str) -> list[str]:
    """Split a text into lower-case words of letters and digits, without accents."""
    decomposed = unicodedata.normalize("NFKD", text.lower())
    plain = "".join(c for c in decomposed if not unicodedata.combining(c))
    return "".join(c if c.isascii() and c.isalnum() else " " for c in plain).split()


def _item(line: dict, colours: list[str]) -> Item:
    kinds = tuple(KINDS.get(line["subgroup"], ()))
    named = () if line["group"] in _COLOURLESS else tuple(colours)
    return Item(line["id"], line["label"], tuple(line["tags"]), kinds, named, line["subgroup"])


def _class(line: ImageClass) -> Item:
    names, above = tuple(line.names[1:]), tuple(line.above)
    return Item(line.id, line.label, names, above, gloss=line.gloss, words=line.words)


def _beginning(gloss: str) -> str:
    """Return the first words: one long text would pad the whole batch."""
    return " ".join(gloss.split()[:_GLOSS_WORDS])


def _pick(choices: tuple[str, ...], rng: np.random.Generator) -> str:
    return choices[rng.integers(len(choices))]
