"""Write which packages the container image installs, each by version and hash of its wheels.

    python scripts/pin_image.py

Resolves the image's extras within constraints.txt, for x86_64 and aarch64, and writes
docker/requirements.txt and, for what builds LexVLA's own wheel, docker/build-requirements.txt.
Needs PyPI; wheels are not downloaded.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
EXTRAS = ("elasticsearch", "fast", "serve")
PYTHON = "3.11"
MACHINES = ("x86_64", "aarch64")
GLIBC = 36  # 2.36, of Debian 12
HEAD = (
    "# Written by scripts/pin_image.py. What is not named here, or has another hash, is refused.\n"
)


def main() -> int:
    """Write both files."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    optional = project["project"]["optional-dependencies"]
    needed = project["project"]["dependencies"] + [
        each for name in EXTRAS for each in optional[name]
    ]
    for name, wanted in (
        ("requirements.txt", needed),
        ("build-requirements.txt", project["build-system"]["requires"]),
    ):
        (ROOT / "docker" / name).write_text(HEAD + "".join(lines(wanted)))
    return 0


def lines(wanted: Iterable[str]) -> Iterator[str]:
    """Yield a requirement with its hashes for each package that these need."""
    hashes: dict[str, set[str]] = {}
    for machine in MACHINES:
        for pinned, digest in resolved(wanted, machine):
            hashes.setdefault(pinned, set()).add(digest)
    for pinned in sorted(hashes):
        parts = [pinned, *(f"--hash=sha256:{digest}" for digest in sorted(hashes[pinned]))]
        yield " \\\n    ".join(parts) + "\n"


def resolved(wanted: Iterable[str], machine: str) -> Iterator[tuple[str, str]]:
    """Yield each package as ``name==version`` and the hash of the wheel that pip would take."""
    tags = [f"manylinux_2_{minor}_{machine}" for minor in range(GLIBC, 4, -1)]
    platforms = [f"--platform={tag}" for tag in (*tags, f"manylinux2014_{machine}")]
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--report=-"]
    command += ["--target=unused", "--only-binary=:all:", f"--python-version={PYTHON}", *platforms]
    command += ["--constraint", str(ROOT / "constraints.txt"), *wanted]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, cwd=ROOT)  # noqa: S603
    for each in json.loads(done.stdout)["install"]:
        facts, file = each["metadata"], each["download_info"]["archive_info"]
        name = facts["name"].lower().replace("_", "-").replace(".", "-")
        yield f"{name}=={facts['version']}", file["hashes"]["sha256"]


if __name__ == "__main__":
    raise SystemExit(main())
