"""Get, start and stop an OpenSearch server of one node for tests, without Docker.

    python scripts/opensearch_server.py get
    python scripts/opensearch_server.py start --port 9260     # prints the address
    python scripts/opensearch_server.py stop --port 9260

The server is the zip on Maven Central that OpenSearch's own integration tests use, with the plugin
opensearch-knn beside it. That has no native libraries: its exact search by a script runs, its
graphs of nmslib and faiss do not. Versions from 3 on; the zips of 2.x have no modules. It needs
Java 21 or newer, which gets the options in ``OPENSEARCH_JAVA_OPTS``, too. Where it is cached, and
as whom it runs: see ``scripts/elasticsearch_server.py``.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from elasticsearch_server import (
    ServerError,
    await_health,
    cache,
    check_free,
    download,
    forget,
    launch,
    make_readable,
    oldest_java,
    run_command,
    run_folder,
    stop,
)

if TYPE_CHECKING:
    from lexvla_indexer.jdk import Jdk

__all__ = ["VERSION", "ServerError", "forget", "get", "home", "java_for", "start", "stop"]

VERSION = "3.5.0"
PORT = 9260
SERVER = "org.opensearch.distribution.integ-test-zip:opensearch:{}:zip"
PLUGIN = "org.opensearch.plugin:opensearch-knn:{}.0:zip"
# SHA-512 of tested zips; for other versions, the file beside the zip is trusted.
KNOWN = {
    SERVER.format("3.5.0"): "ca4c739cb0457de59df464f8f01eafb962ba140c41a649d29a2f5306cb59b436"
    "d76742a8e710c1493f3a68080e5f55fe5f9bf929cc3b0a6e04c6f87061a2e2a3",
    PLUGIN.format("3.5.0"): "eb93646b9fc589ab69756bb628f7e5c0eb98e7dc2b41fe0f45a9dcd1bd694f17"
    "9f714d469e8609995836ff95076fd5583502fdb2de98b10410fd93743bd83acc",
}
SETTINGS = """\
cluster.name: lexvla-tests
node.name: lexvla-{port}
discovery.type: single-node
network.host: 127.0.0.1
http.port: {port}
transport.port: {transport}
path.data: {run}/data
path.logs: {run}/logs
cluster.routing.allocation.disk.threshold_enabled: false
"""


def home(version: str = VERSION) -> Path:
    """Return the folder of a version."""
    return cache() / f"opensearch-{version}"


def get(version: str = VERSION) -> Path:
    """Download a version with its plugin, check their hashes and unpack them, unless cached."""
    place = home(version)
    if place.is_dir():
        return place
    cache().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache()) as folder:
        inner = Path(folder) / place.name
        for artifact, into in ((SERVER, Path(folder)), (PLUGIN, inner / "plugins/opensearch-knn")):
            named = artifact.format(version)
            _, name, number, _ = named.split(":")
            file = Path(folder) / f"{name}-{number}.zip"
            download(named, file, KNOWN.get(named))
            with zipfile.ZipFile(file) as archive:
                archive.extractall(into)
        make_readable(inner)
        inner.rename(place)
    return place


def java_for(version: str) -> Jdk:
    """Return the oldest suitable Java for a version."""
    return oldest_java(21, f"OpenSearch {version}")


def start(version: str = VERSION, port: int = PORT, fresh: bool = False) -> str:
    """Start a cached server, wait until it answers, and return its address."""
    if not home(version).is_dir():
        raise ServerError(f"{version}: get it first: python scripts/opensearch_server.py get")
    name, run = f"OpenSearch {version}", run_folder(port)
    check_free(port, fresh)
    jdk = java_for(version)
    config = run / "config"
    shutil.rmtree(config, ignore_errors=True)
    shutil.copytree(home(version) / "config", config)
    for folder in ("data", "logs", "tmp"):
        (run / folder).mkdir(exist_ok=True)
    (config / "opensearch.yml").write_text(
        SETTINGS.format(port=port, transport=port + 100, run=run)
    )
    options = config / "jvm.options"
    lines = options.read_text().splitlines(keepends=True)
    # It runs without that module too, slightly slower; not every Java has it.
    kept = "".join(line for line in lines if "jdk.incubator" not in line)
    # The server's own folder is not its user's.
    options.write_text(kept.replace("logs/", f"{run}/logs/").replace("=data", f"={run}/data"))
    environment = {
        "OPENSEARCH_JAVA_HOME": str(jdk.home),
        "OPENSEARCH_JAVA_OPTS": f"-Xms512m -Xmx512m {os.environ.get('OPENSEARCH_JAVA_OPTS', '')}",
        "OPENSEARCH_PATH_CONF": str(config),
        "OPENSEARCH_TMPDIR": str(run / "tmp"),
    }
    launch(name, home(version) / "bin" / "opensearch", run, environment)
    return await_health(name, port)


if __name__ == "__main__":
    raise SystemExit(run_command("An OpenSearch server for tests.", VERSION, PORT, get, start))
