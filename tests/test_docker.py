"""The files of docker/, as far as they run without Docker."""

from __future__ import annotations

import base64
import importlib
import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

import elastic_fakes
from api_server import request, status_of, talk
from docker_fakes import recording_server
from lexvla_search import cli
from search_fakes import PICTURES, save_pictures
from source_tree import PYTHONPATH

DOCKER = Path(__file__).resolve().parent.parent / "docker"


def compose(*files: str) -> dict:
    services: dict = {}
    for file in files or ("compose.yaml",):
        for name, service in yaml.safe_load((DOCKER / file).read_text())["services"].items():
            services.setdefault(name, {}).update(service)
    return services


def run(script: Path, *args: str, **environment: str) -> subprocess.CompletedProcess[str]:
    path = environment.pop("PATH", os.environ["PATH"])
    return subprocess.run(
        ["/bin/sh", str(script), *args],
        env={"PATH": path, **environment},
        capture_output=True,
        text=True,
        timeout=30,
    )


def test_every_published_port_is_on_loopback():
    published = [port for service in compose().values() for port in service.get("ports", [])]
    assert len(published) == 3
    assert all(str(port).startswith("127.0.0.1:") for port in published)


def test_images_are_pinned_and_no_service_keeps_privileges():
    for name, service in compose().items():
        version = service["image"].rpartition(":")[2]
        assert "build" in service or version[-1].isdigit(), name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name


def test_security_is_on_and_no_password_is_written_in_a_file_of_git():
    services = compose()
    assert services["elasticsearch"]["environment"]["xpack.security.enabled"] == "true"
    for name, service in services.items():
        for key, value in service.get("environment", {}).items():
            assert "PASSWORD" not in key or value.startswith("/run/secrets/"), (name, key)
    assert "/docker/secrets/" in (DOCKER.parent / ".gitignore").read_text().splitlines()


def test_the_server_of_the_tests_is_the_server_of_the_compose_file():
    images = {compose()[name]["image"] for name in ("elasticsearch", "setup")}
    version = elastic_fakes.elasticsearch_server.VERSION
    assert [image.rpartition(":")[2] for image in images] == [version]


def test_the_password_of_the_server_comes_from_its_secret_whatever_its_mode():
    service = compose()["elasticsearch"]
    # By ELASTIC_PASSWORD_FILE the image takes files of mode 0400 or 0600 only.
    assert "ELASTIC_PASSWORD_FILE" not in service["environment"]
    (command,) = service["command"]
    assert service["secrets"] == ["elastic_password"]
    assert "$$(cat /run/secrets/elastic_password)" in command
    assert command.endswith("exec /usr/local/bin/docker-entrypoint.sh eswrapper")


def test_the_api_waits_for_its_role_and_prometheus_asks_it():
    services = compose()
    assert services["api"]["depends_on"] == {
        "setup": {"condition": "service_completed_successfully"}
    }
    scraped = yaml.safe_load((DOCKER / "prometheus.yml").read_text())["scrape_configs"]
    assert [
        target for job in scraped for each in job["static_configs"] for target in each["targets"]
    ] == ["api:8080"]
    command = services["api"]["command"]
    assert command[command.index("--port") + 1] == "8080"


def test_what_images_run_is_what_the_command_takes():
    image = (DOCKER / "Dockerfile").read_text().rpartition("CMD ")[2]
    for command in (compose()["api"]["command"], json.loads(image)):
        _, options = cli.parse(command)
        assert (options.host, options.port, options.create) == ("0.0.0.0", 8080, True)
        assert options.keys == Path("/var/lib/lexvla/keys.json")


def test_every_file_that_a_service_mounts_or_an_image_copies_is_there():
    for service in compose("compose.yaml", "compose.dev.yaml").values():
        for volume in service.get("volumes", []):
            source = volume.partition(":")[0]
            if source.startswith("./"):
                assert (DOCKER / source).is_file(), source
    for line in (DOCKER / "Dockerfile").read_text().splitlines():
        if line.startswith("COPY ") and "--from" not in line:
            for source in line.split()[1:-1]:
                assert (DOCKER.parent / source).exists(), source
                # What is copied must not be kept out of the build's context.
                ignored = (DOCKER / "Dockerfile.dockerignore").read_text().splitlines()
                assert f"!{source}" in ignored, source


def pins(file: str) -> dict[str, tuple[str, int]]:
    """Return the version and the number of hashes of each package of a requirements file."""
    found = {}
    for each in re.sub(r"#.*\n|\\\n", "", (DOCKER / file).read_text()).splitlines():
        pinned, *hashes = each.split()
        name, version = pinned.split("==")
        assert all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", part) for part in hashes), name
        found[name] = version, len(hashes)
    return found


def test_the_image_installs_wheels_by_hash_and_nothing_else():
    commands = (DOCKER / "Dockerfile").read_text().replace("\\\n", " ")
    installs = [
        part for part in re.split(r"&&|\n", commands) if re.search(r"pip (install|wheel)", part)
    ]
    assert len(installs) == 4
    for each in installs:
        by_hash = "--only-binary :all: --require-hashes -r docker/" in each
        assert by_hash != ("--no-index --no-deps" in each), each


def test_what_the_image_installs_is_what_the_project_needs_and_tests_run_with():
    pin_image = importlib.import_module("pin_image")  # elastic_fakes puts scripts/ on the path
    project = tomllib.loads((DOCKER.parent / "pyproject.toml").read_text())
    optional = project["project"]["optional-dependencies"]
    known = (DOCKER.parent / "constraints.txt").read_text().splitlines()
    for file, needed in (
        (
            "requirements.txt",
            [
                *project["project"]["dependencies"],
                *(each for extra in pin_image.EXTRAS for each in optional[extra]),
            ],
        ),
        ("build-requirements.txt", project["build-system"]["requires"]),
    ):
        pinned = pins(file)
        assert {f"{name}=={version}" for name, (version, _) in pinned.items()} <= set(known)
        assert all(hashes in (1, 2) for _, hashes in pinned.values())
        for each in map(Requirement, needed):
            assert pinned[each.name][0] in each.specifier, each
        assert not [name for name in pinned if name.startswith(("torch", "nvidia", "cuda"))]


def test_the_image_runs_as_its_own_user():
    lines = (DOCKER / "Dockerfile").read_text().splitlines()
    last_stage = lines[max(i for i, line in enumerate(lines) if line.startswith("FROM ")) :]
    assert "USER 10001" in last_stage
    assert last_stage.index("USER 10001") < last_stage.index('ENTRYPOINT ["lexvla-entrypoint"]')


def test_secrets_are_long_made_once_and_closed_to_others(tmp_path):
    shutil.copy(DOCKER / "make_secrets.sh", tmp_path)
    first = run(tmp_path / "make_secrets.sh")
    assert first.returncode == 0, first.stderr
    secrets = {path.name: path.read_text() for path in (tmp_path / "secrets").iterdir()}
    named = yaml.safe_load((DOCKER / "compose.yaml").read_text())["secrets"]
    assert set(secrets) == set(named)
    assert all(len(bytes.fromhex(value)) == 32 for value in secrets.values())
    assert len(set(secrets.values())) == len(secrets)
    assert stat.S_IMODE((tmp_path / "secrets").stat().st_mode) == 0o700
    assert run(tmp_path / "make_secrets.sh").stdout == ""
    assert secrets == {path.name: path.read_text() for path in (tmp_path / "secrets").iterdir()}


@pytest.fixture
def printing(tmp_path: Path) -> str:
    """Return a PATH on which `lexvla` prints its arguments and what it knows of passwords."""
    program = tmp_path / "bin" / "lexvla"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\necho "$*"\nenv | grep ^ELASTIC | sort\nexit 7\n')
    program.chmod(0o755)
    return f"{program.parent}:{os.environ['PATH']}"


def test_the_entrypoint_reads_secrets_from_files_and_keeps_the_exit_code(tmp_path, printing):
    (tmp_path / "secret").write_text("pa ss$word'\"\n")
    done = run(
        DOCKER / "entrypoint.sh",
        *("info", "--index", "a b"),
        PATH=printing,
        ELASTIC_PASSWORD_FILE=str(tmp_path / "secret"),
        ELASTIC_USERNAME="lexvla",
    )
    assert done.returncode == 7
    assert done.stdout.splitlines() == [
        "info --index a b",
        "ELASTIC_PASSWORD=pa ss$word'\"",
        "ELASTIC_USERNAME=lexvla",
    ]


def test_the_entrypoint_stops_at_a_secret_that_cannot_be_read(tmp_path, printing):
    missing = str(tmp_path / "missing")
    done = run(DOCKER / "entrypoint.sh", PATH=printing, ELASTIC_API_KEY_FILE=missing)
    assert done.returncode == 1
    assert done.stderr == f"lexvla: error: ELASTIC_API_KEY_FILE: cannot read {missing}\n"
    assert done.stdout == ""


@pytest.mark.parametrize(("index", "pattern"), [("pictures", "pictures"), ("a.b", "a[.]b")])
def test_the_setup_makes_a_role_of_one_index_and_a_user(tmp_path, index, pattern):
    for name in ("elastic", "lexvla"):
        (tmp_path / name).write_text(f"{name}-password")
    with recording_server() as (address, requests):
        done = run(
            DOCKER / "setup_elasticsearch.sh",
            ELASTICSEARCH_URL=address,
            ELASTIC_PASSWORD_FILE=str(tmp_path / "elastic"),
            LEXVLA_PASSWORD_FILE=str(tmp_path / "lexvla"),
            LEXVLA_INDEX=index,
        )
    assert done.returncode == 0, done.stderr
    basic = base64.b64encode(b"elastic:elastic-password").decode()
    assert [(method, path) for method, path, _, _ in requests] == [
        ("PUT", "/_security/role/lexvla"),
        ("PUT", "/_security/user/lexvla"),
    ]
    assert {authorization for _, _, authorization, _ in requests} == {f"Basic {basic}"}
    role, user = (json.loads(body) for *_, body in requests)
    assert role["indices"][0]["names"] == [index, f"/{pattern}-[0-9]{{6}}(-write)?/"]
    assert user == {"password": "lexvla-password", "roles": ["lexvla"], "full_name": "LexVLA"}


@pytest.mark.parametrize("status", [401, 503])
def test_the_setup_fails_where_the_server_refuses(tmp_path, status):
    (tmp_path / "p").write_text("x")
    with recording_server(status) as (address, requests):
        done = run(
            DOCKER / "setup_elasticsearch.sh",
            ELASTICSEARCH_URL=address,
            ELASTIC_PASSWORD_FILE=str(tmp_path / "p"),
            LEXVLA_PASSWORD_FILE=str(tmp_path / "p"),
        )
    assert done.returncode != 0
    assert len(requests) == 1


@pytest.mark.parametrize("name", ["a/b", 'x"y', "*", "Photos", " "])
def test_the_setup_refuses_names_that_are_no_index(tmp_path, name):
    (tmp_path / "p").write_text("x")
    done = run(
        DOCKER / "setup_elasticsearch.sh",
        ELASTIC_PASSWORD_FILE=str(tmp_path / "p"),
        LEXVLA_PASSWORD_FILE=str(tmp_path / "p"),
        LEXVLA_INDEX=name,
    )
    assert done.returncode == 2
    assert "LEXVLA_INDEX" in done.stderr


@pytest.fixture
def secured(tmp_path: Path) -> Iterator[str]:
    """Start a server with security on, whose only user has role and password of compose.yaml.

    The server of the tests keeps roles and users in files; it lacks what the API for them needs.
    """
    server = elastic_fakes.elasticsearch_server
    if not server.home(server.VERSION).is_dir():
        pytest.skip("needs a server: scripts/elasticsearch_server.py get")
    shutil.copy(DOCKER / "make_secrets.sh", tmp_path)
    assert run(tmp_path / "make_secrets.sh").returncode == 0
    password = (tmp_path / "secrets" / "lexvla_password").read_text()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = 20_000 + taken.getsockname()[1] % 20_000  # that of nodes is 100 above
    role = json.loads(re.sub("INDEX|PATTERN", "photos", (DOCKER / "role.json").read_text()))
    try:
        yield server.start(port=port, fresh=True, password=password, roles={"lexvla": role})
    finally:
        server.stop(port)
        server.forget(port)


@pytest.mark.slow
@pytest.mark.elasticsearch
def test_the_api_works_by_its_role_as_compose_starts_it(tmp_path, secured):
    secrets = tmp_path / "secrets"
    program = tmp_path / "bin" / "lexvla"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m lexvla_search "$@"\n')
    program.chmod(0o755)
    service = compose()["api"]
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("ELASTIC_")},
        **service["environment"],
        "ELASTIC_PASSWORD_FILE": str(secrets / "lexvla_password"),
        "PATH": f"{program.parent}:{os.environ['PATH']}",
        "PYTHONPATH": PYTHONPATH,
    }
    keys, images = tmp_path / "keys.json", save_pictures(tmp_path / "images")
    address = f"elasticsearch+{secured}/photos"
    here = {
        "elasticsearch+http://elasticsearch:9200/${LEXVLA_INDEX:-photos}": address,
        "0.0.0.0": "127.0.0.1",
        "8080": "0",
        "/var/lib/lexvla/keys.json": str(keys),
        "/images": str(images),
    }
    command = [here.pop(part, part) for part in service["command"]]
    assert not here  # all of it was there

    def lexvla(*arguments: str) -> str:
        return subprocess.run(
            ["/bin/sh", str(DOCKER / "entrypoint.sh"), *arguments],
            env=environment,
            check=True,
            stdout=subprocess.PIPE,
            text=True,
            timeout=120,
        ).stdout

    key = lexvla("api-key", "--scope", "write", "--keys", str(keys)).strip()
    api = subprocess.Popen(
        ["/bin/sh", str(DOCKER / "entrypoint.sh"), *command],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert api.stderr is not None
        told = [api.stderr.readline()]
        while "http://" not in told[-1]:
            assert api.poll() is None, told
            told.append(api.stderr.readline())
        port = int(re.search(r":([0-9]+)/", told[-1])[1])
        assert status_of(talk(port, request("GET", "/readyz"))) == 200  # the image's health check
        facts = json.loads(lexvla("index", str(images), "--index", address, "--json"))
        assert facts["documents"] == len(PICTURES)
        asked = {"terms": {"heart": 1.0}, "k": 2, "legs": ["lexical"]}
        assert status_of(talk(port, request("POST", "/v1/search", asked))) == 401
        authorized = {"Authorization": f"Bearer {key}"}
        answer = talk(port, request("POST", "/v1/search", asked, **authorized))
        assert status_of(answer) == 200
        # What Prometheus asks, without a key.
        figures = talk(port, request("GET", "/metrics")).decode()
        assert f"lexvla_index_documents {len(PICTURES)}.0" in figures
        assert status_of(talk(port, request("DELETE", "/v1/documents/none", **authorized))) == 404
        api.send_signal(signal.SIGTERM)
        assert api.wait(timeout=60) == 0
    finally:
        api.kill()
        api.communicate()
    with pytest.raises(subprocess.CalledProcessError):  # the role is of one index
        lexvla("index", str(images), "--index", f"elasticsearch+{secured}/others")
