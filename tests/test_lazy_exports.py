"""Public names that are loaded when they are first used."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import lexvla
import lexvla_indexer
import lexvla_search

SHOW = """
import sys
sys.path.insert(0, sys.argv[1])
import lexvla
assert lexvla.__file__.startswith(sys.argv[1]), lexvla.__file__
print(lexvla.Vocabulary(["cat"]).terms, "torch" in sys.modules)
"""


def test_a_package_lists_its_own_names_beside_the_public_ones() -> None:
    for package in (lexvla, lexvla_indexer, lexvla_search):
        assert {"__name__", "__path__", *package.__all__} <= {*dir(package)}


def test_a_name_that_there_is_not() -> None:
    assert not hasattr(lexvla, "Nothing")


def test_a_package_in_a_zip_has_its_names(tmp_path: Path) -> None:
    folder, packed = Path(lexvla.__file__).parent, tmp_path / "packed.zip"
    with zipfile.ZipFile(packed, "w") as file:
        for path in [*folder.rglob("*.py"), *folder.rglob("*.pyi")]:
            file.write(path, path.relative_to(folder.parent))
    command = [sys.executable, "-c", SHOW, str(packed)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout == "('cat',) False\n"
