"""``lexvla serve`` and ``lexvla api-key``: the REST API and the page, and keys for them."""

from __future__ import annotations

import argparse
import ipaddress
import os
import socket
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from lexvla.errors import LexVLAError, OptionalDependencyError
from lexvla_indexer import open_index
from lexvla_search.api.settings import LOOPBACK_HOSTS, Limits, Settings
from lexvla_search.commands import load_model
from lexvla_search.console import UsageError, note, print_json

if TYPE_CHECKING:
    from fastapi import FastAPI

__all__ = ["api_key", "run", "serve"]

_SHARED_FIGURES = "PROMETHEUS_MULTIPROC_DIR"
_BACKLOG = 2048  # connections that wait to be taken


@dataclass(frozen=True)
class _Worker:
    """Make the application in each process that serves."""

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


def run(args: argparse.Namespace) -> int:
    """Serve an index until a signal comes."""
    limits = Limits()
    for option in ("body_bytes", "body_seconds", "pixels", "k", "concurrency", "wait_seconds"):
        value = getattr(args, option)
        if value is not None:
            limits = replace(limits, **{option: value})
    settings = Settings(
        index=args.index,
        keys=None if args.keys is None else Path(args.keys),
        images=None if args.images is None else Path(args.images),
        image_hosts=tuple(args.allow_image_host or ()),
        log_queries=args.log_queries,
        limits=limits,
    )
    if settings.images is not None and not settings.images.is_dir():
        raise UsageError(f"--images must name a folder, and {args.images} is none")
    if args.create and not args.no_model:
        model = load_model(args.model, args.device)
        open_index(args.index, create=True, vocabulary=model.vocabulary, model=model.name).close()
    return serve(
        settings,
        host=args.host,
        port=args.port,
        workers=args.workers,
        model=args.model,
        device=args.device,
        without_model=args.no_model,
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
    """Serve an index until a signal comes, and finish what was begun.

    Args:
        settings: What to serve, and to whom; its ``hosts`` are set here.
        host: The address to listen at. Without keys it must be one of this machine alone.
        port: The port; 0 for any that is free.
        workers: Processes. Each loads the model and reads the index; they write in turns.
        model: A saved model; ``None`` for the default one.
        device: Where the model runs.
        without_model: Search by plain words alone.

    Raises:
        LexVLAError: The index, the model or the keys cannot be read, or the port is taken.
        OptionalDependencyError: The extra ``serve`` is not installed.
        UsageError: There are no keys, and others could reach the server.
    """
    try:
        from lexvla_search.api.workers import run_one, run_several
    except ModuleNotFoundError as error:
        raise OptionalDependencyError(error.name or "fastapi", "serve") from error
    alone = _is_loopback(host)
    if settings.keys is None and not alone:
        raise UsageError(
            f"at {host} others can reach the server: give --keys FILE "
            "(lexvla api-key --scope read --keys FILE makes one), or --host 127.0.0.1"
        )
    names = tuple(dict.fromkeys((*LOOPBACK_HOSTS, _bracketed(host).lower())))
    settings = replace(settings, hosts=names if settings.keys is None else None)
    if settings.keys is not None:
        from lexvla_search.api.keys import read_keys

        read_keys(settings.keys)
    open_index(settings.index).close()  # says what is wrong before any process starts
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
        "backlog": _BACKLOG,
        "timeout_keep_alive": 15,
        "timeout_graceful_shutdown": int(settings.limits.shutdown_seconds),
        "h11_max_incomplete_event_size": 32 * 1024,
    }
    try:
        with _listen(host, port) as listening:
            address = f"http://{_bracketed(host)}:{listening.getsockname()[1]}/"
            if settings.keys is None:
                note("lexvla: without --keys: all on this machine may read and write the index")
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


def api_key(args: argparse.Namespace) -> int:
    """Make a key, or revoke one."""
    from lexvla_search.api.keys import make_key, revoke_key

    path = Path(args.keys)
    if args.revoke is not None:
        revoke_key(path, args.revoke)
        if args.json:
            print_json({"revoked": args.revoke})
        else:
            print(f"revoked {args.revoke}")
        return 0
    if args.scope is None:
        raise UsageError("needs --scope read or --scope write, or --revoke NAME")
    secret, key = make_key(path, args.scope, args.name)
    if args.json:
        print_json({"key": secret, "name": key.name, "scope": key.scope})
    else:
        print(secret)
        note(f"lexvla: {path} keeps its hash only: this is the one time that you see it")
    return 0


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # The protocol by name: asyncio sends small packets at once (TCP_NODELAY) for such sockets only.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host.strip("[]"), port))
        listening.listen(_BACKLOG)  # who comes before the model is loaded waits
    except OSError as error:
        listening.close()
        raise LexVLAError(f"cannot listen at {host} port {port}: {error.strerror}") from error
    listening.set_inheritable(True)
    return listening


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _bracketed(host: str) -> str:
    return f"[{host.strip('[]')}]" if ":" in host else host
