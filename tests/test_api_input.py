"""Bad requests: each gets a problem that says what is wrong, and none gets further."""

from __future__ import annotations

import json
import logging
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="needs the server: pip install 'lexvla[serve]'")

from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from api_fakes import png, served, text_of
from lexvla_search.api import Limits
from search_fakes import PICTURES

JSON = {"Content-Type": "application/json"}
LIMITS = Limits(threads=2, body_bytes=300_000, k=100, offset=50, words=8, items=4, pixels=10_000)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    with served(tmp_path_factory.mktemp("api"), limits=LIMITS) as client:
        yield client


def problem(answer: Any, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    told: dict[str, Any] = answer.json()
    assert told["status"] == status
    assert told["type"].startswith("urn:problem-type:lexvla:")
    assert told["title"]
    assert told["detail"]
    assert told["instance"].startswith("/")
    assert told["request_id"] == answer.headers["X-Request-ID"]
    return told


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ({"text": "red", "colour": "blue"}, "colour: there is no such field"),
        ({"text": 5}, "text"),
        ({"text": "red", "k": 0}, "k"),
        ({"text": "red", "k": "5"}, "k"),
        ({"text": "red", "k": True}, "k"),
        ({"text": "red", "k": 101}, "k: must be at most 100"),
        ({"text": "red", "k": 10**400}, "k"),
        ({"text": "red", "offset": 51}, "offset: must be at most 50"),
        ({"text": "red", "offset": -1}, "offset"),
        ({"text": "red", "legs": []}, "legs: List should have at least 1 item, not 0"),
        ({"text": "red", "legs": ["smell"]}, "legs.0"),
        ({"text": "red", "legs": ["dense"]}, "dense"),
        ({"text": "red", "fusion": "magic"}, "fusion"),
        ({"text": "red", "fusion": 5}, "fusion: Input should be a string or an object"),
        ({"text": "red", "sort": 5}, "sort: Input should be a string or an array"),
        ({"text": "red", "facets": [5]}, "facets.0: Input should be a string or an object"),
        (
            {"text": "red", "fusion": {"name": "weighted", "weights": {"smell": 1}}},
            "fusion.weights: the name 'smell' should be 'lexical', 'codes', 'dense' or 'text'",
        ),
        ({"boost": {"": 1}}, "boost: the name '' should have at least 1 character"),
        ({"boost": {"\x00" * 257: 1}}, "boost: the name '\\x00"),
        ({"boost": {"[key]": "x"}}, "boost.[key]: Input should be a valid number"),
        ({"boost": {"x" * 300: "x"}}, f"boost.{'x' * 197}...: Input should be a valid number"),
        ({"text": "red", "fusion": {"name": "magic"}}, "fusion.name: Input"),
        ({"text": "red", "group_copies": 2}, "group_copies: Input"),
        ({"text": "red", "group_copies": "yes"}, "group_copies: Input should be a boolean or a"),
        ({"text": "red", "similar": [{"id": "a", "w": 1}]}, "similar.0.w: there is no such field"),
        ({"facets": [{"field": "a", "ranges": [[2, 1]]}]}, "'a': a range must end above"),
        ({"text": "red", "fusion": {"name": "rrf", "depth": 101}}, "fusion.depth"),
        ({"text": "red", "fusion": {"name": "rrf", "normalization": "raw"}}, "normalization"),
        ({"text": "red", "fusion": {"name": "weighted", "weights": {"lexical": 0}}}, "above 0"),
        ({"text": "red", "fusion": {"name": "weighted", "weights": {"dense": 1}}}, "dense"),
        ({"text": "red", "boost": {"red": -1}}, "boost.red"),
        ({"text": "red", "boost": {"red": 0}}, "boost.red"),
        ({"text": "red", "boost": {"purple": 2}}, "purple"),
        ({"text": "red", "ban": ["purple"]}, "purple"),
        ({"text": "red", "ban": ["red"]}, "red"),
        ({"text": "red", "require": ["purple"]}, "purple"),
        ({"text": "red", "ban": ["red"] * 9}, "ban: must be at most 8 words"),
        ({"terms": {"purple": 1}}, "purple"),
        ({"text": "r" * 16_385}, "text"),
        ({"boost": {"red": 2}}, "boost"),
        ({"min_score": 0.5}, "min_score"),
        ({"text": "red", "sort": "label"}, "min_score"),
        ({"sort": ["label", "-label"]}, "label"),
        ({"sort": "lable"}, "there are label"),
        ({"sort": ["-"]}, "sort"),
        ({"sort": 5}, "sort"),
        ({"facets": ["lable"]}, "there are label"),
        ({"facets": ["label", {"field": "label"}]}, "given twice"),
        ({"facets": [{"field": "label", "limit": 0}]}, "facets.0.limit: Input"),
        ({"facets": [{"field": "label", "ranges": [[1, "a"]]}]}, "two numbers or two strings"),
        ({"facets": [{"field": "label", "ranges": [[None, None]]}]}, "two numbers"),
        ({"similar": ["apple", {"id": "apple", "weight": 2}]}, "similar: must be different"),
        ({"similar": [{"id": "apple", "weight": 0}]}, "apple"),
        ({"similar": [{"id": "apple", "weight": -1}]}, "nothing to look for"),
        ({"similar": "apple"}, "similar"),
        ({"after": "x"}, "after"),
        ({"after": "x", "offset": 1}, "after"),
        ({"text": "red", "region": [0, 0, 1, 1]}, "region"),
        ({"text": "red", "filter": "year >>"}, "year >>"),
        ({"text": "red", "filter": "lable = x"}, "there are id, uri, text, label"),
        ({"image": "%%"}, "image: is not valid base64"),
        ({"image": ""}, "empty"),
        ({"image": text_of(b"GIF89a")}, "GIF"),
        ({"image": text_of(png(PICTURES["snow"])), "region": [60, 60, 9, 9]}, "region"),
        ({"image": text_of(png(PICTURES["snow"])), "region": [1, 2, 3]}, "region"),
        ({"image": "AAAA", "image_url": "http://h/x"}, "either image or image_url"),
        ({"image_url": "http://127.0.0.1/x.png"}, "fetches no images"),
        ([], "body"),
        ("red", "body"),
        (None, "body"),
    ],
)
def test_a_broken_rule_is_named(client: TestClient, asked: Any, named: str) -> None:
    data = json.dumps(asked).encode()
    told = problem(client.post("/v1/search", content=data, headers=JSON), 422)
    assert named in told["detail"]


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
@pytest.mark.parametrize(
    "field", ['"min_score": {}', '"boost": {{"red": {}}}', '"terms": {{"red": {}}}']
)
def test_weights_must_be_finite(client: TestClient, field: str, number: str) -> None:
    data = '{"text": "red", ' + field.format(number) + "}"
    problem(client.post("/v1/search", content=data.encode(), headers=JSON), 422)


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b'{"text": "\xff"}', b'{"text": "\\ud800"}', b"\x00", b"[" * 100_000, b'{"k": 1e}'],
)
def test_what_is_no_json_is_refused(client: TestClient, data: bytes) -> None:
    told = problem(client.post("/v1/search", content=data, headers=JSON), 400)
    assert "not valid JSON" in told["detail"]


def test_half_a_character_in_a_document_is_refused(client: TestClient) -> None:
    line = b'{"id": "\\udc80", "text": "red"}'
    headers = {"Content-Type": "application/x-ndjson"}
    answer = client.put("/v1/documents", content=line, headers=headers).json()
    assert (answer["indexed"], answer["rejected"]) == (0, 1)


@pytest.mark.parametrize("kind", [None, "text/plain", "application/x-www-form-urlencoded"])
def test_other_kinds_of_bodies_are_refused(client: TestClient, kind: str | None) -> None:
    headers = {} if kind is None else {"Content-Type": kind}
    for method, path in (("POST", "/v1/search"), ("POST", "/v1/encode"), ("PUT", "/v1/documents")):
        problem(client.request(method, path, content=b"{}", headers=headers), 415)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"--x",
        b"--x\r\n",
        b"--x\r\nContent-Disposition: form-data; name=query\r\n\r\n",
        b'--x\r\nContent-Disposition: form-data; name="query"\r\n\r\n{"text": "red"}',
        b"--x\r\nno colon\r\n\r\nx\r\n--x--\r\n",
        b"--x\r\n\r\nno disposition\r\n--x--\r\n",
        b'--x\r\nContent-Disposition: form-data; name="query"\r\n\r\n{\r\n--x--\r\n',
        b'--x\r\nContent-Disposition: form-data; name="other"\r\n\r\n{}\r\n--x--\r\n',
        b'--x\r\nContent-Disposition: form-data; name="image"\r\n\r\nno file\r\n--x--\r\n',
        b"\xff" * 999,
    ],
)
def test_broken_parts_are_refused(client: TestClient, data: bytes) -> None:
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    answer = client.post("/v1/search", content=data, headers=headers)
    assert answer.status_code in (400, 422), answer.text
    problem(answer, answer.status_code)
    unbound = {"Content-Type": "multipart/form-data"}
    problem(client.post("/v1/search", content=data, headers=unbound), 400)


def test_two_images_are_one_too_many(client: TestClient) -> None:
    files = [("image", (str(i), png(PICTURES["lime"]))) for i in range(2)]
    problem(client.post("/v1/search", files=files), 422)
    five = [("image", (str(i), png(PICTURES["lime"]))) for i in range(5)]
    assert client.post("/v1/encode", files=five).status_code in (400, 422)
    texts = {"texts": ["red"] * 5}
    assert "at most 4 items" in problem(client.post("/v1/encode", json=texts), 422)["detail"]


def bomb(width: int, height: int) -> bytes:
    """Return a small PNG that says it is large."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    pixels = zlib.compress(bytes(10_000), 9)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("size", [(101, 100), (2**31 - 1, 2**31 - 1), (0, 5)])
def test_an_image_of_too_many_pixels_is_not_decoded(client: TestClient, size: tuple) -> None:
    data = bomb(*size)
    in_json = client.post("/v1/search", json={"image": text_of(data)})
    as_part = client.post("/v1/encode", files={"image": ("bomb.png", data)})
    for answer in (in_json, as_part):
        assert "pixels" in problem(answer, 422)["detail"] or size == (0, 5)


def test_a_large_body_is_refused_with_and_without_its_length(client: TestClient) -> None:
    data = json.dumps({"text": "r" * 300_000}).encode()
    problem(client.post("/v1/search", content=data, headers=JSON), 413)
    chunks = iter([data[:200_000], data[200_000:]])
    problem(client.post("/v1/search", content=chunks, headers=JSON), 413)
    assert client.app.state.service.intake.held == 0


def test_all_bodies_together_have_a_limit(tmp_path: Any) -> None:
    with served(tmp_path, limits=Limits(threads=1, received_bytes=10)) as client:
        told = problem(client.post("/v1/search", json={"text": "red"}), 429)
        assert "bytes" in told["detail"]


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("abc-1.2_X", True),
        ("a" * 64, True),
        ("a" * 65, False),
        ("", False),
        ("a b", False),
        ("a\tb", False),
        ('"><script>', False),
        ("é", False),
    ],
)
def test_a_request_id_is_kept_if_it_is_sane(client: TestClient, given: str, kept: bool) -> None:
    headers = {"X-Request-ID": given.encode()}
    answer = client.get("/healthz", headers=headers)
    told = answer.headers["X-Request-ID"]
    assert (told == given) == kept
    assert kept or (len(told) == 16 and told.isalnum())


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/nothing", 404),
        ("GET", "/v1/documents/a/b", 404),
        ("GET", "/v1/documents/%ff", 400),
        ("GET", "/v1/documents/%00", 404),
        ("GET", "/v1/documents/a%0d%0aX-Evil:%201", 404),
        ("GET", "/v1/search", 405),
        ("TRACE", "/v1/search", 405),
        ("GET", "/v1/words?prefix=", 422),
        ("GET", "/v1/documents/apple/words?top_k=x", 422),
        ("GET", "/v1/documents/apple/image?size=100000", 422),
    ],
)
def test_other_addresses_get_problems(
    client: TestClient, method: str, path: str, status: int
) -> None:
    answer = client.request(method, path)
    problem(answer, status)
    assert "x-evil" not in answer.headers


def test_logs_tell_of_requests_and_not_of_queries(
    client: TestClient, caplog: pytest.LogCaptureFixture, tmp_path: Any
) -> None:
    caplog.set_level(logging.INFO)
    client.post("/v1/search", json={"text": "red"}, headers={"X-Request-ID": "one"})
    (record,) = [record for record in caplog.records if record.name == "lexvla_search.api.access"]
    assert record.fields.keys() == {"request_id", "method", "route", "status", "ms"}
    assert record.fields["request_id"] == "one"
    caplog.clear()
    with served(tmp_path, log_queries=True) as other:
        other.post("/v1/search", json={"text": "red", "k": 3})
    fields = [
        record.fields for record in caplog.records if record.name == "lexvla_search.api.access"
    ]
    assert [each["query"] for each in fields] == [{"text": "red", "k": 3}]


def test_a_failure_of_the_server_tells_nothing_of_its_inside(tmp_path: Any) -> None:
    with served(tmp_path) as client:
        client.app.state.service.searcher.answer = lambda *_, **__: 1 / 0
        told = problem(client.post("/v1/search", json={"text": "red"}), 500)
        assert "division" not in json.dumps(told)
        assert client.get("/healthz").status_code == 200


def test_names_of_other_machines_are_refused_without_keys(client: TestClient) -> None:
    for host in ("evil.example", "localhost.evil.example", "localhost@evil", ""):
        assert client.get("/v1/index", headers={"Host": host}).status_code == 421
    for host in ("LOCALHOST", "localhost:8080", "127.0.0.1:1", "[::1]:8080"):
        assert client.get("/v1/index", headers={"Host": host}).status_code == 200


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["red", "blue", "lexical", "rrf"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)
names = st.sampled_from(
    ["text", "image", "region", "terms", "boost", "ban", "require", "filter", "legs", "fusion", "k"]
) | st.text(max_size=4)


@settings(max_examples=150)
@given(st.dictionaries(names, values, max_size=4))
def test_any_json_gets_an_answer_or_a_problem(client: TestClient, asked: dict[str, Any]) -> None:
    data = json.dumps(asked).encode()
    answer = client.post("/v1/search", content=data, headers=JSON)
    if answer.status_code != 200:
        problem(answer, answer.status_code)
    assert answer.status_code in (200, 400, 422)


@settings(max_examples=100)
@given(st.binary(max_size=200), st.sampled_from(["search", "explain", "encode"]))
def test_any_bytes_get_a_problem(client: TestClient, data: bytes, path: str) -> None:
    answer = client.post(f"/v1/{path}", content=data, headers=JSON)
    if answer.status_code == 200:  # which lists all documents
        assert (path, json.loads(data)) == ("search", {})
        return
    problem(answer, answer.status_code)
    assert answer.status_code in (400, 422)


@pytest.mark.parametrize("path", ["/", "/healthz", "/metrics", "/v1/index", "/v1/documents/apple"])
def test_heads_are_told_wherever_answers_are(client: TestClient, path: str) -> None:
    whole, head = client.get(path), client.head(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"] == whole.headers["content-type"]
    assert int(head.headers["content-length"]) > 0
    assert client.head("/v1/documents/none").status_code == 404
    assert client.head("/v1/search").status_code == 405
    assert 'method="HEAD",route="/healthz"' in client.get("/metrics").text or path != "/healthz"


def test_an_id_that_is_far_too_long_is_not_told_in_full(client: TestClient) -> None:
    line = b'{"id": "%s", "text": "red"}' % (b"x" * 100_000)
    answer = client.put(
        "/v1/documents", content=line, headers={"Content-Type": "application/jsonl"}
    )
    (error,) = answer.json()["errors"]
    assert (error["id"], "16,384 bytes" in error["detail"]) == ("x" * 512, True)
