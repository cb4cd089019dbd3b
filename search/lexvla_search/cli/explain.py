"""``lexvla explain``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from PIL import Image

from lexvla.errors import InputError, UnsupportedError
from lexvla.images import open_image
from lexvla_indexer import open_index
from lexvla_indexer.base import Index
from lexvla_indexer.path_ids import path_of_text
from lexvla_search.cli.arguments import IndexOptions, JsonOptions, flag, option, positional
from lexvla_search.cli.console import UsageError, note, one_line, print_json
from lexvla_search.cli.query import QueryOptions, described, located, score_of, tell_of_text
from lexvla_search.explanation import Explanation
from lexvla_search.heatmap import heatmap, match_map, word_map
from lexvla_search.searcher import Hit, Searcher

if TYPE_CHECKING:
    from lexvla import LexVLA

CAPTION_WORDS = 6  # under a heat map


@dataclass(frozen=True)
class Options(QueryOptions, IndexOptions, JsonOptions):
    """Which score to explain, and what to draw."""

    id: str = positional("the item's id, as search prints it", metavar="ID")
    picture: str | None = option("draw the parts beside the image", metavar="PNG")
    heatmap: str | None = option("draw where the words were read from", metavar="PNG")
    word: str | None = option("draw this word only", metavar="W")
    nearest: bool = flag("tell which words the item's dense vector is nearest to")


def run(options: Options) -> int:
    """Print one item's score in full, and draw where its words were read from."""
    query = options.query()
    if not query.is_scored:
        raise UsageError("a query must have a text, an image, terms or similar items")
    if options.word and not options.heatmap:
        raise UsageError("--word needs --heatmap")
    if options.heatmap and options.no_model:
        raise UsageError("--heatmap needs a model; --picture does not")
    if options.nearest and options.no_model:
        raise UsageError("--nearest needs a model")
    with open_index(options.index) as source:
        model = options.encoder()
        searcher = Searcher(model, source)
        read = searcher.encode(query)
        (hit,) = located([searcher.explain(query, options.id)], source)
        if options.heatmap and model is not None:
            _draw(model, source, hit, options.word).save(options.heatmap, format="PNG")
        if options.picture:
            _picture(model, hit).save(options.picture, format="PNG")
        nearest = _nearest(model, source, hit.id) if options.nearest and model is not None else []
    drawn = {"heatmap": options.heatmap, "picture": options.picture}
    if options.json:
        near = [{"word": word, "cosine": cosine} for word, cosine in nearest]
        said = {"nearest": near} if options.nearest else {}
        print_json({"query": described(query, read), "hit": hit.to_dict(), **drawn, **said})
        return 0
    tell_of_text(read.unknown, read.unread)
    place = "not among the best" if hit.rank is None else f"rank {hit.rank}"
    print(f"{one_line(hit.label)}  {hit.id}  {score_of(hit)}  {place}")
    print(hit.explanation)
    if nearest:
        words = "  ".join(f"{word} {cosine:.3f}" for word, cosine in nearest)
        print(f"\nits dense vector is nearest to those of  {words}")
    for path in filter(None, drawn.values()):
        note(f"lexvla: drew {path}")
    return 0


def _nearest(model: LexVLA, source: Index, name: str) -> list[tuple[str, float]]:
    dense = source.vectors([name]).dense
    if dense is None:
        raise UnsupportedError(f"--nearest: {source} has no dense vectors")
    return model.nearest_words(dense)[0]


def _image_of(hit: Hit) -> Image.Image:
    if not hit.document.uri:
        raise InputError(hit.id, "the index does not know where this item's image is")
    return open_image(path_of_text(hit.document.uri))


def _draw(model: LexVLA, source: Index, hit: Hit, word: str | None) -> Image.Image:
    image = _image_of(hit)
    if word is not None:
        weights = word_map(model, image, word, source.vectors([hit.id]))
        return heatmap(image, weights, caption=word)
    explanation = hit.explanation or Explanation((), 0.0)
    caption = explanation.summary(top=CAPTION_WORDS)
    return heatmap(image, match_map(model, image, explanation), caption)


def _picture(model: LexVLA | None, hit: Hit) -> Image.Image:
    explanation = hit.explanation or Explanation((), 0.0)
    return explanation.picture(_image_of(hit) if hit.document.uri else None, model)
