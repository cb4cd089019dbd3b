"""API keys: scopes, the file that keeps them, and where a server may run without them."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="needs the server: pip install 'lexvla[serve]'")

from api_fakes import new_index, served
from lexvla.errors import InputError, LexVLAError
from lexvla_search import cli
from lexvla_search.api.keys import Keys, make_key, read_keys, revoke_key

READING = [
    ("POST", "/v1/search"),
    ("POST", "/v1/search/batch"),
    ("POST", "/v1/explain"),
    ("POST", "/v1/encode"),
    ("GET", "/v1/documents"),
    ("GET", "/v1/documents/apple"),
    ("GET", "/v1/documents/apple/words"),
    ("GET", "/v1/documents/apple/image"),
    ("GET", "/v1/documents/apple/heatmap/red"),
    ("GET", "/v1/index"),
    ("GET", "/v1/words?prefix=r"),
]
WRITING = [
    ("PUT", "/v1/documents"),
    ("PATCH", "/v1/documents/nothing"),
    ("DELETE", "/v1/documents/nothing"),
]
OPEN = [
    ("GET", "/healthz"),
    ("GET", "/readyz"),
    ("GET", "/metrics"),
    ("GET", "/openapi.json"),
    ("GET", "/"),
    ("GET", "/docs"),
    ("GET", "/static/app.js"),
]


def route_of(address: str) -> str:
    route = re.sub("apple|nothing", "{document_id}", address.partition("?")[0])
    return route.replace("heatmap/red", "heatmap/{word}")


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def test_each_address_asks_for_its_scope(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    reader, _ = make_key(path, "read")
    writer, _ = make_key(path, "write")
    with served(tmp_path, keys=path, hosts=None) as client:
        for method, address in [*READING, *WRITING]:
            for headers in ({}, bearer("lexvla_wrong"), {"Authorization": f"Basic {reader}"}):
                answer = client.request(method, address, headers=headers)
                assert (answer.status_code, address) == (401, address)
                assert answer.headers["WWW-Authenticate"].startswith("Bearer")
        for method, address in READING:
            for key in (reader, writer):
                status = client.request(method, address, headers=bearer(key)).status_code
                assert status not in (401, 403)
        for method, address in WRITING:
            refused = client.request(method, address, headers=bearer(reader))
            assert refused.status_code == 403
            assert "may read, not write" in refused.json()["detail"]
            status = client.request(method, address, headers=bearer(writer)).status_code
            assert status in (404, 415)
        for method, address in OPEN:
            assert client.request(method, address).status_code == 200
        odd = {"Authorization": "Bearer \u00fc".encode()}
        assert client.get("/v1/index", headers=odd).status_code == 401


def test_every_route_asks_for_a_key_or_is_meant_to_be_open(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    make_key(path, "read")
    listed = {(method, route_of(address)) for method, address in READING + WRITING + OPEN}
    with served(tmp_path, keys=path) as client:
        described = client.get("/openapi.json").json()["paths"]
    routes = {(method.upper(), address) for address, found in described.items() for method in found}
    assert routes <= listed


def test_a_file_keeps_hashes_alone_and_revoking_takes_effect_at_once(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    secret, key = make_key(path, "read", "phone")
    assert secret not in path.read_text()
    assert key.sha256 == hashlib.sha256(secret.encode()).hexdigest()
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(InputError, match="phone"):
        make_key(path, "write", "phone")
    with pytest.raises(InputError, match="letters"):
        make_key(path, "read", "a b")
    with served(tmp_path, keys=path) as client:
        assert client.get("/v1/index", headers=bearer(secret)).status_code == 200
        other, _ = make_key(path, "read", "laptop")
        revoke_key(path, "phone")
        assert client.get("/v1/index", headers=bearer(secret)).status_code == 401
        assert client.get("/v1/index", headers=bearer(other)).status_code == 200
        path.write_text("{")
        refused = client.get("/v1/index", headers=bearer(other))
        assert (refused.status_code, refused.json()["status"]) == (503, 503)
        path.unlink()
        assert client.get("/v1/index", headers=bearer(other)).status_code == 503
    with pytest.raises(LexVLAError):
        Keys(path)


@pytest.mark.parametrize(
    "data",
    [
        "[]",
        '{"format_version": 1, "keys": []}',
        '{"format_version": 3, "keys": []}',
        '{"format_version": 2, "keys": []}',
        '{"format_version": 2, "keys": [], "signing": "ab"}',
        '{"format_version": 2, "signing": "%s", "keys": [{"name": "x"}]}' % ("0" * 64),
        '{"format_version": 2, "signing": "%s", "keys": [{"name": "x", "scope": "all",'
        ' "sha256": "", "created":1}]}' % ("0" * 64),
    ],
)
def test_a_bad_file_of_keys_is_no_file_of_no_keys(tmp_path: Path, data: str) -> None:
    path = tmp_path / "keys.json"
    path.write_text(data)
    with pytest.raises(LexVLAError, match=r"keys\.json"):
        read_keys(path)
    with pytest.raises(LexVLAError):
        make_key(path, "read")
    assert path.read_text() == data


def test_the_command_makes_and_revokes_keys(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(tmp_path / "keys.json")
    assert cli.main(["api-key", "--keys", path, "--scope", "write", "--name", "me", "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert (made["name"], made["scope"]) == ("me", "write")
    found = Keys(Path(path)).find(made["key"])
    assert found is not None
    assert found.may("read")
    assert cli.main(["api-key", "--keys", path, "--revoke", "me"]) == 0
    assert Keys(Path(path)).find(made["key"]) is None
    assert cli.main(["api-key", "--keys", path, "--revoke", "me"]) == 1
    assert cli.main(["api-key", "--keys", path]) == 2


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org"])
def test_without_keys_no_other_machine_is_served(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], host: str
) -> None:
    address = new_index(tmp_path)
    assert cli.main(["serve", "--index", address, "--host", host]) == 2
    told = capsys.readouterr().err
    assert "--keys" in told
    assert host in told


def test_serving_names_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["serve", "--index", str(tmp_path / "none.lex")]) == 1
    assert "none.lex" in capsys.readouterr().err
    address = new_index(tmp_path)
    missing = str(tmp_path / "keys.json")
    assert cli.main(["serve", "--index", address, "--keys", missing]) == 1
    assert "keys.json" in capsys.readouterr().err
    assert (
        cli.main(["serve", "--index", address, "--images", str(tmp_path), "--images", missing]) == 2
    )
    assert cli.main(["serve", "--index", address, "--port", "70000"]) == 2
