"""The Java virtual machine of this process: started when an index is opened, never before."""

from __future__ import annotations

import importlib
import importlib.util
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from lexvla.errors import (
    EngineUnavailableError,
    IndexCorruptError,
    IndexLockedError,
    IndexVersionError,
    OptionalDependencyError,
)
from lexvla_indexer.jdk import find_jdk

__all__ = [
    "java_cast",
    "java_class",
    "java_errors",
    "java_exception",
    "pyserini_imports",
    "start_java",
]

EXTRA = "pyserini"
_JARS = ("resources", "jars")
_JAR = "anserini-*-fatjar.jar"
_UNSAFE_OPTION_FROM = 23  # the first Java that has the option

_starting = threading.Lock()
_started_by: int | None = None  # the process
_quiet: Any = None  # Java forgets loggers that nothing refers to

_ERRORS = {
    "LockObtainFailedException": (IndexLockedError, "another writer has this index"),
    "IndexNotFoundException": (IndexCorruptError, "there is no Lucene index"),
    "IndexFormatTooNewException": (IndexVersionError, "a newer Lucene wrote this index"),
    "IndexFormatTooOldException": (IndexVersionError, "a Lucene too old wrote this index"),
    "CorruptIndexException": (IndexCorruptError, "the index is damaged"),
    "EOFException": (IndexCorruptError, "a file is truncated"),
    "NoSuchFileException": (IndexCorruptError, "a file is missing"),
    "FileNotFoundException": (IndexCorruptError, "a file is missing"),
    "OutOfMemoryError": (
        EngineUnavailableError,
        "Java has too little memory; JAVA_TOOL_OPTIONS=-Xmx8g lets it have 8 GB",
    ),
}


def start_java() -> None:
    """Start the virtual machine with Anserini's classes, unless it is running.

    Its heap is what Java chooses, at most a quarter of the memory; ``JAVA_TOOL_OPTIONS``,
    such as ``-Xmx8g``, changes that. It leaves the signals of the process alone.

    Raises:
        EngineUnavailableError: There is no Java of version 21 or newer, it does not start, or
            this process was forked from one in which it runs.
        OptionalDependencyError: pyjnius or Pyserini is not installed.
    """
    global _started_by
    with _starting:
        if _started_by == os.getpid():
            return
        if _started_by is not None:
            rule = "Java runs in the process that this one was forked from; spawn processes instead"
            raise EngineUnavailableError(rule)
        _start()
        _started_by = os.getpid()


def _start() -> None:
    global _quiet
    jar = _fat_jar()
    try:
        config = importlib.import_module("jnius_config")
    except ModuleNotFoundError as error:
        raise OptionalDependencyError("pyjnius", EXTRA) from error
    if not config.vm_running:
        jdk = find_jdk()
        options = [
            "-Xrs",  # or Java would end the process at Ctrl-C without Python's clean-up
            "-XX:-UsePerfData",
            # With -Xrs Java listens for debuggers at a socket in /tmp, and a killed process leaves
            # it there: a later Java of that process number cannot listen then.
            "-XX:+DisableAttachMechanism",
            "-Djava.awt.headless=true",
            "--enable-native-access=ALL-UNNAMED",
        ]
        if jdk.numbers >= (_UNSAFE_OPTION_FROM,):
            options.append("--sun-misc-unsafe-memory-access=allow")  # how Lucene 9 unmaps files
        config.add_classpath(str(jar))
        config.set_options(*options)
        try:
            with _environment(JAVA_HOME=str(jdk.home), JVM_PATH=str(jdk.library)):
                importlib.import_module("jnius")
        except (ImportError, OSError, SystemError, RuntimeError, ValueError) as error:
            rule = f"Java {jdk.version} at {jdk.home} does not start"
            raise EngineUnavailableError(f"{rule}: {error}") from error
    try:
        logger = java_class("java.util.logging.Logger").getLogger("org.apache.lucene")
        java_class("io.anserini.search.similarity.ImpactSimilarity")
    except java_exception() as error:
        rule = "Java runs in this process already, without the classes of Anserini"
        raise EngineUnavailableError(f"{rule}: {error}") from error
    logger.setLevel(java_class("java.util.logging.Level").SEVERE)
    _quiet = logger


def _fat_jar() -> Path:
    spec = importlib.util.find_spec("pyserini")
    folders = (spec.submodule_search_locations or []) if spec else []
    jars = sorted(jar for folder in folders for jar in Path(folder, *_JARS).glob(_JAR))
    if not jars:
        raise OptionalDependencyError("pyserini", EXTRA)
    return jars[-1]


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def pyserini_imports() -> Iterator[None]:
    """Let ``pyserini.search.lucene`` be imported, and leave the environment as it was.

    ::

        with pyserini_imports():
            from pyserini.search.lucene import LuceneImpactSearcher

    Pyserini 1.6 makes an OpenAI client when it is imported, which fails without a key: a
    placeholder stands in, and nothing is sent. Java is started first (see `start_java` for its
    errors), without an option of Pyserini's that not every Java knows.
    """
    start_java()
    with _environment(OPENAI_API_KEY=os.environ.get("OPENAI_API_KEY") or "unused"):
        yield


@cache
def java_class(name: str) -> Any:
    """Return a Java class by its full name. Java must be running."""
    return importlib.import_module("jnius").autoclass(name)


def java_cast(name: str, thing: Any) -> Any:
    """Return an object cast to a class or interface, if pyjnius must choose a method by it."""
    return importlib.import_module("jnius").cast(name, thing)


def java_exception() -> Any:
    """Return the class that pyjnius raises for everything that Java throws."""
    return importlib.import_module("jnius").JavaException


@contextmanager
def java_errors(place: object) -> Iterator[None]:
    """Turn what Lucene throws into our errors, which name the place."""
    try:
        yield
    except java_exception() as error:
        name = str(error.classname).rpartition(".")[2]
        if name in _ERRORS:
            kind, rule = _ERRORS[name]
            raise kind(f"{place}: {rule} ({error.innermessage})") from error
        if name in ("IOException", "FileSystemException", "AccessDeniedException"):
            raise OSError(f"{place}: {error.innermessage}") from error
        raise
