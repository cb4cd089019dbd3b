"""``lexvla search``, ``explain`` and ``fit-fusion``. Each returns an exit code."""

from __future__ import annotations

import argparse
import re
from typing import TYPE_CHECKING, Any

from PIL import Image

from lexvla.errors import InputError
from lexvla.images import open_image
from lexvla_indexer import open_index
from lexvla_indexer.base import Index
from lexvla_search import commands
from lexvla_search.console import UsageError, note, print_columns, print_json
from lexvla_search.encoded_query import encode_query
from lexvla_search.explanation import Explanation
from lexvla_search.fusion import named_fusion
from lexvla_search.heatmap import heatmap, match_map, word_map
from lexvla_search.query import Query
from lexvla_search.searcher import Answer, Hit, Searcher

if TYPE_CHECKING:
    from lexvla import LexVLA

__all__ = ["described", "explain", "fit_fusion", "hit_rows", "search"]

LABEL_WIDTH = 36
TABLE_ROWS = 20  # of one hit among several; `explain` and --json give all


def search(args: argparse.Namespace) -> int:
    """Print the best hits of a query."""
    query = _query(args)
    with open_index(args.index) as source:
        searcher = Searcher(_model(args), source)
        if args.show_query:
            return _show_query(args, query, searcher)
        # People always see the strongest words; programs get the explanation when they ask.
        answer = searcher.answer(query, explain=args.explain or not args.json)
    hits = answer.hits
    if args.json:
        hit_data = [hit.to_dict() for hit in hits]
        print_json({"query": described(query, answer), "hits": hit_data})
        return 0
    if not hits:
        note("lexvla: no hits")
    if args.explain:
        for hit in hits:
            print(f"{hit.rank}. {_one_line(hit.label)}  {hit.id}  score {hit.score:.4f}")
            print(hit.explanation.table(TABLE_ROWS) if hit.explanation else "", end="\n\n")
    else:
        print_columns(hit_rows(hits))
    return 0


def explain(args: argparse.Namespace) -> int:
    """Print one item's score in full, and draw where its words were read from."""
    query = _query(args)
    if args.word and not args.heatmap:
        raise UsageError("--word needs --heatmap")
    if args.heatmap and args.no_model:
        raise UsageError("--heatmap needs a model; --picture does not")
    with open_index(args.index) as source:
        model = _model(args)
        searcher = Searcher(model, source)
        hit = searcher.explain(query, args.id)
        if args.heatmap and model is not None:
            _draw(model, source, hit, args.word).save(args.heatmap, format="PNG")
        if args.picture:
            _picture(model, hit).save(args.picture, format="PNG")
    drawn = {"heatmap": args.heatmap, "picture": args.picture}
    if args.json:
        print_json({"query": described(query), "hit": hit.to_dict(), **drawn})
        return 0
    place = "not among the best" if hit.rank is None else f"rank {hit.rank}"
    print(f"{_one_line(hit.label)}  {hit.id}  score {hit.score:.4f}  {place}")
    print(hit.explanation)
    for path in filter(None, drawn.values()):
        note(f"lexvla: drew {path}")
    return 0


def fit_fusion(args: argparse.Namespace) -> int:
    """Learn how to weigh an index's legs, keep that with the index, and print the gain."""
    from lexvla_search.evaluation.trec import read_qrels, read_queries
    from lexvla_search.fitting import fit_fusion as fit
    from lexvla_search.fitting import save_fusion

    queries, qrels = read_queries(args.queries), read_qrels(args.qrels)
    with open_index(args.index) as source:
        searcher = Searcher(commands.load_model(args.model, args.device), source)
        fitted = fit(searcher, queries, qrels, args.measure, show_progress_bar=None)
        if not args.dry_run:
            save_fusion(source, fitted.fusion, fitted.to_dict())
    if args.json:
        print_json({"index": args.index, "stored": not args.dry_run, **fitted.to_dict()})
        return 0
    print(fitted)
    if not args.dry_run:
        note(f"lexvla: searches of {args.index} that name no fusion now use this one")
    return 0


def hit_rows(hits: list[Hit]) -> list[tuple[str, ...]]:
    """Return hits as rows of a table: rank, score, label, id and the strongest words."""
    digits = max((len(str(hit.rank)) for hit in hits), default=1)
    return [
        (
            f"{hit.rank:>{digits}}",
            f"{hit.score:.3f}",
            _one_line(hit.label),
            hit.id,
            hit.explanation.summary() if hit.explanation else "",
        )
        for hit in hits
    ]


def described(query: Query, answer: Answer | None = None) -> dict[str, Any]:
    """Return a query for programs; with its answer, also the words, legs and fusion it came to."""
    data = {"description": query.describe(), **query.to_dict()}
    if answer is None:
        return data
    words = [{"word": word, "weight": weight} for word, weight in answer.words]
    return {**data, "words": words, "legs": list(answer.legs), "fusion": str(answer.fusion)}


def _show_query(args: argparse.Namespace, query: Query, searcher: Searcher) -> int:
    """Print the request of each leg; bans, requirements and fusion come after the answers."""
    index = searcher.index
    encoded = encode_query(query, searcher.model).encoding
    requests = index.requests(encoded, query.offset + query.k, query.legs, query.filter)
    if args.json:
        print_json({"index": args.index, "requests": requests})
    else:
        print(index.show(requests))
    return 0


def _one_line(label: str) -> str:
    # A document's text may be long, and hold line breaks or codes that steer a terminal.
    plain = re.sub(r"[\s\x00-\x1f\x7f-\x9f]+", " ", label).strip()
    return plain if len(plain) <= LABEL_WIDTH else plain[: LABEL_WIDTH - 1] + "\u2026"


def _model(args: argparse.Namespace) -> LexVLA | None:
    return None if args.no_model else commands.load_model(args.model, args.device)


def _query(args: argparse.Namespace) -> Query:
    hits = {name: getattr(args, name) for name in ("k", "offset", "min_score") if name in args}
    try:
        fusion = args.fusion
        if args.weights is not None:
            fusion = named_fusion(fusion or "weighted", args.weights)
        return Query(
            text=args.text,
            image=args.image,
            region=args.region,
            terms=dict(args.term),
            boost=dict(args.boost),
            ban=args.ban,
            require=args.require,
            filter=args.filter,
            legs=args.legs,
            fusion=fusion,
            **hits,
        )
    except InputError as error:
        raise UsageError(str(error)) from error


def _image_of(hit: Hit) -> Image.Image:
    if not hit.document.uri:
        raise InputError(hit.id, "the index does not know where this item's image is")
    return open_image(hit.document.uri)


def _draw(model: LexVLA, source: Index, hit: Hit, word: str | None) -> Image.Image:
    image = _image_of(hit)
    if word is not None:
        weights = word_map(model, image, word, source.vectors([hit.id]))
        return heatmap(image, weights, caption=word)
    explanation = hit.explanation or Explanation((), 0.0)
    return heatmap(image, match_map(model, image, explanation), explanation.summary(top=6))


def _picture(model: LexVLA | None, hit: Hit) -> Image.Image:
    explanation = hit.explanation or Explanation((), 0.0)
    if not hit.document.uri:
        return explanation.picture()
    image = _image_of(hit)
    placed = any(match.patch is not None for match in explanation.matches)
    if model is None or not placed:
        return explanation.picture(image)
    return explanation.picture(image, weights=match_map(model, image, explanation))
