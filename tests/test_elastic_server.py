"""The script that gets a server for tests: hashes, Javas, places. Offline."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import zipfile
from pathlib import Path
from urllib.parse import unquote

import pytest

import elastic_fakes
from elastic_fakes import elasticsearch_server as script
from lexvla_indexer.jdk import Jdk
from server_fakes import free_port


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of version 8.0.0 in a repository of files, with a small zip."""
    path = "org/elasticsearch/distribution/integ-test-zip/elasticsearch/8.0.0"
    folder = tmp_path / "repository" / path
    folder.mkdir(parents=True)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("elasticsearch-8.0.0/bin/elasticsearch", "#!/bin/sh\n")
        archive.writestr("elasticsearch-8.0.0/config/elasticsearch.yml", "")
    zipped = folder / "elasticsearch-8.0.0.zip"
    zipped.write_bytes(buffer.getvalue())
    digest = hashlib.sha1(buffer.getvalue()).hexdigest()
    (folder / "elasticsearch-8.0.0.zip.sha1").write_text(f"{digest}  elasticsearch-8.0.0.zip\n")
    monkeypatch.setenv("LEXVLA_MAVEN_REPOSITORY", (tmp_path / "repository").as_uri())
    monkeypatch.setenv("LEXVLA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(script.shutil, "which", lambda name: None)
    return folder


def open_file(address: str, timeout: float) -> io.BytesIO:
    path = Path(unquote(address.removeprefix("file://")))
    if not path.is_file():
        raise script.urllib.error.HTTPError(address, 404, "Not Found", None, None)
    return io.BytesIO(path.read_bytes())


def test_a_zip_is_checked_and_unpacked_once(repository, monkeypatch):
    monkeypatch.setattr(script.urllib.request, "urlopen", open_file)
    place = script.get("8.0.0")
    assert place == script.home("8.0.0")
    assert (place / "bin" / "elasticsearch").stat().st_mode & 0o777 == 0o755
    assert (place / "config" / "elasticsearch.yml").stat().st_mode & 0o777 == 0o644
    (repository / "elasticsearch-8.0.0.zip").unlink()
    assert script.get("8.0.0") == place
    assert [path.name for path in script.cache().iterdir()] == ["elasticsearch-8.0.0"]


def test_java_gets_the_options_of_the_environment_too(repository, monkeypatch):
    monkeypatch.setattr(script.urllib.request, "urlopen", open_file)
    jdk, started = Jdk(repository, "17.0.9"), []
    monkeypatch.setattr(script, "java_for", lambda version: jdk)
    monkeypatch.setattr(script, "await_health", lambda *_: "http://here")
    monkeypatch.setattr(script, "launch", lambda *given: started.append(given[-1]["ES_JAVA_OPTS"]))
    script.get("8.0.0")
    for options in ("-Xint", ""):
        monkeypatch.setenv("ES_JAVA_OPTS", options)
        assert script.start("8.0.0", port=elastic_fakes.free_port()) == "http://here"
    assert started == ["-Xms512m -Xmx512m -Xint", "-Xms512m -Xmx512m "]


def test_sockets_of_dead_javas_are_deleted_before_a_start(tmp_path):
    ended = subprocess.Popen(["true"])
    ended.wait()
    names = [f".java_pid{number}" for number in (ended.pid, os.getpid(), "x")]
    for name in names:
        (tmp_path / name).touch()
    script.forget_dead_javas(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names[1:])


def test_a_zip_with_another_hash_is_refused(repository, monkeypatch):
    monkeypatch.setattr(script.urllib.request, "urlopen", open_file)
    (repository / "elasticsearch-8.0.0.zip.sha1").write_text("0" * 40)
    with pytest.raises(script.ServerError, match=r"its sha1 is .*, and should be 0000"):
        script.get("8.0.0")
    (repository / "elasticsearch-8.0.0.zip.sha1").unlink()
    with pytest.raises(script.ServerError, match="no hash beside it"):
        script.get("8.0.0")
    monkeypatch.setitem(script.KNOWN, "8.0.0", "1" * 128)
    with pytest.raises(script.ServerError, match=r"its sha512 is .*, and should be 1111"):
        script.get("8.0.0")
    assert not script.home("8.0.0").exists()
    with pytest.raises(script.ServerError, match="404"):
        script.get("8.0.1")
    with pytest.raises(script.ServerError, match="get it first"):
        script.start("8.0.0", port=9)


def test_the_oldest_java_that_will_do(tmp_path, monkeypatch):
    def jdk(version: str, modules: str) -> Jdk:
        home = tmp_path / version
        (home / "lib" / "server").mkdir(parents=True)
        (home / "lib" / "server" / "libjvm.so").touch()
        (home / "release").write_text(f'JAVA_VERSION="{version}"\nMODULES="{modules}"\n')
        return Jdk(home, version)

    whole = "java.base jdk.jdi jdk.incubator.vector"
    found = [jdk("25.0.1", whole), jdk("11.0.2", whole), jdk("17.0.9", whole)]
    found.append(jdk("17.0.1", "java.base"))  # a cut-down one
    monkeypatch.setattr(script, "java_home", lambda: None)
    monkeypatch.setattr(script, "installed_jdks", lambda: found)
    assert script.java_for("8.19.21").version == "17.0.9"
    assert script.java_for("9.2.4").version == "25.0.1"
    found[:] = found[1:]
    with pytest.raises(script.ServerError, match=r"needs Java 21 or newer; found 11\.0\.2 at"):
        script.java_for("9.2.4")


def test_what_is_missing_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("LEXVLA_CACHE", str(tmp_path))
    monkeypatch.delenv(elastic_fakes.URL, raising=False)
    pytest.importorskip("elasticsearch", reason="pip install 'lexvla[elasticsearch]'")
    assert "elasticsearch_server.py get" in elastic_fakes.missing()
    monkeypatch.setenv(elastic_fakes.URL, "http://127.0.0.1:9200")
    assert elastic_fakes.missing() == ""


@pytest.mark.slow
@pytest.mark.elasticsearch
def test_a_server_with_passwords(monkeypatch):
    """Start one of its own: the shared one has none."""
    from indexer_fakes import QUERY, VOCABULARY, fill
    from lexvla.errors import EngineUnavailableError
    from lexvla_indexer import open_index

    if not script.home(script.VERSION).is_dir():
        pytest.skip("needs a server of its own: run scripts/elasticsearch_server.py get")
    port = free_port()
    try:
        address = f"elasticsearch+{script.start(port=port, fresh=True, password='geheim')}/photos"
        with pytest.raises(EngineUnavailableError, match="set ELASTIC_API_KEY"):
            open_index(address, create=True)
        monkeypatch.setenv("ELASTIC_USERNAME", script.USER)
        monkeypatch.setenv("ELASTIC_PASSWORD", "falsch")
        with pytest.raises(EngineUnavailableError, match="unable to authenticate"):
            open_index(address, create=True)
        monkeypatch.setenv("ELASTIC_PASSWORD", "geheim")
        with open_index(address, create=True, vocabulary=VOCABULARY) as index:
            fill(index, "a")
            assert index.search(QUERY)[0].ids == ["a"]
        with pytest.raises(EngineUnavailableError, match="speak plain http"):
            open_index(address.replace("+http:", "+https:"))
    finally:
        script.stop(port)
        script.forget(port)
