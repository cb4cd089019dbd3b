"""Addresses of Elasticsearch indexes, the client, its errors as ours, and aliases that move."""

from __future__ import annotations

import importlib
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar
from urllib.parse import urlsplit

from lexvla.errors import (
    EngineUnavailableError,
    IndexCorruptError,
    InputError,
    LexVLAError,
    OptionalDependencyError,
    UnsupportedError,
)

if TYPE_CHECKING:
    from elasticsearch import Elasticsearch

__all__ = [
    "SCHEME",
    "Address",
    "PassingError",
    "connect",
    "elastic_errors",
    "following",
    "found_documents",
    "refusal",
    "whole",
]

SCHEME = "elasticsearch+"
FORM = "elasticsearch+http(s)://host:9200/name"
PORT = 9200

_NAME = re.compile(r"(?![-_+.])[^\sA-Z\\/*?\"<>|,#:]{1,200}")
_SECRETS = "ELASTIC_API_KEY, or ELASTIC_USERNAME and ELASTIC_PASSWORD"
_TIMEOUT = 60.0  # seconds for one request
_PASSING = (408, 429, 502, 503, 504)  # HTTP: it may work later
_PRODUCT = "Elasticsearch"
# Seconds until an alias that is being moved is asked again. A server closes the shards of a
# deleted index before the alias means another; on a slow disk that takes a while.
_SETTLING = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)


class PassingError(EngineUnavailableError):
    """The server cannot do it now, but may at the next try."""


class _ShardError(PassingError):
    """A shard cannot answer now."""


class _GoneError(IndexCorruptError):
    """There is no such index."""


class Address(NamedTuple):
    """Where an index is: the URL of the server, and the alias that users search.

    The URL may name several nodes of one cluster: ``http://a:9200,b:9200``.
    """

    url: str
    name: str

    @property
    def nodes(self) -> list[str]:
        """The URL of each node."""
        scheme, _, rest = self.url.partition("://")
        hosts, slash, prefix = rest.partition("/")
        return [f"{scheme}://{host}{slash}{prefix}" for host in hosts.split(",")]

    def __str__(self) -> str:
        return f"{SCHEME}{self.url}/{self.name}"

    @classmethod
    def parse(cls, address: str) -> Address:
        """Read ``elasticsearch+http(s)://host:9200/name``, which must not contain credentials.

        There may be several hosts, separated by commas.
        """
        try:
            parts = urlsplit(address.removeprefix(SCHEME))
            if "@" in parts.netloc:
                # Not quoted: it is secret.
                raise InputError(FORM, f"credentials do not go into the address; set {_SECRETS}")
            hosts = [_host(each) for each in parts.netloc.split(",")]
        except ValueError as error:
            raise InputError(FORM, "the address of an index has this form") from error
        prefix, _, name = parts.path.rstrip("/").rpartition("/")
        if not all(hosts) or parts.scheme not in ("http", "https") or parts.query or parts.fragment:
            raise InputError(address, f"the address of an index has the form {FORM}")
        if not _NAME.fullmatch(name):
            rule = "the name of an Elasticsearch index has lower-case letters, digits, - and _"
            raise InputError(name, rule)
        return cls(f"{parts.scheme}://{','.join(hosts)}{prefix}", name)


def _host(netloc: str) -> str:
    """Return a host with its port; empty if there is no host. A bad port raises ValueError."""
    parts = urlsplit(f"//{netloc}")
    host, port = parts.hostname or "", parts.port or PORT
    shown = f"[{host}]" if ":" in host else host
    return f"{shown}:{port}" if host else ""


def connect(address: Address) -> Elasticsearch:
    """Make a client, with credentials and certificates from the environment.

    ``ELASTIC_API_KEY``, or ``ELASTIC_USERNAME`` and ``ELASTIC_PASSWORD``; ``ELASTIC_CA_CERTS``, a
    file of certificates to trust, or ``ELASTIC_CERT_FINGERPRINT``, the SHA-256 of the server's.

    Raises:
        EngineUnavailableError: The settings contradict each other.
        OptionalDependencyError: The client is not installed.
    """
    try:
        library = importlib.import_module("elasticsearch")
    except ModuleNotFoundError as error:
        raise OptionalDependencyError("elasticsearch", "elasticsearch") from error
    settings: dict[str, Any] = {}
    key, user = os.environ.get("ELASTIC_API_KEY"), os.environ.get("ELASTIC_USERNAME")
    if key:
        settings["api_key"] = key
    elif user:
        settings["basic_auth"] = (user, os.environ.get("ELASTIC_PASSWORD", ""))
    if address.url.startswith("https:"):
        if certificates := os.environ.get("ELASTIC_CA_CERTS"):
            settings["ca_certs"] = certificates
        if fingerprint := os.environ.get("ELASTIC_CERT_FINGERPRINT"):
            settings["ssl_assert_fingerprint"] = fingerprint
    try:
        client: Elasticsearch = library.Elasticsearch(
            address.nodes,
            request_timeout=_TIMEOUT,
            max_retries=2,
            retry_on_timeout=True,
            **settings,
        )
    except (ValueError, OSError) as error:
        raise EngineUnavailableError(f"{address}: {error}") from error
    _check_answers(client)
    return client


def _check_answers(client: Elasticsearch) -> None:
    """Refuse every answer that is not from Elasticsearch; the client checks only the first.

    Otherwise a gateway's page would be read as an answer that says nothing about an index.
    """
    import elasticsearch

    perform = client.transport.perform_request

    def checked(method: str, target: str, **rest: Any) -> Any:
        answer = perform(method, target, **rest)
        meta, body = answer.meta, answer.body
        is_told = 200 <= meta.status < 300 or meta.status == 404
        is_ours = meta.headers.get("x-elastic-product") == _PRODUCT
        if is_told and not (is_ours and (method == "HEAD" or isinstance(body, Mapping))):
            raise elasticsearch.UnsupportedProductError("another answers", meta, body)
        return answer

    client.transport.perform_request = checked  # type: ignore[method-assign]


@contextmanager
def elastic_errors(address: Address) -> Iterator[None]:
    """Raise the client's errors as ours.

    Raises:
        EngineUnavailableError: The server cannot be reached, refuses the credentials, is of
            another kind or version, or cannot do it now.
        IndexCorruptError: There is no such index.
        LexVLAError: The server refuses the request.
    """
    import elasticsearch

    try:
        yield
    except elasticsearch.UnsupportedProductError as error:
        rule = "what answers there is not Elasticsearch (this engine does not speak to OpenSearch)"
        raise EngineUnavailableError(f"{address}: {rule}") from error
    except elasticsearch.ApiError as error:
        raise refusal(address, error.status_code, error.body) from error
    except elasticsearch.SSLError as error:
        cause, get = _root(error), "does the server speak plain http?"
        if "certificate" in cause.lower() or "fingerprint" in cause.lower():
            get = "name its authority by ELASTIC_CA_CERTS, or set ELASTIC_CERT_FINGERPRINT"
        elif "No such file" in cause:
            get = "ELASTIC_CA_CERTS must name a file of certificates"
        raise EngineUnavailableError(f"{address}: no TLS: {cause}; {get}") from error
    except elasticsearch.TransportError as error:
        raise PassingError(f"{address}: no server answers: {_root(error)}") from error


class _Found(Protocol):
    @property
    def index(self) -> str: ...


S = TypeVar("S", bound=_Found)
T = TypeVar("T")


def following(found: Callable[[bool], S], ask: Callable[[S], T]) -> T:
    """Ask the index behind an alias, and ask again if it has been replaced meanwhile.

    The shards of an index that is being deleted go first, then the index. For a moment before
    that, the server still says that the alias means it. ``found`` returns what to ask; given
    True, of what is certainly the newest index.
    """
    import elasticsearch

    asked, waits = found(False), iter(_SETTLING)
    while True:
        try:
            return ask(asked)
        except (EngineUnavailableError, IndexCorruptError) as error:
            if isinstance(error.__cause__, elasticsearch.TransportError):
                raise  # no server answered
            newest = found(True)
            if newest.index == asked.index:
                wait = next(waits, None)
                # An index that is being deleted gives no other errors.
                if wait is None or not isinstance(error, _GoneError | _ShardError):
                    raise
                time.sleep(wait)
            asked = newest


def refusal(address: Address, status: int, body: Any) -> LexVLAError:
    """Return the error that an HTTP status and body of the server mean."""
    kind, reason = _cause(body)
    said = ": ".join(part for part in (kind, reason) if part) or f"HTTP {status}"
    if status in (401, 403) and "block" not in kind:
        if "license" in reason or "license" in kind:
            return UnsupportedError(
                f"{address}: the server's licence does not cover this: {reason}"
            )
        return EngineUnavailableError(f"{address}: not allowed; set {_SECRETS}. It says: {said}")
    if "compatible-with" in reason or "media_type_header" in kind:
        import elasticsearch

        major = elasticsearch.__version__[0]
        client = ".".join(map(str, elasticsearch.__version__))
        rule = (
            f"the Python client elasticsearch {client} speaks to servers of its own and the next "
            f"major version, {major} and {major + 1}, and this is another; pip install "
            "'lexvla[elasticsearch]' gets the client for servers 8 and 9"
        )
        return EngineUnavailableError(f"{address}: {rule}. It says: {said}")
    if "maxClauseCount" in reason or "too_many" in kind:
        return UnsupportedError(f"{address}: the query has too many words for the server: {reason}")
    if status == 404 and "index_not_found" in kind:
        return _GoneError(
            f"no index at {address}; make one with: lexvla index SOURCE --index {address}"
        )
    cannot = f"{address}: the server cannot do it now: {said}"
    # A node that goes away takes along what it was about to answer; other copies have it too.
    if status == 503 or "search_context_missing" in kind or kind.startswith("node_"):
        return _ShardError(cannot)
    if status in _PASSING:
        return PassingError(cannot)
    if kind == "parse_exception" and "date" in reason:
        return InputError(str(address), f"the server cannot read a date: {reason}")
    if status >= 500 or "block" in kind:
        return EngineUnavailableError(cannot)
    return LexVLAError(f"{address}: the server refuses: {said}")


def whole(address: Address, answer: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return an answer in which all shards took part.

    EngineUnavailableError if some did not: its counts would be too low.
    """
    shards = answer["_shards"]
    if shards["failed"] or not shards["successful"]:
        reason = (
            f"{shards['total'] - shards['successful']} of {shards['total']} shards do not answer"
        )
        raise refusal(address, 503, {"error": {"type": "", "reason": reason}})
    return answer


def found_documents(address: Address, answer: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the documents of a multi-get, if every one of them could be looked up.

    A shard that cannot be read raises EngineUnavailableError, a missing index IndexCorruptError.
    """
    documents: list[Mapping[str, Any]] = answer["docs"]
    for each in documents:
        if "error" in each:
            status = 404 if _cause(each)[0] == "index_not_found_exception" else 503
            raise refusal(address, status, each)
    return documents


def _cause(body: Any) -> tuple[str, str]:
    """Return the kind and the reason of an error, the innermost that the server reports."""
    error = body.get("error", body) if isinstance(body, Mapping) else body
    if not isinstance(error, Mapping):
        return "", _short(error or "")
    roots = error.get("root_cause") or [error]
    root = roots[0] if isinstance(roots[0], Mapping) else error
    kind = str(root.get("type") or error.get("type") or "")
    cause = error.get("caused_by") or root.get("caused_by") or {}
    while isinstance(cause.get("caused_by"), Mapping):
        cause = cause["caused_by"]
    reason = str(root.get("reason") or "")
    if inner := str(cause.get("reason") or ""):
        reason = reason if inner in reason else f"{reason}: {inner}" if reason else inner
    return kind, _short(reason)


def _root(error: Exception) -> str:
    """Return what the errors that the client nests are about, without their names."""
    before, mark, text = str(error).rpartition("caused by: ")
    if mark:
        # Each of them puts parentheses around the rest.
        depth = before.count("caused by: ") + 1
        text = text.partition("(")[2].removesuffix(")" * depth)
    return _short(re.sub(r"<[^<>]* object at 0x[0-9a-f]+>: ", "", text))


def _short(text: object) -> str:
    words = " ".join(str(text).split())
    return words if len(words) <= 500 else words[:497] + "..."
