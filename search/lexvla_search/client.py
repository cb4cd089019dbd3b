"""A client of the REST API."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import quote

from lexvla.errors import LexVLAError, OptionalDependencyError

if TYPE_CHECKING:
    import httpx2

    from lexvla_search import schema

__all__ = ["ApiError", "Client"]

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


class Client:
    """Talk to a server of ``lexvla serve``. A request that fails raises `ApiError`.

    Args:
        url: The server, such as ``http://127.0.0.1:8080``.
        key: An API key, if the server needs one.
        timeout: Seconds to wait for an answer.
        retries: How often to retry when the server is busy, after the time that it names.
    """

    def __init__(
        self, url: str, key: str | None = None, timeout: float = 60.0, retries: int = 5
    ) -> None:
        try:
            import httpx2
        except ModuleNotFoundError as error:
            raise OptionalDependencyError("httpx2", "serve") from error
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        self._retries = retries
        self._failures = httpx2.HTTPError
        self._http = httpx2.Client(base_url=url, headers=headers, timeout=timeout)

    def search(
        self, text: str | None = None, *, image: bytes | str | Path | None = None, **query: Any
    ) -> schema.SearchAnswer:
        """Find documents by words and an image, given as the bytes or the path of a file.

        docs/api.md lists the other settings: ``similar``, ``boost``, ``ban``, ``filter``, ``k``,
        ``sort``, ``facets``, ``after``, ... Weights of ``similar`` may be given by id.
        """
        answer: schema.SearchAnswer = self._post("/v1/search", _asked(text, query), image)
        return answer

    def search_many(self, queries: Iterable[str | Mapping[str, Any]]) -> list[schema.SearchAnswer]:
        """Answer several queries, each a text or settings as those of `search`."""
        asked = [_asked(q, {}) if isinstance(q, str) else _asked(None, q) for q in queries]
        made = self._send("POST", "/v1/search/batch", json={"queries": asked}).json()
        answers: list[schema.SearchAnswer] = made["answers"]
        return answers

    def explain(
        self,
        id: str,  # noqa: A002 - the public word for it
        text: str | None = None,
        *,
        image: bytes | str | Path | None = None,
        **query: Any,
    ) -> schema.Hit:
        """Explain one document's score; takes a query as `search` does."""
        asked = {**_asked(text, query), "id": id}
        hit: schema.Hit = self._post("/v1/explain", asked, image)["hit"]
        return hit

    def encode(
        self, texts: Sequence[str] = (), images: Sequence[bytes] = (), **options: Any
    ) -> list[schema.EncodedItem]:
        """Return the words of texts, or of image files."""
        if images:
            parts: list[tuple[str, Any]] = [("query", (None, json.dumps(options)))]
            parts += [("image", (f"{i}", data)) for i, data in enumerate(images)]
            made = self._send("POST", "/v1/encode", files=parts).json()
        else:
            made = self._send("POST", "/v1/encode", json={"texts": list(texts), **options}).json()
        items: list[schema.EncodedItem] = made["items"]
        return items

    def upsert(self, documents: Iterable[Mapping[str, Any]]) -> schema.UpsertAnswer:
        """Add or replace documents; those counted as indexed are committed.

        They are streamed, so there may be any number. Each has an ``id``, and a ``text``, an
        ``image`` (bytes of an image file) or an ``image_url``; ``uri`` and ``metadata`` are
        optional. A busy server is not asked again, as the stream cannot be sent twice. On failure,
        the `ApiError`'s problem says how many documents are committed.
        """

        def lines() -> Iterator[bytes]:
            for document in documents:
                yield json.dumps(_line(document)).encode() + b"\n"

        headers = {"Content-Type": "application/x-ndjson"}
        answer: schema.UpsertAnswer = self._send(
            "PUT", "/v1/documents", retry=False, content=lines(), headers=headers
        ).json()
        return answer

    def get(self, id: str) -> schema.Document:  # noqa: A002 - the public word for it
        """Return what the index keeps of a document."""
        document: schema.Document = self._send("GET", _path(id)).json()
        return document

    def documents(
        self,
        filter: str | None = None,  # noqa: A002 - the public word for it
        sort: Sequence[str] = (),
        limit: int = 10,
        after: str | None = None,
    ) -> schema.DocumentList:
        """Return a page of all documents, or those of a filter; ``after`` takes a ``next``."""
        given = {"filter": filter, "sort": list(sort), "limit": limit, "after": after}
        params = {name: value for name, value in given.items() if value is not None}
        page: schema.DocumentList = self._send("GET", "/v1/documents", params=params).json()
        return page

    def delete(self, id: str) -> None:  # noqa: A002 - the public word for it
        """Delete a document."""
        self._send("DELETE", _path(id))

    def words(
        self,
        id: str,  # noqa: A002 - the public word for it
        top_k: int | None = None,
    ) -> list[schema.Word]:
        """Return a document's strongest words, by default as many as a ban looks at."""
        params = {} if top_k is None else {"top_k": top_k}
        answer = self._send("GET", f"{_path(id)}/words", params=params).json()
        words: list[schema.Word] = answer["words"]
        return words

    def image(self, id: str, size: int = 512) -> bytes:  # noqa: A002 - the public word for it
        """Return a document's picture as JPEG, its longer side at most `size` pixels."""
        return self._send("GET", f"{_path(id)}/image", params={"size": size}).content

    def heatmap(self, id: str, word: str) -> bytes:  # noqa: A002 - the public word for it
        """Return where a word was read from, as PNG."""
        return self._send("GET", f"{_path(id)}/heatmap/{quote(word, safe='')}").content

    def complete(self, prefix: str) -> list[str]:
        """Return words of the vocabulary with this prefix."""
        words: list[str] = self._send("GET", "/v1/words", params={"prefix": prefix}).json()["words"]
        return words

    def index(self) -> schema.Facts:
        """Return what is served."""
        facts: schema.Facts = self._send("GET", "/v1/index").json()
        return facts

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

    def _post(self, path: str, asked: Mapping[str, Any], image: bytes | str | Path | None) -> Any:
        if image is None:
            return self._send("POST", path, json=asked).json()
        data = image if isinstance(image, bytes) else Path(image).read_bytes()
        parts = {"query": (None, json.dumps(asked)), "image": ("image", data)}
        return self._send("POST", path, files=parts).json()

    def _send(self, method: str, path: str, retry: bool = True, **given: Any) -> httpx2.Response:
        for attempt in range(self._retries + 1):
            try:
                response = self._http.request(method, path, **given)
            except self._failures as error:
                problem = {"title": "The server does not answer", "detail": str(error)}
                raise ApiError(0, problem) from error
            if response.is_success:
                return response
            if not retry or response.status_code not in _RETRIED or attempt == self._retries:
                break
            time.sleep(_pause(response))
        raise ApiError(response.status_code, _problem(response))


def _asked(text: str | None, query: Mapping[str, Any]) -> dict[str, Any]:
    asked = dict(query) if text is None else {"text": text, **query}
    if isinstance(similar := asked.get("similar"), Mapping):
        asked["similar"] = [{"id": name, "weight": weight} for name, weight in similar.items()]
    return asked


def _path(name: str) -> str:
    # A path segment of dots would be read as a parent folder.
    part = quote(name, safe="") if name.strip(".") else "%2E" * len(name)
    return f"/v1/documents/{part}"


def _line(document: Mapping[str, Any]) -> dict[str, Any]:
    image = document.get("image")
    if not isinstance(image, bytes):
        return dict(document)
    return {**document, "image": base64.b64encode(image).decode()}


def _pause(response: httpx2.Response) -> float:
    named = response.headers.get("retry-after", "1")
    return min(float(named) if named.isdecimal() else 1.0, _LONGEST_PAUSE)


def _problem(response: httpx2.Response) -> dict[str, Any]:
    try:
        problem = response.json()
    except ValueError:
        return {"title": f"status {response.status_code}"}
    return problem if isinstance(problem, dict) else {}
