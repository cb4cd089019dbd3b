"""Options and output that ``lexvla search`` and ``lexvla explain`` share."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from lexvla.errors import InputError
from lexvla.image_formats import MAX_PIXELS
from lexvla_indexer.base import Index
from lexvla_indexer.legs import Leg
from lexvla_indexer.roots import Roots
from lexvla_search.cli.arguments import ModelOptions, flag, option, positional, positive
from lexvla_search.cli.console import UsageError, note, one_line
from lexvla_search.encoded_query import EncodedQuery
from lexvla_search.field_weights import field_weights_of
from lexvla_search.fusion import FUSIONS, LEGS, Fusion, FusionName, named_fusion
from lexvla_search.query import Query
from lexvla_search.searcher import Answer, Hit
from lexvla_search.typed_words import UnknownWord, say_unknown

if TYPE_CHECKING:
    from PIL import Image

    from lexvla import LexVLA
    from lexvla_search.cli.remote import RemoteAnswer


def finite(text: str) -> float:
    """Read a finite number."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"must be a finite number, not {text!r}")
    return value


def _weighted(text: str) -> tuple[str, float]:
    word, sign, weight = text.rpartition("=")
    if not sign or not word.strip():
        raise argparse.ArgumentTypeError(
            f"must be a word with a weight, such as red=2, not {text!r}"
        )
    return word, finite(weight)


def _similar(text: str) -> tuple[str, float]:
    """Read an id, perhaps with a weight: an id may have ``=`` in it."""
    name, sign, weight = text.rpartition("=")
    if not sign or not name:
        return text, 1.0
    try:
        return name, finite(weight)
    except argparse.ArgumentTypeError:
        return text, 1.0


def _listed(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(","))


def _weights(text: str) -> dict[str, float]:
    return dict(_weighted(part) for part in _listed(text))


def _region(text: str) -> tuple[float, ...]:
    values = tuple(finite(part) for part in text.split(","))
    if len(values) != 4:
        raise argparse.ArgumentTypeError(f"must be x,y,width,height, not {text!r}")
    return values


def _text_fields(text: str) -> dict[str, float]:
    try:
        return field_weights_of(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _words(what: str, metavar: str, kind: Any = str) -> Any:
    return option(what, action="append", default=[], type=kind, metavar=metavar)


@dataclass(frozen=True)
class QueryOptions(ModelOptions):
    """What to look for."""

    text: str | None = positional("what to look for", metavar="TEXT", nargs="?")
    image: str | None = option("look for images like this one", metavar="FILE")
    region: tuple[float, float, float, float] | None = option(
        "... like this part of it, in pixels", type=_region, metavar="X,Y,W,H"
    )
    max_pixels: int | None = option(
        f"largest width x height of the image ({MAX_PIXELS:,})", type=positive, metavar="N"
    )
    term: list[tuple[str, float]] = _words("add a word to the query as it is", "WORD=W", _weighted)
    similar: list[tuple[str, float]] = _words(
        "look for items like this one of the index", "ID[=W]", _similar
    )
    boost: list[tuple[str, float]] = _words(
        "multiply a word's weight in the query", "WORD=F", _weighted
    )
    ban: list[str] = _words("drop a word from the query, and hits that show it", "WORD")
    require: list[str] = _words("only hits that show this word", "WORD")
    filter: str | None = option(
        "only items whose metadata match, such as 'year>=2020 and tag=cat'", metavar="F"
    )
    legs: tuple[Leg, ...] | None = option(
        f"search by these of {', '.join(LEGS)} (default: all but codes)",
        type=_listed,
        metavar="L,L",
    )
    text_fields: dict[str, float] | None = option(
        "fields of an attached index to look for the text's words in, such as title^2,description",
        type=_text_fields,
        metavar="F[^W],..",
    )
    fusion: FusionName | None = option("how to merge the legs' lists", choices=FUSIONS)
    weights: dict[Leg, float] | None = option(
        "how much each leg counts, such as lexical=0.7,dense=0.3", type=_weights, metavar="L=W,.."
    )
    no_model: bool = flag("load no model: plain words, each of weight 1")

    def query(self, **hits: Any) -> Query:
        """Return the query, or raise `UsageError`; `hits` are settings of which hits to return."""
        image: str | Image.Image | None = self.image
        if self.max_pixels is not None:
            if self.image is None:
                raise UsageError("--max-pixels goes with --image")
            image = self._opened(self.image, self.max_pixels)
        try:
            fusion: FusionName | Fusion | None = self.fusion
            if self.weights is not None:
                fusion = named_fusion(self.fusion or "weighted", self.weights)
            return Query(
                text=self.text,
                image=image,
                region=self.region,
                terms=dict(self.term),
                similar=dict(self.similar),
                boost=dict(self.boost),
                ban=self.ban,
                require=self.require,
                filter=self.filter,
                legs=self.legs,
                text_fields=self.text_fields,
                fusion=fusion,
                **hits,
            )
        except InputError as error:
            raise UsageError(str(error)) from error

    def _opened(self, path: str, max_pixels: int) -> Image.Image:
        from lexvla.images import ENOUGH_SIDE, open_image

        least = None if self.region else ENOUGH_SIDE  # a region is in pixels of the whole
        image = open_image(path, max_pixels=max_pixels, least_side=least)
        image.filename = path  # type: ignore[attr-defined]  # what messages call it
        return image

    def encoder(self) -> LexVLA | None:
        """Load the model, unless the query does without one."""
        return None if self.no_model else self.load_model()


def score_of(hit: Hit) -> str:
    """Return a hit's score, with its relevance if it has one."""
    if hit.score is None:
        return "no score"
    relevance = "" if hit.relevance is None else f", relevance {100 * hit.relevance:.0f}%"
    return f"score {hit.score:.4f}{relevance}"


def tell_of_text(unknown: Sequence[UnknownWord], unread: str) -> None:
    """Name what a model does not understand of a query's text."""
    if unknown:
        note(f"lexvla: {say_unknown(unknown)}")
    if unread:
        note(f"lexvla: the text is too long: the model does not read {one_line(unread)!r}")


def located(hits: Iterable[Hit], index: Index) -> list[Hit]:
    """Return hits whose uris are paths that can be opened here."""
    roots = Roots(index)
    return [
        replace(hit, document=replace(hit.document, uri=roots.locate(hit.document))) for hit in hits
    ]


def described(query: Query, read: Answer | RemoteAnswer | EncodedQuery) -> dict[str, Any]:
    """Return a query as JSON values, with what was read of it."""
    return {
        "description": query.describe(),
        **query.to_dict(),
        "words": [{"word": word, "weight": weight} for word, weight in read.words],
        "unknown": [word.to_dict() for word in read.unknown],
        "unread": read.unread,
    }
