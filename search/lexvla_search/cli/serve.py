"""``lexvla serve``."""

from __future__ import annotations

import argparse
import os
import re
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lexvla.errors import OptionalDependencyError
from lexvla_indexer import open_index
from lexvla_search.api.settings import LOOPBACK_HOSTS, Limits, Settings, bracketed, is_loopback
from lexvla_search.cli.arguments import (
    IndexOptions,
    ModelOptions,
    flag,
    load_model,
    option,
    positive,
)
from lexvla_search.cli.console import UsageError, note

if TYPE_CHECKING:
    from fastapi import FastAPI

_ORIGIN = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^/?#@\s]+")
_SHARED_FIGURES = "PROMETHEUS_MULTIPROC_DIR"


def _port(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and int(text) < 65536):
        raise argparse.ArgumentTypeError(f"must be a port from 0 to 65535, not {text!r}")
    return int(text)


def _origin(text: str) -> str:
    if text != "*" and not _ORIGIN.fullmatch(text):
        rule = "must be a scheme and a host without a path, such as https://shop.example, or *"
        raise argparse.ArgumentTypeError(f"{rule}, not {text!r}")
    return text.lower()


def _limit(what: str, metavar: str) -> Any:
    group = "limits of each request, and of all requests together"
    return option(what, type=positive, metavar=metavar, group=group)


@dataclass(frozen=True)
class Options(IndexOptions, ModelOptions):
    """What to serve, to whom, and within which limits."""

    host: str = option("where to listen (127.0.0.1)", default="127.0.0.1")
    port: int = option("the port (8080); 0 for any free one", type=_port, default=8080)
    keys: Path | None = option(
        "the file of API keys; required to serve other machines", type=Path, metavar="FILE"
    )
    images: list[Path] = option(
        "show pictures from this folder; may be given several times",
        action="append",
        default=[],
        type=Path,
        metavar="DIR",
    )
    thumbnails: int | None = option(
        "keep small copies of uploaded pictures, in a file of at most this size",
        type=positive,
        metavar="BYTES",
    )
    thumbnail_dir: Path | None = option(
        "keep them here (default: in the index's folder)", type=Path, metavar="DIR"
    )
    allow_image_host: list[str] | None = option(
        "fetch an image_url from this host; may be given several times",
        action="append",
        metavar="HOST",
    )
    cors_origin: list[str] | None = option(
        "let web pages of this origin use the API; may be given several times",
        action="append",
        type=_origin,
        metavar="ORIGIN",
    )
    workers: int = option("processes (1)", type=positive, default=1, metavar="N")
    create: bool = flag("create the index if there is none")
    no_model: bool = flag("search by plain words alone")
    log_queries: bool = flag("log what people look for")
    max_body: int | None = _limit("size of a request's body", "BYTES")
    max_pixels: int | None = _limit("size of an image", "N")
    max_k: int | None = _limit("hits of one search", "N")
    body_seconds: int | None = _limit("seconds to receive a body", "S")
    concurrency: int | None = _limit("requests at a time; more get 429", "N")
    wait_seconds: int | None = _limit("seconds that a request may wait for its turn", "S")


@dataclass(frozen=True)
class _Worker:
    settings: Settings
    model: str | None
    device: str
    without_model: bool

    def __call__(self) -> FastAPI:
        from lexvla_search.api import create_app
        from lexvla_search.api.logs import log_as_json

        log_as_json()
        model = None if self.without_model else load_model(self.model, self.device)
        return create_app(self.settings, model)


def run(options: Options) -> int:
    """Serve an index until a signal comes."""
    given = {
        "body_bytes": options.max_body,
        "body_seconds": options.body_seconds,
        "pixels": options.max_pixels,
        "k": options.max_k,
        "concurrency": options.concurrency,
        "wait_seconds": options.wait_seconds,
    }
    settings = Settings(
        index=options.index,
        keys=options.keys,
        images=tuple(options.images),
        thumbnails=options.thumbnails,
        thumbnail_folder=options.thumbnail_dir,
        image_hosts=tuple(options.allow_image_host or ()),
        origins=tuple(options.cors_origin or ()),
        log_queries=options.log_queries,
        limits=Limits(**{name: value for name, value in given.items() if value is not None}),
    )
    if options.thumbnail_dir is not None and options.thumbnails is None:
        raise UsageError("--thumbnail-dir needs --thumbnails BYTES")
    named = [("images", folder) for folder in options.images]
    for name, folder in (*named, ("thumbnail-dir", options.thumbnail_dir)):
        if folder is not None and not folder.is_dir():
            raise UsageError(f"--{name} must name a folder, not {folder}")
    if options.create and not options.no_model:
        model = options.load_model()
        open_index(
            options.index, create=True, vocabulary=model.vocabulary, model=model.name
        ).close()
    return serve(
        settings,
        host=options.host,
        port=options.port,
        workers=options.workers,
        model=options.model,
        device=options.device,
        without_model=options.no_model,
    )


def serve(
    settings: Settings,
    host: str = "127.0.0.1",
    port: int = 8080,
    workers: int = 1,
    model: str | None = None,
    device: str = "cpu",
    without_model: bool = False,
) -> int:
    """Serve an index until a signal comes, and finish the requests in progress.

    The ``hosts`` of the settings are set here. Port 0 takes any free port. Each worker process
    loads the model and reads the index; they take turns to write. `UsageError` if there are no
    keys and other machines could reach the server.
    """
    try:
        from lexvla_search.api.workers import BACKLOG, listen, run_one, run_several
    except ModuleNotFoundError as error:
        raise OptionalDependencyError(error.name or "fastapi", "serve") from error
    alone = is_loopback(host)
    if settings.keys is None and not alone:
        raise UsageError(
            f"at {host} others can reach the server: give --keys FILE "
            "(lexvla api-key --scope read --keys FILE makes one), or --host 127.0.0.1"
        )
    names = tuple(dict.fromkeys((*LOOPBACK_HOSTS, bracketed(host).lower())))
    settings = replace(settings, hosts=names if settings.keys is None else None)
    if settings.keys is not None:
        from lexvla_search.api.keys import read_keys

        read_keys(settings.keys)
    with open_index(settings.index) as index:  # fails before any process starts
        homeless = index.directory is None and settings.thumbnail_folder is None
        rights = "read and write" if index.is_writable else "read"
    if settings.thumbnails is not None and homeless:
        raise UsageError("an index on a server has no folder for thumbnails: give --thumbnail-dir")
    figures = None
    if workers > 1 and not os.environ.get(_SHARED_FIGURES):
        figures = tempfile.TemporaryDirectory(prefix="lexvla-figures-")
        os.environ[_SHARED_FIGURES] = figures.name
    make = _Worker(settings, model, device, without_model)
    options = {
        "log_config": None,
        "access_log": False,
        "server_header": False,
        "proxy_headers": False,
        "backlog": BACKLOG,
        "timeout_keep_alive": 15,
        "timeout_graceful_shutdown": int(settings.limits.shutdown_seconds),
        "h11_max_incomplete_event_size": 32 * 1024,
    }
    try:
        with listen(host, port) as listening:
            address = f"http://{bracketed(host)}:{listening.getsockname()[1]}/"
            if settings.keys is None:
                note(f"lexvla: without --keys: everyone on this machine may {rights} the index")
            note(f"lexvla: the page and the API: {address}")
            if workers > 1:
                served = run_several(make, options, listening, workers)
            else:
                served = run_one(make, options, listening)
    finally:
        if figures is not None:
            figures.cleanup()
            os.environ.pop(_SHARED_FIGURES, None)
    note("lexvla: the server has ended")
    return 0 if served else 1
