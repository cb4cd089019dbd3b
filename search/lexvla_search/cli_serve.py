"""The arguments of ``lexvla serve`` and ``lexvla api-key``."""

from __future__ import annotations

import argparse
from collections.abc import Callable

__all__ = ["add_api_key", "add_serve"]


def add_serve(parser: argparse.ArgumentParser, positive: Callable[[str], int]) -> None:
    """Add what ``lexvla serve`` takes, beside the index and the model."""
    parser.add_argument("--host", default="127.0.0.1", help="where to listen (127.0.0.1)")
    parser.add_argument("--port", type=_port, default=8080, help="the port (8080); 0 for any")
    parser.add_argument(
        "--keys", metavar="FILE", help="who may read and write; must be given beyond this machine"
    )
    parser.add_argument("--images", metavar="DIR", help="show pictures that lie in this folder")
    parser.add_argument(
        "--allow-image-host",
        action="append",
        metavar="HOST",
        help="fetch an image_url from this host; may be given several times",
    )
    parser.add_argument("--workers", type=positive, default=1, metavar="N", help="processes (1)")
    parser.add_argument("--create", action="store_true", help="make the index if there is none")
    parser.add_argument("--no-model", action="store_true", help="search by plain words alone")
    parser.add_argument("--log-queries", action="store_true", help="log what people look for")
    limits = parser.add_argument_group("limits of a request, and of all together")
    limits.add_argument("--max-body", dest="body_bytes", type=positive, metavar="BYTES")
    limits.add_argument("--max-pixels", dest="pixels", type=positive, metavar="N")
    limits.add_argument("--max-k", dest="k", type=positive, metavar="N")
    limits.add_argument("--body-seconds", type=positive, metavar="S")
    limits.add_argument("--concurrency", type=positive, metavar="N")
    limits.add_argument("--wait-seconds", type=positive, metavar="S")


def add_api_key(parser: argparse.ArgumentParser) -> None:
    """Add what ``lexvla api-key`` takes."""
    parser.add_argument("--keys", required=True, metavar="FILE", help="made if there is none")
    parser.add_argument("--scope", choices=("read", "write"), help="write may read too")
    parser.add_argument("--name", metavar="N", help="how the file and the log call it")
    parser.add_argument("--revoke", metavar="N", help="take this key out instead")


def _port(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and int(text) < 65536):
        raise argparse.ArgumentTypeError(f"{text!r} is no port from 0 to 65535")
    return int(text)
