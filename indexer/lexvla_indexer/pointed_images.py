"""The image that a value of a document points at: a URL, a path, or base64."""

from __future__ import annotations

import base64
import binascii
import http.client
import ipaddress
import re
import socket
import ssl
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote, urljoin, urlsplit

from lexvla.errors import InputError

__all__ = ["PointedImages"]

SECONDS = 30.0  # for one image, with its redirects
MAX_BYTES = 64 * 1024 * 1024
REDIRECTS = 5

_PIECE = 65_536
_LEAST_BASE64 = 64  # characters; shorter ones are paths
_BASE64 = re.compile(r"[A-Za-z0-9+/\s]+={0,2}\s*")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):")
_PORTS = {"http": 80, "https": 443}
_MOVED = (301, 302, 303, 307, 308)
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


@dataclass(frozen=True)
class PointedImages:
    """Which images may be read, and how.

    Attributes:
        hosts: Whose URLs may be fetched: ``host``, at the scheme's own port, or ``host:port``.
        private_hosts: Those that may have private or loopback addresses too.
        root: The folder that paths start from and may not leave; without it none is read.
    """

    hosts: Collection[str] = ()
    private_hosts: Collection[str] = ()
    root: Path | None = None

    def open(self, value: str, name: str) -> Path | bytes | Callable[[], bytes]:
        """Return a path, the bytes, or what fetches them from elsewhere.

        InputError if that may not be read. ``name`` names the item in errors.
        """
        value = value.strip()
        scheme = _SCHEME.match(value)
        if scheme and scheme[1].lower() in _PORTS:
            self._target(value, name)
            return lambda: self._fetch(value, name)
        if scheme and scheme[1].lower() == "data":
            return _of_data_url(value, name)
        if scheme and value[scheme.end() :].startswith("//"):
            raise InputError(name, f"its image has the scheme {scheme[1]}, not http, https or data")
        if len(value) >= _LEAST_BASE64 and _BASE64.fullmatch(value):
            return _decoded(value, name)
        return self._path(value, name)

    def _path(self, value: str, name: str) -> Path:
        if self.root is None:
            raise InputError(name, "its image is a path; --image-root DIR allows a folder of them")
        root = self.root.resolve()
        try:
            path = (root / value).resolve()
        except (OSError, ValueError, RuntimeError) as error:
            raise InputError(name, f"its image is not a valid path ({error})") from error
        if not path.is_relative_to(root):
            raise InputError(name, "its image is a path that leaves the folder of --image-root")
        return path

    def _fetch(self, url: str, name: str) -> bytes:
        deadline = time.monotonic() + SECONDS
        for _ in range(REDIRECTS + 1):
            moved = self._get(url, name, deadline)
            if isinstance(moved, bytes):
                return moved
            url = urljoin(url, moved)
        raise InputError(name, f"its image is behind more than {REDIRECTS} redirects")

    def _get(self, url: str, name: str, deadline: float) -> bytes | str:
        """Return what a URL has, or where it says to look."""
        target = self._target(url, name)
        try:
            connection = target.connection(self._checked_address(target, name), deadline)
            try:
                headers = {"Accept": "image/*", "Accept-Encoding": "identity"}
                connection.request("GET", target.request, headers=headers)
                answer = connection.getresponse()
                if answer.status in _MOVED and (place := answer.headers.get("Location")):
                    return place
                if answer.status != http.client.OK:
                    raise InputError(name, f"the server of its image says HTTP {answer.status}")
                return _body(answer, connection, name, deadline)
            finally:
                connection.close()
        except TimeoutError as error:
            rule = f"its image did not come within {SECONDS:.0f} seconds"
            raise InputError(name, rule) from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            said = str(error) or type(error).__name__
            raise InputError(name, f"its image cannot be fetched ({said})") from error

    def _target(self, url: str, name: str) -> _Target:
        """Take a URL apart; InputError unless its host is allowed."""
        try:
            parts = urlsplit(url)
            host, port = (parts.hostname or "").rstrip("."), parts.port
        except ValueError as error:
            raise InputError(name, f"its image is not a valid URL ({error})") from error
        if parts.scheme not in _PORTS or not host:
            raise InputError(name, "its image is not an http or https URL with a host")
        if "@" in parts.netloc:
            raise InputError(name, "the URL of its image has credentials, which are not sent")
        port = port or _PORTS[parts.scheme]
        shown = f"[{host}]" if ":" in host else host
        named = {f"{shown}:{port}", *([shown] if port == _PORTS[parts.scheme] else [])}
        is_private_allowed = not named.isdisjoint(map(str.lower, self.private_hosts))
        if not is_private_allowed and named.isdisjoint(map(str.lower, self.hosts)):
            shortest = min(named, key=len)
            rule = f"its image is at {shortest}; --allow-host {shortest} allows fetching from there"
            raise InputError(name, rule)
        request = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~")
        if parts.query:
            request += "?" + quote(parts.query, safe="/%:@!$&'()*+,;=~?")
        return _Target(parts.scheme, host, port, request, is_private_allowed)

    def _checked_address(self, target: _Target, name: str) -> str:
        """Return the address to connect to, so that a name cannot mean another one later."""
        found = socket.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
        addresses = [str(each[4][0]) for each in found]
        if not target.is_private_allowed:
            for address in addresses:
                if not _is_public(address):
                    rule = (
                        f"its image is at {target.host}, which has the private address {address}; "
                        f"--allow-private-host {target.host} allows fetching from there"
                    )
                    raise InputError(name, rule)
        return addresses[0]


@dataclass(frozen=True)
class _Target:
    scheme: str
    host: str
    port: int
    request: str
    is_private_allowed: bool

    def connection(self, address: str, deadline: float) -> http.client.HTTPConnection:
        """Connect to an address, as if by the host's name."""
        wait = max(deadline - time.monotonic(), 0.001)
        made = http.client.HTTPConnection(self.host, self.port, timeout=wait)
        made.default_port = _PORTS[self.scheme]  # the header Host has any other
        made.sock = socket.create_connection((address, self.port), timeout=wait)
        if self.scheme == "https":
            context = ssl.create_default_context()
            made.sock = context.wrap_socket(made.sock, server_hostname=self.host)
        return made


def _body(
    answer: http.client.HTTPResponse,
    connection: http.client.HTTPConnection,
    name: str,
    deadline: float,
) -> bytes:
    parts, size = [], 0
    too_large = InputError(name, f"its image is larger than {MAX_BYTES:,} bytes")
    if (answer.length or 0) > MAX_BYTES:
        raise too_large
    while True:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        if connection.sock is not None:
            connection.sock.settimeout(left)
        part = answer.read1(_PIECE)
        if not part:
            break
        parts.append(part)
        size += len(part)
        if size > MAX_BYTES:
            raise too_large
    if answer.length:
        raise InputError(name, "its image came only in part")
    return b"".join(parts)


def _is_public(text: str) -> bool:
    address = ipaddress.ip_address(text.split("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if inner is None and address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return _is_public(str(inner))
    return address.is_global and not address.is_multicast


def _of_data_url(value: str, name: str) -> bytes:
    head, comma, data = value.partition(",")
    if not comma or not head.lower().endswith(";base64"):
        raise InputError(name, "a data URL must hold base64, as in data:image/png;base64,...")
    return _decoded(unquote(data), name)


def _decoded(text: str, name: str) -> bytes:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise InputError(name, f"is not valid base64 ({error})") from error
