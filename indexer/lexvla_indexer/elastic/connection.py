"""Addresses of indexes on servers, the client, its errors as ours, and aliases that move."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar
from urllib.parse import urlsplit

from lexvla.errors import (
    EngineUnavailableError,
    IndexCorruptError,
    IndexMissingError,
    InputError,
)
from lexvla_indexer.elastic.elasticsearch_product import ELASTICSEARCH
from lexvla_indexer.elastic.product import Product
from lexvla_indexer.elastic.refusals import (
    NoAnswerError,
    ShardError,
    cause_of,
    refusal,
)

if TYPE_CHECKING:
    from elasticsearch import Elasticsearch

__all__ = [
    "Address",
    "connect",
    "elastic_errors",
    "following",
    "found_documents",
    "whole",
]

PORT = 9200

_NAME = re.compile(r"(?![-_+.])[^\sA-Z\\/*?\"<>|,#:]{1,200}")
# Seconds until an alias that is being moved is asked again. A server closes the shards of a
# deleted index before the alias means another; on a slow disk that takes a while.
_SETTLING = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)


class Address(NamedTuple):
    """Where an index is: the URL of the server, and the alias that users search.

    The URL may name several nodes of one cluster: ``http://a:9200,b:9200``.
    """

    url: str
    name: str
    product: Product = ELASTICSEARCH

    @property
    def nodes(self) -> list[str]:
        """The URL of each node."""
        scheme, _, rest = self.url.partition("://")
        hosts, slash, prefix = rest.partition("/")
        return [f"{scheme}://{host}{slash}{prefix}" for host in hosts.split(",")]

    def __str__(self) -> str:
        return f"{self.product.engine}+{self.url}/{self.name}"

    @classmethod
    def parse(cls, address: str, product: Product = ELASTICSEARCH) -> Address:
        """Read ``elasticsearch+http(s)://host:9200/name``, which must not contain credentials.

        There may be several hosts, separated by commas.
        """
        form = f"{product.engine}+http(s)://host:9200/name"
        scheme, _, rest = address.removeprefix(f"{product.engine}+").partition("://")
        netloc, slash, path = rest.partition("/")
        if "@" in netloc:
            # Not quoted: it is secret.
            rule = f"credentials do not go into the address; set {product.secrets}"
            raise InputError(form, rule)
        try:
            hosts = [_host(each) for each in netloc.split(",")]
        except ValueError as error:
            raise InputError(form, "the address of an index has this form") from error
        prefix, _, name = f"{slash}{path}".rstrip("/").rpartition("/")
        if not all(hosts) or scheme not in ("http", "https") or "?" in rest or "#" in rest:
            raise InputError(address, f"the address of an index has the form {form}")
        if not name:
            raise InputError(address, f"the address names no index; it has the form {form}")
        if not _NAME.fullmatch(name):
            rule = 'begins with - _ + or ., nor has capitals, white space or any of \\/*?"<>|,#:'
            raise InputError(name, f"no name of an {product.name} index {rule}")
        return cls(f"{scheme}://{','.join(hosts)}{prefix}", name, product)


def _host(netloc: str) -> str:
    """Return a host with its port; empty if there is no host. A bad port raises ValueError."""
    parts = urlsplit(f"//{netloc}")
    host, port = parts.hostname or "", parts.port or PORT
    shown = f"[{host}]" if ":" in host else host
    return f"{shown}:{port}" if host else ""


def connect(address: Address) -> Elasticsearch:
    """Make a client of the product, with credentials and certificates from the environment.

    Raises:
        EngineUnavailableError: The settings contradict each other.
        OptionalDependencyError: The client is not installed.
    """
    return address.product.connect(address)


def elastic_errors(address: Address) -> AbstractContextManager[None]:
    """Raise the client's errors as ours.

    Raises:
        EngineUnavailableError: The server cannot be reached, refuses the credentials, is of
            another kind or version, or cannot do it now.
        IndexMissingError: There is no such index.
        LexVLAError: The server refuses the request.
    """
    return address.product.errors(address)


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
    asked, waits = found(False), iter(_SETTLING)
    while True:
        try:
            return ask(asked)
        except (EngineUnavailableError, IndexCorruptError, IndexMissingError) as error:
            if isinstance(error, NoAnswerError):
                raise
            newest = found(True)
            if newest.index == asked.index:
                wait = next(waits, None)
                # An index that is being deleted gives no other errors.
                if wait is None or not isinstance(error, IndexMissingError | ShardError):
                    raise
                time.sleep(wait)
            asked = newest


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

    A shard that cannot be read raises EngineUnavailableError, a missing index IndexMissingError.
    """
    documents: list[Mapping[str, Any]] = answer["docs"]
    for each in documents:
        if "error" in each:
            status = 404 if cause_of(each)[0] == "index_not_found_exception" else 503
            raise refusal(address, status, each)
    return documents
