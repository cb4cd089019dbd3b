"""The calls that `lexvla_indexer.elastic` makes, sent by opensearch-py.

They have the names and arguments of Elasticsearch's client.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from functools import partial
from typing import Any, NamedTuple
from urllib.parse import quote

from lexvla.errors import EngineUnavailableError, OptionalDependencyError
from lexvla_indexer.elastic.product import Place
from lexvla_indexer.elastic.refusals import NoAnswerError, innermost, refusal
from lexvla_indexer.elastic.tls import no_tls, trusted

__all__ = ["TIMEOUT", "Client", "connect", "opensearch_errors"]

TIMEOUT = 60.0  # seconds for one request
OLDEST = 3  # major version: a 2.19 refuses documents of bulk requests under load


class _Call(NamedTuple):
    """A call: a request, which of the arguments go into its URL, and other words for the rest."""

    method: str
    path: str
    parameters: str = ""
    renamed: Mapping[str, str] = {}


_INDEX, _ALIASES = "/{index}", "/_aliases"
_LENIENT = "ignore_unavailable allow_no_indices filter_path"
_CALLS = {
    "search": _Call(
        "POST",
        "/{index}/_search",
        "search_type allow_partial_search_results filter_path include_named_queries_score",
        {"source": "_source"},
    ),
    "count": _Call("POST", "/{index}/_count", "terminate_after"),
    "explain": _Call("POST", "/{index}/_explain/{id}"),
    "mget": _Call("POST", "/{index}/_mget", "realtime _source_includes"),
    "msearch": _Call("POST", "/_msearch", "filter_path"),
    "field_caps": _Call("GET", "/{index}/_field_caps", "fields"),
    "open_point_in_time": _Call("POST", "/{index}/_search/point_in_time", "keep_alive"),
    "close_point_in_time": _Call("DELETE", "/_search/point_in_time"),
    "indices.create": _Call("PUT", _INDEX, "wait_for_active_shards"),
    "indices.delete": _Call("DELETE", _INDEX, "ignore_unavailable"),
    "indices.get": _Call("GET", _INDEX, _LENIENT),
    "indices.get_mapping": _Call("GET", "/{index}/_mapping", _LENIENT),
    "indices.put_mapping": _Call("PUT", "/{index}/_mapping", "", {"meta": "_meta"}),
    "indices.get_settings": _Call("GET", "/{index}/_settings", "human"),
    "indices.put_settings": _Call("PUT", "/{index}/_settings"),
    "indices.get_alias": _Call("GET", "/_alias/{name}"),
    "indices.exists_alias": _Call("HEAD", "/_alias/{name}"),
    "indices.update_aliases": _Call("POST", _ALIASES),
    "indices.refresh": _Call("POST", "/{index}/_refresh"),
    "indices.forcemerge": _Call("POST", "/{index}/_forcemerge", "max_num_segments"),
    "indices.stats": _Call("GET", "/{index}/_stats/{metric}"),
    "cluster.health": _Call(
        "GET", "/_cluster/health/{index}", "level wait_for_status wait_for_active_shards timeout"
    ),
}


class _Answer(dict[str, Any]):
    @property
    def body(self) -> dict[str, Any]:
        return self


class _OtherError(Exception):
    """What answers is not OpenSearch."""


class _OldError(Exception):
    """The server is older than `OLDEST`."""


class _Group:
    """Make the calls whose names start with a word."""

    def __init__(self, client: Client, start: str) -> None:
        self._client = client
        self._start = start

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return partial(self._client.call, f"{self._start}.{name}")


class Client:
    """Send calls.

    Attributes:
        library: The client of opensearch-py.
        transport: What sends requests; that of ``library``, or a copy with other options.
    """

    def __init__(self, library: Any) -> None:
        self.library = library
        self.transport = library.transport
        self.indices = _Group(self, "indices")
        self.cluster = _Group(self, "cluster")
        self._about: dict[str, Any] = {}
        self._options: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name not in _CALLS:
            raise AttributeError(name)
        return partial(self.call, name)

    def call(self, name: str, /, **arguments: Any) -> Any:
        """Make a call; returns its answer, or whether there is one where that is all."""
        call = _CALLS[name]
        self.check()
        if name == "close_point_in_time":
            arguments = {"pit_id": [arguments["id"]]}
        if "source_includes" in arguments:
            arguments["_source_includes"] = arguments.pop("source_includes")
        # A part of the path that is not given is left out: a point in time has its index.
        parts = [(part, arguments.pop(part[1:-1], None)) for part in call.path.split("/")]
        named = [_quoted(value) if "{" in part else part for part, value in parts]
        path = "/".join(each for each in named if each is not None)
        known = call.parameters.split()
        parameters = {key: _text(arguments.pop(key)) for key in known if key in arguments}
        body = arguments.pop("body", None) or {}
        body |= {call.renamed.get(key, key): value for key, value in arguments.items()}
        if name == "indices.put_settings":
            body = body["settings"]
        if name == "msearch":
            body = "".join(f"{part}\n" for part in body["searches"])
        answer = self._send(call.method, path, parameters, body)
        if call.method == "HEAD":
            return bool(answer)
        if not isinstance(answer, Mapping):
            raise _OtherError
        found = _Answer(answer)
        if name == "open_point_in_time":
            found["id"] = found["pit_id"]
        return found

    def check(self) -> None:
        """Refuse anything but OpenSearch, and servers that are too old."""
        if not self._about:
            answer = self._send("GET", "/", {}, None)
            about = answer.get("version", {}) if isinstance(answer, Mapping) else {}
            if about.get("distribution") != "opensearch":
                raise _OtherError
            if int(about["number"].partition(".")[0]) < OLDEST:
                raise _OldError(about["number"])
            self._about |= about

    def _send(self, method: str, path: str, parameters: Mapping[str, str], body: Any) -> Any:
        ignored = self._options.get("ignore_status")
        # Without a time of ours, the library would take the server's parameter "timeout" for one.
        return self.transport.perform_request(
            method,
            path,
            params=dict(parameters),
            body=body or None,
            timeout=self._options.get("request_timeout", TIMEOUT),
            ignore=() if ignored is None else (ignored,),
        )

    def options(self, **options: Any) -> Client:
        """Return a client whose requests have another time, other retries, errors to ignore."""
        other = copy(self)
        other._options = {**self._options, **options}
        other.indices, other.cluster = _Group(other, "indices"), _Group(other, "cluster")
        if "max_retries" in options:
            other.transport = copy(self.transport)
            other.transport.max_retries = options["max_retries"]
        return other

    def close(self) -> None:
        """Close the connections."""
        self.library.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _quoted(name: str | Sequence[str] | None) -> str | None:
    if name is None:
        return None
    return quote(name if isinstance(name, str) else ",".join(name), safe=",*")


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, str | int) else ",".join(value)


def connect(place: Place) -> Client:
    """Make a client, with credentials and certificates from the environment.

    ``OPENSEARCH_USERNAME`` and ``OPENSEARCH_PASSWORD``; ``OPENSEARCH_CA_CERTS``, a file of
    certificates to trust, or ``OPENSEARCH_CERT_FINGERPRINT``, the SHA-256 of the server's.

    Raises:
        EngineUnavailableError: The settings contradict each other.
        OptionalDependencyError: The client is not installed.
    """
    try:
        library = importlib.import_module("opensearchpy")
    except ModuleNotFoundError as error:
        raise OptionalDependencyError("opensearch-py", "opensearch") from error
    settings = trusted(place, "OPENSEARCH")
    if user := os.environ.get("OPENSEARCH_USERNAME"):
        settings["http_auth"] = (user, os.environ.get("OPENSEARCH_PASSWORD", ""))
    try:
        made = library.OpenSearch(
            place.nodes, timeout=TIMEOUT, max_retries=2, retry_on_timeout=True, **settings
        )
    except (ValueError, OSError, library.ImproperlyConfigured) as error:
        raise EngineUnavailableError(f"{place}: {error}") from error
    return Client(made)


@contextmanager
def opensearch_errors(place: Place) -> Iterator[None]:
    """Raise the client's errors as ours; see `lexvla_indexer.elastic.connection`."""
    import opensearchpy

    try:
        yield
    except (_OtherError, opensearchpy.SerializationError) as error:
        rule = (
            "what answers there is not OpenSearch; the address of an Elasticsearch index starts "
            "with elasticsearch+"
        )
        raise EngineUnavailableError(f"{place}: {rule}") from error
    except _OldError as error:
        rule = f"its server is OpenSearch {error}, and this takes {OLDEST} or newer"
        raise EngineUnavailableError(f"{place}: {rule}") from error
    except opensearchpy.SSLError as error:
        raise no_tls(place, "OPENSEARCH", error) from error
    except opensearchpy.ConnectionError as error:
        raise NoAnswerError(f"{place}: no server answers: {innermost(error)}") from error
    except opensearchpy.TransportError as error:
        raise refusal(place, int(error.status_code), error.info) from error
