"""The base install: search, indexing and heat maps without torch, transformers and safetensors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

from lexvla.data.demo_corpus import load_demo_corpus
from source_tree import PYTHONPATH, ROOT

BASE = {
    *("defusedxml", "numpy", "onnxruntime", "pathspec", "pillow", "scipy", "tokenizers", "tqdm"),
}
TORCH = ("torch", "transformers", "safetensors", "timm", "torchvision")
# Run first: as if none of them were installed.
WITHOUT = f"""
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {TORCH!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Blocked())
"""
COMMAND = f"{WITHOUT}\nfrom lexvla_search.cli import main\nsys.exit(main(sys.argv[1:]))"


def lexvla(*arguments: str, code: str = COMMAND) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": PYTHONPATH},
    )


def names(requirements: list[str]) -> set[str]:
    return {each.partition(">")[0].partition("[")[0] for each in requirements}


def test_the_base_has_no_torch_and_every_extra_that_needs_it_has() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    assert names(project["dependencies"]) == BASE
    assert names(extras["torch"]) == {"torch", "transformers", "safetensors", "timm"}
    for extra in ("train", "gpu", "export"):
        assert any(each.startswith("lexvla[torch") for each in extras[extra])
    for extra in ("serve", "fast", "elasticsearch", "opensearch", "evaluation", "pyserini"):
        assert not names(extras[extra]) & set(TORCH)


def test_an_index_is_built_and_searched(tmp_path: Path) -> None:
    images, index = tmp_path / "images", tmp_path / "images.lex"
    images.mkdir()
    for item in load_demo_corpus("emoji"):
        if item.id in ("2764", "1f438", "1f4d6"):
            (images / f"{item.id}.png").write_bytes(item.data)
    done = lexvla("index", str(images), "--index", str(index))
    assert done.returncode == 0, done.stderr
    done = lexvla("search", "red heart", "--index", str(index), "--explain", "--json")
    assert done.returncode == 0, done.stderr
    hits = json.loads(done.stdout)["hits"]
    assert hits[0]["id"] == "2764.png"
    map_ = str(tmp_path / "map.png")
    done = lexvla("explain", hits[0]["id"], "red heart", "--index", str(index), "--heatmap", map_)
    assert done.returncode == 0, done.stderr
    assert Path(map_).is_file()
    done = lexvla("doctor")
    assert done.returncode == 0, done.stdout
    assert "on ONNX Runtime: it is exported" in done.stdout


def test_what_needs_torch_names_the_extra(tmp_path: Path) -> None:
    code = f"{WITHOUT}\nfrom lexvla import LexVLA\n" + (
        "from lexvla.errors import OptionalDependencyError\n"
        "for load in (lambda: LexVLA.from_pretrained(runtime='torch'),"
        " lambda: LexVLA.from_backbones('a', 'b')):\n"
        "    try: load()\n"
        "    except OptionalDependencyError as error: print(error)\n"
    )
    done = lexvla(code=code)
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    assert all(line.endswith("run: pip install 'lexvla[torch]'") for line in lines)
    for command, extra in (
        (("train", "recipes/default.toml"), "train"),
        (("export", "x", "--out", str(tmp_path)), "export"),
    ):
        done = lexvla(*command)
        assert done.returncode == 1
        assert f"pip install 'lexvla[{extra}]'" in done.stderr
