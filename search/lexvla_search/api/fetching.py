"""Images fetched by address, from allowed hosts only."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import httpx2

from lexvla_search.api.problems import Problem

__all__ = ["Fetcher"]

_CONNECT_SECONDS, _TOTAL_SECONDS = 5.0, 10.0
# Uncompressed: a small compressed body may expand to a large one.
_HEADERS = {"Accept": "image/*", "Accept-Encoding": "identity"}


class Fetcher:
    """Fetch images of at most `most` bytes, without following redirects.

    Each allowed host has ``:port`` unless the port is the default one.
    """

    def __init__(self, hosts: tuple[str, ...], most: int) -> None:
        self._hosts = frozenset(host.lower() for host in hosts)
        self._most = most

    async def fetch(self, address: str, hold: Callable[[int], None] | None = None) -> bytes:
        """Return the bytes at an address, or raise a `Problem`.

        `hold` is called with the size of each part as it arrives, and may refuse it.
        """
        self._check(address)
        try:
            async with (
                asyncio.timeout(_TOTAL_SECONDS),
                # Ignore the environment: no proxy, and no passwords from a .netrc.
                httpx2.AsyncClient(trust_env=False, timeout=_CONNECT_SECONDS) as client,
                client.stream("GET", address, headers=_HEADERS) as response,
            ):
                if response.status_code != 200:
                    raise _refused(f"its host answered {response.status_code}, not 200")
                body = bytearray()
                async for chunk in response.aiter_raw():
                    if hold is not None:
                        hold(len(chunk))
                    body += chunk
                    if len(body) > self._most:
                        raise _refused(f"is larger than {self._most:,} bytes")
                return bytes(body)
        except TimeoutError as error:
            raise _refused("its host does not answer in time") from error
        except (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError) as error:
            raise _refused(f"cannot be fetched ({type(error).__name__})") from error

    def _check(self, address: str) -> None:
        if not self._hosts:
            raise _refused("this server fetches no images; send the image itself")
        try:
            url = httpx2.URL(address)
        except (httpx2.InvalidURL, ValueError) as error:
            raise _refused("is not an address") from error
        if url.scheme not in ("http", "https") or url.userinfo:
            raise _refused("must start with http:// or https://, and hold no password")
        host = url.host.lower() if url.port is None else f"{url.host.lower()}:{url.port}"
        if host not in self._hosts:
            raise _refused(f"the host {host!r} is not among those that this server may ask")


def _refused(rule: str) -> Problem:
    return Problem("invalid", f"image_url: {rule}", [{"field": "image_url", "detail": rule}])
