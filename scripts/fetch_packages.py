"""Download packages of npm and PyPI for the other scripts."""

from __future__ import annotations

import subprocess
import sys
import tarfile
from pathlib import Path

__all__ = ["fetch_npm", "fetch_pip"]


def fetch_npm(package: str, folder: Path) -> Path:
    """Download ``name@version`` with npm, unless it is in the folder, and return its files."""
    target = folder / package.rsplit("@", 1)[0].replace("/", "_")
    if not target.exists():
        command = ["npm", "pack", "--silent", package]
        run = subprocess.run(  # noqa: S603 - names of the scripts
            command, cwd=folder, check=True, capture_output=True, text=True
        )
        with tarfile.open(folder / run.stdout.split()[-1]) as archive:
            archive.extractall(target, filter="data")
    return target / "package"


def fetch_pip(requirement: str, folder: Path, *options: str) -> Path:
    """Download a package with pip into an empty folder and return its file."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", *options]
    subprocess.run(  # noqa: S603 - names of the scripts
        [*command, "--dest", str(folder), requirement], check=True
    )
    (file,) = folder.iterdir()
    return file
