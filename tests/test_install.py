"""The wheel, installed where no source tree is in sight, and the `lexvla` command of it."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lexvla.data.demo_corpus import load_demo_corpus
from source_tree import FOLDERS, ROOT
from test_base_install import COMMAND

pytestmark = pytest.mark.slow

VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(folder)]
    if find_spec("hatchling"):  # of the dev extra: then nothing is fetched
        command.append("--no-build-isolation")
    subprocess.run([*command, str(ROOT)], check=True, cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def bin_folder(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheel into a new environment that sees the dependencies of this one."""
    home = tmp_path_factory.mktemp("installed") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(home)], check=True)
    python = home / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python)]
    subprocess.run([*pip, "install", "--quiet", "--no-deps", "--no-index", str(wheel)], check=True)
    # Only now: pip would take a LexVLA that it sees there for an old one to replace.
    (packages,) = home.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return home / "bin"


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("elsewhere")


def run(program: Path, *arguments: str, cwd: Path) -> str:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    environment["XDG_CACHE_HOME"] = str(cwd / "cache")
    done = subprocess.run(
        [str(program), *arguments], cwd=cwd, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{program.name} {' '.join(arguments)}\n{done.stderr}"
    return done.stdout


def assert_sums_to_score(hit: dict[str, Any]) -> None:
    matches = hit["explanation"]["matches"]
    assert matches
    for match in matches:
        product = match["query_weight"] * match["document_weight"]
        assert math.isclose(product, match["product"], rel_tol=1e-6)
    parts = {part["leg"]: part for part in hit["explanation"]["parts"]}
    total = math.fsum(part["part"] for part in parts.values())
    assert math.isclose(total, hit["score"], rel_tol=1e-6)
    # The words' products are the lexical leg's score, and their parts what that leg adds.
    products = math.fsum(match["product"] for match in matches)
    assert math.isclose(products, parts["lexical"]["score"], rel_tol=1e-6)
    words = math.fsum(match["part"] for match in matches)
    assert math.isclose(words, parts["lexical"]["part"], rel_tol=1e-6, abs_tol=1e-12)


def test_the_wheel_holds_all_that_is_needed(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = archive.read(f"lexvla-{VERSION}.dist-info/METADATA").decode()
    for package in FOLDERS:
        assert f"{package}/py.typed" in names
    assert "lexvla/data/demo_corpus.zip" in names
    assert f"lexvla-{VERSION}.dist-info/licenses/LICENSE" in names
    assert f"lexvla-{VERSION}.dist-info/licenses/NOTICE" in names
    for package, folder in FOLDERS.items():
        listed = ["git", "-C", str(folder.parent), "ls-files", package]
        tracked = subprocess.run(listed, check=True, capture_output=True, text=True).stdout
        assert set(tracked.splitlines()) <= names
    tops = {name.split("/")[0] for name in names}
    assert tops == {*FOLDERS, f"lexvla-{VERSION}.dist-info"}
    assert f"Version: {VERSION}" in metadata
    assert [name for name in names if re.fullmatch(r"lexvla/pretrained/.*\.safetensors", name)]


def test_the_installed_package_is_the_wheels(bin_folder: Path, elsewhere: Path) -> None:
    shown = "; ".join(f"print({name}.__file__)" for name in FOLDERS)
    code = f"import {', '.join(FOLDERS)}; {shown}"
    files = run(bin_folder / "python", "-c", code, cwd=elsewhere).splitlines()
    assert all(Path(file).is_relative_to(bin_folder.parent) for file in files)
    assert run(bin_folder / "lexvla", "--version", cwd=elsewhere) == f"lexvla {VERSION}\n"


def test_a_users_own_files_stand_in_no_ones_way(bin_folder: Path, tmp_path: Path) -> None:
    for name in ("search", "indexer"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('not this one')\n")
    environment = {**os.environ, "PYTHONPATH": "."}
    for command in (["lexvla"], ["python", "-m", "lexvla_search"]):
        program = [str(bin_folder / command[0]), *command[1:], "--version"]
        done = subprocess.run(
            program, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert (done.stdout, done.stderr) == (f"lexvla {VERSION}\n", "")


def test_encode_on_two_machines_and_index_here(bin_folder: Path, elsewhere: Path) -> None:
    (elsewhere / "photos").mkdir()
    for item in load_demo_corpus("emoji")[:6]:
        (elsewhere / "photos" / f"{item.id}.png").write_bytes(item.data)
    lexvla = bin_folder / "lexvla"
    for i in (1, 2):
        part = ("--out", f"{i}.npz", "--shard", f"{i}/2")
        run(lexvla, "encode", "photos", *part, cwd=elsewhere)
    merge = ("index", "--from-encoded", "1.npz", "2.npz", "--index", "merged.lex", "--json")
    assert json.loads(run(lexvla, *merge, cwd=elsewhere))["documents"] == 6
    again = ("index", "photos", "--index", "merged.lex", "--prune", "--strict")
    assert run(lexvla, *again, cwd=elsewhere) == "0 added, 6 unchanged; 6 in the index\n"


@pytest.fixture(scope="module")
def demo(bin_folder: Path, elsewhere: Path) -> dict[str, list[str]]:
    """Build the demo's index as where torch is not installed. Return what each query finds."""
    command = ("-c", COMMAND, "demo", "--index", "demo.lex", "--json")
    results = json.loads(run(bin_folder / "python", *command, cwd=elsewhere))["results"]
    return {each["query"]["text"]: [hit["id"] for hit in each["hits"]] for each in results}


def test_the_demo_finds_what_is_asked_for(demo: dict[str, list[str]]) -> None:
    assert demo["smiling cat"][0] == "1f638"
    assert demo["rocket"][0] == "photo-rocket"


@pytest.mark.usefixtures("demo")
def test_the_demo_prints_hits_and_what_next(bin_folder: Path, elsewhere: Path) -> None:
    printed = run(bin_folder / "lexvla", "demo", "--index", "demo.lex", cwd=elsewhere)
    assert "red heart" in printed
    assert "cup of coffee" in printed
    assert (elsewhere / "demo.lex").is_dir()
    # No runtime keeps a record of its use, either.
    assert not (elsewhere / "cache").exists()


@pytest.mark.usefixtures("demo")
def test_explanations_sum_to_the_score(bin_folder: Path, elsewhere: Path) -> None:
    arguments = ("search", "red heart", "--index", "demo.lex", "--explain", "--json")
    hits = json.loads(run(bin_folder / "lexvla", *arguments, cwd=elsewhere))["hits"]
    assert len(hits) == 10
    assert [hit["rank"] for hit in hits] == list(range(1, 11))
    assert hits == sorted(hits, key=lambda hit: (-hit["score"], hit["id"]))
    for hit in hits:
        assert_sums_to_score(hit)
        assert all(match["patch"] is not None for match in hit["explanation"]["matches"])
    assert any("heart" in hit["document"]["metadata"]["label"] for hit in hits)


@pytest.mark.usefixtures("demo")
def test_info_tells_of_the_demo(bin_folder: Path, elsewhere: Path) -> None:
    facts = run(bin_folder / "lexvla", "info", "--index", "demo.lex", "--json", cwd=elsewhere)
    assert len(load_demo_corpus()) in json.loads(facts).values()


@pytest.mark.usefixtures("demo")
def test_one_hit_in_full_with_its_heat_map(bin_folder: Path, elsewhere: Path) -> None:
    arguments = ("explain", "2764", "red heart", "--index", "demo.lex", "--heatmap", "why.png")
    hit = json.loads(run(bin_folder / "lexvla", *arguments, "--json", cwd=elsewhere))["hit"]
    assert hit["id"] == "2764"
    assert_sums_to_score(hit)
    with Image.open(elsewhere / "why.png") as image:
        image.load()
        assert image.format == "PNG"
        assert len(image.getcolors(1 << 24) or ()) > 10


@pytest.mark.usefixtures("demo")
def test_the_readmes_python_runs_as_it_stands(bin_folder: Path, elsewhere: Path) -> None:
    code, *_ = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    for name, source in {"heart": "2764", "dog": "1f436"}.items():
        drawing = elsewhere / "demo.lex.images" / "images" / f"{source}.png"
        (elsewhere / f"{name}.png").write_bytes(drawing.read_bytes())
    printed = run(bin_folder / "python", "-c", code, cwd=elsewhere)
    hits = re.findall(r"^(heart|dog) ([0-9.]+)$", printed, re.MULTILINE)
    assert [name for name, _ in hits] == ["heart", "dog"]
    assert float(hits[0][1]) > 10 * float(hits[1][1]) > 0
