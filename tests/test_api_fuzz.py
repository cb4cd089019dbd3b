"""The OpenAPI description, and requests made from it: no failure, and no answer that it lacks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="needs the server: pip install 'lexvla[serve]'")
pytest.importorskip("schemathesis", reason="needs schemathesis: pip install 'lexvla[dev]'")

import jsonschema_rs
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)

from api_fakes import new_index, served
from api_server import server
from lexvla_indexer import Document, open_index
from search_fakes import WORDS, MappingEncoder

OPERATIONS = [
    ("DELETE", "/v1/documents/{document_id}"),
    ("GET", "/healthz"),
    ("GET", "/metrics"),
    ("GET", "/readyz"),
    ("GET", "/v1/documents"),
    ("GET", "/v1/documents/{document_id}"),
    ("GET", "/v1/documents/{document_id}/heatmap/{word}"),
    ("GET", "/v1/documents/{document_id}/image"),
    ("GET", "/v1/documents/{document_id}/words"),
    ("GET", "/v1/index"),
    ("GET", "/v1/words"),
    ("PATCH", "/v1/documents/{document_id}"),
    ("POST", "/v1/encode"),
    ("POST", "/v1/explain"),
    ("POST", "/v1/search"),
    ("POST", "/v1/search/batch"),
    ("PUT", "/v1/documents"),
]
WITHOUT_RULES = [  # any request keeps to their description
    ("DELETE", "/v1/documents/{document_id}"),
    ("GET", "/healthz"),
    ("GET", "/metrics"),
    ("GET", "/readyz"),
    ("GET", "/v1/documents/{document_id}"),
    ("GET", "/v1/documents/{document_id}/heatmap/{word}"),
    ("GET", "/v1/index"),
]
CHECKS = [
    not_a_server_error,
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
]


@schemathesis.serializer("application/x-ndjson")
def lines(context: Any, value: Any) -> bytes:
    return json.dumps(value).encode()


@pytest.fixture(scope="module")
def described(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with server(new_index(tmp_path_factory.mktemp("api"))) as (_, port):
        yield schemathesis.openapi.from_url(f"http://127.0.0.1:{port}/openapi.json")


# Not by the pytest plugin of schemathesis: its cases fail to be named in newer versions of pytest.
@pytest.mark.parametrize(
    ("method", "path", "mode"),
    [(*each, GenerationMode.POSITIVE) for each in OPERATIONS]
    + [(*each, GenerationMode.NEGATIVE) for each in OPERATIONS if each not in WITHOUT_RULES],
)
def test_requests_made_from_the_description(
    described: Any, method: str, path: str, mode: GenerationMode
) -> None:
    cases = described[path][method].as_strategy(generation_mode=mode)
    # A bad line of an upsert is told of in the answer, and does not fail the others.
    checks = [c for c in CHECKS if method != "PUT" or c is not negative_data_rejection]
    content = described.raw_schema["paths"][path][method.lower()].get("requestBody", {})
    schema = content.get("content", {}).get("application/json", {}).get("schema", {})
    body = jsonschema_rs.validator_for({**schema, "components": described.raw_schema["components"]})

    @settings(max_examples=40, suppress_health_check=list(HealthCheck))
    @given(case=cases)
    def check(case: Any) -> None:
        # A value that breaks one choice of several may keep to another, and is not a violation.
        is_json = method == "POST" and case.media_type == "application/json"
        allowed = is_json and isinstance(case.body, dict) and body.is_valid(case.body)
        case.call_and_validate(
            checks=[c for c in checks if not (allowed and c is negative_data_rejection)]
        )

    check()


def without_example(described: Any, operation: Any) -> Iterator[str]:
    """Name the required parameters and the bodies of an operation that show no example."""
    for parameter in operation.get("parameters", ()):
        if parameter["required"] and not parameter["schema"].get("examples"):
            yield parameter["name"]
    for kind, content in operation.get("requestBody", {}).get("content", {}).items():
        schema = content["schema"]
        schema = schema.get("properties", {}).get("query", schema)  # the JSON of a form
        name = schema["$ref"].rpartition("/")[2]
        if not (content.get("example") or described["components"]["schemas"][name]["examples"]):
            yield kind


def test_the_description_names_all_routes_and_has_examples(tmp_path: Path) -> None:
    with served(tmp_path) as client:
        described = client.get("/openapi.json").json()
    found = described["paths"].items()
    assert sorted((m.upper(), path) for path, methods in found for m in methods) == OPERATIONS
    for path, methods in found:
        for method, operation in methods.items():
            missing = [f"{method} {path} {what}" for what in without_example(described, operation)]
            assert missing == []
    schemas = described["components"]["schemas"]
    for name in (
        *("SearchRequest", "BatchRequest", "ExplainRequest", "EncodeRequest", "DocumentLine"),
        *("DocumentPatch", "FacetSettings", "SimilarItem"),
    ):
        assert schemas[name]["examples"]
        assert schemas[name]["additionalProperties"] is False


def test_the_examples_can_be_sent_as_they_are(tmp_path: Path) -> None:
    encoder = MappingEncoder(words=(*WORDS, "cat", "face", "heart"))
    # As in the demo, whose fields and ids the examples name.
    fields = {"group": "animals-nature", "subgroup": "animal", "label": "cat", "tags": ["cat"]}
    documents = [Document(name, metadata={**fields, "year": 2016}) for name in ("2764", "1f494")]
    place = tmp_path / "pictures.lex"
    with open_index(place, create=True, vocabulary=encoder.vocabulary, model=encoder.name) as index:
        index.add(documents, encoder.encode_text(["red cat", "heart face"]))
        index.commit()
    with served(tmp_path, encoder, images=()) as client:
        described = client.get("/openapi.json").json()
        schemas = described["components"]["schemas"]
        for path, name in (
            *(("search", "SearchRequest"), ("search/batch", "BatchRequest")),
            *(("explain", "ExplainRequest"), ("encode", "EncodeRequest")),
        ):
            for example in schemas[name]["examples"]:
                answer = client.post(f"/v1/{path}", json=example)
                assert answer.status_code == 200, answer.text
        parameters = described["paths"]["/v1/documents"]["get"]["parameters"]
        asked = {each["name"]: each["schema"].get("examples", [None])[0] for each in parameters}
        answer = client.get("/v1/documents", params={k: v for k, v in asked.items() if v})
        assert answer.json()["total"] == 2, answer.text
        for example in schemas["DocumentPatch"]["examples"]:
            assert client.patch("/v1/documents/2764", json=example).status_code == 200
