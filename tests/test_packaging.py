"""The shape of the packages: what imports what and what is public."""

from __future__ import annotations

import ast
import importlib
import os
import pkgutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from source_tree import FOLDERS, PYTHONPATH, ROOT

PACKAGES = tuple(FOLDERS)
# The extras that CI installs.
CI = (
    *("torch", "export", "elasticsearch", "train", "gpu", "evaluation", "fast", "serve", "dev"),
    "pyserini",
)
# What `lexvla_indexer` may use of `lexvla`: data types and files, never the model.
DATA_MODULES = {
    *("lexvla.encoder", "lexvla.encoding", "lexvla.errors", "lexvla.images"),
    *("lexvla.image_formats", "lexvla.photo_metadata"),
    *(
        "lexvla.data.hf_datasets",
        "lexvla.data.webdataset_shards",
        "lexvla.lazy_exports",
        "lexvla.version",
    ),
    "lexvla.vocabulary",
}
HEAVY = {"torch", "transformers", "jnius", "matplotlib", "pycocotools", "triton"}


def sources(package: str) -> list[Path]:
    return sorted(FOLDERS[package].rglob("*.py"))


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the line and full name of every module that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            assert node.module
            # `from lexvla import encoding` imports the module as well as `import lexvla.encoding`.
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            known = [name for name in names if is_module(name)]
            yield from ((node.lineno, name) for name in known or [node.module])


def is_module(name: str) -> bool:
    package, *rest = name.split(".")
    if package not in FOLDERS:
        return False
    path = FOLDERS[package].joinpath(*rest)
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def within(name: str, packages: set[str]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def offences(package: str, is_bad: Callable[[str], bool]) -> list[str]:
    return [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in sources(package)
        for line, name in imports(path)
        if is_bad(name)
    ]


def modules() -> list[str]:
    return [
        *PACKAGES,
        *(
            module.name
            for package in PACKAGES
            for module in pkgutil.walk_packages([str(FOLDERS[package])], f"{package}.")
        ),
    ]


def test_lexvla_imports_neither_indexer_nor_search() -> None:
    assert not offences("lexvla", lambda name: within(name, {"lexvla_indexer", "lexvla_search"}))


def test_indexer_imports_only_data_modules_of_lexvla() -> None:
    others = {"lexvla_search", "torch", "transformers"}
    assert not offences("lexvla_indexer", lambda name: within(name, others))
    assert not offences(
        "lexvla_indexer", lambda name: within(name, {"lexvla"}) and not within(name, DATA_MODULES)
    )


@pytest.mark.parametrize("package", PACKAGES)
def test_no_modules_import_each_other_in_a_circle(package: str) -> None:
    folder = FOLDERS[package]
    graph = {}
    for path in sources(package):
        parts = path.relative_to(folder.parent).with_suffix("").parts
        name = ".".join(parts).removesuffix(".__init__")
        graph[name] = {other for _, other in imports(path) if is_module(other)}
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


@pytest.mark.parametrize("package", [*PACKAGES, "lexvla_search.cli"])
def test_importing_loads_no_model_library_and_no_java(package: str) -> None:
    code = f"import {package}, sys; print(*sorted(sys.modules.keys() & {HEAVY!r}))"
    command = [sys.executable, "-c", code]
    environment = {**os.environ, "PYTHONPATH": PYTHONPATH}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == ""


@pytest.mark.parametrize("module", modules())
def test_every_public_name_exists(module: str) -> None:
    if module == "lexvla.lexical_head_triton":
        pytest.importorskip("triton", reason="needs triton: pip install triton")
    loaded = importlib.import_module(module)
    names = getattr(loaded, "__all__", None)
    if module in PACKAGES:
        assert names, f"{module} names nothing public"
    for name in names or ():
        assert hasattr(loaded, name), f"{module}.__all__ names {name}, which is not there"
    assert len(set(names or ())) == len(names or ())


def test_every_pinned_version_is_exact_and_every_dependency_is_pinned() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    assert list(pins) == sorted(pins)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    asked = [*project["dependencies"], *(name for extra in CI for name in extras[extra])]
    for requirement in asked:
        name = requirement.partition("[")[0].partition(">")[0]
        assert name == "lexvla" or name in pins, f"{name} has no pin in constraints.txt"


def test_every_package_is_typed_and_has_its_data() -> None:
    for folder in FOLDERS.values():
        assert (folder / "py.typed").is_file()
    assert (FOLDERS["lexvla"] / "data" / "demo_corpus.zip").is_file()


def test_every_marker_of_the_summary_is_registered() -> None:
    from conftest import KINDS

    options = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]
    assert [marker.partition(":")[0] for marker in options["markers"]] == list(KINDS)
