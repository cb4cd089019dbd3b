"""Pyserini with queries of this project's models: a query encoder, topics, and its commands.

    python -m lexvla_search.pyserini search.lucene --impact --encoder lexvla --topics FILE ...

runs a command of Pyserini in a process set up for it, with ``lexvla`` (the default model) and
``lexvla:PATH`` as names of encoders. See docs/pyserini.md.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import runpy
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from lexvla.encoder import Encoder
from lexvla.errors import InputError, LexVLAError
from lexvla_indexer.durable import naming, replacing
from lexvla_indexer.jdk import find_jdk
from lexvla_indexer.lucene.jvm import java_class, start_java
from lexvla_indexer.lucene.scoring import query_weights
from lexvla_search.cli.console import note
from lexvla_search.encoded_query import encode_query
from lexvla_search.query import Query
from lexvla_search.typed_words import understood

__all__ = ["QUERY_SCALE", "LexVLAQueryEncoder", "main", "write_topics"]

# A query weight of 1. With impacts up to 255, sums over up to 1,024 words of a unit vector stay
# below 2^24, up to which Lucene's float32 holds all integers.
QUERY_SCALE = 2048

_NAME = "lexvla"
_PACKAGE = "pyserini"
_SEARCH = "search.lucene"
_MOST_CLAUSES = 2**31 - 1  # by default, Lucene refuses queries of over 1,024 words
_REFUSED = ("similar", "ban", "require", "filter")
_BATCH = 64
_KEPT = 4096  # encoded texts; topics may have the same one twice


class LexVLAQueryEncoder:
    """Give Pyserini's `LuceneImpactSearcher` a query's words with integer weights.

    ::

        with pyserini_imports():
            from pyserini.search.lucene import LuceneImpactSearcher
        searcher = LuceneImpactSearcher("photos.lucene", LexVLAQueryEncoder(model), min_idf=-1)
        searcher.search("red heart", k=10)
        searcher.search(Query(image="cat.png"), k=10)

    A weight w becomes round(w x 2048), at least 1; the factor is smaller for a long query of great
    weights, whose sums would exceed what Lucene adds exactly. A document's score divided by 2048
    and by the index's own scale is the dot product. A text without known words finds nothing. The
    model must be that of the index.

    Pyserini asks for one text at a time. Those that `expect` was told are encoded in batches, and
    the latest are kept.
    """

    def __init__(self, model: Encoder) -> None:
        self._model = model
        self._expected: dict[str, None] = {}  # an ordered set
        self._made: dict[str, dict[str, int]] = {}

    def expect(self, texts: Iterable[str]) -> None:
        """Name texts that `encode` will be asked for, in their order."""
        self._expected = dict.fromkeys(texts)

    def encode(self, query: str | Query, **_: object) -> dict[str, int]:
        """Return the query's terms with their weights.

        `InputError` if the query has similar items, a ban, a requirement or a filter, which
        Pyserini lacks.
        """
        if isinstance(query, str):
            if query not in self._made:
                self._encode_ahead(query)
            return dict(self._made[query])
        if refused := [name for name in _REFUSED if getattr(query, name)]:
            rule = f"Pyserini cannot search by {', '.join(refused)}"
            raise InputError(query.describe(), rule)
        row = encode_query(query, self._model).encoding.lexical
        return _integers(row, self._model.vocabulary.terms)

    def _encode_ahead(self, query: str) -> None:
        """Encode a text, and if it was expected others with it."""
        batch = [query]
        if query in self._expected:
            del self._expected[query]
            batch += islice(self._expected, _BATCH - 1)
        read = [understood(text, self._model)[0] for text in batch]
        rows = self._model.encode_text(read).lexical
        for at, text in enumerate(batch):
            self._made[text] = _integers(rows[[at]], self._model.vocabulary.terms)
            self._expected.pop(text, None)
        while len(self._made) > _KEPT:
            del self._made[next(iter(self._made))]


def write_topics(path: str | Path, queries: Mapping[str, Query], model: Encoder) -> int:
    """Write queries as one ``.jsonl`` file, both topics and encoder for Pyserini's search command.

    A line has ``id``; ``title``, which Pyserini asks by; ``contents``, the same, by which it finds
    ``vector``, the words with the weights that `LexVLAQueryEncoder` gives. The title is the text
    of a query of text alone, and otherwise its id. Titles must differ.

    The file is written atomically. Returns how many queries have no words and so find nothing.
    """
    wordless = 0
    vectors: dict[str, dict[str, int]] = {}
    lines = []
    for name, title, vector in _topics(queries, model):
        if vectors.setdefault(title, vector) != vector:
            raise InputError(title, "is the text of one query and the id of another")
        wordless += not vector
        line = {"id": name, "title": title, "contents": title, "vector": vector}
        lines.append(json.dumps(line, ensure_ascii=False) + "\n")
    with replacing(Path(path)) as new, naming(new):
        new.write_text("".join(lines), encoding="utf-8", newline="\n")
    return wordless


def _topics(
    queries: Mapping[str, Query], model: Encoder
) -> Iterator[tuple[str, str, dict[str, int]]]:
    encoder = LexVLAQueryEncoder(model)
    texts = {name: query.text or "" for name, query in queries.items() if _is_text(query)}
    encoder.expect(texts.values())
    for name, query in queries.items():
        if name in texts:
            yield name, texts[name].strip(), encoder.encode(texts[name])
        else:
            yield name, name, encoder.encode(query)


def _is_text(query: Query) -> bool:
    others = (query.terms, query.boost, *(getattr(query, name) for name in _REFUSED))
    return query.image is None and query.has_text and not any(others)


def _integers(row: sparse.csr_array, terms: Sequence[str]) -> dict[str, int]:
    if not row.nnz:
        return {}
    scale = min(float(QUERY_SCALE), query_weights(row).scale)
    whole = np.maximum(np.rint(row.data.astype(np.float64) * scale), 1).astype(np.int64)
    names = (terms[column] for column in row.indices.tolist())
    return dict(zip(names, whole.tolist(), strict=True))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command of Pyserini: ``search.lucene``, ``index.lucene``, ``eval.trec_eval``, ...

    The process gets the Java that Lucene indexes would use, with its ``java`` first on ``PATH``;
    a placeholder for the key that Pyserini 1.6 asks for on import; queries of any number of words;
    and, for ``search.lucene --impact``, ``--min-idf -1`` unless the arguments say otherwise: at
    Pyserini's 0, words that every document has are dropped from queries.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0].startswith("-"):
        note(
            "usage: python -m lexvla_search.pyserini COMMAND ARGUMENT..., "
            "such as: search.lucene --help"
        )
        return 0 if given in (["-h"], ["--help"]) else 2
    command = given[0].removeprefix(f"{_PACKAGE}.")
    try:
        _prepare()
        module = f"{_PACKAGE}.{command}"
        if not _is_module(module):
            note(f"lexvla_search.pyserini: error: Pyserini has no command {command}")
            return 2
        if command == _SEARCH:
            _name_encoder()
            given += _min_idf(given)
        before, sys.argv = sys.argv, [module, *given[1:]]
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        finally:
            sys.argv = before
    except LexVLAError as error:
        note(f"lexvla_search.pyserini: error: {error}")
        return 1
    return 0


def _prepare() -> None:
    start_java()
    java_class("org.apache.lucene.search.IndexSearcher").setMaxClauseCount(_MOST_CLAUSES)
    home = find_jdk().home
    os.environ["OPENAI_API_KEY"] = os.environ.get("OPENAI_API_KEY") or "unused"
    os.environ["JAVA_HOME"] = str(home)
    # trec_eval starts the first java on the path.
    os.environ["PATH"] = os.pathsep.join([str(home / "bin"), os.environ.get("PATH", os.defpath)])


def _is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # the package before the last dot
        return False


def _min_idf(given: Sequence[str]) -> list[str]:
    if "--impact" not in given or any(part.split("=")[0] == "--min-idf" for part in given):
        return []
    note("lexvla_search.pyserini: --min-idf -1, so that words of every document count too")
    return ["--min-idf", "-1"]


def _name_encoder() -> None:
    from lexvla import LexVLA

    searcher = importlib.import_module("pyserini.search.lucene").LuceneImpactSearcher
    iterators: Any = importlib.import_module("pyserini.query_iterator")
    read_topics: Callable[..., Any] = iterators.get_query_iterator
    topics: list[str] = []

    def noted(*arguments: Any) -> Any:
        found = read_topics(*arguments)
        asked = map(found.get_query, found.order)
        topics[:] = (text for text in asked if isinstance(text, str))
        return found

    others: Callable[[str | None], Any] = searcher._init_query_encoder_from_str

    def named(encoder: str | None) -> Any:
        name, _, path = (encoder or "").partition(":")
        if name == _NAME:
            ours = LexVLAQueryEncoder(LexVLA.from_pretrained(path or None))
            ours.expect(topics)  # which the command has read before it makes its searcher
            return ours
        found = others(encoder)
        if found is None:
            rule = (
                "is neither a file of encoded queries nor an encoder that Pyserini or lexvla knows"
            )
            raise InputError(str(encoder), rule)
        return found

    searcher._init_query_encoder_from_str = staticmethod(named)
    iterators.get_query_iterator = noted


if __name__ == "__main__":
    raise SystemExit(main())
