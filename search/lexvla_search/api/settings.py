"""A server's settings: where its data is, and its limits."""

from __future__ import annotations

import ipaddress
import secrets
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["LOOPBACK_HOSTS", "Limits", "Settings", "bracketed", "is_loopback"]

LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "[::1]")
_MIB = 1 << 20


@dataclass(frozen=True)
class Limits:
    """Limit what one request, and all of them together, may take.

    Attributes:
        body_bytes: Of a request's body, of one line of an upsert, and of a fetched image.
        upsert_bytes: Of all lines of one upsert, which are read as a stream.
        received_bytes: Of all bodies, and images fetched for them, in memory at one time.
        body_seconds: For a body to arrive; an upsert's may pause for as long.
        pixels: Of an image, width times height.
        decoded_pixels: Of all images that are decoded at one time; never less than `pixels`.
        k: Hits of one search.
        offset: Hits that a search may skip.
        words: In each of terms, boost, ban and require.
        queries: Of one call of ``/v1/search/batch``.
        items: Texts or images of one call of ``/v1/encode``.
        concurrency: Requests in work or waiting; more are answered with 429.
        upserts: The same for upserts.
        wait_seconds: For a thread and the model, once the request has arrived; then it gets a 429.
        threads: For searches, besides the model's own.
        writer_seconds: To wait for another process that writes to the index.
        shutdown_seconds: To finish requests at the end.
    """

    body_bytes: int = 16 * _MIB
    upsert_bytes: int = 1024 * _MIB
    received_bytes: int = 256 * _MIB
    body_seconds: float = 20.0
    pixels: int = 25_000_000
    decoded_pixels: int = 50_000_000
    k: int = 1000
    offset: int = 10_000
    words: int = 256
    queries: int = 32
    items: int = 64
    concurrency: int = 32
    upserts: int = 4
    wait_seconds: float = 5.0
    threads: int = 8
    writer_seconds: float = 10.0
    shutdown_seconds: float = 30.0


@dataclass(frozen=True)
class Settings:
    """What one server serves, and to whom.

    Attributes:
        index: The address of the index.
        keys: A file of `lexvla_search.api.keys`; ``None`` lets everybody do everything.
        images: The folders whose pictures may be shown.
        thumbnails: Bytes of thumbnails of uploaded pictures to keep; ``None`` keeps none.
        thumbnail_folder: Where they are kept, if not in the index's own folder.
        image_hosts: Hosts that an ``image_url`` may name, each with ``:port`` unless it is the
            default one; without any, no image is fetched.
        origins: Of web pages that may use the API, such as ``https://shop.example``; ``*`` is every
            origin.
        hosts: ``Host`` headers to accept; ``None`` accepts any. Without keys this keeps other web
            pages from reaching the server under a name of their own.
        log_queries: Log what people search for.
        signing: Signs addresses of pictures where there are no keys; workers share it.
        limits: Limits on requests.
    """

    index: str
    keys: Path | None = None
    images: tuple[Path, ...] = ()
    thumbnails: int | None = None
    thumbnail_folder: Path | None = None
    image_hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    hosts: tuple[str, ...] | None = LOOPBACK_HOSTS
    log_queries: bool = False
    signing: bytes = field(default_factory=lambda: secrets.token_bytes(32), repr=False)
    limits: Limits = field(default_factory=Limits)


def is_loopback(host: str) -> bool:
    """Return whether a server at this host can be reached from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def bracketed(host: str) -> str:
    """Return a host as it appears in a URL: an IPv6 address in brackets."""
    return f"[{host.strip('[]')}]" if ":" in host else host
