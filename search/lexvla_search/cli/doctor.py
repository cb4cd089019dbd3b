"""``lexvla doctor``: what this machine can run, and how to get the rest."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import sqlite3
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from lexvla.errors import EngineUnavailableError
from lexvla.model import is_exported
from lexvla_indexer.jdk import GET as JAVA_GET
from lexvla_indexer.jdk import find_jdk, installed_jdks, java_home
from lexvla_search.cli.arguments import JsonOptions, load_model, option
from lexvla_search.cli.console import print_columns, print_facts, print_json

MIN_PYTHON = (3, 11)
MIN_SQLITE = (3, 35, 0)
LUCENE = "indexes lucene:DIR"
TORCH = "training, and models that are not exported"
ELASTIC = "indexes elasticsearch+http(s)://..."


@dataclass(frozen=True)
class Options(JsonOptions):
    """How to print the checks, and a model to load beside."""

    model: str | None = option("load this model too, and describe it", metavar="M")
    device: str = option("where it runs: cpu, cuda, ...", default="cpu", metavar="D")


@dataclass(frozen=True)
class Check:
    """One thing that LexVLA can use.

    Attributes:
        ok: Whether it is here and new enough.
        required: Whether LexVLA cannot work without it.
        found: The version or place found; empty if none.
        gives: What it is for.
        get: How to get it; empty if it is here.
    """

    name: str
    ok: bool
    required: bool
    found: str
    gives: str
    get: str


def run(options: Options) -> int:
    """Print all checks. Fail only if LexVLA cannot work at all."""
    checks = [check() for check in _CHECKS]
    healthy = all(check.ok for check in checks if check.required)
    named = load_model(options.model, options.device) if options.model else None
    facts = {"model": named.facts()} if named else {}
    if options.json:
        print_json({"ok": healthy, "checks": [asdict(check) for check in checks], **facts})
    else:
        print_columns(
            (_mark(check), check.name, check.found or "not found", check.gives) for check in checks
        )
        missing = [(check.name, check.get) for check in checks if not check.ok]
        if missing:
            print("\nTo get the rest:")
            print_columns(missing, indent="  ")
        if facts:
            print()
            print_facts(facts)
        print("\n" + ("Search and indexing work." if healthy else "Search does not work yet."))
    return 0 if healthy else 1


def _mark(check: Check) -> str:
    if check.ok:
        return "ok"
    return "MISSING" if check.required else "-"


def _check(name: str, ok: bool, found: str, gives: str, get: str, required: bool = False) -> Check:
    return Check(name, ok, required, found, gives, "" if ok else get)


def _python() -> Check:
    found = ".".join(map(str, sys.version_info[:3]))
    ok = sys.version_info >= MIN_PYTHON
    return _check("Python", ok, found, "everything", "install Python 3.11 or newer", True)


def _sqlite() -> Check:
    found = sqlite3.sqlite_version
    ok = tuple(map(int, found.split("."))) >= MIN_SQLITE
    needed = ".".join(map(str, MIN_SQLITE))
    return _check("SQLite", ok, found, "indexes", f"a Python built with SQLite {needed}", True)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _required(package: str) -> Callable[[], Check]:
    def check() -> Check:
        found = _version(package)
        return _check(package, bool(found), found, "models", f"pip install {package}", True)

    return check


def _optional(name: str, package: str, gives: str, extra: str) -> Callable[[], Check]:
    def check() -> Check:
        found = _version(package)
        return _check(name, bool(found), found, gives, f"pip install 'lexvla[{extra}]'")

    return check


def _model() -> Check:
    spec = importlib.util.find_spec("lexvla")
    places = (spec.submodule_search_locations or []) if spec else []
    weights = [file for place in places for file in Path(place).glob("pretrained/**/*.safetensors")]
    found = ""
    if weights:
        exported = is_exported(None)
        why = "it is exported" if exported else "it is not exported"
        runtime = "ONNX Runtime" if exported else "torch"
        found = f"{weights[0].parent}, on {runtime}: {why}"
    get = "pip install --force-reinstall lexvla, or name one with --model"
    return _check("default model", bool(weights), found, "search without --model", get, True)


def _cuda() -> Check:
    get = "an NVIDIA GPU with its driver, and a torch built for CUDA (https://pytorch.org)"
    try:
        torch = importlib.import_module("torch")
    except (ImportError, OSError):  # OSError: a shared library that does not load
        return _check("CUDA", False, "", "LexVLA.from_pretrained(..., device='cuda')", get)
    ok = bool(torch.cuda.is_available())
    found = f"{torch.version.cuda}, {torch.cuda.get_device_name()}" if ok else ""
    return _check("CUDA", ok, found, "LexVLA.from_pretrained(..., device='cuda')", get)


def _java() -> Check:
    gives, named = LUCENE, java_home()
    ignored = f"; JAVA_HOME has {named.version}" if named and not named.is_suitable else ""
    if os.environ.get("JAVA_HOME") and named is None:
        ignored = "; JAVA_HOME has none"
    try:
        jdk = find_jdk()
    except EngineUnavailableError:
        newest = max(installed_jdks(), key=lambda jdk: jdk.numbers, default=None)
        found = (newest.version if newest else "none") + ignored
        return _check("JDK", False, found if newest or ignored else "", gives, JAVA_GET)
    return _check("JDK", True, f"{jdk.version} at {jdk.home}{ignored}", gives, JAVA_GET)


def _elastic() -> Check:
    found = _version("elasticsearch")
    # Client 9 cannot talk to server 8; client 8 can talk to both.
    get = "pip install 'lexvla[elasticsearch]'"
    return _check("Elasticsearch client", found.startswith("8."), found, ELASTIC, get)


_CHECKS: tuple[Callable[[], Check], ...] = (
    _python,
    _sqlite,
    _required("onnxruntime"),
    _model,
    _optional("torch", "torch", TORCH, "torch"),
    _optional("transformers", "transformers", TORCH, "torch"),
    _optional("onnxscript", "onnxscript", "lexvla export", "export"),
    _cuda,
    _optional("bitsandbytes", "bitsandbytes", "pretrained language models in 4 or 8 bits", "gpu"),
    _optional("peft", "peft", "LoRA on pretrained language models", "gpu"),
    _optional("Matplotlib", "matplotlib", "plots of lexvla sparsity", "evaluation"),
    _optional("pycocotools", "pycocotools", "annotations for lexvla patchdis", "evaluation"),
    _optional(
        "Numba", "numba", "compiled search loops, several times faster on large indexes", "fast"
    ),
    _optional(
        "faiss", "faiss-cpu", "inverted lists for dense legs of 100,000 rows or more", "fast"
    ),
    _optional("pillow-heif", "pillow-heif", "HEIC and HEIF pictures", "heif"),
    _optional("JPEG XL plugin", "pillow-jxl-plugin", "JPEG XL pictures", "jxl"),
    _optional("rawpy", "rawpy", "RAW files of cameras", "raw"),
    _optional("watchfiles", "watchfiles", "lexvla watch", "watch"),
    _optional("datasets", "datasets", "Hugging Face datasets", "hugging-face"),
    _optional("ir_datasets", "ir_datasets", "test collections by name", "ir-datasets"),
    _optional("PyArrow", "pyarrow", "manifests that are .parquet files", "parquet"),
    _optional("FastAPI", "fastapi", "lexvla serve, the page and the API", "serve"),
    _java,
    _optional("Pyserini", "pyserini", LUCENE, "pyserini"),
    _elastic,
    _optional(
        "OpenSearch client", "opensearch-py", "indexes opensearch+http(s)://...", "opensearch"
    ),
)
