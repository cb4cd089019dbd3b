"""``lexvla attach``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lexvla_indexer.elastic.attaching import attach
from lexvla_indexer.elastic.connection import Address, connect
from lexvla_indexer.elastic.elasticsearch_product import ELASTICSEARCH
from lexvla_indexer.elastic.filling import fill, tally
from lexvla_indexer.pointed_images import PointedImages
from lexvla_indexer.reading import Reading
from lexvla_search.cli.arguments import (
    JsonOptions,
    ModelOptions,
    flag,
    not_empty,
    option,
    positional,
)
from lexvla_search.cli.console import UsageError, print_json
from lexvla_search.cli.source import (
    BatchOptions,
    StrictOptions,
    counts,
    details,
    exit_code,
    in_words,
)
from lexvla_search.cli.stopping import stopping

# What is told of a run; the rest of a report is of sources that are read again and pruned.
TOLD = ("added", "unchanged", "rejected", "wordless", "texts cut", "with losses", "losses")
ADDRESS = "an index of your own, such as elasticsearch+http://localhost:9200/products"


@dataclass(frozen=True)
class Options(BatchOptions, StrictOptions, ModelOptions, JsonOptions):
    """Which index to fill, from which of its fields, and into which new ones."""

    address: str = positional(ADDRESS, metavar="ADDRESS", type=not_empty)
    image_field: str | None = option(
        "the field with the URL, path or base64 of an image", type=not_empty, metavar="F"
    )
    text_field: list[str] = option(
        "a field whose text is encoded where there is no image; may be given several times",
        action="append",
        default=[],
        type=not_empty,
        metavar="F",
    )
    lexical_field: str | None = option(
        "the field to add for weighted words, such as lex", type=not_empty, metavar="F"
    )
    dense_field: str | None = option(
        "the field to add for dense vectors, such as vec (default: none)",
        type=not_empty,
        metavar="F",
    )
    since: str | None = option(
        "find new and changed documents by this date field (default: by sequence numbers)",
        type=not_empty,
        metavar="F",
    )
    allow_host: list[str] = option(
        "fetch images from this host (host, or host:port); may be given several times",
        action="append",
        default=[],
        type=not_empty,
        metavar="HOST",
    )
    allow_private_host: list[str] = option(
        "fetch from this host although its address is private or loopback",
        action="append",
        default=[],
        type=not_empty,
        metavar="HOST",
    )
    image_root: str | None = option(
        "read images that are paths, in this folder only", type=not_empty, metavar="DIR"
    )
    retry_rejected: bool = flag("try documents again that were rejected before")
    recheck: bool = flag("read every document and image again; encode those that changed")
    allow_rewriting: bool = flag(
        "let the server rewrite numbers (12.50 as 12.5), where it keeps vectors out of _source"
    )


def own_index(address: str) -> Address:
    """Read an address of Elasticsearch."""
    if not address.startswith(f"{ELASTICSEARCH.engine}+"):
        raise UsageError("only an index of Elasticsearch can be attached: elasticsearch+http://...")
    return Address.parse(address)


def run(options: Options) -> int:
    """Add fields to an index of the user's own, and fill them."""
    address = own_index(options.address)
    root = None if options.image_root is None else Path(options.image_root)
    if root is not None and not root.is_dir():
        raise UsageError(f"--image-root: {options.image_root!r} is not a folder")
    with connect(address) as client:
        model = options.load_model(introduce=True)
        attachment = attach(
            client,
            address,
            model,
            image_field=options.image_field,
            text_fields=options.text_field,
            lexical_field=options.lexical_field,
            dense_field=options.dense_field,
            since_field=options.since,
            rewritten=options.allow_rewriting,
        )
        with stopping() as stop:
            report = fill(
                client,
                address,
                attachment,
                model,
                PointedImages(options.allow_host, options.allow_private_host, root),
                retry_rejected=options.retry_rejected,
                recheck=options.recheck,
                batch_size=options.batch_size,
                reading=Reading(max_pixels=options.max_pixels),
                stop=stop,
            )
        filled, rejected = tally(client, address, attachment)
    listed = f"documents that have {attachment.state_field}.rejected"
    listed += "; --retry-rejected tries them again"
    code = exit_code(report, options.strict, "", listed)
    if options.json:
        told = counts(report, "unchanged") | details(report)
        facts = {name: told[name] for name in TOLD}
        held = {"documents": filled, "rejected_documents": rejected}
        print_json({"index": options.address, **facts, **held})
    else:
        held_words = f"{filled:,} filled and {rejected:,} rejected in the index"
        print(f"{in_words(report, 'unchanged')}; {held_words}")
    return code
