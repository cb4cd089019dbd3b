"""Clients of the REST API: a blocking one and one for asyncio."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import time
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Self, TypeAlias, TypeVar, cast
from urllib.parse import quote

from lexvla.errors import InputError, LexVLAError, OptionalDependencyError
from lexvla_indexer.document import plain_value

if TYPE_CHECKING:
    import httpx2
    from PIL import Image

    from lexvla_search import schema

__all__ = ["ApiError", "AsyncClient", "Client"]

P = ParamSpec("P")
T = TypeVar("T")

SentImage: TypeAlias = "bytes | str | Path | Image.Image"

_RETRIED = (429, 503)
_LONGEST_PAUSE = 10.0  # seconds between attempts


class ApiError(LexVLAError):
    """The server answered with a problem.

    `status` is the HTTP status, 0 if there was no answer; `problem` has the members of RFC 9457.
    """

    def __init__(self, status: int, problem: Mapping[str, Any]) -> None:
        self.status = status
        self.problem = dict(problem)
        title, detail = problem.get("title", f"status {status}"), problem.get("detail", "")
        super().__init__(f"{title}: {detail}" if detail else str(title))


@dataclass(frozen=True)
class _Call:
    """A request, and whether to send it again to a server that is busy."""

    method: str
    path: str
    given: Mapping[str, Any]
    retry: bool = True


class Client:
    """Talk to a server of ``lexvla serve``. A request that fails raises `ApiError`.

    Args:
        url: The server, such as ``http://127.0.0.1:8080``.
        key: An API key, if the server needs one.
        timeout: How many seconds to wait for an answer.
        retries: How often to try again when the server is busy, after the time that it names.
    """

    def __init__(
        self, url: str, key: str | None = None, timeout: float = 60.0, retries: int = 5
    ) -> None:
        httpx2 = _load_httpx()
        self._retries = retries
        self._http = httpx2.Client(base_url=_address(url), headers=_headers(key), timeout=timeout)

    def search(
        self, /, text: str | None = None, *, image: SentImage | None = None, **query: Any
    ) -> schema.SearchAnswer:
        """Find documents by words and an image: the bytes or the path of a file, or a PIL image.

        docs/api.md lists the other settings: ``similar``, ``boost``, ``ban``, ``filter``, ``k``,
        ``sort``, ``facets``, ``after``, ... Weights of ``similar`` may be given by id.
        """
        return self._post("/v1/search", _asked(text, query), image, _json)

    def search_many(self, queries: Iterable[str | Mapping[str, Any]]) -> list[schema.SearchAnswer]:
        """Answer several queries, each a text or settings as those of `search`."""
        if isinstance(queries, str | Mapping):
            raise TypeError("expected a list of queries, not a single one")
        asked = [_asked(q, {}) if isinstance(q, str) else _asked(None, q) for q in queries]
        given = {"json": {"queries": asked}}
        return self._send(_Call("POST", "/v1/search/batch", given), _member("answers"))

    def explain(
        self,
        /,
        id: str,  # noqa: A002 - the public word for it
        text: str | None = None,
        *,
        image: SentImage | None = None,
        **query: Any,
    ) -> schema.ShownHit:
        """Explain one document's score; takes a query as `search` does."""
        return self._post("/v1/explain", {**_asked(text, query), "id": id}, image, _member("hit"))

    def encode(
        self, /, texts: Sequence[str] = (), images: Sequence[SentImage] = (), **options: Any
    ) -> list[schema.EncodedItem]:
        """Return the words of texts, or of images, each as `search` takes it."""
        if isinstance(texts, str) or not isinstance(images, list | tuple):
            raise TypeError("expected a list of texts or images, not a single one")
        asked = {"texts": list(texts), **options}
        given: dict[str, Any] = {"json": asked}
        if images:
            parts: list[tuple[str, Any]] = [("query", (None, json.dumps(asked)))]
            parts += [("image", (f"{i}", _file_of(image))) for i, image in enumerate(images)]
            given = {"files": parts}
        return self._send(_Call("POST", "/v1/encode", given), _member("items"))

    def upsert(self, documents: Iterable[Mapping[str, Any]]) -> schema.UpsertAnswer:
        """Add or replace documents; those counted as indexed are committed.

        They are streamed, so there may be any number. Each has an ``id``, and a ``text``, an
        ``image`` (as `search` takes it) or an ``image_url``; ``uri`` and ``metadata`` are
        optional; numpy scalars, dates and times of the metadata are sent as `Document` keeps them.
        A busy server is not asked again, as the stream cannot be sent twice. On failure, the
        problem of the `ApiError` says how many documents are committed.
        """
        lines = (json.dumps(_line(document)).encode() + b"\n" for document in documents)
        headers = {"Content-Type": "application/x-ndjson"}
        given = {"content": lines, "headers": headers}
        return self._send(_Call("PUT", "/v1/documents", given, retry=False), _json)

    def get(self, id: str) -> schema.ShownDocument:  # noqa: A002 - the public word for it
        """Return what the index keeps of a document."""
        return self._send(_Call("GET", _path(id), {}), _json)

    def patch(self, /, id: str, **changes: Any) -> schema.Patched:  # noqa: A002 - the public word
        """Change a document's ``metadata``, ``text`` or ``uri``; ``None`` removes a value.

        Its vectors stay, unless it was encoded from its text and that changes.
        """
        return self._send(_Call("PATCH", _path(id), {"json": _plain(changes)}), _json)

    def documents(
        self,
        filter: str | None = None,  # noqa: A002 - the public word for it
        sort: str | Sequence[str] = (),
        limit: int = 10,
        after: str | None = None,
    ) -> schema.DocumentList:
        """Return a page of all documents, or those of a filter; ``after`` takes a ``next``."""
        order = [sort] if isinstance(sort, str) else list(sort)
        given = {"filter": filter, "sort": order, "limit": limit, "after": after}
        params = {name: value for name, value in given.items() if value is not None}
        return self._send(_Call("GET", "/v1/documents", {"params": params}), _json)

    def delete(self, id: str) -> None:  # noqa: A002 - the public word for it
        """Delete a document."""
        return self._send(_Call("DELETE", _path(id), {}), lambda response: None)

    def words(
        self,
        id: str,  # noqa: A002 - the public word for it
        top_k: int | None = None,
    ) -> list[schema.Word]:
        """Return a document's strongest words, by default as many as a ban looks at."""
        params = {} if top_k is None else {"top_k": top_k}
        return self._send(_Call("GET", f"{_path(id)}/words", {"params": params}), _member("words"))

    def image(self, id: str, size: int = 512) -> bytes:  # noqa: A002 - the public word for it
        """Return a document's picture as JPEG, its longer side at most `size` pixels."""
        return self._send(_Call("GET", f"{_path(id)}/image", {"params": {"size": size}}), _content)

    def heatmap(self, id: str, word: str) -> bytes:  # noqa: A002 - the public word for it
        """Return where a word was read from, as PNG."""
        return self._send(_Call("GET", f"{_path(id)}/heatmap/{quote(word, safe='')}", {}), _content)

    def complete(self, prefix: str) -> list[str]:
        """Return words of the vocabulary with this prefix."""
        params = {"params": {"prefix": prefix}}
        return self._send(_Call("GET", "/v1/words", params), _member("words"))

    def index(self) -> schema.Facts:
        """Return what is served."""
        return self._send(_Call("GET", "/v1/index", {}), _json)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _post(
        self,
        path: str,
        asked: Mapping[str, Any],
        image: SentImage | None,
        read: Callable[[httpx2.Response], T],
    ) -> T:
        given: dict[str, Any] = {"json": asked}
        if image is not None:
            data = _file_of(image)
            given = {"files": {"query": (None, json.dumps(asked)), "image": ("image", data)}}
        return self._send(_Call("POST", path, given), read)

    def _send(self, call: _Call, read: Callable[[httpx2.Response], T]) -> T:
        for left in range(self._retries, -1, -1):
            with _answering(self._http.base_url):
                response = self._http.request(call.method, call.path, **call.given)
            if (pause := _pause(call, response, left)) is None:
                break
            time.sleep(pause)
        return read(response)


def _awaited(
    method: Callable[Concatenate[Client, P], T],
) -> Callable[Concatenate[AsyncClient, P], Awaitable[T]]:
    """Return a method of `Client` for an `AsyncClient`: all end in what `_send` returns."""
    return cast(Any, method)


class AsyncClient:
    """Talk to a server from coroutines; arguments, methods and errors are those of `Client`.

    Reading a file given as an image, or the next document of an upsert, blocks the loop.
    """

    def __init__(
        self, url: str, key: str | None = None, timeout: float = 60.0, retries: int = 5
    ) -> None:
        httpx2 = _load_httpx()
        self._retries = retries
        self._http = httpx2.AsyncClient(
            base_url=_address(url), headers=_headers(key), timeout=timeout
        )

    search = _awaited(Client.search)
    search_many = _awaited(Client.search_many)
    explain = _awaited(Client.explain)
    encode = _awaited(Client.encode)
    upsert = _awaited(Client.upsert)
    get = _awaited(Client.get)
    documents = _awaited(Client.documents)
    patch = _awaited(Client.patch)
    delete = _awaited(Client.delete)
    words = _awaited(Client.words)
    image = _awaited(Client.image)
    heatmap = _awaited(Client.heatmap)
    complete = _awaited(Client.complete)
    index = _awaited(Client.index)
    _post = _awaited(Client._post)

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def _send(self, call: _Call, read: Callable[[httpx2.Response], T]) -> T:
        given = dict(call.given)
        if "content" in given:
            given["content"] = _in_turns(given["content"])
        for left in range(self._retries, -1, -1):
            with _answering(self._http.base_url):
                response = await self._http.request(call.method, call.path, **given)
            if (pause := _pause(call, response, left)) is None:
                break
            await asyncio.sleep(pause)
        return read(response)


async def _in_turns(lines: Iterable[bytes]) -> AsyncIterator[bytes]:
    for line in lines:
        yield line


def _load_httpx() -> Any:
    try:
        import httpx2
    except ModuleNotFoundError as error:
        raise OptionalDependencyError("httpx2", "serve") from error
    return httpx2


def _address(url: str) -> str:
    if not url.startswith(("http://", "https://")):
        raise InputError(url, "the address of a server must start with http:// or https://")
    return url


def _headers(key: str | None) -> dict[str, str]:
    if key is None:
        return {}
    if not (key.isascii() and key.isprintable()):  # the key itself is for no log
        raise InputError("key", "must be printable ASCII")
    return {"Authorization": f"Bearer {key}"}


@contextmanager
def _answering(url: object) -> Iterator[None]:
    failures = _load_httpx().HTTPError
    try:
        yield
    except failures as error:
        detail = f"{url}: {str(error) or type(error).__name__}"
        raise ApiError(0, {"title": "The server does not answer", "detail": detail}) from error


def _json(response: httpx2.Response) -> Any:
    try:
        return response.json()
    except ValueError as error:
        problem = {"title": "The answer is not JSON", "detail": str(response.url)}
        raise ApiError(response.status_code, problem) from error


def _content(response: httpx2.Response) -> bytes:
    return response.content


def _member(name: str) -> Callable[[httpx2.Response], Any]:
    return lambda response: _json(response)[name]


def _asked(text: str | None, query: Mapping[str, Any]) -> dict[str, Any]:
    asked = _with_image(query if text is None else {"text": text, **query})
    if isinstance(similar := asked.get("similar"), Mapping):
        asked["similar"] = [{"id": name, "weight": weight} for name, weight in similar.items()]
    return asked


def _file_of(image: SentImage) -> bytes:
    if isinstance(image, bytes):
        return image
    if isinstance(image, str | Path):
        return Path(image).read_bytes()
    if not hasattr(image, "getexif"):
        rule = "an image must be the bytes or the path of a file, or a PIL image"
        raise InputError("image", f"{rule}, not {type(image).__name__}")
    file = io.BytesIO()
    from lexvla.images import open_image  # slow to import

    open_image(image, "image").save(file, "PNG")  # upright
    return file.getvalue()


def _path(name: str) -> str:
    # A path segment of dots would be read as a parent folder.
    part = quote(name, safe="") if name.strip(".") else "%2E" * len(name)
    return f"/v1/documents/{part}"


def _line(document: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(document, Mapping):  # such as a key of one document that is not a list
        rule = "each document must be values by name such as id and text"
        raise InputError(str(document), rule)
    return _with_image(_plain(document))


def _with_image(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is given with its image as a value of JSON."""
    image = given.get("image")
    if image is None:
        return dict(given)
    return {**given, "image": base64.b64encode(_file_of(image)).decode()}


def _plain(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is given of a document, with metadata that JSON can hold."""
    plain = dict(given)
    if isinstance(metadata := plain.get("metadata"), Mapping):
        plain["metadata"] = {name: plain_value(value) for name, value in metadata.items()}
    return plain


def _pause(call: _Call, response: httpx2.Response, left: int) -> float | None:
    """Return seconds to wait before another try; ``None`` if there is an answer to read."""
    if response.is_success:
        return None
    if not (call.retry and left and response.status_code in _RETRIED):
        raise ApiError(response.status_code, _problem(response))
    named = response.headers.get("retry-after", "1")
    return min(float(named) if named.isdecimal() else 1.0, _LONGEST_PAUSE)


def _problem(response: httpx2.Response) -> dict[str, Any]:
    try:
        problem = response.json()
    except ValueError:
        return {"title": f"status {response.status_code}", "detail": str(response.url)}
    return problem if isinstance(problem, dict) else {}
