"""``lexvla index``."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from lexvla_indexer import open_index
from lexvla_indexer.encoded import index_encoded, read_origins
from lexvla_indexer.pipeline import index_source
from lexvla_search.cli.arguments import (
    IndexOptions,
    JsonOptions,
    ModelOptions,
    flag,
    not_empty,
    option,
    positional,
    refuse_options,
    whole,
)
from lexvla_search.cli.console import UsageError, print_json
from lexvla_search.cli.source import (
    SOURCE,
    SourceOptions,
    counts,
    details,
    exit_code,
    in_words,
)
from lexvla_search.cli.stopping import stopping

# Options that mean nothing to vectors that are encoded already.
WITH_SOURCE = (
    *("model", "text_field", "prune", "prune_anyway"),
    *("exclude", "no_default_excludes", "no_exif", "max_pixels", "batch_size", "device"),
    *("split", "config", "image_field", "id_field"),
)


@dataclass(frozen=True)
class Options(SourceOptions, IndexOptions, ModelOptions, JsonOptions):
    """What to put into an index, and how."""

    source: str | None = positional(SOURCE, metavar="SOURCE", nargs="?", type=not_empty)
    from_encoded: list[str] | None = option(
        "use vectors that lexvla encode wrote instead", nargs="+", metavar="FILE"
    )
    resume: bool = option(
        "skip items that are in the index unchanged (the default)",
        action=argparse.BooleanOptionalAction,
        default=True,
    )
    prune: bool = flag("delete items that the source no longer has, unless these are many")
    prune_anyway: bool = flag("delete them however many they are")
    rebuild: bool = flag(
        "fill a new index, and swap it for the old one at the end (Elasticsearch, OpenSearch)"
    )
    keep_old: int = option(
        "keep the N indices before it, for lexvla rollback (0)",
        type=whole,
        default=0,
        metavar="N",
    )


def run(options: Options) -> int:
    """Put a source, or files of vectors, into an index."""
    source, files = options.source, options.from_encoded or []
    if options.keep_old and not options.rebuild:
        raise UsageError("--keep-old goes with --rebuild")
    if (source is None) == (not files):
        raise UsageError("needs either a SOURCE or --from-encoded FILE...")
    if source is not None:
        # Before an empty index is created.
        opened = options.open(source)
        model = options.load_model(introduce=True)
        vocabulary, name = model.vocabulary, model.name
    else:
        refuse_options(options, WITH_SOURCE, "--from-encoded")
        origin = read_origins(files)
        vocabulary, name = origin.vocabulary, origin.model
    with (
        open_index(
            options.index, create=True, vocabulary=vocabulary, model=name, rebuild=options.rebuild
        ) as target,
        stopping() as stop,
    ):
        if source is None:
            report = index_encoded(files, target, resume=options.resume, stop=stop)
        else:
            report = index_source(
                opened,
                target,
                model,
                batch_size=options.batch_size,
                resume=options.resume,
                reading=options.reading,
                prune=options.prune,
                prune_anyway=options.prune_anyway,
                stop=stop,
            )
        failure = ""
        if not (report.stored or report.pruned):
            failure = f"nothing in {source or ' '.join(files)} could be added"
        code = exit_code(report, options.strict, failure)
        if options.rebuild and code == 0:
            target.publish(options.keep_old)
        count = target.count()
    numbers = counts(report, "unchanged")
    if options.json:
        print_json({"index": options.index, **numbers, **details(report), "documents": count})
    else:
        print(f"{in_words(report, 'unchanged')}; {count:,} in the index")
    return code
